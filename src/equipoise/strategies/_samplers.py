"""What strategies take from imbalanced-learn: rows that its samplers draw or keep."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.strategies import base
from equipoise.strategies.base import Plan, TrainRows, parameter


def resampled(rows: TrainRows, target: Mapping[int, int], module: str, sampler: str) -> Plan:
    """Rows that a sampler of imbalanced-learn draws: numbers of rows, never copied images.

    Args:
        rows: Train rows.
        target: Images wanted of each class.
        module: `over_sampling` or `under_sampling`.
        sampler: Name of the class in it.
    """
    drawn = _sampler_class(module, sampler)(
        sampling_strategy=dict(target), random_state=_random_state(rows)
    )
    no_features = np.zeros((len(rows.labels), 1))
    drawn.fit_resample(no_features, rows.labels)
    return Plan.of(np.sort(drawn.sample_indices_))


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
        return Plan.of(np.sort(np.concatenate([kept, shuffled[num_removed:]])))


def _kept(name: str, rows: TrainRows, features: np.ndarray) -> np.ndarray:
    """Rows that a sampler keeps, int (num_kept,)."""
    sampler = _sampler_class("under_sampling", name)()
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


def _sampler_class(module: str, name: str) -> Any:
    # Imported late: it costs a second, and most strategies resample nothing.
    return getattr(importlib.import_module(f"imblearn.{module}"), name)


def _random_state(rows: TrainRows) -> int:
    return rows.seed % 2**32
