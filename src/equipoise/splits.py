"""Manifest -> splits: train, val and test in whole patients, stratified by class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from equipoise import checks
from equipoise.config import Split, Study
from equipoise.errors import ConfigError, DataError, unknown_name
from equipoise.records import PARTS, Manifest, Splits, class_table, write_json


def run(study: Study) -> tuple[Splits, dict[str, Any]]:
    """Split a study's manifest by its settings, check it for leaks and write it with the counts it reached."""
    manifest = Manifest.read(study.manifest_path)
    settings = study.settings.split
    splits = make(manifest, settings)
    found = checks.run(splits, manifest)
    splits = splits.write(study.splits_path)
    summary = {
        "study": study.name,
        "splits": splits.digest,
        "manifest": manifest.digest,
        "scheme": settings.scheme,
        "group_by": splits.meta["group_by"],
        "patients": int(splits.table["patient_id"].nunique()),
        "checks": [check.as_dict() for check in found],
        "rounds": [
            {"repeat": repeat, "fold": fold, "parts": _part_counts(splits, manifest, repeat, fold)}
            for repeat, fold in splits.rounds()
        ],
    }
    write_json(study.splits_path.with_suffix(".json"), summary)
    return splits, summary


def make(manifest: Manifest, settings: Split) -> Splits:
    """Divide the patients of a manifest.

    Args:
        manifest: The usable images.
        settings: The `split` section: scheme, group_by, fractions of patients, folds, repeats, seed.

    Raises:
        DataError: When a class has too few patients for the parts.
        ConfigError: When group_by is not a reading of the dataset, or there are no official sides.
    """
    table = manifest.table
    readings = manifest.meta["readings"]
    group_by = settings.group_by or readings[0]
    if group_by not in readings:
        raise unknown_name("reading of the patient", group_by, readings, f" for dataset '{manifest.meta['dataset']}'")
    rows = pd.DataFrame({"patient": table[group_by].astype(str), "label": table["label"]})
    _enough_patients(rows, manifest, settings, group_by)
    frames = []
    for repeat in range(settings.repeats):
        if settings.scheme == "kfold":
            test_folds = assign_folds(rows, settings.folds, [settings.seed, 1, repeat])
            sides = [test_folds == fold for fold in range(settings.folds)]
        elif settings.scheme == "holdout":
            sides = [draw(rows, settings.test_fraction, [settings.seed, 2, repeat])]
        else:
            if repeat == 0 and "official_split" not in table:
                raise ConfigError(
                    f"split.scheme is official, but dataset '{manifest.meta['dataset']}' publishes no split. "
                    f"Use holdout or kfold."
                )
            sides = [(table["official_split"] == "test").to_numpy()]
        for fold, test in enumerate(sides):
            val = np.zeros(len(rows), dtype=bool)
            val[~test] = draw(rows[~test], settings.val_fraction, [settings.seed, 3, repeat, fold])
            part = np.where(test, "test", np.where(val, "val", "train"))
            columns = {"image_id": table["image_id"], "patient_id": rows["patient"], "repeat": repeat, "fold": fold}
            frames.append(pd.DataFrame({**columns, "part": part}))
    meta = {
        "study": manifest.meta["study"],
        "manifest": manifest.digest,
        "group_by": group_by,
        "settings": {"split": settings.model_dump()},
    }
    return Splits(pd.concat(frames, ignore_index=True), meta)


def assign_folds(rows: pd.DataFrame, folds: int, seed: list[int]) -> np.ndarray:
    """Assign whole patients to folds so that the folds' patient counts differ by at most one in every stratum.

    Args:
        rows: `patient` and `label`, one row per image; their order does not matter.
        folds: Number of folds, at least 2.
        seed: Seed sequence of the draw.

    Returns:
        int (num_rows,), the fold of each row.
    """
    fold_of: dict[str, int] = {}
    dealt = 0
    for stratum, patients in _strata(rows).items():
        order = _generator(seed, stratum).permutation(len(patients))
        for position, index in enumerate(order):
            fold_of[patients[index]] = (dealt + position) % folds
        dealt += len(patients)
    return rows["patient"].map(fold_of).to_numpy()


def draw(rows: pd.DataFrame, fraction: float, seed: list[int]) -> np.ndarray:
    """Boolean (num_rows,): rows of a stratified draw of that fraction of the patients, at least one per stratum."""
    chosen: set[str] = set()
    for stratum, patients in _strata(rows).items():
        if len(patients) == 1:
            continue
        # Of three or more, two are left: one each for train and val when this draws test.
        count = min(max(1, round(fraction * len(patients))), len(patients) - (2 if len(patients) > 2 else 1))
        order = _generator(seed, stratum).permutation(len(patients))
        chosen.update(patients[index] for index in order[:count])
    return rows["patient"].isin(chosen).to_numpy()


def _strata(rows: pd.DataFrame) -> dict[tuple[int, ...], list[str]]:
    """Patients by the set of classes they show, both sorted, so that row order cannot matter."""
    shown = rows.groupby("patient")["label"].agg(lambda labels: tuple(sorted(set(labels))))
    return {stratum: sorted(shown.index[shown == stratum]) for stratum in sorted(shown.unique())}


def _generator(seed: list[int], stratum: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng([*seed, *(label + 1 for label in stratum)])


def patients_per_class(rows: pd.DataFrame) -> pd.Series:
    """Number of patients that show each label."""
    return rows.groupby("label")["patient"].nunique()


def _enough_patients(rows: pd.DataFrame, manifest: Manifest, settings: Split, group_by: str) -> None:
    needed = {"holdout": 3, "kfold": max(settings.folds, 3 if settings.folds > 2 else 4), "official": 2}[
        settings.scheme
    ]
    if settings.scheme == "official":
        rows = rows[manifest.table["official_split"] != "test"] if "official_split" in manifest.table else rows
    found = {name: int(patients_per_class(rows).get(label, 0)) for label, name in enumerate(manifest.classes)}
    if min(found.values()) < needed:
        counts = ", ".join(f"{name} {count}" for name, count in found.items())
        side = " on the published train side" if settings.scheme == "official" else ""
        raise DataError(
            f"split.scheme: {settings.scheme} needs at least {needed} patients of every class{side}, found {counts} "
            f"(group_by: {group_by}). Add patients, use fewer folds, or leave the rare class out."
        )


def _part_counts(splits: Splits, manifest: Manifest, repeat: int, fold: int) -> dict[str, Any]:
    rows = splits.round(repeat, fold)
    labels = manifest.table.set_index("image_id")["label"].loc[rows["image_id"]].to_numpy()
    return {
        part: class_table(labels[rows["part"] == part], rows.loc[rows["part"] == part, "patient_id"], manifest.classes)
        for part in PARTS
    }
