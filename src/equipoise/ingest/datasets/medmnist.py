"""PneumoniaMNIST and BreastMNIST (Yang 2023), from their .npz files: small, and without patient ids.

Put one file, for example `pneumoniamnist_224.npz` (Zenodo record 10519652), into the raw folder.
Its pictures are those of Kermany 2018 and BUSI. Several are of one patient, which the files do not
say: intervals are per image.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from equipoise.core import images
from equipoise.core.config import Ingest
from equipoise.core.errors import DataError
from equipoise.ingest.datasets.base import Card, Dataset, Parsed, Task

#: Class by the label in the file. BreastMNIST's 1 is benign or normal, so its disease is 0.
_CLASSES = {
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal_benign"),
}

CARD = Card(
    title="MedMNIST v2: PneumoniaMNIST, BreastMNIST",
    source="https://doi.org/10.5281/zenodo.10519652",
    licence="CC BY 4.0",
    citation="Yang, Shi, Wei et al. 2023, Scientific Data 10:41, doi:10.1038/s41597-022-01721-8",
    tasks={
        "pneumoniamnist": Task(
            classes=("normal", "pneumonia"),
            positive_class="pneumonia",
            expected_images={"": {"normal": 1583, "pneumonia": 4273}},
        ),
        "breastmnist": Task(
            classes=("normal_benign", "malignant"),
            positive_class="malignant",
            expected_images={"": {"normal_benign": 570, "malignant": 210}},
        ),
    },
    readings={"image": "every image counts as a patient: the files hold no patient ids"},
    patient_ids=False,
)


def open_folder(raw: Path, settings: Ingest) -> Dataset:
    """The one .npz file of the folder.

    Raises:
        DataError: When there is no such file, more than one, or one that is not MedMNIST's.
    """
    files = sorted(raw.glob("*.npz"))
    name = files[0].stem.split("_")[0] if len(files) == 1 else ""
    if name not in _CLASSES:
        listed = ", ".join(path.name for path in files) or "none"
        raise DataError(
            f"{raw} needs exactly one file named like pneumoniamnist.npz or breastmnist_224.npz, found: {listed}."
        )
    arrays = images.npz_arrays(files[0])
    labels = {}
    for part in images.NPZ_PARTS:
        labels[part] = np.asarray(arrays[f"{part}_labels"]).reshape(-1)

    def parse(path: PurePosixPath) -> Parsed:
        """Class and side of a picture from its path `NAME.npz/PART/INDEX`."""
        part = path.parts[-2]
        index = int(path.name)
        label = int(labels[part][index])
        return Parsed(
            class_name=_CLASSES[name][label],
            patients={"image": str(path)},
            columns={"official_split": "test" if part == "test" else "train"},
        )

    card = replace(CARD, tasks={name: CARD.tasks[name]})
    return Dataset(card, parse, frozenset({".npz"}))
