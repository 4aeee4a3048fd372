"""Manifest -> splits: train, val and test in whole patients, stratified by class; k-fold has no val."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from equipoise.core.config import Split, Study
from equipoise.core.documents import ClassCount, RoundCounts, SplitSummary
from equipoise.core.errors import DataError, unknown_name
from equipoise.core.records import Manifest, Splits, class_table
from equipoise.core.text import counted
from equipoise.split.checks import check_split
from equipoise.split.official import Sides, divided_rows, published_test_sides
from equipoise.split.strata import (
    assign_folds,
    draw,
    named_strata,
    patients_needed,
    patients_per_class,
)


class SplitResult(NamedTuple):
    """A split as it was written, and the summary beside it."""

    splits: Splits
    summary: SplitSummary


def run(study: Study) -> SplitResult:
    """Split a study's manifest by its settings, check for leaks, and write split and counts.

    Raises:
        DataError: When the manifest cannot be split like this, or is no manifest.
        ConfigError: When a setting does not fit the dataset.
    """
    manifest = Manifest.read(study.manifest_path)
    splits = make(manifest, study.settings.split)
    answers = check_split(splits, manifest)
    splits = splits.write(study.splits_path)
    group_by = splits.meta["group_by"]
    summary = SplitSummary(
        study=study.name,
        splits=splits.digest,
        manifest=manifest.digest,
        scheme=study.settings.split.scheme,
        group_by=group_by,
        patients=int(manifest.table[group_by].nunique()),
        checks=list(answers),
        rounds=counts_reached(splits, manifest),
    )
    summary.write(study.splits_path.with_suffix(".json"))
    return SplitResult(splits, summary)


def make(manifest: Manifest, settings: Split) -> Splits:
    """Divide the patients of a manifest.

    Args:
        manifest: The usable images.
        settings: The `split` section: scheme, group_by, fractions of patients, folds, repeats,
            seed. With the scheme kfold every patient is in test once per repeat and in train
            otherwise. With the scheme official every published division is one fold, and only val
            is drawn.

    Raises:
        DataError: When a class has too few patients for the parts, or an image no patient or no
            published side.
        ConfigError: When group_by is not a reading of the dataset, or there are no official sides.
    """
    group_by = _chosen_reading(manifest, settings)
    owner = _owners(manifest, group_by)
    # Numbers in the order of the names: the draw sorts patients, and numbers sort faster.
    patient, _ = pd.factorize(owner, sort=True)
    rows = pd.DataFrame({"patient": patient, "label": manifest.table["label"]})
    sides = published_test_sides(manifest) if settings.scheme == "official" else {}
    _refuse_too_few_patients(rows, manifest, settings, group_by, sides)
    rounds = []
    for repeat in range(settings.repeats):
        for fold, test in enumerate(_test_rows(rows, settings, repeat, sides)):
            columns = {
                "image_id": manifest.table["image_id"],
                "patient_id": owner,
                "repeat": repeat,
                "fold": fold,
                "part": _parts(rows, test, settings, repeat, fold),
            }
            rounds.append(pd.DataFrame(columns))
    meta = {
        "study": manifest.meta["study"],
        "manifest": manifest.digest,
        "group_by": group_by,
        "settings": {"split": settings.model_dump()},
    }
    return Splits(pd.concat(rounds, ignore_index=True), meta)


def counts_reached(splits: Splits, manifest: Manifest) -> list[RoundCounts]:
    """Count images and patients by class, and patients by stratum, in each part of each round."""
    patient, _ = pd.factorize(_owners(manifest, splits.meta["group_by"]))
    columns = {"patient": patient, "label": manifest.table["label"].array}
    images = pd.DataFrame(columns, index=manifest.table["image_id"])
    num_patients = patient.max(initial=-1) + 1
    strata = named_strata(patient, images["label"].to_numpy(), manifest.classes)
    rounds = []
    for repeat, fold in splits.rounds():
        rows = splits.round(repeat, fold)
        of_rows = images.reindex(rows["image_id"])
        part = pd.Categorical(rows["part"], splits.parts)
        in_part = np.zeros((num_patients, len(splits.parts)), dtype=bool)
        in_part[of_rows["patient"], part.codes] = True
        counts = RoundCounts(
            repeat=repeat,
            fold=fold,
            parts=_classes_by_part(of_rows, part, manifest.classes),
            strata=_strata_by_part(in_part, splits.parts, strata),
        )
        rounds.append(counts)
    return rounds


def summary_text(summary: SplitSummary) -> str:
    """Say what a split reached: the counts of its first round, and the answers of its checks."""
    lines = [
        f"{summary.scheme}, {summary.patients} patients by {summary.group_by}, "
        f"{counted(len(summary.rounds), 'round')}"
    ]
    for part, classes in summary.rounds[0].parts.items():
        counts = [
            f"{name} {count.images} images of {count.patients} patients"
            for name, count in classes.items()
        ]
        lines.append(f"  {part}: {', '.join(counts)}")
    lines += _lone_patients(summary)
    for check in summary.checks:
        line = f"  {check.code} {check.name}: {check.answer}"
        lines.append(f"{line}; {check.detail}" if check.detail else line)
    return "\n".join(lines)


def _lone_patients(summary: SplitSummary) -> list[str]:
    """Warn of a class of which test holds one patient; under k-fold every patient is tested."""
    if summary.scheme == "kfold":
        return []
    rounds_of_class: Counter[str] = Counter()
    for of_round in summary.rounds:
        for name, count in of_round.parts["test"].items():
            rounds_of_class[name] += count.patients == 1
    return [
        f"  test has 1 patient of {name} in {rounds} of {counted(len(summary.rounds), 'round')}: what depends on one "
        f"patient gets no interval and no verdict; scheme kfold would test every patient"
        for name, rounds in rounds_of_class.items()
        if rounds
    ]


# --- dividing -------------------------------------------------------------------------------------


def _chosen_reading(manifest: Manifest, settings: Split) -> str:
    """Choose the column that says what counts as one patient.

    The setting goes first, then the reading of the published split where its sides are used, then
    the first reading.
    """
    readings = manifest.meta["readings"]
    published = None
    if settings.scheme == "official":
        published = manifest.meta.get("official_reading")
    group_by = settings.group_by or published or readings[0]
    if group_by not in readings:
        where = f" for dataset '{manifest.meta['dataset']}'"
        raise unknown_name("reading of the patient", group_by, readings, where)
    return group_by


def _owners(manifest: Manifest, group_by: str) -> pd.Series:
    """Patient of each image, as text."""
    patients = manifest.table[group_by]
    nameless = manifest.table["image_id"][patients.isna()]
    if len(nameless):
        raise DataError(
            f"{len(nameless)} images have no patient in column '{group_by}' of the manifest, for example "
            f"'{nameless.iloc[0]}'. Every image needs one; run \"equipoise ingest\" again."
        )
    return patients.astype(str)


def _test_rows(
    rows: pd.DataFrame, settings: Split, repeat: int, sides: Sides
) -> Iterable[np.ndarray]:
    """Choose the test rows of each fold of one repeat, boolean (num_rows,)."""
    if settings.scheme == "kfold":
        fold_of_row = assign_folds(rows, settings.folds, [settings.seed, 1, repeat])
        return [fold_of_row == fold for fold in range(settings.folds)]
    if settings.scheme == "holdout":
        return [draw(rows, settings.test_fraction, [settings.seed, 2, repeat])]
    return sides.values()


def _parts(
    rows: pd.DataFrame, test: np.ndarray, settings: Split, repeat: int, fold: int
) -> np.ndarray:
    """Name the part of every row; val is drawn from the rows that are not test, unless it is k-fold."""
    if settings.scheme == "kfold":
        return np.where(test, "test", "train")
    val = np.zeros(len(rows), dtype=bool)
    val[~test] = draw(rows[~test], settings.val_fraction, [settings.seed, 3, repeat, fold])
    part = np.where(val, "val", "train")
    return np.where(test, "test", part)


def _refuse_too_few_patients(
    rows: pd.DataFrame, manifest: Manifest, settings: Split, group_by: str, sides: Sides
) -> None:
    needed = patients_needed(settings.scheme, settings.folds)
    for column, divided in divided_rows(sides, len(rows)).items():
        patients = patients_per_class(rows[divided])
        counts = [int(patients.get(label, 0)) for label in range(len(manifest.classes))]
        if min(counts) >= needed:
            continue
        by_class = ", ".join(f"{name} {count}" for name, count in zip(manifest.classes, counts))
        raise DataError(
            f"split.scheme: {settings.scheme} needs at least {needed} patients of every class"
            f"{_side(column, sides)}, found {by_class} (group_by: {group_by}). Add patients, use fewer "
            f"folds, or leave the rare class out."
        )


def _side(column: str, sides: Sides) -> str:
    """Where patients were counted, in words; nothing where there are no published sides."""
    if not sides:
        return ""
    if len(sides) == 1:
        return " on the published train side"
    return f" on the published train side of {column}"


# --- counting -------------------------------------------------------------------------------------


def _classes_by_part(
    images: pd.DataFrame, part: pd.Categorical, classes: tuple[str, ...]
) -> dict[str, dict[str, ClassCount]]:
    """Images and patients of each class in each part.

    Args:
        images: Columns `patient` and `label`, the rows of one round.
        part: Of each row.
        classes: Names.
    """
    table = {}
    for name in part.categories:
        inside = images[part == name]
        table[name] = class_table(inside["label"].to_numpy(), inside["patient"], classes)
    return table


def _strata_by_part(
    in_part: np.ndarray, parts: Sequence[str], strata: dict[str, np.ndarray]
) -> dict[str, dict[str, int]]:
    """Patients of each stratum in each part.

    Args:
        in_part: Whether a patient has an image in a part, boolean (num_patients, num_parts).
        parts: Their names.
        strata: Numbers of the patients by the name of their stratum.
    """
    table = {}
    for name, patients in strata.items():
        counts = in_part[patients].sum(axis=0).tolist()
        table[name] = dict(zip(parts, counts))
    return table
