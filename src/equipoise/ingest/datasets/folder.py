"""Your own images: a folder per class, and if you have one a CSV that says whose image is whose.

Expected is `CLASS/…/NAME.png`, or `train/CLASS/…` and `test/CLASS/…` where you have fixed sides. The CSV
(`ingest.table`, a path inside the raw folder) has a column `image` (path inside the raw folder), a column `patient_id`,
and any others, of which only those named in `ingest.columns` are kept.
"""

from dataclasses import replace
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

_SIDES = {"train": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}
_TAKEN = {*Manifest.COLUMNS, "pixels", "patient", "image", "official_split", "part"}


def open_folder(raw: Path, settings: Ingest) -> Dataset:
    """Read the classes from the folders and the patients from the CSV."""
    tops = _folders(raw)
    sided = bool(tops) and {name.lower() for name in tops} <= set(_SIDES)
    classes = sorted({name for top in tops for name in _folders(raw / top)} if sided else tops)
    if len(classes) < 2:
        raise DataError(
            f"{raw} needs a folder for each class (or train/CLASS, test/CLASS), at least two; found: "
            f"{', '.join(classes) or 'none'}."
        )
    if settings.positive_class is None:
        raise ConfigError(
            f"Name the disease: set ingest.positive_class to one of {', '.join(classes)}. Sensitivity speaks of it."
        )
    if settings.positive_class not in classes:
        raise unknown_name("class", settings.positive_class, classes, f" in {raw}")
    ordered = tuple(
        [name for name in classes if name != settings.positive_class] + [settings.positive_class]
    )
    table = _table(raw / settings.table, settings.columns) if settings.table else None
    if table is None and settings.columns:
        raise ConfigError(
            "ingest.columns names columns of ingest.table, which is null. Set ingest.table."
        )

    def parse(path: PurePosixPath) -> Parsed:
        parts = path.parts[1:] if sided else path.parts
        if len(parts) < 2:
            raise Unrecognised("the file lies in no class folder")
        columns = {"official_split": _SIDES[path.parts[0].lower()]} if sided else {}
        if table is None:
            return Parsed(parts[0], {"image": str(path)}, columns)
        row = table.get(str(path))
        if row is None:
            raise Unrecognised("ingest.table has no row for this file")
        if not row["patient_id"]:
            raise Unrecognised("ingest.table gives this file no patient_id")
        return Parsed(
            parts[0],
            {"patient": row["patient_id"]},
            {**columns, **{k: row[k] for k in settings.columns}},
        )

    known = table is not None
    readings = (
        CARD.readings
        if known
        else {"image": "every image counts as a patient: there is no ingest.table"}
    )
    tasks = {"classes": Task(classes=ordered, positive_class=settings.positive_class)}
    card = replace(CARD, tasks=tasks, readings=readings, patient_ids=known)
    return Dataset(card, parse)


def _folders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not images.hidden(path.name)
    )


def _table(path: Path, columns: list[str]) -> dict[str, dict[str, str]]:
    """Rows of the CSV by image path."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"There is no {path}. ingest.table is a path inside the raw folder."
        ) from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} is not readable as a CSV in UTF-8: {error}") from error
    lacking = [name for name in ("image", "patient_id", *columns) if name not in table]
    if lacking:
        raise DataError(
            f"{path} lacks the column(s) {', '.join(lacking)}; it has {', '.join(table.columns)}. Expected are image "
            f"(path inside the raw folder), patient_id, and what ingest.columns names."
        )
    if taken := sorted(_TAKEN.intersection(columns)):
        raise ConfigError(
            f"ingest.columns cannot hold {', '.join(taken)}: the manifest has columns of that name."
        )
    table["image"] = table["image"].str.strip().str.replace("\\", "/").str.removeprefix("./")
    table["patient_id"] = table["patient_id"].str.strip()
    if table["image"].duplicated().any():
        twice = table.loc[table["image"].duplicated(), "image"].iloc[0]
        raise DataError(f"{path} has more than one row for {twice}. Keep one.")
    return {row["image"]: row for row in table.to_dict("records")}
