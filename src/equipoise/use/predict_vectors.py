"""Files of vectors -> a table of decisions by a registered model of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core import parallel
from equipoise.core.errors import ConfigError
from equipoise.embed import formats
from equipoise.embed.formats import Given
from equipoise.embed.given import one_vector
from equipoise.service import vectors
from equipoise.use import predict
from equipoise.use.predict import NamedModel, Tally

_BATCH_ROWS = 1024


def predict_features(
    uri: str, place: Path, out: Path, root: Path, say: Callable[[str], None]
) -> Tally:
    """Predict for the vectors of a file or folder and write one row for each image in it.

    The columns are those of `predict.predict_images`. Tiles of one slide are pooled as they were
    when the model was made; augmented views are passed over.

    Args:
        uri: A model, for example models:/equipoise-study@champion.
        place: As `embed.features` names them, see `embed/formats.py`.
        out: CSV or Parquet, by its suffix; appears when everything is written.
        root: Folder that holds params.yaml.
        say: Called with lines of text.

    Raises:
        ConfigError: For a model of images, or another suffix.
        DataError: For files that cannot be read.
    """
    predict.require_suffix(out)
    formats.files_of(place)
    named = predict.resolve(uri, root)
    model = predict.load(named, root, say)
    made_by = vectors.made_by(model)
    if made_by is None:
        raise ConfigError(f"{uri} takes images, not vectors: name these instead of --features.")
    say(f"it takes the vectors of {made_by}")
    return write_predictions(model, named, formats.read(place), out)


@dataclass(frozen=True)
class _Asked:
    """The vector of an image, or why there is none that the model could take."""

    image: str
    vector: np.ndarray
    error: str


def write_predictions(model: Any, named: NamedModel, given: Iterable[Given], out: Path) -> Tally:
    """Predict with a loaded model and write the table; see `predict_features`."""
    pool = model.metadata.metadata[vectors.POOL] or None
    num_features = len(model.input_example[vectors.COLUMN].iloc[0])
    asked = [_asked(item, pool, num_features) for item in given if item.view == 0]
    tally = Tally()
    with predict.row_writer(model, named, out) as write:
        for batch in parallel.batched(asked, _BATCH_ROWS):
            rows = _rows(model, batch)
            write(rows)
            tally.add(rows)
    return tally


def _asked(given: Given, pool: str | None, num_features: int) -> _Asked:
    count = len(given.rows)
    if count == 0 or (count > 1 and pool is None):
        return _Asked(given.name, np.empty(0), f"has {count} vectors, and one is expected")
    vector = one_vector(given.rows, pool)
    return _Asked(given.name, vector, vectors.problem(vector, num_features))


def _rows(model: Any, batch: Sequence[_Asked]) -> list[dict[str, Any]]:
    """Rows of the table; a vector that cannot be used has an error and no answer."""
    rows = []
    answered = []
    usable = []
    for asked in batch:
        row: dict[str, Any] = {"image": asked.image, "flags": "", "error": asked.error}
        rows.append(row)
        if not asked.error:
            answered.append(row)
            usable.append(asked.vector.tolist())
    if usable:
        table = pd.DataFrame({vectors.COLUMN: usable})
        answers = model.predict(table).to_dict("records")
        for row, answer in zip(answered, answers):
            row.update(answer)
    return rows
