"""A table of backbones: constructor, pixel scaling, last block, weights. A new one is one row."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.errors import DataError, unknown_name
from equipoise.core.text import first_line
from equipoise.embed import cut

_HOST = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True)
class Backbone:
    """One row of the table.

    Attributes:
        module: Module of keras.applications; its `preprocess_input` is the pixel scaling (input
            0..255, RGB).
        constructor: Name of the constructor in it.
        address: ImageNet weights without the top.
        file_bytes: Size of that file.
        md5: MD5 of that file; empty where none is published.
        last_block: Layers whose name starts with one of these are the last block, for fine-tuning.
        num_features: Width of the features.
        images_per_second: Of a pass at 224 px on 2 cores, for estimates where nothing was measured
            yet.
    """

    module: str
    constructor: str
    address: str
    file_bytes: int
    md5: str
    last_block: tuple[str, ...]
    num_features: int
    images_per_second: float

    @property
    def file_name(self) -> str:
        """Name of the ImageNet weights file."""
        return self.address.rsplit("/", 1)[-1]


TABLE = {
    "densenet201": Backbone(
        module="densenet",
        constructor="DenseNet201",
        address=f"{_HOST}/densenet/densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5",
        file_bytes=74_836_368,
        md5="c13680b51ded0fb44dff2d8f86ac8bb1",
        last_block=("conv5", "bn"),
        num_features=1920,
        images_per_second=18.0,
    ),
    "vgg16": Backbone(
        module="vgg16",
        constructor="VGG16",
        address=f"{_HOST}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        file_bytes=58_889_256,
        md5="6d6bbae143d832006294945121d1f1fc",
        last_block=("block5",),
        num_features=512,
        images_per_second=10.0,
    ),
    "mobilenetv2": Backbone(
        module="mobilenet_v2",
        constructor="MobileNetV2",
        address=(
            f"{_HOST}/mobilenet_v2/"
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
        ),
        file_bytes=9_406_464,
        md5="",
        last_block=("block_16", "Conv_1"),
        num_features=1280,
        images_per_second=100.0,
    ),
}


def load_row(name: str) -> Backbone:
    """The row of one backbone.

    Raises:
        ConfigError: When there is none; it names the nearest one.
    """
    if name not in TABLE:
        raise unknown_name("backbone", name, TABLE)
    return TABLE[name]


def load_keras() -> Any:
    """Import Keras with TensorFlow, without the lines about absent GPUs that alarm for nothing."""
    # TensorFlow would take the whole memory of every GPU, also where another process or worker
    # needs some.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    # Without oneDNN, which TensorFlow leaves out on some processors, it gives its memory back
    # after every operation, and asking for it again takes half of a pass.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    with _silent_stderr():
        import keras
        import tensorflow as tf

        # The lines come when TensorFlow first looks for devices.
        tf.config.list_logical_devices()
    return keras


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what is written to standard error, also by code that is not Python's."""
    stderr = 2
    sys.stderr.flush()
    kept = os.dup(stderr)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, stderr)
        yield
    finally:
        os.dup2(kept, stderr)
        os.close(kept)
        os.close(nothing)


