"""Trials of a search: what one is, what its score is worth, and which of two is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from equipoise.core.config import Tune
from equipoise.evaluation import metrics
from equipoise.evaluation.resamples import Resamples, patient_resamples
from equipoise.evaluation.sample import Sample, decide
from equipoise.scenario.searches import Outcome

#: Resamples times images that are scored at a time.
_CELLS = 2**22


class Gain(NamedTuple):
    """By how much one trial beats another, and the paired standard error of that over patients."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Trial:
    """One trial with its score.

    Attributes:
        number: Place in the search, from 0.
        settings: The strategy's settings and `l2`.
        score: The objective on the images that score; NaN when the trial failed.
        violation: By how much the constraint is missed; 0 or less where it is met.
        probabilities: float (num_images, C) of the images that score; None when the trial failed.
        logits: float64 (num_images, C), what they were made of.
        error: Why it failed; empty where it did not.
        steps: Optimiser steps taken; None for a trial that was solved.
        pruned: Whether it was stopped early.
    """

    number: int
    settings: dict[str, Any]
    score: float
    violation: float = 0.0
    probabilities: np.ndarray | None = None
    logits: np.ndarray | None = None
    error: str = ""
    steps: int | None = None
    pruned: bool = False

    @property
    def failed(self) -> bool:
        """Whether it has no score."""
        return self.probabilities is None

    @property
    def state(self) -> str:
        """Failed, pruned or complete, as trials.parquet says it."""
        if self.failed:
            return "failed"
        return "pruned" if self.pruned else "complete"


def trial_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row per trial, as in trials.parquet."""
    rows = []
    for trial in trials:
        row: dict[str, Any] = {
            "trial": trial.number,
            "state": trial.state,
            "score": trial.score,
            "violation": trial.violation,
            "error": trial.error,
        }
        if trial.steps is not None:
            row["steps"] = trial.steps
        rows.append(row | trial.settings)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Scorer:
    """Scores the trials of one search, all on the same images.

    Each inner fold is scored by a head of its own, and ranks of different heads say nothing about
    each other. So rank metrics are computed within each fold and averaged, while decisions and
    probabilities, which every head gives on the same scale, are pooled.

    Attributes:
        labels: int (num_images,), of the images that score.
        patients: (num_images,), patient of each.
        num_classes: C.
        positive: Index of the positive class.
        settings: The `tune` section.
        seed: Seed of the resamples of patients.
        fold_of: int (num_images,), inner fold of each image; None where one model scores them all.
    """

    labels: np.ndarray
    patients: np.ndarray
    num_classes: int
    positive: int
    settings: Tune
    seed: int
    fold_of: np.ndarray | None = None

    @cached_property
    def metric(self) -> metrics.Metric:
        """The objective."""
        return metrics.load_metric(self.settings.objective)

    @property
    def maximises(self) -> bool:
        """Whether a higher score is better."""
        return self.metric.better == "higher"

    def judge(self, number: int, settings: dict[str, Any], outcome: Outcome) -> Trial:
        """The trial that an outcome makes: its score and violation, or why it failed."""
        trial = Trial(
            number=number,
            settings=settings,
            score=float("nan"),
            error=outcome.error,
            steps=outcome.steps,
            pruned=outcome.pruned,
        )
        if outcome.logits is None:
            return trial
        logits = self._every_class(outcome.logits)
        probabilities = metrics.softmax(logits)
        trial = replace(
            trial,
            score=self._measured(self.metric, probabilities),
            violation=self._violation(probabilities),
        )
        if not np.isfinite(trial.score):
            return replace(trial, error=f"{self.settings.objective} is not a number")
        return replace(trial, probabilities=probabilities, logits=logits)

    def best(self, trials: Sequence[Trial]) -> Trial:
        """The best feasible trial, or else the smallest violation; of equals the earlier trial."""
        return min(trials, key=self._rank)

    def gain(self, better: Trial, other: Trial) -> Gain:
        """By how much one complete trial beats another, paired over resampled patients."""
        differences = self.resampled(better) - self.resampled(other)
        value = better.score - other.score
        if not self.maximises:
            value = -value
        return Gain(value, standard_error=float(np.nanstd(differences, ddof=1)))

    def _rank(self, trial: Trial) -> tuple[float, float, int]:
        loss = -trial.score if self.maximises else trial.score
        return max(trial.violation, 0.0), loss, trial.number

    def _violation(self, probabilities: np.ndarray) -> float:
        constraint = self.settings.constraint
        if constraint is None:
            return 0.0
        metric = metrics.load_metric(constraint.metric)
        return constraint.at_least - self._measured(metric, probabilities)

    @cached_property
    def _resamples(self) -> Resamples:
        """The patients that score, drawn again: the same for all trials, and for all scenarios."""
        return patient_resamples(
            self.patients, self.labels, self.settings.gain_resamples, self.seed
        )

    def resampled(self, trial: Trial) -> np.ndarray:
        """Scores of a complete trial under resamples of the patients, float (num_resamples,)."""
        patients, drawn = self._resamples
        patient_of = np.searchsorted(patients, self.patients)
        num_parts = -(-len(drawn) * len(patient_of) // _CELLS)
        scores = []
        for part in np.array_split(drawn[1:], num_parts):
            weights = part[:, patient_of]
            scores.append(self._measure(self.metric, trial.probabilities, weights))
        return np.concatenate(scores)

    def _every_class(self, logits: np.ndarray) -> np.ndarray:
        """Logits float64 (num_images, C); for two classes the logit of class 0 is zero."""
        missing_columns = self.num_classes - logits.shape[1]
        return np.pad(logits.astype(np.float64), ((0, 0), (missing_columns, 0)))

    @cached_property
    def _rows_of_fold(self) -> list[np.ndarray]:
        """The images of each inner fold, int (num_held,) each."""
        if self.fold_of is None:
            return [np.arange(len(self.labels))]
        return [np.flatnonzero(self.fold_of == fold) for fold in np.unique(self.fold_of)]

    def _measured(self, metric: metrics.Metric, probabilities: np.ndarray) -> float:
        every_image_once = np.ones((1, len(probabilities)))
        values = self._measure(metric, probabilities, every_image_once)
        return float(values[0])

    def _measure(
        self, metric: metrics.Metric, probabilities: np.ndarray | None, weights: np.ndarray
    ) -> np.ndarray:
        """A metric under several weights of the images, float (num_weights, num_images)."""
        if probabilities is None:
            raise ValueError("a failed trial has no probabilities to measure")
        sample = Sample(
            self.labels,
            probabilities,
            decide(probabilities, self.positive),
            self.positive,
            weights,
            self.settings.sensitivity_floor,
        )
        if metric.kind != "rank":
            return metric.function(sample)
        values = [metric.function(sample.subset(rows)) for rows in self._rows_of_fold]
        return _mean_of_defined(np.array(values))


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the folds that have the metric, float (B,) of (num_folds, B); NaN where none has it.

    A resample may leave a small fold without a patient of the rare class. It does so for every
    trial alike, so the difference of two trials stays paired.
    """
    is_defined = ~np.isnan(values)
    totals = np.where(is_defined, values, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return totals / is_defined.sum(axis=0)
