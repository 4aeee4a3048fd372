"""Your own images: a folder per class, or a CSV that names the classes; it also says whose image is whose.

Expected is `CLASS/…/NAME.png`, or `train/CLASS/…` and `test/CLASS/…` where you have fixed sides.
The CSV (`ingest.table`) is read by `ingest/annotations.py`. Where it has a column of classes, images
lie in any folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from equipoise.core import images
from equipoise.core.config import Ingest
from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.ingest.annotations import Annotations, read_annotations
from equipoise.ingest.datasets.base import Card, Dataset, Parsed, Task, Unrecognised

CARD = Card(
    title="Own images",
    source="the folder",
    licence="as you have it",
    citation="none",
    tasks={},
    readings={"patient": "the column of patient ids of ingest.table"},
    pseudonymise=True,
)

_READINGS_WITHOUT_PATIENTS = {
    "image": "every image counts as a patient: ingest.table names no patients",
}
_SIDES = {
    "train": "train",
    "val": "train",
    "valid": "train",
    "validation": "train",
    "test": "test",
}


def open_folder(raw: Path, settings: Ingest) -> Dataset:
    """Read the classes from the table or from the folders, and the patients from the table.

    Raises:
        DataError: For fewer than two classes, or a table that cannot be used.
        ConfigError: When the positive class or the columns are not named as they are.
    """
    top_folders = _folders(raw)
    has_sides = bool(top_folders) and all(name.lower() in _SIDES for name in top_folders)
    paths, _ = images.walk(raw)
    annotations = read_annotations(raw, settings, paths)
    if annotations is not None and annotations.classes:
        classes = list(annotations.classes)
    else:
        classes = _classes_of_sides(raw, top_folders) if has_sides else top_folders
    positive_class = _positive_class(raw, classes, settings)
    others = [name for name in classes if name != positive_class]
    task = Task(classes=(*others, positive_class), positive_class=positive_class)
    has_patients = annotations is not None and annotations.table.patient is not None
    card = replace(
        CARD,
        tasks={"classes": task},
        readings=CARD.readings if has_patients else _READINGS_WITHOUT_PATIENTS,
        patient_ids=has_patients,
    )
    reader = _Reader(has_sides, annotations)
    remarks = () if annotations is None else annotations.remarks
    return Dataset(card, reader.parse, remarks=remarks)


@dataclass(frozen=True)
class _Reader:
    """Reads what is known of an image.

    Attributes:
        has_sides: Whether the images lie in folders of published sides.
        annotations: Rows of the table; None without one.
    """

    has_sides: bool
    annotations: Annotations | None

    def parse(self, path: PurePosixPath) -> Parsed:
        """Class, side and patient, from the table where it names them, else from the folders."""
        columns = {}
        inside_side = path.parts
        if self.has_sides:
            columns["official_split"] = _SIDES[path.parts[0].lower()]
            inside_side = path.parts[1:]
        by_image = {"image": str(path)}
        if self.annotations is None:
            return Parsed(_class_of(inside_side), by_image, columns)
        annotation = self.annotations.of(str(path))
        table = self.annotations.table
        if table.split is not None:
            columns["official_split"] = annotation.side
        columns.update(annotation.columns)
        class_name = annotation.class_name if table.label else _class_of(inside_side)
        patients = by_image if table.patient is None else {"patient": annotation.patient}
        return Parsed(class_name, patients, columns)


def _class_of(inside_side: Sequence[str]) -> str:
    if len(inside_side) < 2:
        raise Unrecognised("the file lies in no class folder")
    return inside_side[0]


def _folders(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(name for name in names if not images.hidden(name))


def _classes_of_sides(raw: Path, sides: Sequence[str]) -> list[str]:
    """Names of the class folders in all of the sides together."""
    classes: set[str] = set()
    for side in sides:
        classes.update(_folders(raw / side))
    return sorted(classes)


def _positive_class(raw: Path, classes: Sequence[str], settings: Ingest) -> str:
    """The class that `ingest.positive_class` names, which must be one of at least two."""
    if len(classes) < 2:
        raise DataError(
            f"{raw} needs a folder for each class (or train/CLASS, test/CLASS), at least two; found: "
            f"{', '.join(classes) or 'none'}."
        )
    positive_class = settings.positive_class
    if positive_class is None:
        raise ConfigError(
            f"Name the disease: set ingest.positive_class to one of {', '.join(classes)}. Sensitivity speaks of it."
        )
    if positive_class not in classes:
        raise unknown_name("class", positive_class, classes, f" in {raw}")
    return positive_class
