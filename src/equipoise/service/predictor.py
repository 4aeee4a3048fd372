"""The servable model: images in, calibrated probabilities and a decision out.

Registered models import this module by its name, so its place stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.compare.gradcam import GradCam
from equipoise.core import images
from equipoise.core.documents import ServedModel
from equipoise.core.errors import DataError, unknown_name
from equipoise.core.parallel import batched
from equipoise.embed import backbones
from equipoise.embed.embedder import Embedder
from equipoise.service.answers import ANSWERED_CALIBRATED, Answers

#: Images per call of the backbone.
BATCH_IMAGES = 32

#: Bytes of a file, the path of one, or pixels as `images.as_rgb` takes them.
Source = bytes | Path | np.ndarray


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
    """The served model.

    It decodes, resizes and scales images and runs the backbone as `embed` does; then come head,
    calibrator, threshold.

    Attributes:
        description: Contents of model.json.
        classes: Class names; a label is an index into them.
        positive: Label of the positive class.
    """

    def __init__(self, folder: Path) -> None:
        """Load model.json and model.keras of a folder that `artifact.save` wrote."""
        self.description = ServedModel.read(Path(folder) / "model.json")
        self.classes = self.description.classes
        self.positive = self.classes.index(self.description.positive_class)
        self._answers = Answers.of(self.description)
        keras = backbones.load_keras()
        network = keras.saving.load_model(Path(folder) / "model.keras", safe_mode=True)
        self.embedder = Embedder(network, self.description.image_size_px, self.description.pipeline)

    def warm(self) -> None:
        """Trace and run everything once, so that the first image is answered as fast as the next."""
        size_px = self.embedder.size_px
        # One row more than the network takes: resizing is traced too.
        grey = np.full((size_px + 1, size_px, 3), 128, dtype=np.uint8)
        self.predict([grey])

    def pixels(self, sources: Iterable[Source]) -> list[np.ndarray]:
        """Images as the network takes them, each float32 (size_px, size_px, 3).

        Raises:
            DataError: With the number of the first image that cannot be read.
        """
        return [self._load(source, f"Image {number}") for number, source in enumerate(sources)]

    def _load(self, source: Source, name: str) -> np.ndarray:
        """Pixels as the network takes them; `name` is what an error calls the image."""
        try:
            if isinstance(source, np.ndarray):
                source = images.as_rgb(source)
            return self.embedder.load(source)
        except (ValueError, OSError) as error:
            raise DataError(f"{name} cannot be read: {error}.") from error

    def predict(self, sources: Iterable[Source]) -> pd.DataFrame:
        """Predict for images; a row for each, see `answers`.

        Raises:
            DataError: With the number of the first image that cannot be read.
        """
        return self.answers(self.pixels(sources))

    def answers(self, pixels: Sequence[np.ndarray]) -> pd.DataFrame:
        """Predict for what `pixels` gives.

        Returns:
            A row per image, see `Answers.table`.
        """
        return self._answers.table(self._logits(pixels))

    def _logits(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Logits of images, float64 (num_images, num_classes)."""
        if not pixels:
            return np.zeros((0, len(self.classes)))
        batches = batched(pixels, BATCH_IMAGES)
        return np.concatenate([self.embedder.features(np.stack(batch)) for batch in batches])

    @cached_property
    def _cam(self) -> GradCam:
        return GradCam(self.embedder.model)

    def explain(self, source: Source, class_name: str | None = None) -> Explained:
        """Predict one image and map what speaks for a class (left out: the one decided for).

        Raises:
            ConfigError: For a class the model does not know.
            DataError: For a source that is not an image.
        """
        if class_name is not None and class_name not in self.classes:
            raise unknown_name("class", class_name, self.classes, " in this model")
        pixels = self._decoded(source)
        answer = self.predict([source]).iloc[0]
        mapped = class_name or answer["decision"]
        height_px, width_px = pixels.shape[:2]
        heat = self._cam.heat_map(
            self._load(source, "This image"), self.classes.index(mapped), width_px, height_px
        )
        map_text = f"map: what speaks for {mapped}"
        if not heat.any():
            map_text = f"the map is empty: no place speaks for {mapped}"
        return Explained(pixels, heat, f"{self._decision_text(answer)}\n{map_text}")

    def _decision_text(self, answer: pd.Series[Any]) -> str:
        """The decision, the probability behind it and the rule, in words."""
        decision = answer["decision"]
        threshold = self.description.threshold
        if threshold is None:
            about = decision
            rule = "the most probable class"
        else:
            about = self.classes[self.positive]
            rule = f"threshold {threshold:.3f}"
        prob = answer[f"{ANSWERED_CALIBRATED}_{about}"]
        return f"decision: {decision}; calibrated probability of {about}: {prob:.3f} ({rule})"

    def _decoded(self, source: Source) -> np.ndarray:
        """Pixels as a person sees them, uint8 (height, width, 3)."""
        try:
            if isinstance(source, np.ndarray):
                return images.as_rgb(source)
            return images.decode(source, scale=self.embedder.scale)
        except ValueError as error:
            why = str(error).split(" <")[0]  # what follows is an address in memory
            raise DataError(
                f"This is not an image that can be read ({why}). PNG, JPEG and the like are."
            ) from error