def devices() -> list[str]:
    """GPUs a pass is divided over, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return []
    # A process sees one MIG part at a time, so the list given to this one says more than what it
    # sees.
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = [name for name in names if name.strip()]
    return named or [str(number) for number in range(len(gpus))]


# --- building -------------------------------------------------------------------------------------


def build(name: str, weights: str, size_px: int, pipeline: str = "", root: Path = Path()) -> Any:
    """Build pixels -> features: scaling, convolutions and average pooling as one flat Keras model.

    With a cut it ends there: pixels -> activations, flat.

    Args:
        name: A row of the table.
        weights: "imagenet", "random" (from a fixed seed) or the path of an .h5 file without the
            top.
        size_px: Width and height of the input, at least 32.
        pipeline: `/mixed-float16` or `/mixed-bfloat16` in it computes in that precision,
            `/stored-float16` rounds the features: the served model then sees what the heads were
            fitted on. `/cut-…` ends the network at a cut, see `cut.text_of`.
        root: Folder that holds `weights/`, and that a relative path of weights starts from.

    Returns:
        keras.Model from float32 (batch, size_px, size_px, 3), 0..255 RGB, to float32 (batch,
        num_features), or float16; with a cut (batch, width).

    Raises:
        DataError: When the weights are not there and cannot be downloaded, or do not fit.
    """
    keras = load_keras()
    row = load_row(name)
    path = _weights_file(name, weights, root)
    # Random weights must be the same on every run.
    keras.utils.set_random_seed(0)
    pixels = keras.Input((size_px, size_px, 3), name="pixels")
    try:
        with _precision(keras, pipeline):
            network = _without_top(keras, row, pixels, path)
    except (ValueError, OSError) as error:
        if path is None:
            raise
        raise DataError(
            f"The weights file {path} does not fit {row.constructor} without its top: {first_line(error)} "
            f"Expected is a file like {row.file_name}."
        ) from error
    features = network.output
    numbers = cut.of_pipeline(pipeline)
    if numbers:
        features = cut.joined(keras.Model(pixels, features), numbers)
    stored = "float16" if "/stored-float16" in pipeline else "float32"
    if features.dtype != stored:
        features = keras.layers.Identity(dtype=stored, name="features")(features)
    return keras.Model(pixels, features, name=name)


@contextmanager
def _precision(keras: Any, pipeline: str) -> Iterator[None]:
    """Let Keras compute in the precision that a pipeline names; the setting before comes back."""
    before = keras.config.dtype_policy()
    try:
        if "/mixed-float16" in pipeline:
            keras.config.set_dtype_policy("mixed_float16")
        elif "/mixed-bfloat16" in pipeline:
            keras.config.set_dtype_policy("mixed_bfloat16")
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _without_top(keras: Any, row: Backbone, pixels: Any, path: Path | None) -> Any:
    """The published network on scaled pixels, with random weights where no file is given."""
    module = getattr(keras.applications, row.module)
    constructor = getattr(module, row.constructor)
    return constructor(
        include_top=False,
        weights=None if path is None else str(path),
        input_tensor=module.preprocess_input(pixels),
        input_shape=pixels.shape[1:],
        pooling="avg",
    )


# --- weights --------------------------------------------------------------------------------------


def weights_digest(model: Any) -> str:
    """SHA-256 over every weight of a Keras model, in order."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(value.tobytes())
    return digest.hexdigest()


def weights_there(name: str, weights: str, root: Path) -> bool:
    """Say whether the weights are on this machine, so that nothing has to be downloaded.

    Args:
        name: A row of the table.
        weights: "imagenet", "random" or the path of a file.
        root: Folder that holds `weights/`, and that a relative path starts from.
    """
    if weights == "random":
        return True
    if weights != "imagenet":
        return _given_file(weights, root).is_file()
    file_name = load_row(name).file_name
    downloaded = Path.home() / ".keras/models" / file_name
    return (_weights_folder(root) / file_name).is_file() or downloaded.is_file()


def _weights_folder(root: Path) -> Path:
    """Where ImageNet weights are looked for before anything is downloaded; git-ignored."""
    return root / "weights"


def _given_file(weights: str, root: Path) -> Path:
    """The file that a path in the settings means."""
    return root / Path(weights).expanduser()


def _weights_file(name: str, weights: str, root: Path) -> Path | None:
    """Find or download a weights file; None for random weights."""
    if weights == "random":
        return None
    if weights == "imagenet":
        beside = _weights_folder(root) / load_row(name).file_name
        return beside if beside.is_file() else _download(name, _weights_folder(root))
    path = _given_file(weights, root)
    if not path.is_file():
        raise DataError(
            f"embed.weights names {weights}, and there is no such file. It may be imagenet, random, or the path "
            f"of an .h5 file of {name} without its top."
        )
    return path


def _download(name: str, folder: Path) -> Path:
    """Let Keras download the ImageNet weights, or take what it has downloaded before."""
    row = load_row(name)
    try:
        path = load_keras().utils.get_file(
            row.file_name, row.address, cache_subdir="models", file_hash=row.md5 or None
        )
    except Exception as error:  # Keras raises plain Exception for a failed download
        md5 = f"MD5 {row.md5}" if row.md5 else "no published MD5"
        raise DataError(
            f"The ImageNet weights of {name} could not be downloaded ({first_line(error)}). Download "
            f"{row.address} ({row.file_bytes:,} bytes, {md5}) on a machine with internet and put it into "
            f"{folder}/, or set embed.weights to its path (`embed: {{weights: {{{name}: PATH}}}}`), or to "
            f"`random` to try the program."
        ) from error
    return Path(path)
