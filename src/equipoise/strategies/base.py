"""What every strategy is: parameters with published defaults, a plan, an objective and a search space."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.core.errors import ConfigError, TrialFailed, unknown_name
from equipoise.core.records import Objective, Plan, TrainRows, minority_labels


@dataclass(frozen=True)
class Strategy:
    """Does nothing: every train image once, plain cross-entropy. Strategies override what they change.

    The defaults of the fields are the published settings, tried first. `NEUTRAL` are the settings at which the strategy
    is the baseline exactly; they may be fixed even where no search would look. `PROBE_ONLY` says why there is no
    fine-tuning.
    """

    NEUTRAL: ClassVar[Mapping[str, Any]] = {}
    NEEDS_VIEWS: ClassVar[bool] = False
    PROBE_ONLY: ClassVar[str] = ""

    def plan(self, rows: TrainRows) -> Plan:
        """The rows to train on, one per draw."""
        return Plan.of(np.arange(len(rows.labels)))

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """A few numbers per class, from int (num_classes,) draws per class after the plan."""
        return Objective.neutral(len(plan_counts))

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """Values of the tuned fields from an Optuna trial; the number of views is `trial.study.user_attrs["views"]`."""
        return {}

    @classmethod
    def published(cls, views: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """The published settings: the defaults, as far as the views reach, with the fixed ones laid over.

        Raises:
            ConfigError: For a fixed setting that does not exist or is out of range, or without the views it needs.
        """
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        own = cls.__module__.rsplit(".", 1)[-1]
        if cls.NEEDS_VIEWS:
            if views < 1:
                raise ConfigError(f"Scenario '{own}' needs augmented views; set embed.views to 1 or more.")
            defaults["copies"] = min(defaults["copies"], views)
        ranges = _Ranges(views)
        cls.search_space(ranges)
        for name, value in fixed.items():
            if name not in defaults:
                raise unknown_name("setting", name, defaults, f" of scenario '{own}'")
            kind, low, high = ranges.found[name]
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not number or not (low <= value <= high or value == cls.NEUTRAL[name]):
                raise ConfigError(f"scenarios.{own}.{name} is {value!r}; a number from {low} to {high} is expected.")
        return {**defaults, **fixed}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Build from settings, ignoring what is not a field (the shared `l2`)."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in known})


class _Ranges:
    """Stands for an Optuna trial and notes what a search space asks for: name -> (type, low, high)."""

    def __init__(self, views: int) -> None:
        self.user_attrs = {"views": views}
        self.study = self
        self.found: dict[str, tuple[Any, float, float]] = {}

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        self.found[name] = ((int, float), low, high)
        return low

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        self.found[name] = (int, low, high)
        return low


def resampled(rows: TrainRows, target: Mapping[int, int], module: str, sampler: str) -> Plan:
    """Rows that an imbalanced-learn sampler draws to reach `target` images per class: numbers, never copied images."""
    # Imported late: it costs a second, and most strategies resample nothing.
    sampler_class = getattr(importlib.import_module(f"imblearn.{module}"), sampler)
    drawn = sampler_class(sampling_strategy=dict(target), random_state=rows.seed % 2**32)
    drawn.fit_resample(np.zeros((len(rows.labels), 1)), rows.labels)
    return Plan.of(np.sort(drawn.sample_indices_))


def with_copies(rows: TrainRows, copies: int) -> Plan:
    """Every image once, and each minority image `copies` times more as augmented views 1..copies."""
    minority = np.flatnonzero(np.isin(rows.labels, minority_labels(rows.counts)))
    row = np.concatenate([np.arange(len(rows.labels)), np.tile(minority, copies)])
    view = np.concatenate([np.zeros(len(rows.labels), dtype=int), np.repeat(np.arange(1, copies + 1), len(minority))])
    return Plan.of(row, view)


def inverse_frequency(counts: np.ndarray, exponent: float) -> np.ndarray:
    r"""Weights $w_c \propto n_c^{-a}$ with mean 1 over the draws, float (num_classes,); a class without draws gets 1.

    >>> inverse_frequency(np.array([1349, 3883]), 1.0).round(6).tolist()
    [1.939214, 0.673706]
    """
    present = np.maximum(np.asarray(counts, dtype=float), 1)
    return mean_one(np.where(counts > 0, present**-exponent, 1.0), counts)


def mean_one(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Scale weights float (num_classes,) so that their mean over int (num_classes,) draws per class is 1."""
    return weights / (np.sum(counts * weights) / np.sum(counts))


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
        return Plan.of(np.sort(np.concatenate([kept, removed[round(self.removed_fraction * len(removed)) :]])))

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
        raise TrialFailed(f"{sampler} cannot resample {rows.counts.tolist()} images per class: {error}") from error
    left = np.bincount(rows.labels[built.sample_indices_], minlength=rows.num_classes)
    if ((left == 0) & (rows.counts > 0)).any():
        raise TrialFailed(f"{sampler} leaves {left.tolist()} of {rows.counts.tolist()} images per class: one is empty.")
    return built.sample_indices_
