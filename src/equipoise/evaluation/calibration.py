"""The calibrator and the locked threshold, both fitted on scores of patients that the model never saw.

These are val, and under k-fold the inner out-of-fold scores of train; never test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from equipoise.core.config import Threshold
from equipoise.core.records import Predictions
from equipoise.evaluation.metrics import softmax
from equipoise.evaluation.sample import ROUNDING, roc_steps

#: The slope of logits of unit spread is searched between exp(-7) and exp(7).
_LOG_SLOPE_BOUND = 7.0

#: Logits whose spread is this small beside their size are constant but for rounding.
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Calibrator:
    r"""Turns logits into probabilities that mean what they say.

    $p = \mathrm{softmax}(s z + b)$: slope and intercept (Platt), or temperature and biases for more than two classes.

    Attributes:
        slope: $s > 0$.
        biases: float (C,), the first is 0.
        reason: Why it is the identity; empty when it was fitted.

    Reference: Platt 1999 (with his smoothed targets); Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """

    slope: float
    biases: np.ndarray
    reason: str = ""

    @classmethod
    def identity(cls, num_classes: int, reason: str) -> Calibrator:
        """Leaves probabilities as they are."""
        return cls(1.0, np.zeros(num_classes), reason)

    @classmethod
    def fit(
        cls,
        logits: np.ndarray,
        labels: np.ndarray,
        patients: np.ndarray,
        min_patients: int,
        where: str = "val",
    ) -> Calibrator:
        """Fit on scores of patients that the model never saw.

        Args:
            logits: float (n, C).
            labels: int (n,).
            patients: (n,), patient of each row.
            min_patients: Per class; below, the identity is returned with the reason.
            where: What the rows are called in the reason.
        """
        num_classes = logits.shape[1]
        fewest = len(patients)
        for label in range(num_classes):
            of_class = np.unique(patients[labels == label])
            fewest = min(fewest, len(of_class))
        if fewest < min_patients:
            reason = (
                f"{where} has {fewest} patient(s) of the rarest class, {min_patients} are needed"
            )
            return cls.identity(num_classes, reason)
        # The slope is searched as its logarithm: a calibrator must never reverse the ranking.
        slope_bounds = (-_LOG_SLOPE_BOUND, _LOG_SLOPE_BOUND)
        bias_bounds = (None, None)
        targets = _smoothed_targets(labels, num_classes)
        units = _Units.of(logits)
        solved = minimize(
            _cross_entropy,
            np.zeros(num_classes),
            args=(units.apply(logits), targets),
            jac=True,
            method="L-BFGS-B",
            bounds=[slope_bounds] + [bias_bounds] * (num_classes - 1),
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        slope, biases = _slope_and_biases(solved.x)
        slope = slope / units.spread
        biases = biases - slope * units.centre
        return cls(float(slope), biases - biases[0])

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float64 (n, C) of logits (n, C)."""
        return softmax(self.slope * logits + self.biases)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"slope": self.slope, "biases": self.biases.tolist(), "reason": self.reason}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Calibrator:
        """Back from plain data."""
        biases = np.asarray(value["biases"])
        return cls(value["slope"], biases, value["reason"])


class _Units(NamedTuple):
    """Centre and spread of logits: in these units the search is the same however large the logits are.

    Attributes:
        centre: float (C,).
        spread: > 0.
    """

    centre: np.ndarray
    spread: float

    @classmethod
    def of(cls, logits: np.ndarray) -> _Units:
        """Those of logits (n, C)."""
        contrasts = _contrasts(logits)
        centre = contrasts.mean(axis=0)
        spread = float((contrasts - centre).std())
        if spread <= _NO_SPREAD * (1 + np.abs(centre).max()):
            spread = 1.0
        return cls(centre, spread)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Logits (n, C) in these units."""
        return (_contrasts(logits) - self.centre) / self.spread


def _contrasts(logits: np.ndarray) -> np.ndarray:
    """Logits (n, C) less the mean of their row, which no probability depends on."""
    return logits - logits.mean(axis=1, keepdims=True)


def _slope_and_biases(free: np.ndarray) -> tuple[float, np.ndarray]:
    """Slope and biases (C,) of the free parameters (C,): log slope, then a bias for each class but the first."""
    slope = np.exp(free[0])
    biases = np.concatenate([[0.0], free[1:]])
    return slope, biases


def _cross_entropy(
    free: np.ndarray, logits: np.ndarray, targets: np.ndarray
) -> tuple[float, np.ndarray]:
    """Mean cross-entropy to the targets (n, C) and its gradient by the free parameters (C,)."""
    slope, biases = _slope_and_biases(free)
    scores = slope * logits + biases
    scores = scores - scores.max(axis=1, keepdims=True)
    sums = np.exp(scores).sum(axis=1, keepdims=True)
    log_probs = scores - np.log(sums)
    num_rows = len(targets)
    loss = -(targets * log_probs).sum() / num_rows
    error = (np.exp(log_probs) - targets) / num_rows
    by_log_slope = slope * (error * logits).sum()
    by_biases = error[:, 1:].sum(axis=0)
    gradient = np.concatenate([[by_log_slope], by_biases])
    return loss, gradient


def _smoothed_targets(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Platt's targets, float (n, C): a little less than 1 for the true class, so that a perfect val stays finite.

    (n_c + 1) / (n_c + C) for the true class of n_c rows; what is left is shared by the other classes.
    """
    counts = np.bincount(labels, minlength=num_classes)
    target_of_class = (counts + 1) / (counts + num_classes)
    target_of_truth = target_of_class[labels]
    target_of_others = (1 - target_of_truth) / (num_classes - 1)
    targets = np.repeat(target_of_others[:, None], num_classes, axis=1)
    every = np.arange(len(labels))
    targets[every, labels] = target_of_truth
    return targets


