"""An image -> the decision of a registered model, and a picture of what speaks for it."""

from __future__ import annotations

from pathlib import Path

from equipoise.compare import gradcam
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_path
from equipoise.registry import models
from equipoise.service import vectors
from equipoise.service.packaged import Packaged
from equipoise.service.predictor import Explained

_DOTS_PER_INCH = 150


def explain_image(
    model_uri: str, image_path: Path, out_path: Path, class_name: str | None, root: Path
) -> str:
    """Draw the image and its map, and say the decision in one line.

    Args:
        model_uri: A model, for example models:/equipoise-demo@champion.
        image_path: An image file.
        out_path: PNG to write.
        class_name: Map what speaks for this class; None for the one decided for.
        root: Folder that holds params.yaml.

    Raises:
        ConfigError: For another suffix, a model of others, or a class that the model does not know.
        DataError: For a file that cannot be read as an image.
    """
    if out_path.suffix.lower() != ".png" or out_path.is_dir():
        raise ConfigError(
            f"The picture is written as PNG, and {out_path} is no name of such a file. Use -o NAME.png."
        )
    try:
        content = image_path.read_bytes()
    except OSError as error:
        raise DataError(f"{image_path} cannot be read: {error.strerror}.") from error
    explained = _explain(model_uri, content, class_name, root)
    drawn = gradcam.figure(explained.pixels, explained.heat, explained.text)
    with atomic_path(out_path) as temporary:
        drawn.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)
    decision = explained.text.replace("\n", "; ")
    return f"{image_path}: {decision}; written to {out_path}"


def _explain(model_uri: str, content: bytes, class_name: str | None, root: Path) -> Explained:
    """Ask a registered model, by whichever code it is run."""
    model = models.load(model_uri, root)
    made_by = vectors.made_by(model)
    if made_by is not None:
        raise ConfigError(f"{model_uri} takes vectors of {made_by}: there is no picture to map.")
    if isinstance(model, Packaged):
        return model.explain(content, class_name)
    predictor = getattr(model.unwrap_python_model(), "predictor", None)
    if predictor is None:
        raise ConfigError(f"{model_uri} is no model of Equipoise, so its maps cannot be drawn.")
    return predictor.explain(content, class_name)
