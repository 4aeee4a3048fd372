"""What a dataset file says about itself and about each of its images."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType

from equipoise.core import images
from equipoise.core.config import Ingest
from equipoise.core.errors import DataError, unknown_name
from equipoise.ingest.leftovers import Listing


def names() -> list[str]:
    """Names of the datasets there are: the files of this folder."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(
        module.name
        for module in modules
        if module.name != "base" and not module.name.startswith("_")
    )


def load_dataset(name: str) -> ModuleType:
    """The module of one dataset: it has `CARD`, and `parse(relative_path)` or `open_folder(raw, settings)`.

    Raises:
        ConfigError: When there is none, with the nearest name.
    """
    if name not in names():
        raise unknown_name("dataset", name, names())
    return importlib.import_module(f"equipoise.ingest.datasets.{name}")


def open_dataset(name: str, raw: Path, settings: Ingest) -> tuple[Dataset, Task]:
    """A dataset on its raw folder, and the task that `ingest.task` names (null: the card's first).

    Args:
        name: Name of the dataset file.
        raw: Folder of the originals.
        settings: The `ingest` section.

    Raises:
        DataError: When there is no raw folder.
        ConfigError: For an unknown dataset or task.
    """
    module = load_dataset(name)
    if not raw.is_dir():
        raise DataError(
            f"There is no folder {raw}. Put the originals there (untouched; `dvc checkout` or `dvc pull` brings back "
            f"tracked ones), name their folder with ingest.raw, or get the published ones with `equipoise fetch` "
            f"(chest_xray, breakhis)."
        )
    if hasattr(module, "open_folder"):
        dataset = module.open_folder(raw, settings)
    else:
        dataset = Dataset(module.CARD, module.parse)
    tasks = dataset.card.tasks
    task_name = settings.task or next(iter(tasks))
    if task_name not in tasks:
        raise unknown_name("task", task_name, tasks, f" of dataset '{name}'")
    return dataset, tasks[task_name]


class Unrecognised(ValueError):
    """A file that does not follow the dataset's grammar; `ingest` puts it into quarantine.

    The text says why and names no part of the path, because a path may tell who the patient is.
    """


@dataclass(frozen=True)
class Archive:
    """The published file a dataset comes in.

    Attributes:
        address: Where it is downloaded from.
        bytes: Its size; None where the source does not state one.
        sha256: Its digest, hexadecimal; None where none is published. Then the first download is
            recorded, and later ones must be the same.
    """

    address: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Task:
    """A question put to a dataset: which classes, and which images belong to which.

    Attributes:
        classes: Class names in the order of their labels.
        positive_class: The disease: sensitivity speaks of this class. With more than two classes it
            only names one.
        grouping: Finest class -> class of the task; None when the finest classes are the task's.
        expected_images: Selection -> class -> number of images when complete. A selection
            (`ingest.only`) is written "column=value", and "" is everything. A selection that is not
            listed has no published number.
    """

    classes: tuple[str, ...]
    positive_class: str
    grouping: Mapping[str, str] | None = None
    expected_images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def class_of(self, finest: str) -> str:
        """The task's class of an image."""
        return finest if self.grouping is None else self.grouping[finest]

    def completeness(self, counts: Mapping[str, int], selection: str = "") -> str:
        """Say whether the images found are all of the dataset, part of it, or something else.

        Args:
            counts: Class -> number of images, copies included.
            selection: Which part was asked for, as in `expected_images`.
        """
        expected = self.expected_images.get(selection)
        if not expected:
            return "there is no published number of images to compare with"
        text = ", ".join(f"{name} {count:,}" for name, count in expected.items())
        if all(counts[name] == count for name, count in expected.items()):
            return f"complete: {text}"
        if all(counts[name] <= count for name, count in expected.items()):
            return f"partial: the complete dataset has {text}"
        return f"different: the published dataset has {text}"


@dataclass(frozen=True)
class Card:
    """Where a dataset comes from and what to expect of it.

    Attributes:
        title: One line.
        source: Address of the official copy.
        licence: As stated by the source.
        citation: Paper to cite.
        tasks: Questions it can answer, the default first.
        readings: Ways to read who the patient is, the default first, each with what it means.
        official_reading: The reading under which the published split was made; None: the first.
        patient_ids: Whether the readings are of patients. Without patient ids every image counts as
            a patient, and every table says that its intervals are per image.
        archive: What `equipoise fetch` downloads; None when it has to be had elsewhere.
        pseudonymise: Whether ids are replaced by keyed hashes unless `ingest.pseudonymise` says
            otherwise.
    """

    title: str
    source: str
    licence: str
    citation: str
    tasks: Mapping[str, Task]
    readings: Mapping[str, str]
    official_reading: str | None = None
    patient_ids: bool = True
    archive: Archive | None = None
    pseudonymise: bool = False


@dataclass(frozen=True)
class Parsed:
    """What is known of one image besides its pixels.

    Attributes:
        class_name: Its finest class; a task maps it to one of its own.
        patients: Patient id by reading, every reading of the card.
        columns: Dataset columns, for example subtype, magnification. The column `official_split`
            (or `official_split_1`, `official_split_2`, ... where several are published) holds
            train, test or nothing.
    """

    class_name: str
    patients: Mapping[str, str]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A dataset opened on one raw folder.

    Attributes:
        card: What it says about itself.
        parse: Relative path of an image -> what is known of it; raises Unrecognised.
        suffixes: Endings of the files that hold images.
        remarks: Sentences about what was found on the way, for the user to judge.
        listing: Its files, where they had to be listed to open it.
    """

    card: Card
    parse: Callable[[PurePosixPath], Parsed]
    suffixes: frozenset[str] = images.SUFFIXES
    remarks: tuple[str, ...] = ()
    listing: Listing | None = None
