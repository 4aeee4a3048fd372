"""A backbone of any origin: pixels -> features as one flat Keras model."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equipoise.core.errors import ConfigError, DataError
from equipoise.core.text import first_line
from equipoise.embed import applications, cut, encoders


def load_keras() -> Any:
    """Import Keras with TensorFlow, without the lines about absent GPUs that alarm for nothing.

    What keras.json in the home folder or KERAS_BACKEND say for other programs does not count.

    Raises:
        ConfigError: When this process has imported Keras with another backend.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
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
    backend = keras.config.backend()
    if backend != "tensorflow":
        raise ConfigError(
            f"Keras runs on {backend} in this process, and backbones need TensorFlow. Start another process in "
            f"which nothing imports Keras before Equipoise does, or set KERAS_BACKEND=tensorflow."
        )
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
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
        name: A network of keras.applications, or any name where `weights` is a whole network.
        weights: "imagenet", "random" (from a fixed seed), the path of an .h5 file without the top, or
            a whole network: the path of a .keras file, or `keras_hub:` and a preset.
        size_px: Width and height of the input.
        pipeline: `/mixed-float16` or `/mixed-bfloat16` in it computes in that precision,
            `/stored-float16` rounds the features: the served model then sees what the heads were
            fitted on. `/encoder-…` names the file of a whole network, `/cut-…` ends it at a cut, see
            `cut.text_of`.
        root: Folder that holds `weights/`, and that a relative path of weights starts from.

    Returns:
        keras.Model from float32 (batch, size_px, size_px, 3), 0..255 RGB, to float32 (batch,
        num_features), or float16; with a cut (batch, width).

    Raises:
        ConfigError: For an unknown name, and for a size that the network does not take.
        DataError: When the weights are not there and cannot be downloaded, or do not fit.
    """
    keras = load_keras()
    # Random weights must be the same on every run.
    keras.utils.set_random_seed(0)
    pixels = keras.Input((size_px, size_px, 3), name="pixels")
    with _precision(keras, pipeline):
        if encoders.is_encoder(weights):
            encoders.require_unchanged(weights, pipeline, root)
            features = encoders.features(keras, name, weights, pixels, root)
        else:
            features = _of_application(keras, name, weights, pixels, root)
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


def _of_application(keras: Any, name: str, weights: str, pixels: Any, root: Path) -> Any:
    """Features by a network of keras.applications, with its weights."""
    network, answers = applications.build(keras, name, pixels)
    if weights == "random":
        return network.output
    if weights == "imagenet":
        path = applications.imagenet_file(name, answers, root)
    else:
        path = _given_file(name, weights, root)
    try:
        network.load_weights(str(path))
    except (ValueError, OSError) as error:
        constructor = applications.application(name).constructor
        raise DataError(
            f"The weights file {path} does not fit {constructor} without its top: {first_line(error)} "
            f"Expected is a file like {answers.file}."
        ) from error
    return network.output


def _given_file(name: str, weights: str, root: Path) -> Path:
    """The file that a path in the settings means."""
    path = root / Path(weights).expanduser()
    if not path.is_file():
        raise DataError(
            f"embed.weights names {weights}, and there is no such file. It may be imagenet, random, the path "
            f"of an .h5 file of {name} without its top, or a whole network: a .keras file, or keras_hub: and a "
            f"preset."
        )
    return path


# --- weights --------------------------------------------------------------------------------------


def weights_digest(model: Any) -> str:
    """SHA-256 over every weight of a Keras model, in order."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(value.tobytes())
    return digest.hexdigest()


def require_known(name: str, weights: str) -> None:
    """Refuse a name that Keras has no network of, where no whole network is given for it.

    Raises:
        ConfigError: It names the nearest one.
    """
    if not encoders.is_encoder(weights):
        applications.application(name)


def weights_there(name: str, weights: str, root: Path) -> bool:
    """Say whether the weights are on this machine, so that nothing has to be downloaded.

    Args:
        name: Of the network.
        weights: As `build` takes it.
        root: Folder that holds `weights/`, and that a relative path starts from.
    """
    if weights == "random":
        return True
    if weights == "imagenet":
        return applications.imagenet_is_there(name, root)
    if encoders.is_preset(weights):
        return encoders.place(weights, root) is not None
    return (root / Path(weights).expanduser()).is_file()
