"""Your own images: a folder per class, and if you have one a CSV that says whose image is whose.

Expected is `CLASS/…/NAME.png`, or `train/CLASS/…` and `test/CLASS/…` where you have fixed sides.
The CSV (`ingest.table`, a path inside the raw folder) has a column `image` (path inside the raw
folder), a column `patient_id`, and any others, of which only those named in `ingest.columns` are
kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from equipoise.core import images
from equipoise.core.config import Ingest
from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.records import Manifest
from equipoise.ingest.datasets.base import Card, Dataset, Parsed, Task, Unrecognised

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
_SIDES = {
    "train": "train",
    "val": "train",
    "valid": "train",
    "validation": "train",
    "test": "test",
}
#: Names that columns of the manifest, or of what is made from it, have already.
_TAKEN = {*Manifest.COLUMNS, "pixels", "patient", "image", "official_split", "part"}

#: Path of an image -> its row of the CSV, by column.
TableRows = dict[str, dict[str, str]]


def open_folder(raw: Path, settings: Ingest) -> Dataset:
    """Read the classes from the folders and the patients from the CSV.

    Raises:
        DataError: For fewer than two class folders, or a CSV that cannot be used.
        ConfigError: When the positive class or the columns are not named as they are.
    """
    top_folders = _folders(raw)
    has_sides = bool(top_folders) and all(name.lower() in _SIDES for name in top_folders)
    classes = _classes_of_sides(raw, top_folders) if has_sides else top_folders
    positive_class = _positive_class(raw, classes, settings)
    others = [name for name in classes if name != positive_class]
    task = Task(classes=(*others, positive_class), positive_class=positive_class)
    table_rows = _table_rows(raw, settings)
    has_table = table_rows is not None
    card = replace(
        CARD,
        tasks={"classes": task},
        readings=CARD.readings if has_table else _READINGS_WITHOUT_TABLE,
        patient_ids=has_table,
    )
    reader = _Reader(has_sides, table_rows, settings.columns)
    return Dataset(card, reader.parse)


@dataclass(frozen=True)
class _Reader:
    """Reads what is known of an image.

    Attributes:
        has_sides: Whether the class folders lie in folders of published sides.
        table_rows: Rows of the CSV; None without one.
        columns: Columns of the CSV that are kept.
    """

    has_sides: bool
    table_rows: TableRows | None
    columns: Sequence[str]

    def parse(self, path: PurePosixPath) -> Parsed:
        """Class from the folder, patient and columns from the CSV."""
        columns = {}
        inside_side = path.parts
        if self.has_sides:
            columns["official_split"] = _SIDES[path.parts[0].lower()]
            inside_side = path.parts[1:]
        if len(inside_side) < 2:
            raise Unrecognised("the file lies in no class folder")
        class_name = inside_side[0]
        if self.table_rows is None:
            return Parsed(class_name, {"image": str(path)}, columns)
        row = self.table_rows.get(str(path))
        if row is None:
            raise Unrecognised("ingest.table has no row for this file")
        if not row["patient_id"]:
            raise Unrecognised("ingest.table gives this file no patient_id")
        for name in self.columns:
            columns[name] = row[name]
        return Parsed(class_name, {"patient": row["patient_id"]}, columns)


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
