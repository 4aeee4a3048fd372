"""Rows that are drawn again or left out: at random, or by a sampler of imbalanced-learn."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.strategies import base
from equipoise.strategies.base import Plan, TrainRows, parameter


def drawn_again(rows: TrainRows, target: Mapping[int, int]) -> Plan:
    """Every row, and rows of each class again, with replacement, up to as many images as wanted.

    The rows of imbalanced-learn's RandomOverSampler, without the second that importing it takes.

    Args:
        rows: Train rows.
        target: Images wanted of each class, at least those that it has.
    """
    random = _random(rows)
    drawn = [np.arange(len(rows.labels))]
    for label, wanted in target.items():
        of_class = np.flatnonzero(rows.labels == label)
        drawn.append(random.choice(of_class, wanted - len(of_class), replace=True))
    return _in_order(drawn)


def left_over(rows: TrainRows, target: Mapping[int, int]) -> Plan:
    """As many rows of each class as wanted, each at most once.

    The rows of imbalanced-learn's RandomUnderSampler.

    Args:
        rows: Train rows.
        target: Images wanted of each class, at most those that it has.
    """
    random = _random(rows)
    kept = []
    for label, wanted in target.items():
        of_class = np.flatnonzero(rows.labels == label)
        kept.append(random.choice(of_class, wanted, replace=False))
    return _in_order(kept)


def _in_order(rows: Sequence[np.ndarray]) -> Plan:
    """A plan of these rows, sorted by their position."""
    every = np.concatenate(rows)
    return Plan.of(np.sort(every))


@dataclass(frozen=True)
class Cleaner(base.Strategy):
    r"""Leaves out, at random, the part $t$ of the images that a sampler would leave out.

    The sampler is one of imbalanced-learn, with its own defaults. It looks at the standardised
    features of the train rows it is given and at nothing else.

    Attributes:
        SAMPLER: Name of the class in `imblearn.under_sampling`.
        removed_fraction: $t$, no unit. Published: 1, exactly the sampler.
    """

    SAMPLER: ClassVar[str] = ""

    removed_fraction: float = parameter(1.0, low=0.0, high=1.0, neutral=0.0)

    def plan(self, rows: TrainRows) -> Plan:
        """What the sampler keeps, and the part $1-t$ of the rest."""
        everything = np.arange(len(rows.labels))
        if not self.removed_fraction:
            return Plan.of(everything)
        kept = rows.once(self.SAMPLER, partial(_kept, self.SAMPLER, rows))
        removable = np.setdiff1d(everything, kept)
        shuffled = np.random.default_rng(rows.seed).permutation(removable)
        num_removed = round(self.removed_fraction * len(shuffled))
        return _in_order([kept, shuffled[num_removed:]])


def _kept(name: str, rows: TrainRows, features: np.ndarray) -> np.ndarray:
    """Rows that a sampler keeps, int (num_kept,)."""
    # Imported late: it costs a second, and most strategies resample nothing.
    samplers = importlib.import_module("imblearn.under_sampling")
    sampler = getattr(samplers, name)()
    if "random_state" in sampler.get_params(deep=False):
        sampler.set_params(random_state=_random_state(rows))
    # Numbered without gaps: some samplers take a label for a column.
    _, labels = np.unique(rows.labels, return_inverse=True)
    try:
        sampler.fit_resample(features, labels)
    except (ValueError, RuntimeError, IndexError) as error:
        raise TrialFailed(
            f"{name} cannot resample {rows.counts.tolist()} images per class: {error}"
        ) from error
    kept = sampler.sample_indices_
    counts = np.bincount(rows.labels[kept], minlength=rows.num_classes)
    emptied = (counts == 0) & (rows.counts > 0)
    if emptied.any():
        raise TrialFailed(
            f"{name} leaves {counts.tolist()} of {rows.counts.tolist()} images per class: "
            f"one is empty."
        )
    return kept


def _random_state(rows: TrainRows) -> int:
    return rows.seed % 2**32


def _random(rows: TrainRows) -> np.random.RandomState:
    # The generator of scikit-learn and imbalanced-learn; its draws never change.
    return np.random.RandomState(_random_state(rows))
