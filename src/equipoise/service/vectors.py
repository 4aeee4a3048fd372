"""Models whose input is a vector: what they answer, and how they are asked.

They stand behind studies on imported vectors, and need no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.config import Study
from equipoise.core.documents import ServedModel
from equipoise.core.errors import DataError
from equipoise.embed.store import FeatureStore
from equipoise.scenario.heads.head import HEAD, Head
from equipoise.service.answers import Answers

#: Column of a request, and key of the metadata of an MLflow model that names whose vectors it takes.
COLUMN = "vector"
MADE_BY = "equipoise.vectors_of"
#: Key of the metadata that says how several rows of one image become its vector; empty for not at all.
POOL = "equipoise.pool"


def made_by(model: Any) -> str | None:
    """The name whose vectors a loaded model takes; None for a model of images."""
    metadata = getattr(model.metadata, "metadata", None) or {}
    return metadata.get(MADE_BY)


class VectorPredictor:
    """Head, calibrator and threshold of a model folder.

    Attributes:
        num_features: Length of a vector.
    """

    def __init__(self, folder: Path) -> None:
        """Load model.json and the head of a folder that `artifact.save` wrote."""
        description = ServedModel.read(folder / "model.json")
        if description.num_features is None:
            raise DataError(
                f"{folder} does not say how long a vector is. Register the study again."
            )
        self.num_features = description.num_features
        self._head = Head.load(folder / HEAD)
        self._answers = Answers.of(description)

    def predict(self, vectors: Sequence[Any]) -> pd.DataFrame:
        """Answer for vectors; a row for each, see `Answers.table`.

        Raises:
            DataError: With the number of the first one that cannot be used.
        """
        rows = np.empty((len(vectors), self.num_features), dtype=np.float32)
        for number, vector in enumerate(vectors):
            why = problem(vector, self.num_features)
            if why:
                raise DataError(f"Vector {number} {why}.")
            rows[number] = vector
        return self._answers.table(self._head.logits(rows))


def problem(vector: Any, num_features: int) -> str:
    """What is wrong with a vector, in words; empty where nothing is."""
    try:
        numbers = np.asarray(vector, dtype=np.float32)
    except (ValueError, TypeError):
        return "is no list of numbers"
    if numbers.shape != (num_features,):
        return f"has the shape {numbers.shape}, and {num_features} numbers are expected"
    if not np.isfinite(numbers).all():
        return "holds numbers that are not finite"
    return ""


def stored(
    study: Study, backbone: str, rows: pd.DataFrame, digest: str | None = None
) -> dict[str, np.ndarray]:
    """Vectors by image id, of those rows that the study's features hold here.

    Args:
        study: Whose features are read.
        backbone: The name whose vectors are wanted.
        rows: image_id and sha256.
        digest: Of the features that are meant; others hold none of them. None takes any.
    """
    try:
        store = FeatureStore.open(study.features_path(backbone))
    except DataError:
        return {}
    if digest not in (None, store.digest):
        return {}
    vectors = {}
    for image_id, sha256 in rows[["image_id", "sha256"]].itertuples(index=False):
        row = store.row_of.get((sha256, 0))
        if row is not None:
            vectors[image_id] = np.array(store.matrix[row])
    return vectors
