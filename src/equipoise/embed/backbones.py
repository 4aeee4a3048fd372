"""A table of backbones: constructor, pixel scaling, last block, weights. A new one is one row."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.errors import DataError, unknown_name

#: Where weights files are looked for before anything is downloaded; git-ignored.
WEIGHTS_FOLDER = Path("weights")
_HOST = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True)
class Backbone:
    """One row of the table.

    Attributes:
        module: Module of keras.applications; its `preprocess_input` is the pixel scaling (input 0..255, RGB).
        constructor: Name of the constructor in it.
        address: ImageNet weights without the top.
        file_bytes: Size of that file.
        md5: MD5 of that file.
        last_block: Layers whose name starts with one of these are the last block, for fine-tuning.
        num_features: Width of the features.
        images_per_second: Of a pass at 224 px on 2 cores, for estimates where nothing was measured yet.
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
        "densenet",
        "DenseNet201",
        f"{_HOST}/densenet/densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5",
        74_836_368,
        "c13680b51ded0fb44dff2d8f86ac8bb1",
        ("conv5", "bn"),
        1920,
        18.0,
    ),
    "vgg16": Backbone(
        "vgg16",
        "VGG16",
        f"{_HOST}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        58_889_256,
        "6d6bbae143d832006294945121d1f1fc",
        ("block5",),
        512,
        10.0,
    ),
    "mobilenetv2": Backbone(
        "mobilenet_v2",
        "MobileNetV2",
        f"{_HOST}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        9_406_464,
        "",
        ("block_16", "Conv_1"),
        1280,
        100.0,
    ),
}


def load_row(name: str) -> Backbone:
    """The row of one backbone; a ConfigError names the nearest when there is none."""
    if name not in TABLE:
        raise unknown_name("backbone", name, TABLE)
    return TABLE[name]


def load_keras() -> Any:
    """Import Keras with TensorFlow, without the lines TensorFlow prints about absent GPUs; they alarm for nothing."""
    # TensorFlow would take the whole memory of every GPU, also where another process or worker needs some.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        import keras
        import tensorflow as tf

        tf.config.list_logical_devices()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
    return keras


def weights_there(name: str, weights: str) -> bool:
    """Whether the weights of a backbone are on this machine, so that nothing has to be downloaded."""
    file = load_row(name).file_name
    places = (
        [WEIGHTS_FOLDER / file, Path.home() / ".keras/models" / file]
        if weights == "imagenet"
        else [Path(weights)]
    )
    return weights == "random" or any(path.expanduser().is_file() for path in places)


def devices() -> list[str]:
    """GPUs a pass is divided over, as CUDA_VISIBLE_DEVICES names them (MIG parts too); none on a CPU."""
    import tensorflow as tf

    found = [str(number) for number in range(len(tf.config.list_physical_devices("GPU")))]
    # A process sees one MIG part at a time, so the list given to this one says more than what it sees.
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named if found and named else found


def build(name: str, weights: str, size_px: int, pipeline: str = "") -> Any:
    """Build pixels -> features: scaling, convolutions and global average pooling as one flat Keras model.

    Args:
        name: A row of the table.
        weights: "imagenet", "random" (from a fixed seed) or the path of an .h5 file without the top.
        size_px: Width and height of the input, at least 32.
        pipeline: `/mixed-float16` or `/mixed-bfloat16` in it computes in that precision, `/stored-float16` rounds the
            features: the served model then sees what the heads were fitted on.

    Returns:
        keras.Model from float32 (batch, size_px, size_px, 3), 0..255 RGB, to float32 (batch, num_features), or float16.

    Raises:
        DataError: When the weights are not there and cannot be downloaded, or do not fit.
    """
    keras = load_keras()
    row = load_row(name)
    module = getattr(keras.applications, row.module)
    path = None if weights == "random" else _weights_file(name, weights)
    keras.utils.set_random_seed(0)  # random weights must be the same on every run
    pixels = keras.Input((size_px, size_px, 3), name="pixels")
    mixed = [kind for kind in ("float16", "bfloat16") if f"/mixed-{kind}" in pipeline]
    stored = "float16" if "/stored-float16" in pipeline else "float32"
    before = keras.config.dtype_policy()
    try:
        if mixed:
            keras.config.set_dtype_policy(f"mixed_{mixed[0]}")
        built = getattr(module, row.constructor)(
            include_top=False,
            weights=None if path is None else str(path),
            input_tensor=module.preprocess_input(pixels),
            input_shape=(size_px, size_px, 3),
            pooling="avg",
        )
    except (ValueError, OSError) as error:
        if path is None:
            raise
        raise DataError(
            f"The weights file {path} does not fit {row.constructor} without its top: {str(error).splitlines()[0]} "
            f"Expected is a file like {row.file_name}."
        ) from error
    finally:
        keras.config.set_dtype_policy(before)
    output = built.output
    if output.dtype != stored:
        output = keras.layers.Identity(dtype=stored, name="features")(output)
    return keras.Model(pixels, output, name=name)


def weights_digest(model: Any) -> str:
    """SHA-256 over every weight of a Keras model, in order."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(value.tobytes())
    return digest.hexdigest()


def _weights_file(name: str, weights: str) -> Path:
    if weights != "imagenet":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise DataError(
                f"embed.weights names {weights}, and there is no such file. It may be imagenet, random, or the path "
                f"of an .h5 file of {name} without its top."
            )
        return path
    row = load_row(name)
    beside = WEIGHTS_FOLDER / row.file_name
    if beside.is_file():
        return beside
    try:
        return Path(
            load_keras().utils.get_file(
                row.file_name, row.address, cache_subdir="models", file_hash=row.md5 or None
            )
        )
    except Exception as error:  # Keras raises plain Exception for a failed download
        size = f"{row.file_bytes:,} bytes"
        md5 = f"MD5 {row.md5}" if row.md5 else "no published MD5"
        raise DataError(
            f"The ImageNet weights of {name} could not be downloaded ({str(error).splitlines()[0]}). Download "
            f"{row.address} ({size}, {md5}) on a machine with internet and put it into {WEIGHTS_FOLDER}/, or set "
            f"embed.weights to its path (`embed: {{weights: {{{name}: PATH}}}}`), or to `random` to try the program."
        ) from error
