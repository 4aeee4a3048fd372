"""What the cleaning samplers of imbalanced-learn share: a plan from the rows that they keep."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.strategies.base import Plan, Strategy, TrainRows


def resampled(rows: TrainRows, target: Mapping[int, int], module: str, sampler: str) -> Plan:
    """Rows that an imbalanced-learn sampler draws to reach `target` images per class: numbers, never copied images."""
    # Imported late: it costs a second, and most strategies resample nothing.
    sampler_class = getattr(importlib.import_module(f"imblearn.{module}"), sampler)
    drawn = sampler_class(sampling_strategy=dict(target), random_state=rows.seed % 2**32)
    drawn.fit_resample(np.zeros((len(rows.labels), 1)), rows.labels)
    return Plan.of(np.sort(drawn.sample_indices_))


@dataclass(frozen=True)
class _Cleaned(Strategy):
    r"""Leaves out, at random, the part $t$ of what a sampler of imbalanced-learn would leave out. $t=0$: baseline.

    Attributes:
        removed_fraction: $t$ in 0..1. Published: 1, exactly the sampler.
    """

    removed_fraction: float = 1.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"removed_fraction": 0.0}
    SAMPLER: ClassVar[str] = ""

    def plan(self, rows: TrainRows) -> Plan:
        """What the sampler keeps, and the part $1-t$ of the rest."""
        everything = np.arange(len(rows.labels))
        if not self.removed_fraction:
            return Plan.of(everything)
        kept = rows.once(self.SAMPLER, partial(_kept, self.SAMPLER, rows))
        removed = np.random.default_rng(rows.seed).permutation(np.setdiff1d(everything, kept))
        return Plan.of(
            np.sort(np.concatenate([kept, removed[round(self.removed_fraction * len(removed)) :]]))
        )

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$t$ in 0..1."""
        return {"removed_fraction": trial.suggest_float("removed_fraction", 0.0, 1.0)}


def imblearn(sampler: str, module: str) -> type[Strategy]:
    """The strategy, for the file `module`, of one under-sampler of imbalanced-learn with its own defaults.

    It looks at the standardised features of the train rows it is given and at nothing else.
    """
    return type("Strategy", (_Cleaned,), {"__module__": module, "SAMPLER": sampler})


def _kept(sampler: str, rows: TrainRows, features: np.ndarray) -> np.ndarray:
    built = getattr(importlib.import_module("imblearn.under_sampling"), sampler)()
    if "random_state" in built.get_params(deep=False):
        built.set_params(random_state=rows.seed % 2**32)
    try:
        # Numbered without gaps: some samplers take a label for a column.
        built.fit_resample(features, np.unique(rows.labels, return_inverse=True)[1])
    except (ValueError, RuntimeError, IndexError) as error:
        raise TrialFailed(
            f"{sampler} cannot resample {rows.counts.tolist()} images per class: {error}"
        ) from error
    left = np.bincount(rows.labels[built.sample_indices_], minlength=rows.num_classes)
    if ((left == 0) & (rows.counts > 0)).any():
        raise TrialFailed(
            f"{sampler} leaves {left.tolist()} of {rows.counts.tolist()} images per class: one is empty."
        )
    return built.sample_indices_
