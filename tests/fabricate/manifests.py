"""Builders of made-up manifests, their split settings, and splits edited by hand."""

from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.core import config
from equipoise.core.records import Manifest, Splits

ROOT = Path(__file__).resolve().parents[2]
HOLDOUT = {
    "scheme": "holdout",
    "repeats": 1,
    "test_fraction": 0.35,
    "val_fraction": 0.25,
}
SPLIT = config.load_study("demo", config.read_params(ROOT)).settings.split


def split_settings(**changes):
    """A holdout with some settings changed, checked again."""
    settings = SPLIT.model_dump()
    settings.update(HOLDOUT)
    settings.update(changes)
    return config.Split.model_validate(settings)


def manifest_of(patients, classes=("a", "b"), sides=None):
    """A manifest of `{patient: (label, ...)}`, one label per image; `sides` are the published ones by patient."""
    rows = []
    for patient, labels in patients.items():
        for image, label in enumerate(labels):
            row = {
                "image_id": f"{patient}/{image}.png",
                "sha256": f"{patient}-{image}",
                "picture": f"{patient}-{image}",
                "label": label,
                "class_name": classes[label],
                "patient_id": patient,
                "person": patient,
                "site": f"site {patient[-1]}",
            }
            if sides:
                row["official_split"] = sides[patient][image]
            rows.append(row)
    table = pd.DataFrame(rows)
    table = table.assign(path="x.png", width_px=8, height_px=8, bytes=10, grey_mean=9.0)
    meta = {
        "study": "made_up",
        "dataset": "made_up",
        "classes": list(classes),
        "positive_class": classes[1],
        "readings": ["person", "site"],
    }
    return Manifest(table, meta, "digest of the manifest")


def plain_manifest(patients_per_class=(20, 8), images=2):
    """Patients of one class each, all with as many images."""
    patients = {}
    for label, letter in enumerate("ab"):
        for number in range(patients_per_class[label]):
            patients[f"{letter}{number:03d}"] = (label,) * images
    return manifest_of(patients)


def published_folds(*columns):
    """One patient for each word, two images each, classes in turn; a column of words is one published division."""
    num_patients = len(columns[0].split())
    patients = {f"p{number}": (number % 2,) * 2 for number in range(num_patients)}
    manifest = manifest_of(patients)
    table = manifest.table
    for number, column in enumerate(columns, start=1):
        side_of_image = np.repeat(column.split(), 2)
        table[f"official_split_{number}"] = side_of_image.astype(object)
    return Manifest(table, manifest.meta)


def moved(made, chosen, part):
    """A split in which the rows that `chosen(table)` marks were moved to another part by hand."""
    table = made.table.copy()
    table.loc[chosen(table), "part"] = part
    return Splits(table, made.meta)
