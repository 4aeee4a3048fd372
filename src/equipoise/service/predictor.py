"""Backbone + head + calibrator + threshold -> the servable model: images in, probabilities and decision out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.compare.gradcam import GradCam
from equipoise.core import images
from equipoise.core.errors import DataError, unknown_name
from equipoise.core.files import read_json
from equipoise.embed import backbones
from equipoise.embed.embedder import Embedder
from equipoise.evaluation import metrics
from equipoise.evaluation.calibration import Calibrator
from equipoise.evaluation.metrics import softmax
from equipoise.scenario.artifact import _BATCH


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
        network = backbones.load_keras().saving.load_model(
            Path(folder) / "model.keras", safe_mode=True
        )
        self.embedder = Embedder(
            network, self.description["image_size_px"], self.description["pipeline"]
        )

    def logits(self, sources: Iterable[bytes | Path | np.ndarray]) -> np.ndarray:
        """Logits float64 (n, C) of images given as bytes, paths or uint8 arrays, see `images.as_rgb`.

        Raises:
            DataError: With the number of the first image that cannot be read.
        """
        pixels = [self._load(source, f"Image {number}") for number, source in enumerate(sources)]
        batches = [
            np.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)
        ]
        if not batches:
            return np.zeros((0, len(self.classes)))
        return np.concatenate([self.embedder.features(batch) for batch in batches])

    def _load(self, source: bytes | Path | np.ndarray, name: str) -> np.ndarray:
        try:
            return self.embedder.load(
                images.as_rgb(source) if isinstance(source, np.ndarray) else source
            )
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
        columns: dict[str, Any] = {
            f"prob_{name}": calibrated[:, index] for index, name in enumerate(self.classes)
        }
        columns |= {f"raw_{name}": raw[:, index] for index, name in enumerate(self.classes)}
        columns["decision"] = [self.classes[label] for label in decided]
        columns["label"] = np.asarray(decided, dtype=np.int64)
        return pd.DataFrame({**columns, "threshold": np.nan if threshold is None else threshold})

    @cached_property
    def _cam(self) -> GradCam:
        return GradCam(self.embedder.model)

    def explain(
        self, source: bytes | Path | np.ndarray, class_name: str | None = None
    ) -> Explained:
        """Predict one image and map what speaks for a class (left out: the one decided for).

        Raises:
            ConfigError: For a class the model does not know.
            DataError: For a source that is not an image.
        """
        if class_name is not None and class_name not in self.classes:
            raise unknown_name("class", class_name, self.classes, " in this model")
        try:
            pixels = (
                images.as_rgb(source) if isinstance(source, np.ndarray) else images.decode(source)
            )
        except ValueError as error:
            why = str(error).split(" <")[0]  # what follows is an address in memory
            raise DataError(
                f"This is not an image that can be read ({why}). PNG, JPEG and the like are."
            ) from error
        row = self.predict([source]).iloc[0]
        decided, threshold = row["decision"], self.description["threshold"]
        mapped = class_name or decided
        height_px, width_px = pixels.shape[:2]
        heat = self._cam.heat_map(
            self._load(source, "This image"), self.classes.index(mapped), width_px, height_px
        )
        about = decided if threshold is None else self.classes[self.positive]
        rule = "the most probable class" if threshold is None else f"threshold {threshold:.3f}"
        return Explained(
            *(pixels, heat),
            f"decision: {decided}; calibrated probability of {about}: {row[f'prob_{about}']:.3f} ({rule})\n"
            + (
                f"map: what speaks for {mapped}"
                if heat.any()
                else f"the map is empty: no place speaks for {mapped}"
            ),
        )
