"""Builders of made-up manifests, their split settings, and splits edited by hand."""

from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.core import config
from equipoise.core.records import Manifest, Splits

SPLIT = config.load_study(
    "demo", config.read_params(Path(__file__).resolve().parents[2])
).settings.split


def split_settings(**changes):
    return config.Split.model_validate({**SPLIT.model_dump(), **changes})


def manifest_of(patients, classes=("a", "b"), sides=None):
    """A manifest of `{patient: (label, ...)}`, one label per image; `sides` are the published ones by patient."""
    rows = [
        {
            "image_id": f"{patient}/{image}.png",
            "sha256": f"{patient}-{image}",
            "picture": f"{patient}-{image}",
            "label": label,
            "class_name": classes[label],
            "patient_id": patient,
            "person": patient,
            "site": f"site {patient[-1]}",
            **({"official_split": sides[patient][image]} if sides else {}),
        }
        for patient, labels in patients.items()
        for image, label in enumerate(labels)
    ]
    table = pd.DataFrame(rows).assign(
        path="x.png", width_px=8, height_px=8, bytes=10, grey_mean=9.0
    )
    meta = {
        "study": "made_up",
        "dataset": "made_up",
        "classes": list(classes),
        "positive_class": classes[1],
        "readings": ["person", "site"],
    }
    return Manifest(table, meta, "digest of the manifest")


def plain_manifest(patients_per_class=(20, 8), images=2):
    return manifest_of(
        {
            f"{'ab'[label]}{number:03d}": (label,) * images
            for label in (0, 1)
            for number in range(patients_per_class[label])
        }
    )


def published_folds(*columns):
    """One patient for each word, two images each, classes in turn; a column of words is one published division."""
    words = [column.split() for column in columns]
    manifest = manifest_of({f"p{number}": (number % 2,) * 2 for number in range(len(words[0]))})
    published = {
        f"official_split_{n + 1}": np.repeat(own, 2).astype(object) for n, own in enumerate(words)
    }
    return Manifest(manifest.table.assign(**published), manifest.meta)


def moved(made, chosen, part):
    table = made.table.copy()
    table.loc[chosen(table), "part"] = part
    return Splits(table, made.meta)
