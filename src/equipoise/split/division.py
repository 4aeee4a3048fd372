"""A split in the order of its manifest; what does not divide the manifest's images is refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
import pandas as pd

from equipoise.core.errors import DataError, LeakageError
from equipoise.core.records import Manifest, Splits
from equipoise.split.official import (
    PublishedOverlap,
    Sides,
    published_overlap,
    published_test_sides,
)

#: The end of every message about a split that cannot be used.
SPLIT_AGAIN = '"equipoise split"; if the file was edited by hand, restore it with "dvc checkout".'


@dataclass(frozen=True)
class Division:
    """A split and its manifest, image by image.

    Attributes:
        manifest: The images; every array here is in its order.
        file: The split's file, for messages.
        scheme: The setting `split.scheme`.
        folds: The setting `split.folds`.
        patients: The patient of each image, as the split was grouped.
        parts: The part of each image, by round ("repeat 0, fold 0").
        published_sides: The published test sides; empty where the split is our own.
    """

    manifest: Manifest
    file: str
    scheme: str
    folds: int
    patients: pd.Categorical
    parts: dict[str, pd.Categorical]
    published_sides: Sides

    @cached_property
    def pictures(self) -> pd.Categorical:
        """What each image shows; exact and near copies share one picture."""
        return pd.Categorical(self.manifest.table["picture"])

    @cached_property
    def classes(self) -> pd.Categorical:
        """The class of each image."""
        return pd.Categorical.from_codes(self.manifest.table["label"], self.manifest.classes)

    @cached_property
    def published_overlap(self) -> PublishedOverlap:
        """Patients and pictures on both published sides."""
        return published_overlap(self.patients, self.pictures, self.published_sides)


def divide(splits: Splits, manifest: Manifest) -> Division:
    """Bring every round of a split into the order of the manifest.

    Raises:
        LeakageError: When the split holds other images than the manifest, or gives an image another
            patient (EQ001).
        DataError: When a round is no division of the images, or does not keep the published sides.
        ConfigError: When the scheme is official and the dataset publishes no split.
    """
    settings = splits.meta["settings"]["split"]
    official = settings["scheme"] == "official"
    sides = published_test_sides(manifest) if official else {}
    file = split_file(splits)
    group_by = splits.meta["group_by"]
    if group_by not in manifest.table:
        raise DataError(
            f"{file} was grouped by {group_by:.80}, which the manifest lacks. Run {SPLIT_AGAIN}"
        )
    owner = manifest.table.set_index("image_id")[group_by].astype(str)
    parts = {}
    for repeat, fold in splits.rounds():
        round_name = f"repeat {repeat}, fold {fold}"
        rows = splits.round(repeat, fold).set_index("image_id")
        aligned = _in_order_of(rows, owner.index)
        part = pd.Categorical(aligned["part"], splits.parts)
        if len(rows) != len(owner) or part.isna().any():
            _refuse_incomplete(splits, owner.index, round_name)
        _refuse_renamed_patients(aligned["patient_id"], owner, f"{file}, {round_name}")
        if sides:
            _refuse_other_sides(part == "test", sides, fold, f"{file}, {round_name}")
        parts[round_name] = part
    return Division(
        manifest=manifest,
        file=file,
        scheme=settings["scheme"],
        folds=settings["folds"],
        patients=pd.Categorical(manifest.table[group_by].astype(str)),
        parts=parts,
        published_sides=sides,
    )


def split_file(splits: Splits) -> str:
    """Name the file of a split, for messages."""
    return f"data/splits/{splits.meta.get('study')}.parquet"


def _in_order_of(rows: pd.DataFrame, image_ids: pd.Index) -> pd.DataFrame:
    # Splits are written in this order; sorting takes longer than looking.
    if rows.index.equals(image_ids):
        return rows
    once = rows[~rows.index.duplicated()]
    return once.reindex(image_ids)


def _refuse_incomplete(splits: Splits, image_ids: pd.Index, round_name: str) -> NoReturn:
    if set(splits.table["image_id"]) != set(image_ids):
        raise LeakageError(
            f"The split of study '{splits.meta.get('study')}' holds other images than its manifest. "
            f"Run `equipoise split` again."
        )
    raise DataError(
        f"{split_file(splits)}, {round_name} does not put every image of the manifest into exactly "
        f"one of {', '.join(splits.parts)}. Run {SPLIT_AGAIN}"
    )


def _refuse_renamed_patients(patient_id: pd.Series, owner: pd.Series, where: str) -> None:
    """A patient that is renamed in the split's file would hide a leak."""
    renamed = patient_id != owner
    if not renamed.any():
        return
    image = renamed.idxmax()
    raise LeakageError(
        f"EQ001: {where} says that image '{image}' is of patient '{patient_id[image]}', the manifest "
        f"says '{owner[image]}' ({renamed.sum()} such rows). Run {SPLIT_AGAIN}"
    )


def _refuse_other_sides(test: np.ndarray, sides: Sides, fold: int, where: str) -> None:
    columns = list(sides)
    if fold < len(columns):
        column = columns[fold]
        moved = test != sides[column]
    else:
        column = "no such fold"
        moved = np.ones(len(test), dtype=bool)
    if moved.any():
        raise DataError(
            f"{where} does not keep the published sides ({column}): {moved.sum()} images are on the "
            f"other one. Run {SPLIT_AGAIN}"
        )
