"""Raw folders -> parsed images. One file per dataset, found by its name: a card and how its images are read."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from equipoise.core.config import Study
from equipoise.core.errors import DataError, unknown_name
from equipoise.ingest.datasets.base import Archive, Card, Dataset, Parsed, Task, Unrecognised

__all__ = ["Archive", "Card", "Dataset", "Parsed", "Task", "Unrecognised", "load_dataset", "names", "open_dataset"]


def names() -> list[str]:
    """Names of the datasets there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_dataset(name: str) -> ModuleType:
    """The module of one dataset: it has `CARD`, and `parse(relative_path)` or `open_folder(raw, settings)`.

    Raises:
        ConfigError: When there is none, with the nearest name.
    """
    if name not in names():
        raise unknown_name("dataset", name, names())
    return importlib.import_module(f"equipoise.ingest.datasets.{name}")


def open_dataset(study: Study) -> tuple[Dataset, Task]:
    """A study's dataset on its raw folder, and the task that `ingest.task` names (null: the card's first).

    Raises:
        DataError: When there is no raw folder.
        ConfigError: For an unknown dataset or task.
    """
    module = load_dataset(study.dataset)
    if not study.raw.is_dir():
        raise DataError(
            f"There is no folder {study.raw}. Put the originals there (untouched), name their folder with ingest.raw, "
            f"or get the published ones with `equipoise fetch` (chest_xray, breakhis)."
        )
    opener = getattr(module, "open_folder", None)
    dataset = opener(study.raw, study.settings.ingest) if opener else Dataset(module.CARD, module.parse)
    tasks = dataset.card.tasks
    wanted = study.settings.ingest.task or next(iter(tasks))
    if wanted not in tasks:
        raise unknown_name("task", wanted, tasks, f" of dataset '{study.dataset}'")
    return dataset, tasks[wanted]
