"""Raw folders -> parsed images. One file per dataset, found by its name: a card and the grammar of its file names."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from equipoise.datasets.base import Card, Parsed, Unrecognised
from equipoise.errors import unknown_name

__all__ = ["Card", "Parsed", "Unrecognised", "load_dataset", "names"]


def names() -> list[str]:
    """Names of the datasets there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_dataset(name: str) -> ModuleType:
    """The module of one dataset: it has `CARD` and `parse(relative_path)`.

    Raises:
        ConfigError: When there is none, with the nearest name.
    """
    if name not in names():
        raise unknown_name("dataset", name, names())
    return importlib.import_module(f"equipoise.datasets.{name}")