def lock_threshold(
    prob: np.ndarray, truth: np.ndarray, rule: Threshold, sensitivity_floor: float
) -> float:
    """Choose the operating point on scores of patients that the model never saw.

    Args:
        prob: float (n,), calibrated probability of the positive class.
        truth: bool (n,).
        rule: `sensitivity_floor`: the highest threshold whose sensitivity reaches the floor; `youden`: the largest
            sensitivity + specificity; `cost`: 1 / (1 + cost_ratio), from no data.
        sensitivity_floor: Within 0..1.

    Returns:
        A threshold midway between two neighbouring scores, so that rounding while serving cannot flip a decision.
        Without any row there is nothing to choose by, and it is 0.5.
    """
    if rule.rule == "cost":
        return 1 / (1 + rule.cost_ratio)
    if not len(prob):
        return 0.5
    # Most confident first: the threshold falls past one distinct score after the other.
    scores = np.unique(prob)[::-1]
    once = np.ones((1, len(prob)))
    steps = roc_steps(truth, prob, once)
    true, false = steps.true[0], steps.false[0]
    sensitivity = true / max(true[-1], 1)
    if rule.rule == "youden":
        false_alarm_rate = false / max(false[-1], 1)
        chosen = np.argmax(sensitivity - false_alarm_rate)
    else:
        reached = sensitivity >= sensitivity_floor - ROUNDING
        chosen = np.argmax(reached)
    with_zero = np.append(scores, 0.0)
    neighbours = with_zero[chosen] + with_zero[chosen + 1]
    return float(neighbours / 2)


class _ValRound(NamedTuple):
    """How many val patients and val images of each class one round has, by label."""

    patients: pd.Series
    images: pd.Series


def small_val_note(
    predictions: Predictions, min_patients: int, rule: Threshold, sensitivity_floor: float
) -> str | None:
    """What a small val means for the calibrator and the threshold, in a sentence; None where val is large enough.

    K-fold has no val, and no such note.

    It speaks of the round with the fewest patients of a class.

    Args:
        predictions: Its val rows, the same for every scenario.
        min_patients: Per class, for a calibrator.
        rule: The study's rule for the locked threshold.
        sensitivity_floor: What the rule `sensitivity_floor` keeps, within 0..1.
    """
    val = predictions.part("val").table
    if val.empty:
        return None
    smallest = _smallest_round(val, len(predictions.classes))
    remarks = []
    if smallest.patients.min() < min_patients:
        by_class = zip(predictions.classes, smallest.patients)
        counts = ", ".join(f"{name} {count}" for name, count in by_class)
        remarks.append(f"val is small: {counts} patients; {min_patients} of each class are wanted")
    positives = int(smallest.images[predictions.positive_label])
    may_miss = int(positives * (1 - sensitivity_floor) + 1e-9)
    is_binary = len(predictions.classes) == 2
    by_floor = rule.rule == "sensitivity_floor" and is_binary
    if by_floor and (remarks or not may_miss):
        remarks.append(
            f"the locked threshold is one of {positives} positive val scores, with {may_miss} below it: "
            f"sensitivity on test may be far from {sensitivity_floor:g}"
        )
    if not remarks:
        return None
    text = "; ".join(remarks)
    return f"{text[:1].upper()}{text[1:]}."


def _smallest_round(val: pd.DataFrame, num_classes: int) -> _ValRound:
    """The round with the fewest patients of a class."""
    rounds = []
    for _, rows in val.groupby(["repeat", "fold"]):
        by_label = rows.groupby("label")
        patients = by_label["patient_id"].nunique()
        images = by_label["image_id"].nunique()
        rounds.append(_ValRound(patients, images))
    smallest = min(rounds, key=lambda counts: counts.patients.min())
    labels = range(num_classes)
    return _ValRound(
        patients=smallest.patients.reindex(labels, fill_value=0),
        images=smallest.images.reindex(labels, fill_value=0),
    )
