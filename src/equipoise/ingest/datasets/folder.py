"""Your own images: a folder per class, and if you have one a CSV that says whose image is whose.

Expected is `CLASS/…/NAME.png`, with folders of published sides above or below those of the classes
where you have them; `ingest/layouts.py` tells which folders are which. The CSV (`ingest.table`, a
path inside the raw folder) has a column `image` (path inside the raw
folder), a column `patient_id`, and any others, of which only those named in `ingest.columns` are
kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from equipoise.core import images
from equipoise.core.config import Ingest
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest
from equipoise.ingest import layouts, leftovers
from equipoise.ingest.datasets.base import Card, Dataset, Parsed, Task, Unrecognised
from equipoise.ingest.layouts import Classes, Sides

CARD = Card(
    title="Own images",
    source="the folder",
    licence="as you have it",
    citation="none",
    tasks={},
    readings={"patient": "the column patient_id of ingest.table"},
    pseudonymise=True,
)

_READINGS_WITHOUT_TABLE = {
    "image": "every image counts as a patient: there is no ingest.table",
}
#: Folders that a remark names.
_NAMED = 8
#: Names that columns of the manifest, or of what is made from it, have already.
_TAKEN = {*Manifest.COLUMNS, "pixels", "patient", "image", "official_split", "part"}

#: Path of an image -> its row of the CSV, by column.
TableRows = dict[str, dict[str, str]]


def open_folder(raw: Path, settings: Ingest) -> Dataset:
    """Read the classes from the folders and the patients from the CSV or from folders.

    Raises:
        DataError: For fewer than two class folders, folders that may mean one thing or another, or
            a CSV that cannot be used.
        ConfigError: When the positive class or the columns are not named as they are.
    """
    listing = leftovers.list_images(raw, images.SUFFIXES, settings.skip, settings.keep)
    folders = [layouts.folders_of(path) for path in listing.paths]
    sides = layouts.find_sides(folders)
    inside_sides = [sides.without(names) for names in folders]
    idle = leftovers.idle_folders(raw, listing.paths)
    classes = layouts.find_classes(inside_sides, settings.positive_class, idle, str(raw))
    table_rows = _table_rows(raw, settings)
    others = [name for name in classes.names if name != classes.positive]
    task = Task(classes=(*others, classes.positive), positive_class=classes.positive)
    readings = _readings(settings)
    card = replace(
        CARD,
        tasks={"classes": task},
        readings=readings,
        patient_ids="patient" in readings,
    )
    remarks = [*sides.remarks(folders), *classes.remarks]
    if idle:
        remarks.append(f"folders without an image, which are no classes: {_first_of(idle)}")
    if not card.patient_ids:
        remarks += layouts.remarks_on_patients(inside_sides, classes)
    reader = _Reader(sides, classes, table_rows, settings)
    return Dataset(card, reader.parse, remarks=tuple(remarks))


@dataclass(frozen=True)
class _Reader:
    """Reads what is known of an image.

    Attributes:
        sides: The folders of published sides.
        classes: The folders of classes.
        table_rows: Rows of the CSV; None without one.
        settings: The `ingest` section.
    """

    sides: Sides
    classes: Classes
    table_rows: TableRows | None
    settings: Ingest

    def parse(self, path: PurePosixPath) -> Parsed:
        """Class from the folder, patient and columns from the CSV."""
        folders = path.parts[:-1]
        columns = {}
        if self.sides.level is not None:
            columns["official_split"] = self.sides.of(folders)
        inside_side = self.sides.without(folders)
        class_name = self.classes.of(inside_side)
        place = self.settings.patient_folder
        if place is not None:
            patient = layouts.patient_folder(inside_side, self.classes.level, place)
            return Parsed(class_name, {"patient": patient}, columns)
        if self.table_rows is None:
            return Parsed(class_name, {"image": str(path)}, columns)
        row = self.table_rows.get(str(path))
        if row is None:
            raise Unrecognised("ingest.table has no row for this file")
        if not row["patient_id"]:
            raise Unrecognised("ingest.table gives this file no patient_id")
        for name in self.settings.columns:
            columns[name] = row[name]
        return Parsed(class_name, {"patient": row["patient_id"]}, columns)


def _readings(settings: Ingest) -> Mapping[str, str]:
    """How the patient is told."""
    place = settings.patient_folder
    if place is None:
        return CARD.readings if settings.table else _READINGS_WITHOUT_TABLE
    if settings.table:
        raise ConfigError(
            f"ingest.table and ingest.patient_folder: {place} both say who the patient is. Set one to null."
        )
    meaning = f"the folder {place} that of the class; one name under two classes is one patient"
    return {"patient": meaning}


def _first_of(names: Sequence[str]) -> str:
    further = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {further} more" if further > 0 else shown


def _table_rows(raw: Path, settings: Ingest) -> TableRows | None:
    """The CSV that `ingest.table` names; None where it names none."""
    if settings.table:
        return _read_table(raw / settings.table, settings.columns)
    if settings.columns:
        raise ConfigError(
            "ingest.columns names columns of ingest.table, which is null. Set ingest.table."
        )
    return None


def _read_table(path: Path, columns: Sequence[str]) -> TableRows:
    table = _read_csv(path)
    missing = [name for name in ("image", "patient_id", *columns) if name not in table]
    if missing:
        raise DataError(
            f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(table.columns)}. Expected are image "
            f"(path inside the raw folder), patient_id, and what ingest.columns names."
        )
    taken = sorted(_TAKEN.intersection(columns))
    if taken:
        raise ConfigError(
            f"ingest.columns cannot hold {', '.join(taken)}: the manifest has columns of that name."
        )
    paths = table["image"].str.strip()
    paths = paths.str.replace("\\", "/")
    table["image"] = paths.str.removeprefix("./")
    table["patient_id"] = table["patient_id"].str.strip()
    is_repeated = table["image"].duplicated()
    if is_repeated.any():
        first = table.loc[is_repeated, "image"].iloc[0]
        raise DataError(f"{path} has more than one row for {first}. Keep one.")
    return {row["image"]: row for row in table.to_dict("records")}


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV as text, nothing of it read as a number or as missing."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"There is no {path}. ingest.table is a path inside the raw folder."
        ) from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} is not readable as a CSV in UTF-8: {error}") from error
