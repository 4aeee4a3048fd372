"""What a folder of images and a table say: which reader fits, what the classes are, who counts as one patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from equipoise.core import config, images, text, yaml_text
from equipoise.core.config import PATIENT_COLUMN, ImageTable, Ingest
from equipoise.core.errors import ConfigError, DataError
from equipoise.ingest import spellings, tables
from equipoise.ingest.datasets import base as datasets
from equipoise.ingest.datasets.base import Dataset, Task, Unrecognised

#: So much of a published dataset's images must be named as it names them.
_NAMED_FRACTION = 0.9


@dataclass(frozen=True)
class Columns:
    """Columns of a table as a user names them; None leaves it to their usual names."""

    image: str | None = None
    label: str | None = None
    patient: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Wish:
    """What a user says of a study.

    Attributes:
        images: Folder of the originals.
        positive: The class that sensitivity speaks of: the disease.
        table: A CSV inside that folder; None without one.
        columns: Of the table.
    """

    images: Path
    positive: str
    table: Path | None = None
    columns: Columns = Columns()


@dataclass(frozen=True)
class Description:
    """How a study reads its images.

    Attributes:
        ingest: The section of params.yaml, in braces.
        split: Likewise; `{}` where the defaults serve.
        sentences: What was recognised, for the user to judge.
    """

    ingest: str
    split: str
    sentences: tuple[str, ...]


def describe(wish: Wish) -> Description:
    """Look at the images and the table as `ingest` will, and say how they are read.

    Raises:
        DataError: For a folder that is missing or without images, and for a table that cannot be used.
        ConfigError: For a positive class that is none, with the nearest name, and for columns that nobody named.
    """
    folder = wish.images
    if not folder.is_dir():
        state = "is a file" if folder.is_file() else "is not there"
        raise DataError(f"{folder} {state}: --images names the folder that the images lie in.")
    paths = images.walk(folder).paths
    if not paths:
        endings = ", ".join(sorted(images.SUFFIXES))
        raise DataError(f"{folder} holds no image. Expected are files ending in {endings}.")
    section = _section(wish, paths)
    dataset, task = datasets.open_dataset(section["dataset"], folder, _settings(section))
    sentences = _sentences(wish, len(paths), dataset, task)
    folds = _folds(dataset, task, paths)
    if folds is None:
        return Description(_in_braces(section), "{}", tuple(sentences))
    sentences.append(
        f"split.folds is {folds}, because the rarest class has {folds} patients; that is few"
    )
    return Description(_in_braces(section), f"{{folds: {folds}}}", tuple(sentences))


def _section(wish: Wish, paths: Sequence[str]) -> dict[str, Any]:
    """The keys of the section `ingest` that are not as usual."""
    if wish.table is None:
        _refuse_columns_without_table(wish.columns)
        for name in datasets.names():
            task = _published_task(datasets.load_dataset(name), wish.positive, paths)
            if task is not None:
                return {"dataset": name, "task": task}
    section: dict[str, Any] = {"dataset": "folder", "positive_class": wish.positive}
    if wish.table is not None:
        section["table"] = _table_section(wish.images, wish.table, wish.columns)
    return section


def _published_task(module: ModuleType, positive: str, paths: Sequence[str]) -> str | None:
    """The task of a published dataset whose positive class this is, where the images are named as those of the dataset.

    A dataset that can be downloaded has names that hardly anyone else uses.
    """
    if module.CARD.archive is None:
        return None
    named = sum(_is_named(module, path) for path in paths)
    if named < _NAMED_FRACTION * len(paths):
        return None
    for name, task in module.CARD.tasks.items():
        if spellings.class_key(task.positive_class) == spellings.class_key(positive):
            return name
    return None


def _is_named(module: ModuleType, path: str) -> bool:
    try:
        module.parse(PurePosixPath(path))
    except Unrecognised:
        return False
    return True


def _folds(dataset: Dataset, task: Task, paths: Sequence[str]) -> int | None:
    """How many folds the patients of the rarest class allow; None where as many as usual, or not even two."""
    reading = next(iter(dataset.card.readings))
    patients: dict[str, set[str]] = {name: set() for name in task.classes}
    for path in paths:
        with suppress(Unrecognised):
            parsed = dataset.parse(PurePosixPath(path))
            patients[task.class_of(parsed.class_name)].add(parsed.patients[reading])
    fewest = min(map(len, patients.values()))
    usual = config.packaged_params()["defaults"]["split"]["folds"]
    return fewest if 2 <= fewest < usual else None


# --- the table ------------------------------------------------------------------------------------


def _refuse_columns_without_table(columns: Columns) -> None:
    for field in fields(columns):
        if getattr(columns, field.name) is not None:
            raise ConfigError(
                f"--{field.name}-column speaks of a table, and none is named. Name it with --table CSV."
            )


def _table_section(folder: Path, table: Path, columns: Columns) -> dict[str, Any]:
    """What `ingest.table` says: the file inside the folder of the images, and its columns."""
    path = table if table.exists() else folder / table
    if not path.is_file():
        raise DataError(f"There is no file {table}: --table names a CSV in {folder}.")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{table} lies outside {folder}, where neither DVC nor ingest would notice a change of it. "
            f"Put it into that folder; nothing is written there by Equipoise."
        )
    header = tables.read_table(path)
    section: dict[str, Any] = {"file": path.resolve().relative_to(folder.resolve()).as_posix()}
    usual = ImageTable.model_fields["image"].default
    if not header.has(columns.image or usual):
        asked = f"--image-column {columns.image}" if columns.image else f"'{usual}'"
        raise ConfigError(
            f"Which column of {table} names the image? It has {header.names}, and none is {asked}. Say it with "
            f"--image-column NAME; likewise --label-column (without it the folders name the classes), --patient-column "
            f"(without it every image counts as a patient) and --split-column."
        )
    label = columns.label or ("label" if header.has("label") else None)
    named = {"image": columns.image, "label": label, "patient": columns.patient}
    named["split"] = columns.split
    for key, column in named.items():
        if column is not None:
            header.column(column)
            section[key] = column
    if columns.patient is None and header.has(PATIENT_COLUMN):
        section["patient"] = PATIENT_COLUMN
    return section


# --- what is written and said ---------------------------------------------------------------------


def _settings(section: Mapping[str, Any]) -> Ingest:
    """The section as `ingest` will read it."""
    usual = config.packaged_params()["defaults"]["ingest"]
    return Ingest.model_validate(usual | section)


def _in_braces(section: Mapping[str, Any]) -> str:
    parts = []
    for key, value in section.items():
        shown = _in_braces(value) if isinstance(value, Mapping) else yaml_text.written(value)
        parts.append(f"{key}: {shown}")
    return "{" + ", ".join(parts) + "}"


def _sentences(wish: Wish, count: int, dataset: Dataset, task: Task) -> list[str]:
    card = dataset.card
    others = [name for name in task.classes if name != task.positive_class]
    reading, meaning = next(iter(card.readings.items()))
    if reading == "image":
        meaning += (
            ". Where a patient has several images, intervals are then too narrow, and one patient may stand on both "
            "sides: name patients by --table, or by ingest.patient_folder in params.yaml (docs/your-images.md)"
        )
    return [
        f"{text.counted(count, 'image')} in {wish.images}, read as {card.title}",
        f"positive is {task.positive_class}, against {text.in_words(others)}",
        f"what counts as one patient: {meaning}",
        *dataset.remarks,
    ]
