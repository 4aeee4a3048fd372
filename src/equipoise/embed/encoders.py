"""Networks that are no application of Keras: a saved .keras file, or a backbone of KerasHub by its preset."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from equipoise.core import extras
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import digest_of, file_digest
from equipoise.core.text import first_line

#: Begins what `embed.weights` says of a backbone of KerasHub: `keras_hub:resnet_18_imagenet`.
PRESET = "keras_hub:"
_SAVED = ".keras"
#: Follows how pixels become numbers, and is followed by the digest of the file or preset.
_PART = "/encoder-"
#: Before the names of its layers: one may be called like one of ours.
_PREFIX = "encoder_"


def is_encoder(weights: str) -> bool:
    """Whether a setting of `embed.weights` names a whole network, which needs no application of Keras."""
    return is_preset(weights) or weights.endswith(_SAVED)


def is_preset(weights: str) -> bool:
    """Whether a setting of `embed.weights` names a preset of KerasHub."""
    return weights.startswith(PRESET)


def place(weights: str, root: Path) -> Path | None:
    """The file or folder that a network is read from; None for a preset that KerasHub has to find."""
    if not is_preset(weights):
        return root / Path(weights).expanduser()
    folder = root / Path(weights.removeprefix(PRESET)).expanduser()
    return folder if folder.is_dir() else None


def pipeline_part(weights: str, root: Path) -> str:
    """What tells this network from others in the words for how pixels become numbers; empty for an application.

    It is the digest of the file, or of the files of a preset's folder: weights alone do not say how
    pixels are scaled.

    Raises:
        DataError: When there is no such file.
    """
    if not is_encoder(weights):
        return ""
    path = place(weights, root)
    if path is None:
        digest = digest_of(weights)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        digest = digest_of({file.relative_to(path).as_posix(): file_digest(file) for file in files})
    else:
        _require_file(path, weights)
        digest = file_digest(path)
    return f"{_PART}{digest[:16]}"


def require_unchanged(weights: str, pipeline: str, root: Path) -> None:
    """Refuse a file that is another one than the pipeline names.

    Raises:
        DataError: Likewise when there is none.
    """
    if _PART in pipeline and pipeline_part(weights, root) not in pipeline:
        raise DataError(
            f"The network {weights} has changed since it made the features. Restore it, or run `dvc repro`."
        )


def features(keras: Any, name: str, weights: str, pixels: Any, root: Path) -> Any:
    """Put a network on pixels, layer by layer: none of them is a model afterwards, which Grad-CAM needs.

    A feature map is pooled by its mean, and so are the tokens of a vision transformer.

    Args:
        keras: The package.
        name: What the study calls it.
        weights: The setting.
        pixels: Keras tensor, float32 (batch, size_px, size_px, 3), 0..255 RGB.
        root: Folder that relative paths start from.

    Returns:
        Keras tensor (batch, num_features).

    Raises:
        ConfigError: When it takes other pictures, or KerasHub is not installed.
        DataError: When it cannot be loaded, holds code, or gives something else than features.
    """
    if is_preset(weights):
        model, scaled = _load_preset(keras, weights, pixels, root)
    else:
        model, scaled = _load_saved(keras, root / Path(weights).expanduser(), weights), pixels
    what = f"The network {weights} of {name}"
    _require_pictures(model, pixels.shape[1], what)
    output = _Copies(keras, what).put(model, scaled, _PREFIX)
    return _pooled(keras, output, what)


def _require_file(path: Path, weights: str) -> None:
    if not path.is_file():
        raise DataError(
            f"embed.weights names {weights}, and there is no such file. It is a model that Keras saved, as by "
            f'`model.save("encoder.keras")`.'
        )


def _load_saved(keras: Any, path: Path, weights: str) -> Any:
    """Load a .keras file without running code that it may hold."""
    _require_file(path, weights)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a damaged or hostile file makes Keras raise
        reason, _, _ = first_line(error).partition(". ")
        raise DataError(
            f"The network {weights} cannot be loaded: {reason[:300]}. Only layers that Keras or KerasHub has are "
            f"loaded, no Lambda and no class of your own: replace them by layers of Keras and save it again."
        ) from error


def _load_preset(keras: Any, weights: str, pixels: Any, root: Path) -> tuple[Any, Any]:
    """Load a backbone of KerasHub, and scale pixels as the preset's image converter says."""
    try:
        keras_hub = importlib.import_module("keras_hub")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"embed.weights names {weights}, and KerasHub is not installed. Run `{extras.install('hub')}`."
        ) from error
    folder = place(weights, root)
    preset = weights.removeprefix(PRESET) if folder is None else str(folder)
    try:
        model = keras_hub.models.Backbone.from_preset(preset)
    except Exception as error:  # of KerasHub, of the service it downloads from, or of the network
        raise DataError(
            f"KerasHub cannot load {weights}: {first_line(error)[:300]}. It is the name of a preset, or a "
            f"folder that `backbone.save_to_preset(FOLDER)` wrote; without internet take such a folder."
        ) from error
    converter = _converter(keras_hub, preset)
    if converter is None or (converter.scale is None and converter.offset is None):
        return model, pixels
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return model, keras.layers.Rescaling(scale, offset, name="scaling")(pixels)


