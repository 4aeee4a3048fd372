"""The train and test sides that a dataset publishes, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import PARTS, Manifest
from equipoise.core.text import first_of
from equipoise.split.groups import short_digest, spread_groups

#: Column of the manifest -> whether each image is on the published test side, boolean
#: (num_images,). There is one column for each published fold; a study with a split of its own has
#: none.
Sides = Mapping[str, np.ndarray]

_COLUMNS = r"^official_split(_\d+)?$"


def published_test_sides(manifest: Manifest) -> dict[str, np.ndarray]:
    """Read which images are on the published test side, in every published fold.

    The column is `official_split`, or there are `official_split_1`, `official_split_2`, ... in this
    order.

    Returns:
        Boolean (num_images,), true for test, by column of the manifest.

    Raises:
        ConfigError: When the dataset publishes no split.
        DataError: When an image is neither in train nor in test, or when a test side holds no
            image, or all of them together none of a class.
    """
    dataset = manifest.meta["dataset"]
    names = manifest.table.filter(regex=_COLUMNS).columns
    # Shorter names first: 2 comes before 10.
    columns = sorted(names, key=lambda name: (len(name), name))
    if not columns:
        raise ConfigError(
            f"split.scheme is official, but dataset '{dataset}' publishes no split. "
            f"Use holdout or kfold."
        )
    for column in columns:
        _refuse_unknown_sides(manifest, column)
    sides = {column: (manifest.table[column] == "test").to_numpy() for column in columns}
    _refuse_empty_test(manifest, sides)
    return sides


def _refuse_unknown_sides(manifest: Manifest, column: str) -> None:
    known = manifest.table[column].isin(["train", "test"])
    if known.all():
        return
    image, value = manifest.table.loc[~known, ["image_id", column]].iloc[0]
    raise DataError(
        f"split.scheme is official, but {(~known).sum()} of {len(known)} images of dataset "
        f"'{manifest.meta['dataset']}' are neither train nor test in column {column} (for example "
        f"'{image}': {_quoted(value)}). Complete the published list, leave these images out, or use "
        f"split.scheme: holdout or kfold."
    )


def _refuse_empty_test(manifest: Manifest, sides: Sides) -> None:
    """Refuse sides on which nothing could be measured, before a backbone runs for hours."""
    advice = (
        "Files of that side may lie in no class folder, or be unusable: see the quarantine list "
        "beside the manifest. Complete it, or use split.scheme: holdout or kfold."
    )
    for column, test in sides.items():
        if not test.any():
            raise DataError(
                f"split.scheme is official, but the published test side of dataset "
                f"'{manifest.meta['dataset']}' holds no usable image: none of {len(test)} images is "
                f"test in column {column}. {advice}"
            )
    is_tested = np.any(list(sides.values()), axis=0)
    counts = np.bincount(manifest.table["label"][is_tested], minlength=len(manifest.classes))
    if counts.min() == 0:
        by_class = ", ".join(f"{name} {count}" for name, count in zip(manifest.classes, counts))
        raise DataError(
            f"split.scheme is official, but the published test side of dataset "
            f"'{manifest.meta['dataset']}' lacks a class ({by_class}), so nothing can be compared "
            f"on it. {advice}"
        )


def _quoted(value: Any) -> str:
    if pd.isna(value) or value == "":
        return "nothing"
    return f"'{value}'"


def divided_rows(sides: Sides, num_images: int) -> dict[str, np.ndarray]:
    """Find the images that are divided by drawing.

    With published sides these are the published train side of every fold; else all images, under
    the empty name.

    Returns:
        Boolean (num_images,) by column of the manifest.
    """
    if not sides:
        return {"": np.ones(num_images, dtype=bool)}
    return {column: ~test for column, test in sides.items()}


@dataclass(frozen=True)
class PublishedOverlap:
    """What the published train and test sides share.

    Attributes:
        patients: Patients on both sides of a published fold.
        pictures: Pictures on both sides, those of shared patients left out.
        by_fold: A line for each published fold that shares something.
    """

    patients: set[str]
    pictures: set[str]
    by_fold: list[str]


def published_overlap(
    patients: pd.Categorical, pictures: pd.Categorical, sides: Sides
) -> PublishedOverlap:
    """Find what is on both published sides.

    Args:
        patients: The patient of each image.
        pictures: What each image shows.
        sides: The published test sides, by column of the manifest.
    """
    all_patients: set[str] = set()
    all_pictures: set[str] = set()
    by_fold = []
    for column, test in sides.items():
        part = pd.Categorical(np.where(test, "test", "train"), PARTS)
        shared_patients = spread_groups(patients, part)
        shared_pictures = spread_groups(pictures, part)
        # That a shared patient's pictures are shared goes without saying.
        of_other_patients = pictures[~patients.isin(list(shared_patients))]
        told = of_other_patients[of_other_patients.isin(list(shared_pictures))]
        texts = []
        for name in sorted(shared_patients):
            texts.append(f"patient {name} {shared_patients[name]}")
        for name in sorted(set(told)):
            texts.append(f"picture {short_digest(name)} {shared_pictures[name]}")
        if texts:
            by_fold.append(published_fold(column, sides) + first_of(texts, 4, separator=", "))
        all_patients.update(shared_patients)
        all_pictures.update(told)
    return PublishedOverlap(all_patients, all_pictures, by_fold)


def published_fold(column: str, sides: Sides) -> str:
    """Name a published fold at the beginning of a line; nothing where there is only one.

    >>> published_fold("official_split_2", {"official_split_1": None, "official_split_2": None})
    'fold 2: '
    """
    if len(sides) == 1:
        return ""
    number = column.rsplit("_", maxsplit=1)[-1]
    return f"fold {number}: "
