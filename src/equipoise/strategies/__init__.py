"""Remedies for imbalance. One small file each, found by its name; a strategy is data: a plan and an objective."""

from __future__ import annotations

import importlib
import pkgutil

from equipoise.core.errors import unknown_name
from equipoise.strategies import base

__all__ = ["load_strategy", "names"]


def names() -> list[str]:
    """Names of the strategies there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_strategy(name: str) -> type[base.Strategy]:
    """The class of one strategy.

    Raises:
        ConfigError: When there is none, with the nearest name.
    """
    if name not in names():
        raise unknown_name("scenario", name, names())
    return importlib.import_module(f"equipoise.strategies.{name}").Strategy
