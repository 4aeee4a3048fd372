"""An evaluation in a file: resamples take seconds, so they are computed once and read by whoever needs them.

`scenario` writes `draws.parquet` beside metrics.json. A file that was made from something else, or by
another version of this room, is never believed; the reader computes its numbers again.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.config import Compare
from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, file_digest, read_table, write_table
from equipoise.core.records import Predictions
from equipoise.evaluation import intervals
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.metrics import Endpoint

FILE_NAME = "draws.parquet"


def evaluated(
    folder: Path,
    predictions: Predictions,
    settings: Compare,
    sensitivity_floor: float,
    cost_ratio: float = 1.0,
) -> Evaluation:
    """The evaluation of a result: as its folder keeps it, else computed; nothing is written.

    Args:
        folder: Of the result.
        predictions: As read from the folder.
        settings: Resamples, their seed and the level.
        sensitivity_floor: Within 0..1.
        cost_ratio: False negative over false positive.

    Raises:
        DataError: When the predictions cannot be evaluated.
    """
    origin = _origin(predictions, settings, sensitivity_floor, cost_ratio)
    kept = _read(folder / FILE_NAME, origin)
    if kept is not None:
        return kept
    return intervals.evaluate(predictions, settings, sensitivity_floor, cost_ratio=cost_ratio)


def write(
    folder: Path,
    evaluation: Evaluation,
    predictions: Predictions,
    settings: Compare,
    sensitivity_floor: float,
    cost_ratio: float = 1.0,
) -> None:
    """Keep an evaluation beside the predictions that it was made from; the rest as of `evaluated`."""
    columns = {}
    for endpoint, values in evaluation.draws.items():
        columns[str(endpoint)] = values
    meta = {
        "origin": _origin(predictions, settings, sensitivity_floor, cost_ratio),
        "evaluation": _plain(evaluation),
    }
    write_table(folder / FILE_NAME, pd.DataFrame(columns), meta)


def _origin(
    predictions: Predictions, settings: Compare, sensitivity_floor: float, cost_ratio: float
) -> str:
    """Digest of everything that an evaluation depends on."""
    parents = [
        predictions.digest,
        settings.model_dump(),
        sensitivity_floor,
        cost_ratio,
        _code_digest(),
    ]
    return digest_of(parents)


@functools.cache
def _code_digest() -> str:
    """Digest of the files of this room."""
    room = Path(__file__).parent
    return digest_of([file_digest(path) for path in sorted(room.glob("*.py"))])


def _read(path: Path, origin: str) -> Evaluation | None:
    """What the file holds; None where there is none, or one of another origin."""
    try:
        table, meta = read_table(path)
    except DataError:
        return None
    if meta.get("origin") != origin:
        return None
    draws = {}
    for name in table.columns:
        draws[Endpoint.parse(name)] = table[name].to_numpy(dtype=np.float64)
    return Evaluation(draws=draws, **_restored(meta["evaluation"]))


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but the draws as plain data; endpoints by their text."""
    values: dict[str, Any] = {}
    for attribute in dataclasses.fields(evaluation):
        value = getattr(evaluation, attribute.name)
        if attribute.name == "draws":
            continue
        if isinstance(value, dict):
            value = {str(endpoint): number for endpoint, number in value.items()}
        values[attribute.name] = value
    return values


def _restored(values: dict[str, Any]) -> dict[str, Any]:
    """What `_plain` was made of; a number that does not exist is null in the file."""
    restored: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = {Endpoint.parse(text): _numbers(number) for text, number in value.items()}
        restored[name] = value
    return restored


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [np.nan if number is None else number for number in value]
    return value
