"""Your own images: a folder per class, or a CSV that names the classes; it also says whose image is whose.

Expected is `CLASS/…/NAME.png`, with folders of published sides above or below those of the classes
where you have them; `ingest/layouts.py` tells which folders are which. The CSV (`ingest.table`) is
read by `ingest/annotations.py`. Where it has a column of classes, images lie in any folders.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from equipoise.core import images
from equipoise.core.config import Ingest
from equipoise.core.errors import ConfigError, unknown_name
from equipoise.core.yaml_text import shortly_written
from equipoise.ingest import layouts, leftovers, spellings
from equipoise.ingest.annotations import Annotations, read_annotations
from equipoise.ingest.datasets.base import Card, Dataset, Parsed, Task, Unrecognised
from equipoise.ingest.layouts import Classes, Sides

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
_NO_SIDES = Sides(None, {})
#: Folders that a remark names.
_NAMED = 8


def open_folder(raw: Path, settings: Ingest) -> Dataset:
    """Read classes, sides and patients from the table where it names them, else from the folders.

    Raises:
        DataError: For fewer than two classes, folders that may mean one thing or another, or a
            table that cannot be used.
        ConfigError: When the positive class or the columns are not named as they are.
    """
    listing = leftovers.list_images(raw, images.SUFFIXES, settings.skip, settings.keep)
    annotations = read_annotations(raw, settings, listing.paths)
    folders = [layouts.folders_of(path) for path in listing.paths]
    table_names_classes = annotations is not None and bool(annotations.classes)
    sides = _NO_SIDES
    if annotations is None or annotations.table.split is None:
        sides = layouts.find_sides(folders, name_classes=not table_names_classes)
    remarks = sides.remarks(folders)
    classes = None
    if annotations is not None and table_names_classes:
        task = _task(annotations.classes, _positive_class(annotations, settings))
    else:
        inside_sides = [sides.without(names) for names in folders]
        idle = leftovers.idle_folders(raw, listing)
        classes = layouts.find_classes(
            inside_sides,
            settings.positive_class,
            idle,
            layouts.Place(str(raw), listing.text),
            patients_below=settings.patient_folder == "below",
        )
        layouts.refuse_unlike_sides(folders, sides, classes)
        task = _task(classes.names, classes.positive)
        remarks += layouts.remarks_on_sides(folders, sides, classes)
        remarks += classes.remarks
        if idle:
            remarks.append(f"folders without an image, which are no classes: {_first_of(idle)}")
        if settings.patient_folder is not None:
            remarks += layouts.remarks_on_shared_names(
                inside_sides, classes.level, settings.patient_folder
            )
        elif annotations is None:
            remarks += layouts.remarks_on_patients(inside_sides, classes)
    if annotations is not None:
        remarks += annotations.remarks
    readings = _readings(settings, annotations)
    card = replace(
        CARD,
        tasks={"classes": task},
        readings=readings,
        patient_ids="patient" in readings,
    )
    patients = _patients_of_folders(settings, classes, map(sides.without, folders))
    reader = _Reader(sides, classes, annotations, settings.patient_folder, patients)
    return Dataset(card, reader.parse, remarks=tuple(remarks), listing=listing)


@dataclass(frozen=True)
class _Reader:
    """Reads what is known of an image.

    Attributes:
        sides: The folders of published sides.
        classes: The folders of classes; None where the table names them.
        annotations: Rows of the table; None without one.
        patient_folder: Where the folder of the patient is, `below` or `above` that of the class;
            None where no folder says who the patient is.
        patients: Name of such a folder -> id of the patient.
    """

    sides: Sides
    classes: Classes | None
    annotations: Annotations | None
    patient_folder: str | None
    patients: Mapping[str, str]

    def parse(self, path: PurePosixPath) -> Parsed:
        """Class, side and patient, from the table where it names them, else from the folders."""
        folders = path.parts[:-1]
        inside_side = self.sides.without(folders)
        columns = {}
        if self.sides.level is not None:
            columns["official_split"] = self.sides.of(folders)
        class_name = self.classes.of(inside_side) if self.classes else ""
        patients = {"image": str(path)}
        if self.classes and self.patient_folder is not None:
            place = self.patient_folder
            name = layouts.patient_folder(inside_side, self.classes.level, place)
            if not self.patients[name]:
                raise Unrecognised(f"the folder {place} that of the class names no patient")
            patients = {"patient": self.patients[name]}
        if self.annotations is None:
            return Parsed(class_name, patients, columns)
        annotation = self.annotations.of(str(path))
        table = self.annotations.table
        if table.split is not None:
            columns["official_split"] = annotation.side
        columns.update(annotation.columns)
        if table.patient is not None:
            patients = {"patient": annotation.patient}
        return Parsed(class_name or annotation.class_name, patients, columns)


def _task(classes: Sequence[str], positive_class: str) -> Task:
    others = [name for name in classes if name != positive_class]
    return Task(classes=(*others, positive_class), positive_class=positive_class)


def _positive_class(annotations: Annotations, settings: Ingest) -> str:
    """The class of a table that `ingest.positive_class` names."""
    wanted = settings.positive_class
    shown = [shortly_written(name) for name in annotations.classes]
    if wanted is None:
        raise ConfigError(
            f"Name the disease: set ingest.positive_class to one of {', '.join(shown)}. "
            f"Sensitivity speaks of it."
        )
    for name in annotations.classes:
        if spellings.class_key(name) == spellings.class_key(wanted):
            return name
    error = unknown_name("class", wanted, shown, " in ingest.table")
    if annotations.guesses:
        raise ConfigError(f"{error} ({'; '.join(annotations.guesses)}.)")
    raise error


def _readings(settings: Ingest, annotations: Annotations | None) -> Mapping[str, str]:
    """How the patient is told."""
    place = settings.patient_folder
    table_names_patients = annotations is not None and annotations.table.patient is not None
    if place is None:
        return CARD.readings if table_names_patients else _READINGS_WITHOUT_PATIENTS
    if table_names_patients:
        raise ConfigError(
            f"ingest.table and ingest.patient_folder: {place} both say who the patient is. Set one to null."
        )
    if annotations is not None and annotations.classes:
        raise ConfigError(
            f"ingest.patient_folder: {place} means the folder {place} that of the class, and ingest.table names the "
            f"classes. Name the column of patient ids, too: ingest.table: {{file, patient}}."
        )
    meaning = f"the folder {place} that of the class; one name under two classes is one patient"
    return {"patient": meaning}


def _patients_of_folders(
    settings: Ingest, classes: Classes | None, folders_of_files: Iterable[layouts.Folders]
) -> dict[str, str]:
    """Name of a patient's folder -> id, by the rules for the ids of a table; empty without such folders."""
    place = settings.patient_folder
    if place is None or classes is None:
        return {}
    names = set()
    for folders in folders_of_files:
        with suppress(Unrecognised):
            names.add(layouts.patient_folder(folders, classes.level, place))
    cells = pd.Series(sorted(names), dtype=object)
    where = f"the folders {place} those of the classes"
    ids = spellings.patient_ids(cells, settings.aliases, where)
    return dict(zip(cells, ids))


def _first_of(names: Sequence[str]) -> str:
    further = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {further} more" if further > 0 else shown
