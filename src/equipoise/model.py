"""Backbone + head + calibrator + threshold -> the servable model: images in, probabilities and decision out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise import backbones, images, metrics
from equipoise.calibration import Calibrator
from equipoise.config import Study
from equipoise.errors import DataError, unknown_name
from equipoise.features import Embedder
from equipoise.gradcam import GradCam
from equipoise.head import Head, softmax
from equipoise.network import with_head
from equipoise.records import read_json, write_json

#: Images per call of the backbone while predicting.
_BATCH = 32


def assemble(study: Study, backbone: str, result: Path) -> Any:
    """Build the whole network of a result: pixels -> logits, one flat Keras model.

    Args:
        study: For the backbone's weights.
        backbone: Its name.
        result: Folder of the result, as `scenario.run` wrote it.

    Raises:
        DataError: When the backbone's weights are no longer those the result was made with.
    """
    description = read_json(result / "model" / "model.json")
    weights = study.settings.embed.weights_for(backbone)
    network = backbones.build(backbone, weights, description["image_size_px"], description["pipeline"])
    if backbones.weights_digest(network) != description["weights_digest"]:
        raise DataError(
            f"The weights of {backbone} have changed since {result} was made. Restore them, or run `dvc repro`."
        )
    tuned = result / "model" / "backbone.npz"
    if tuned.is_file():
        with np.load(tuned, allow_pickle=False) as saved:
            network.set_weights([saved[name] for name in sorted(saved.files)])
    return with_head(network, Head.load(result / "model" / "head.npz"))


def save(study: Study, backbone: str, result: Path, folder: Path) -> Path:
    """Write model.keras and model.json, all that service needs, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    assemble(study, backbone, result).save(folder / "model.keras")
    write_json(folder / "model.json", read_json(result / "model" / "model.json"))
    return folder


@dataclass(frozen=True)
class Explained:
    """A decision and where in the image it comes from.

    Attributes:
        pixels: uint8 (height, width, 3), as decoded.
        heat: float32 (height, width), 0..1, see `GradCam.heat_map`.
        text: The decision in words.
    """

    pixels: np.ndarray
    heat: np.ndarray
    text: str


class Predictor:
    """The served model: the same decode, resize, scaling and backbone as `embed`, then head, calibrator, threshold."""

    def __init__(self, folder: Path) -> None:
        self.description = read_json(Path(folder) / "model.json")
        self.classes: list[str] = self.description["classes"]
        self.positive = self.classes.index(self.description["positive_class"])
        self.calibrator = Calibrator.from_dict(self.description["calibrator"])
        network = backbones.load_keras().saving.load_model(Path(folder) / "model.keras", safe_mode=True)
        self.embedder = Embedder(network, self.description["image_size_px"], self.description["pipeline"])

    def logits(self, sources: Iterable[bytes | Path | np.ndarray]) -> np.ndarray:
        """Logits float64 (n, C) of images given as bytes, paths or uint8 arrays, see `images.as_rgb`.

        Raises:
            DataError: With the number of the first image that cannot be read.
        """
        pixels = [self._load(source, f"Image {number}") for number, source in enumerate(sources)]
        batches = [np.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
        if not batches:
            return np.zeros((0, len(self.classes)))
        return np.concatenate([self.embedder.features(batch) for batch in batches])

    def _load(self, source: bytes | Path | np.ndarray, name: str) -> np.ndarray:
        try:
            return self.embedder.load(images.as_rgb(source) if isinstance(source, np.ndarray) else source)
        except (ValueError, OSError) as error:
            raise DataError(f"{name} cannot be read: {error}.") from error

    def predict(self, sources: Iterable[bytes | Path | np.ndarray]) -> pd.DataFrame:
        """One row per image.

        Returns:
            `prob_<class>` (calibrated) and `raw_<class>`; `decision`, the class decided for, and `label`, its number;
            the `threshold` used, NaN where the most probable class decides.
        """
        logits = self.logits(sources)
        calibrated, raw = self.calibrator.apply(logits), softmax(logits)
        threshold = self.description["threshold"]
        decided = metrics.decide(calibrated, self.positive, 0.5 if threshold is None else threshold)
        columns: dict[str, Any] = {f"prob_{name}": calibrated[:, index] for index, name in enumerate(self.classes)}
        columns |= {f"raw_{name}": raw[:, index] for index, name in enumerate(self.classes)}
        columns["decision"] = [self.classes[label] for label in decided]
        columns["label"] = np.asarray(decided, dtype=np.int64)
        return pd.DataFrame({**columns, "threshold": np.nan if threshold is None else threshold})

    @cached_property
    def _cam(self) -> GradCam:
        return GradCam(self.embedder.model)

    def explain(self, source: bytes | Path | np.ndarray, class_name: str | None = None) -> Explained:
        """Predict one image and map what speaks for a class (left out: the one decided for).

        Raises:
            ConfigError: For a class the model does not know.
            DataError: For a source that is not an image.
        """
        if class_name is not None and class_name not in self.classes:
            raise unknown_name("class", class_name, self.classes, " in this model")
        try:
            pixels = images.as_rgb(source) if isinstance(source, np.ndarray) else images.decode(source)
        except ValueError as error:
            why = str(error).split(" <")[0]  # what follows is an address in memory
            raise DataError(f"This is not an image that can be read ({why}). PNG, JPEG and the like are.") from error
        row = self.predict([source]).iloc[0]
        decided, threshold = row["decision"], self.description["threshold"]
        mapped = class_name or decided
        height_px, width_px = pixels.shape[:2]
        heat = self._cam.heat_map(self._load(source, "This image"), self.classes.index(mapped), width_px, height_px)
        about = decided if threshold is None else self.classes[self.positive]
        rule = "the most probable class" if threshold is None else f"threshold {threshold:.3f}"
        return Explained(
            *(pixels, heat),
            f"decision: {decided}; calibrated probability of {about}: {row[f'prob_{about}']:.3f} ({rule})\n"
            + (f"map: what speaks for {mapped}" if heat.any() else f"the map is empty: no place speaks for {mapped}"),
        )
