"""A table of images -> a division into folds in whole patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from equipoise.api import arrays, pictures
from equipoise.api.arrays import Labels
from equipoise.core import config
from equipoise.core.config import Split
from equipoise.core.documents import RoundCounts
from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.records import Manifest, Splits
from equipoise.split import checks, stage


def split(
    table: pd.DataFrame,
    *,
    label: str = "label",
    patient: str | None = "patient",
    image: str | None = None,
    positive: Any = None,
    scheme: str | None = None,
    folds: int | None = None,
    repeats: int | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int | None = None,
) -> Folds:
    """Divide images into train and test so that no patient is on both sides, and every part shows each class.

    Args:
        table: A row for each image.
        label: Column with the class.
        patient: Column that says who the image is of; None makes every image a patient of its own.
        image: Column with a name for each image; rows are numbered when left out.
        positive: The positive class of two, where the labels are neither 0 and 1 nor truth values.
        scheme: `kfold` (default: every patient is tested once in each repeat) or `holdout` (train,
            val, test).
        folds: Of k-fold, default 5.
        repeats: Times that all patients are dealt anew, default 5 for k-fold.
        val_fraction: Of the patients outside test; holdout only.
        test_fraction: Of the patients; holdout only.
        seed: Of the draw.

    Raises:
        DataError: For missing labels or patients, and for too few patients of a class.
        ConfigError: For a column that is not there, and for a setting out of range.

    Examples:
        >>> table = pd.DataFrame({"patient": list("aabbccdd"), "label": [0, 0, 0, 0, 1, 1, 1, 1]})
        >>> folds = split(table, folds=2, repeats=1)
        >>> [sorted(set(table["patient"][test])) for train, test in folds]
        [['b', 'd'], ['a', 'c']]
    """
    if not isinstance(table, pd.DataFrame):
        raise DataError(
            f"{type(table).__name__} was given; a DataFrame with a row for each image is expected."
        )
    labels = Labels.of(_column(table, label, "label"), positive)
    owners = None
    if patient is not None:
        owners = arrays.patients_of(_column(table, patient, "patient"), len(labels))
    names = None if image is None else _column(table, image, "image")
    settings = _settings(
        {
            "split.scheme": scheme,
            "split.folds": folds,
            "split.repeats": repeats,
            "split.val_fraction": val_fraction,
            "split.test_fraction": test_fraction,
            "split.seed": seed,
        }
    )
    return divided(arrays.manifest_of(labels, owners, names), settings)


def _column(table: pd.DataFrame, name: str, argument: str) -> pd.Series:
    if name in table.columns:
        return table[name]
    if argument == "patient":
        raise ConfigError(
            f"There is no column {name!r} that says who an image is of (it has: {', '.join(map(str, table))}). "
            "Name it with patient=, or say patient=None where every image is of somebody else."
        )
    raise unknown_name("column", name, [str(column) for column in table.columns])


def _settings(given: Mapping[str, Any]) -> Split:
    """The section `split`, from what was given and the defaults.

    Raises:
        ConfigError: For a setting out of range, and for published sides, of which arrays have none.
    """
    overrides = {key: value for key, value in given.items() if value is not None}
    if overrides.get("split.scheme") == "official":
        raise ConfigError(
            "A table of images has no published sides. Use scheme='kfold' or 'holdout'."
        )
    study = config.study_of_arrays(arrays.NOWHERE, arrays.NOWHERE, Path(), overrides, {})
    return study.settings.split


def divided(manifest: Manifest, settings: Split) -> Folds:
    """Divide the images of a manifest, and check for leaks."""
    splits = stage.make(manifest, settings)
    checks.check_split(splits, manifest)
    return Folds(manifest, splits)


@dataclass(frozen=True, eq=False, repr=False)
class Folds:
    """A division into folds. It yields (train, test) positions, as scikit-learn's `cv` takes them.

    Attributes:
        manifest: The rows that were divided.
        splits: The part of each of them in every repeat and fold.
    """

    manifest: Manifest
    splits: Splits

    @property
    def table(self) -> pd.DataFrame:
        """One row per image, repeat and fold: image_id, patient_id, repeat, fold, part."""
        return self.splits.table

    def parts(self, repeat: int = 0, fold: int = 0) -> npt.NDArray[Any]:
        """Part of each row in one round: train, val or test."""
        if (repeat, fold) not in self.splits.rounds():
            raise ConfigError(
                f"There is no repeat {repeat}, fold {fold}; {len(self)} rounds are there, counted from 0."
            )
        return self.splits.round(repeat, fold)["part"].to_numpy(dtype=str)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for repeat, fold in self.splits.rounds():
            parts = self.parts(repeat, fold)
            yield np.flatnonzero(parts == "train"), np.flatnonzero(parts == "test")

    def __len__(self) -> int:
        return len(self.splits.rounds())

    @property
    def counts(self) -> pd.DataFrame:
        """Images and patients of each class in each part of every round."""
        rows = []
        for counts in stage.counts_reached(self.splits, self.manifest):
            rows += _rows_of(counts)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"{self._title()}\n{self._first_round().to_string(index=False)}"

    def _repr_html_(self) -> str:
        first = self._first_round()
        return pictures.html_table(list(first), first.to_numpy().tolist(), self._title())

    def _title(self) -> str:
        images = self.manifest.table
        return f"{len(images)} images of {images['patient_id'].nunique()} patients in {len(self)} rounds; in the first:"

    def _first_round(self) -> pd.DataFrame:
        counts = self.counts
        is_first = (counts["repeat"] == 0) & (counts["fold"] == 0)
        return counts[is_first].drop(columns=["repeat", "fold"])


def _rows_of(counts: RoundCounts) -> list[dict[str, Any]]:
    rows = []
    for part, classes in counts.parts.items():
        for name, count in classes.items():
            rows.append(
                {
                    "repeat": counts.repeat,
                    "fold": counts.fold,
                    "part": part,
                    "class": name,
                    "images": count.images,
                    "patients": count.patients,
                }
            )
    return rows
