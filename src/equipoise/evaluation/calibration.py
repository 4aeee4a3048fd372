"""The calibrator and the locked threshold, both fitted on val and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from equipoise.core.config import Threshold
from equipoise.core.records import Predictions
from equipoise.evaluation.metrics import roc_steps, softmax


@dataclass(frozen=True)
class Calibrator:
    r"""$p = \mathrm{softmax}(s z + b)$: slope and intercept (Platt), or temperature and biases for more classes.

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
        cls, logits: np.ndarray, labels: np.ndarray, patients: np.ndarray, min_patients: int
    ) -> Calibrator:
        """Fit on val.

        Args:
            logits: float (n, C).
            labels: int (n,).
            patients: (n,), patient of each row.
            min_patients: Per class; below, the identity is returned with the reason.
        """
        classes = logits.shape[1]
        found = [len(np.unique(patients[labels == label])) for label in range(classes)]
        if min(found) < min_patients:
            return cls.identity(
                classes,
                f"val has {min(found)} patient(s) of the rarest class, {min_patients} are needed",
            )
        targets = _smoothed(labels, classes)

        def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
            biases = np.concatenate([[0.0], free[1:]])
            scores = np.exp(free[0]) * logits + biases
            scores = scores - scores.max(axis=1, keepdims=True)
            log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            error = (np.exp(log_probs) - targets) / len(labels)
            gradient = np.concatenate(
                [[np.exp(free[0]) * (error * logits).sum()], error[:, 1:].sum(axis=0)]
            )
            return -(targets * log_probs).sum() / len(labels), gradient

        # The slope is searched as its logarithm: a calibrator must never reverse the ranking.
        solved = minimize(
            loss,
            np.zeros(classes),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-7.0, 7.0)] + [(None, None)] * (classes - 1),
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        return cls(float(np.exp(solved.x[0])), np.concatenate([[0.0], solved.x[1:]]))

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float64 (n, C) of logits (n, C)."""
        return softmax(self.slope * logits + self.biases)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"slope": self.slope, "biases": self.biases.tolist(), "reason": self.reason}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Calibrator:
        """Back from plain data."""
        return cls(value["slope"], np.asarray(value["biases"]), value["reason"])


def _smoothed(labels: np.ndarray, classes: int) -> np.ndarray:
    """Platt's targets: (n_c + 1) / (n_c + C) for the true class, the rest shared: a perfect val stays finite."""
    counts = np.bincount(labels, minlength=classes)
    own = ((counts + 1) / (counts + classes))[labels]
    targets = np.repeat(((1 - own) / (classes - 1))[:, None], classes, axis=1)
    targets[np.arange(len(labels)), labels] = own
    return targets


def lock_threshold(
    prob: np.ndarray, truth: np.ndarray, rule: Threshold, sensitivity_floor: float
) -> float:
    """Choose the operating point on val.

    Args:
        prob: float (n,), calibrated probability of the positive class.
        truth: bool (n,).
        rule: `sensitivity_floor`: the highest threshold whose sensitivity reaches the floor; `youden`: the largest
            sensitivity + specificity; `cost`: 1 / (1 + cost_ratio), from no data.
        sensitivity_floor: Within 0..1.

    Returns:
        A threshold midway between two neighbouring scores, so that rounding while serving cannot flip a decision.
    """
    if rule.rule == "cost":
        return 1 / (1 + rule.cost_ratio)
    # Most confident first: the threshold falls past one distinct score after the other.
    scores = np.unique(prob)[::-1]
    true, false = (steps[0] for steps in roc_steps(truth, prob, np.ones((1, len(prob)))))
    sensitivity = true / max(true[-1], 1)
    if rule.rule == "youden":
        chosen = int(np.argmax(sensitivity - false / max(false[-1], 1)))
    else:
        chosen = int(np.argmax(sensitivity >= sensitivity_floor - 1e-12))
    below = scores[chosen + 1] if chosen + 1 < len(scores) else 0.0
    return float((scores[chosen] + below) / 2)


def guard(predictions: Predictions, min_patients: int, rule: Threshold, floor: float) -> list[str]:
    """What a small val means for calibrator and threshold, of the smallest round: a sentence, none if large enough.

    Args:
        predictions: Its val rows, the same for every scenario.
        min_patients: Per class, for a calibrator.
        rule: The study's rule for the locked threshold.
        floor: Sensitivity that `sensitivity_floor` keeps.
    """
    val, classes, parts = predictions.part("val").table, predictions.classes, []
    if val.empty:
        return []
    rounds = [rows.groupby("label") for _, rows in val.groupby(["repeat", "fold"])]
    smallest = min(rounds, key=lambda labels: labels["patient_id"].nunique().min())
    people, images = (
        smallest[name].nunique().reindex(range(len(classes)), fill_value=0)
        for name in ("patient_id", "image_id")
    )
    if people.min() < min_patients:
        counts = ", ".join(f"{name} {count}" for name, count in zip(classes, people))
        parts.append(f"val is small: {counts} patients; {min_patients} of each class are wanted")
    positives = int(images[predictions.positive_label])
    below = int(positives * (1 - floor) + 1e-9)
    if rule.rule == "sensitivity_floor" and (parts or not below) and len(classes) == 2:
        parts.append(
            f"the locked threshold is one of {positives} positive val scores, with {below} below it: "
            f"sensitivity on test may be far from {floor:g}"
        )
    text = "; ".join(parts)
    return [f"{text[:1].upper()}{text[1:]}."] if text else []
