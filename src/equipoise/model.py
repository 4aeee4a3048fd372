"""Backbone + head + calibrator + threshold -> the servable model: images in, probabilities and decision out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise import backbones, metrics
from equipoise.calibration import Calibrator
from equipoise.config import Study
from equipoise.errors import DataError
from equipoise.features import Embedder
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


class Predictor:
    """The served model: the same decode, resize, scaling and backbone as `embed`, then head, calibrator, threshold."""

    def __init__(self, folder: Path) -> None:
        self.description = read_json(Path(folder) / "model.json")
        self.classes: list[str] = self.description["classes"]
        self.positive = self.classes.index(self.description["positive_class"])
        self.calibrator = Calibrator.from_dict(self.description["calibrator"])
        network = backbones.load_keras().saving.load_model(Path(folder) / "model.keras")
        self.embedder = Embedder(network, self.description["image_size_px"], self.description["pipeline"])

    def logits(self, sources: Iterable[bytes | Path | np.ndarray]) -> np.ndarray:
        """Logits float64 (n, C) of images given as bytes, paths or uint8 arrays (height, width, 3)."""
        pixels = [self.embedder.load(source) for source in sources]
        batches = [np.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
        if not batches:
            return np.zeros((0, len(self.classes)))
        return np.concatenate([self.embedder.features(batch) for batch in batches])

    def predict(self, sources: Iterable[bytes | Path | np.ndarray]) -> pd.DataFrame:
        """One row per image: `prob_<class>` (calibrated), `raw_<class>`, `decision` and the `threshold` used."""
        logits = self.logits(sources)
        calibrated, raw = self.calibrator.apply(logits), softmax(logits)
        threshold = self.description["threshold"]
        decided = metrics.decide(calibrated, self.positive, 0.5 if threshold is None else threshold)
        columns: dict[str, Any] = {f"prob_{name}": calibrated[:, index] for index, name in enumerate(self.classes)}
        columns |= {f"raw_{name}": raw[:, index] for index, name in enumerate(self.classes)}
        columns["decision"] = [self.classes[label] for label in decided]
        return pd.DataFrame({**columns, "threshold": np.nan if threshold is None else threshold})