def _converter(keras_hub: Any, preset: str) -> Any:
    """The image converter of a preset; None where it has none: then the backbone takes 0..255."""
    try:
        return keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception:  # KerasHub raises whatever the missing file makes it raise
        return None


def _require_pictures(model: Any, size_px: int, what: str) -> None:
    """Refuse a network that does not take one RGB picture of the study's size."""
    inputs = getattr(model, "inputs", None)
    shapes = [tuple(tensor.shape[1:]) for tensor in inputs or []]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] != 3:
        raise DataError(
            f"{what} takes {shapes or 'something unknown'}; one picture (height, width, 3), 0..255 RGB, is "
            f"expected."
        )
    height, width, _ = shapes[0]
    if {height, width} <= {None, size_px}:
        return
    advice = f"Set embed.image_size_px: {height}." if height == width else "Squares are expected."
    raise ConfigError(
        f"{what} takes pictures of {height} x {width} px, and embed.image_size_px is {size_px}. {advice}"
    )


def _pooled(keras: Any, output: Any, what: str) -> Any:
    """Features of what a network gives: a vector as it is, the mean of a map or of tokens."""
    shape = tuple(getattr(output, "shape", ()))
    if shape and shape[-1] is not None:
        if len(shape) == 2:
            return output
        if len(shape) == 3:
            return keras.layers.GlobalAveragePooling1D(name="pooled")(output)
        if len(shape) == 4:
            return keras.layers.GlobalAveragePooling2D(name="pooled")(output)
    raise DataError(
        f"{what} gives {shape or 'several outputs'}; a vector (batch, features), tokens (batch, tokens, "
        f"features) or a feature map (batch, height, width, features) is expected."
    )


class _Copies:
    """Copies of the layers of a model and of the models within it, put behind each other on other pixels.

    A layer of the file itself keeps its place in the graph of the file, and Keras tells no more what
    its output is once it has two.
    """

    def __init__(self, keras: Any, what: str) -> None:
        self.keras = keras
        self.what = what
        self.used: set[int] = set()

    def put(self, model: Any, tensor: Any, prefix: str) -> Any:
        """The output of a model on another tensor."""
        if isinstance(model, self.keras.Sequential):
            for layer in model.layers:
                tensor = self._call(layer, prefix, tensor)
            return tensor
        walk = getattr(model, "_run_through_graph", None)
        if walk is None:
            raise DataError(
                f"{self.what} holds {type(model).__name__}, a model with code of its own. Build it of layers "
                f"(Sequential or functional) and save it again."
            )

        def call(layer: Any, *arguments: Any, **named: Any) -> Any:
            return self._call(layer, prefix, *arguments, **named)

        return walk([tensor], operation_fn=lambda layer: layer, call_fn=call)

    def _call(self, layer: Any, prefix: str, *arguments: Any, **named: Any) -> Any:
        """The output of the copy of a layer with its weights."""
        if isinstance(layer, self.keras.Model):
            return self.put(layer, arguments[0], f"{prefix}{layer.name}_")
        if id(layer) in self.used:
            raise DataError(
                f"{self.what} uses the layer {layer.name} twice; each layer may stand in one place only."
            )
        self.used.add(id(layer))
        config = layer.get_config()
        config["name"] = f"{prefix}{layer.name}"
        is_layer = isinstance(layer, self.keras.Layer)
        policy = self.keras.config.dtype_policy().name
        if is_layer and policy != "float32":
            config["dtype"] = policy
        copy = type(layer).from_config(config)
        output = copy(*arguments, **named)
        if is_layer:
            copy.set_weights(layer.get_weights())
        return output
