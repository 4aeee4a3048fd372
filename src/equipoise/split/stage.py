"""Manifest -> splits: train, val and test in whole patients, stratified by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.config import Split, Study
from equipoise.core.errors import DataError, unknown_name
from equipoise.core.files import write_json
from equipoise.core.records import PARTS, Manifest, Splits, class_table
from equipoise.split import checks
from equipoise.split import strata as strata_
from equipoise.split.strata import assign_folds, draw, patients_per_class


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
        "patients": int(manifest.table[splits.meta["group_by"]].nunique()),
        "checks": [check.as_dict() for check in found],
        "rounds": counts_reached(splits, manifest),
    }
    write_json(study.splits_path.with_suffix(".json"), summary)
    return splits, summary


def make(manifest: Manifest, settings: Split) -> Splits:
    """Divide the patients of a manifest.

    Args:
        manifest: The usable images.
        settings: The `split` section: scheme, group_by, fractions of patients, folds, repeats, seed. With scheme
            official every published division is one fold, and only val is drawn.

    Raises:
        DataError: When a class has too few patients for the parts, or an image no patient or no published side.
        ConfigError: When group_by is not a reading of the dataset, or there are no official sides.
    """
    table, group_by = manifest.table, _reading(manifest, settings)
    owner = _owners(manifest, group_by)
    # Numbers in the order of the names: the draw sorts patients, and numbers sort faster.
    rows = pd.DataFrame({"patient": pd.factorize(owner, sort=True)[0], "label": table["label"]})
    sides = checks.published_test_sides(manifest) if settings.scheme == "official" else {}
    _enough_patients(rows, manifest, settings, group_by, sides)
    frames = []
    for repeat in range(settings.repeats):
        for fold, test in enumerate(_test_rows(rows, settings, repeat, sides)):
            val = np.zeros(len(rows), dtype=bool)
            val[~test] = draw(rows[~test], settings.val_fraction, [settings.seed, 3, repeat, fold])
            part = np.where(test, "test", np.where(val, "val", "train"))
            columns = {
                "image_id": table["image_id"],
                "patient_id": owner,
                "repeat": repeat,
                "fold": fold,
            }
            frames.append(pd.DataFrame({**columns, "part": part}))
    meta = {
        "study": manifest.meta["study"],
        "manifest": manifest.digest,
        "group_by": group_by,
        "settings": {"split": settings.model_dump()},
    }
    return Splits(pd.concat(frames, ignore_index=True), meta)


def _reading(manifest: Manifest, settings: Split) -> str:
    """What counts as one patient: the setting, else the reading of the published split, else the first."""
    readings = manifest.meta["readings"]
    published = manifest.meta.get("official_reading") if settings.scheme == "official" else None
    group_by = settings.group_by or published or readings[0]
    if group_by not in readings:
        raise unknown_name(
            "reading of the patient",
            group_by,
            readings,
            f" for dataset '{manifest.meta['dataset']}'",
        )
    return group_by


def _owners(manifest: Manifest, group_by: str) -> pd.Series:
    """Patient of each image, as text."""
    nameless = manifest.table["image_id"][manifest.table[group_by].isna()]
    if len(nameless):
        raise DataError(
            f"{len(nameless)} images have no patient in column '{group_by}' of the manifest, for example "
            f"'{nameless.iloc[0]}'. Every image needs one; run \"equipoise ingest\" again."
        )
    return manifest.table[group_by].astype(str)


def _test_rows(
    rows: pd.DataFrame, settings: Split, repeat: int, sides: Mapping[str, np.ndarray]
) -> Iterable[np.ndarray]:
    """Which rows are test, boolean (num_rows,), for each fold of one repeat."""
    if settings.scheme == "kfold":
        folds = assign_folds(rows, settings.folds, [settings.seed, 1, repeat])
        return [folds == fold for fold in range(settings.folds)]
    if settings.scheme == "holdout":
        return [draw(rows, settings.test_fraction, [settings.seed, 2, repeat])]
    return sides.values()


def _enough_patients(
    rows: pd.DataFrame,
    manifest: Manifest,
    settings: Split,
    group_by: str,
    sides: Mapping[str, np.ndarray],
) -> None:
    needed = strata_.patients_needed(settings.scheme, settings.folds)
    for name, test in sides.items() or [("", np.zeros(len(rows), dtype=bool))]:
        side = (
            f" on the published train side{f' of {name}' if len(sides) > 1 else ''}"
            if sides
            else ""
        )
        patients = patients_per_class(rows[~test])
        found = {name: int(patients.get(label, 0)) for label, name in enumerate(manifest.classes)}
        if min(found.values()) < needed:
            counts = ", ".join(f"{name} {count}" for name, count in found.items())
            raise DataError(
                f"split.scheme: {settings.scheme} needs at least {needed} patients of every class{side}, found "
                f"{counts} (group_by: {group_by}). Add patients, use fewer folds, or leave the rare class out."
            )


def counts_reached(splits: Splits, manifest: Manifest) -> list[dict[str, Any]]:
    """Count what each part of each round holds: images and patients by class, and patients by stratum."""
    patient, _ = pd.factorize(_owners(manifest, splits.meta["group_by"]))
    images = pd.DataFrame(
        {"patient": patient, "label": manifest.table["label"].array}, manifest.table["image_id"]
    )
    strata = strata_.named_strata(patient, images["label"].to_numpy(), manifest.classes)
    reached = []
    for repeat, fold in splits.rounds():
        rows = splits.round(repeat, fold)
        patient, label = images.reindex(rows["image_id"]).to_numpy().T
        part = pd.Categorical(rows["part"], PARTS).codes
        shows = np.zeros((len(images), len(PARTS)), dtype=bool)
        shows[patient, part] = True
        inside = {name: part == code for code, name in enumerate(PARTS)}
        parts = {
            name: class_table(label[own], patient[own], manifest.classes)
            for name, own in inside.items()
        }
        patients = {
            name: dict(zip(PARTS, shows[own].sum(axis=0).tolist())) for name, own in strata.items()
        }
        reached.append({"repeat": repeat, "fold": fold, "parts": parts, "strata": patients})
    return reached
