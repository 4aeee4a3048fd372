"""Equipoise compares remedies for class imbalance in medical image classification under the same fair conditions.

Notebooks use `compare`, `plan`, `fit_heads`, `split` and `load`; each is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from equipoise.core.version import VERSION as __version__

if TYPE_CHECKING:
    from equipoise.api.folds import split
    from equipoise.api.heads import fit_heads
    from equipoise.api.plans import plan
    from equipoise.api.studies import load
    from equipoise.api.verdicts import compare

__all__ = ["__version__", "compare", "fit_heads", "load", "plan", "split"]

#: Function -> the module that holds it.
_HOMES = {
    "compare": "equipoise.api.verdicts",
    "fit_heads": "equipoise.api.heads",
    "load": "equipoise.api.studies",
    "plan": "equipoise.api.plans",
    "split": "equipoise.api.folds",
}
#: Rooms that are called like a function; their names mean both.
_ROOMS = ("compare", "split")


def _function(name: str) -> Callable[..., Any]:
    with warnings.catch_warnings():
        # Optuna imports tqdm, which misses its widgets in notebooks; none are shown here.
        warnings.filterwarnings("ignore", message="IProgress not found")
        return getattr(importlib.import_module(_HOMES[name]), name)


class _Room(ModuleType):
    """A room that can be called: `equipoise.compare(...)` is its function, `equipoise.compare.judging` a file of it."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self.__wrapped__(*arguments, **settings)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What help and signatures are read from."""
        return _function(self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """The package itself: importing a room puts it here, and would hide the function of its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return _function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
