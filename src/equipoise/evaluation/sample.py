"""Test rows, how often each counts in each resample, and what is counted of them once for all metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

#: Resamples at a time: their steps stay in the processor's cache.
BLOCK = 128

#: A rate this far short of the floor still counts as reaching it: sums of floats are not exact.
ROUNDING = 1e-12


class RocSteps(NamedTuple):
    """True and false positives as the threshold falls past one distinct score after the other.

    Attributes:
        true: float64 (B, number of distinct scores), cumulative and weighted.
        false: The same of false positives.
    """

    true: np.ndarray
    false: np.ndarray

    @property
    def positives(self) -> np.ndarray:
        """All positive rows, weighted, float64 (B,)."""
        return self.true[:, -1]

    @property
    def negatives(self) -> np.ndarray:
        """All other rows, weighted, float64 (B,)."""
        return self.false[:, -1]


class Outcomes(NamedTuple):
    """How a class and the decisions for it meet: weighted numbers of rows, float64 (B,) each.

    Attributes:
        detected: Of the class and decided for it (true positives).
        missed: Of the class and not decided for it (false negatives).
        alarms: Of another class and decided for it (false positives).
        cleared: Of another class and not decided for it (true negatives).
    """

    detected: np.ndarray
    missed: np.ndarray
    alarms: np.ndarray
    cleared: np.ndarray

    def where_both(self, values: np.ndarray) -> np.ndarray:
        """Values (B,), NaN in resamples that lack the class or all others."""
        of_class = self.detected + self.missed
        of_others = self.alarms + self.cleared
        has_both = (of_class > 0) & (of_others > 0)
        return np.where(has_both, values, np.nan)


@dataclass(frozen=True)
class Sample:
    """Test rows of one model, with resamples.

    Attributes:
        labels: int (n,).
        probabilities: float64 (n, C), raw or calibrated.
        decisions: int (n,), the label decided for.
        positive: Index of the positive class; for more than two classes metrics are macro averages.
        weights: float (B, n), how often each row counts in each resample.
        floor: For `specificity_at_sensitivity`, its reverse and `mean_specificity_near_floor`, within 0..1.
        worth: The probability from which acting is worth its cost, for `net_benefit`.
        shares: float (n,), 1 / images of the row's patient, for `patient_recognition_rate`.
        alone: Of more than two classes, look at the positive one against the rest instead of at all of them.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    decisions: np.ndarray
    positive: int
    weights: np.ndarray
    floor: float
    worth: float = 0.5
    shares: np.ndarray | None = None
    alone: bool = False

    @property
    def num_classes(self) -> int:
        """C."""
        return self.probabilities.shape[1]

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return self.num_classes == 2

    def classes(self) -> list[int]:
        """The classes that a macro average runs over: the positive one alone when there are two."""
        if self.binary or self.alone:
            return [self.positive]
        return list(range(self.num_classes))

    def blocks(self) -> Iterator[Sample]:
        """The same rows with a few of the resamples each."""
        for start in range(0, len(self.weights), BLOCK):
            stop = start + BLOCK
            yield replace(self, weights=self.weights[start:stop])

    def subset(self, rows: np.ndarray) -> Sample:
        """Only some of the rows, int (num_chosen,); the sample itself when these are as many as it has."""
        if len(rows) == len(self.labels):
            return self
        shares = self.shares
        if shares is not None:
            shares = shares[rows]
        return replace(
            self,
            labels=self.labels[rows],
            probabilities=self.probabilities[rows],
            decisions=self.decisions[rows],
            weights=np.take(self.weights, rows, axis=1),
            shares=shares,
        )

    @cached_property
    def steps(self) -> dict[int, RocSteps]:
        """`roc_steps` of each class, once for all rank metrics."""
        steps = {}
        for label in self.classes():
            truth = self.labels == label
            scores = self.probabilities[:, label]
            steps[label] = roc_steps(truth, scores, self.weights)
        return steps

    @cached_property
    def confusion(self) -> np.ndarray:
        """Weighted numbers of rows by true class and by the class decided for, float64 (C, C, B).

        It is counted once for all metrics of decisions.
        """
        cells = self.num_classes**2
        cell_of_row = self.labels * self.num_classes + self.decisions
        is_in_cell = cell_of_row[:, None] == np.arange(cells)
        counts = self.total(is_in_cell)
        return counts.T.reshape(self.num_classes, self.num_classes, -1)

    def outcomes(self, label: int) -> Outcomes:
        """What was decided of one class against the rest."""
        detected = self.confusion[label, label]
        of_class = self.confusion[label].sum(axis=0)
        decided = self.confusion[:, label].sum(axis=0)
        total = self.confusion.sum(axis=(0, 1))
        return Outcomes(
            detected=detected,
            missed=of_class - detected,
            alarms=decided - detected,
            cleared=total - of_class - decided + detected,
        )

    @cached_property
    def total_weight(self) -> np.ndarray:
        """Sum of the weights of all rows, float64 (B,)."""
        return self.weights.sum(axis=1, dtype=np.float64)

    def total(self, rows: np.ndarray) -> np.ndarray:
        """Weighted number of the rows marked, or weighted sum of values: float64 (B,), or (B, k) of columns (n, k)."""
        weights = self.weights if rows.dtype == bool else self.exact_weights
        total = weights @ rows.astype(weights.dtype)
        return total.astype(np.float64, copy=False)

    @cached_property
    def exact_weights(self) -> np.ndarray:
        """The weights in float64, once for all sums of values."""
        return self.weights.astype(np.float64, copy=False)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean of values (n,), float64 (B,)."""
        return ratio(self.total(values), self.total_weight)


def roc_steps(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> RocSteps:
    """Count true and false positives, weighted, as the threshold falls past each distinct score.

    Args:
        truth: bool (n,).
        scores: float (n,), higher means positive.
        weights: float (B, n).
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = len(ranked) - 1
    before_change = np.flatnonzero(np.diff(ranked))
    last_of_ties = np.append(before_change, last)
    # take keeps a resample's weights side by side in memory; after [:, order] the sums take three times as long.
    sorted_weights = _as_counts(np.take(weights, order, axis=1))
    sorted_positives = sorted_weights * truth[order]
    true = np.cumsum(sorted_positives, axis=1, dtype=sorted_weights.dtype)
    alarms = np.cumsum(sorted_weights, axis=1, dtype=sorted_weights.dtype)
    false = alarms - true
    if len(last_of_ties) < len(order):
        true = true[:, last_of_ties]
        false = false[:, last_of_ties]
    return RocSteps(true.astype(np.float64), false.astype(np.float64))


def _as_counts(weights: np.ndarray) -> np.ndarray:
    """Weights as whole numbers where they are such: these are added up in a twentieth of the time, to the same sums."""
    counts = weights.astype(np.int32)
    if np.array_equal(counts, weights):
        return counts
    return weights.astype(np.float64)


def decide(
    probabilities: np.ndarray, positive: int, threshold: float | np.ndarray = 0.5
) -> np.ndarray:
    """Label decided for each row: positive when its probability reaches the threshold, argmax for more classes.

    Args:
        probabilities: float (n, C).
        positive: Index of the positive class.
        threshold: One number or one per row; unused for more than two classes.
    """
    if probabilities.shape[1] > 2:
        return probabilities.argmax(axis=1)
    reached = probabilities[:, positive] >= threshold
    return np.where(reached, positive, 1 - positive)


def ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Part by part over total; NaN where the total is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = part / total
    return np.where(total > 0, quotient, np.nan)
