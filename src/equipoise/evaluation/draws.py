"""The numbers of a result in a file: resamples take seconds, so they are drawn once and read by whoever needs them.

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
from pydantic import RootModel

from equipoise.core.documents import MetricTable, Subgroup
from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, file_digest, read_table, write_table
from equipoise.core.records import Manifest, Predictions
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.measured import Conditions, FreshNumbers, KeptNumbers, Numbers
from equipoise.evaluation.metrics import Endpoint
from equipoise.evaluation.patients import RULES

FILE_NAME = "draws.parquet"

#: A column is called after what was drawn and its endpoint: "images: free.auroc", "patients by mean: raw.accuracy".
_IMAGES = "images"
_PATIENTS = "patients by "
_OF = ": "


class _KeptTable(RootModel[MetricTable]):
    """A table of metrics as it stands in the file."""


def measured(
    folder: Path, predictions: Predictions, manifest: Manifest, conditions: Conditions
) -> Numbers:
    """The numbers of a result: as its folder keeps them, else measured when they are asked for; nothing is written.

    Args:
        folder: Of the result.
        predictions: As read from the folder.
        manifest: Of its images.
        conditions: How they are measured.
    """
    origin = _origin(predictions, manifest, conditions)
    kept = _read(folder / FILE_NAME, origin)
    if kept is not None:
        return kept
    return FreshNumbers(predictions, manifest, conditions)


def write(folder: Path, numbers: FreshNumbers) -> None:
    """Keep all numbers beside the predictions that they were made from."""
    evaluations = {_IMAGES: numbers.images}
    for rule, evaluation in numbers.patients.items():
        evaluations[f"{_PATIENTS}{rule}"] = evaluation
    columns = {}
    for group, evaluation in evaluations.items():
        for endpoint, values in evaluation.draws.items():
            columns[f"{group}{_OF}{endpoint}"] = values
    # As text, because the order of a table means something and metadata are written in that of the alphabet.
    per_class = []
    for name, table in numbers.per_class.items():
        per_class.append([name, _KeptTable(table).model_dump_json(exclude_unset=True)])
    meta = {
        "origin": _origin(numbers.predictions, numbers.manifest, numbers.conditions),
        "evaluations": {group: _plain(evaluation) for group, evaluation in evaluations.items()},
        "subgroups": [group.as_dict() for group in numbers.subgroups],
        "per_class": per_class,
    }
    write_table(folder / FILE_NAME, pd.DataFrame(columns), meta)


def _origin(predictions: Predictions, manifest: Manifest, conditions: Conditions) -> str:
    """Digest of everything that the numbers depend on."""
    parents = [
        predictions.digest,
        manifest.digest,
        conditions.compare.model_dump(),
        conditions.threshold.model_dump(),
        conditions.sensitivity_floor,
        conditions.units,
        _code_digest(),
    ]
    return digest_of(parents)


@functools.cache
def _code_digest() -> str:
    """Digest of the files of this room."""
    room = Path(__file__).parent
    return digest_of([file_digest(path) for path in sorted(room.glob("*.py"))])


def _read(path: Path, origin: str) -> KeptNumbers | None:
    """What the file holds; None where there is none, or one of another origin."""
    try:
        table, meta = read_table(path)
    except DataError:
        return None
    if meta.get("origin") != origin:
        return None
    draws_of_group: dict[str, dict[Endpoint, np.ndarray]] = {}
    for name in table.columns:
        group, _, endpoint = name.partition(_OF)
        draws = draws_of_group.setdefault(group, {})
        draws[Endpoint.parse(endpoint)] = table[name].to_numpy(dtype=np.float64)
    evaluations = {}
    for group, values in meta["evaluations"].items():
        evaluations[group] = Evaluation(draws=draws_of_group.get(group, {}), **_restored(values))
    patients = {}
    for rule in RULES:
        group = f"{_PATIENTS}{rule}"
        if group in evaluations:
            patients[rule] = evaluations[group]
    return KeptNumbers(
        images=evaluations[_IMAGES],
        patients=patients,
        subgroups=[Subgroup.model_validate(group) for group in meta["subgroups"]],
        per_class={
            name: _KeptTable.model_validate_json(text).root for name, text in meta["per_class"]
        },
    )


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
