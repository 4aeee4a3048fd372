r"""The loss that every scenario minimises, for one row: $(1-p_y)^\gamma (-\log p_y)$.

$p = \mathrm{softmax}(z + \mathrm{offset})$ is the probability of the true class y. Row weights and the
penalty are added by who trains. The solver calls `focal` with probabilities that it has in a form of
its own (a margin for two classes), because it also needs the slope.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from equipoise.evaluation.metrics import softmax
from equipoise.strategies.base import Objective

#: A probability of being wrong is not taken below this: the slope of its power is infinite at 0.
_LEAST_WRONG = 1e-30


def focal(
    log_prob: np.ndarray,
    prob: np.ndarray,
    wrong: np.ndarray,
    focusing: np.ndarray | float,
) -> tuple[np.ndarray, np.ndarray]:
    r"""The loss of rows, and its slope in $\log p$.

    The slope is $\gamma (1-p)^{\gamma-1} p \log p - (1-p)^\gamma$. For $\gamma = 0$ loss and slope are those of
    cross-entropy: $-\log p$ and $-1$.

    Args:
        log_prob: $\log p$ of the true class, any shape.
        prob: $p$.
        wrong: $1 - p$, given apart because near 0 it cannot be had from $p$ without loss of digits.
        focusing: $\gamma \ge 0$, a number or one per column.

    Returns:
        Loss and slope, each of the shape of `log_prob`.
    """
    if not np.any(focusing):
        return -log_prob, np.full_like(log_prob, -1)
    tiny = np.finfo(wrong.dtype).tiny
    safe_wrong = np.maximum(wrong, tiny)
    power = safe_wrong**focusing
    loss = -power * log_prob
    power_slope = focusing * power / safe_wrong
    by_surprise = power_slope * prob * log_prob
    slope = by_surprise - power
    return loss, slope


class MarginLosses:
    r"""The loss of rows of two classes by the margin, the logit of the true class against the other.

    Loss, slope and curvature in the margin have the shape of the margins, and are computed where they
    are read.
    """

    def __init__(self, margin: np.ndarray, focusing: np.ndarray | float) -> None:
        r"""Take probabilities from margins.

        Args:
            margin: Any shape.
            focusing: $\gamma \ge 0$, a number or one per column.
        """
        # The exponent is never positive: nothing overflows.
        small = np.exp(-np.abs(margin))
        self._log_prob = np.minimum(margin, 0) - np.log1p(small)
        # Of a row on the wrong side it is 1 / (1 + small). A twelfth of the time of `np.where`.
        self._wrong = np.maximum(small, margin <= 0) / (1 + small)
        self._focusing = focusing
        self._is_focal = bool(np.any(focusing))

    @property
    def loss(self) -> np.ndarray:
        """The loss."""
        return self._focal[0] if self._is_focal else -self._log_prob

    @property
    def slope(self) -> np.ndarray:
        """Nowhere above 0."""
        return self._wrong * self._focal[1] if self._is_focal else -self._wrong

    @property
    def curvature(self) -> np.ndarray:
        r"""The curvature, nowhere taken for less than 0.

        $q^\gamma p (\gamma (q - \gamma p) \log p + (2 \gamma + 1) q)$ with $q = 1 - p$; for $\gamma = 0$ it is
        $p q$. Of a row that focal loss gives up, far on the wrong side, it is a little below 0.
        """
        wrong = self._wrong
        prob = 1 - wrong
        if not self._is_focal:
            return prob * wrong
        focusing = self._focusing
        by_surprise = focusing * (wrong - focusing * prob) * self._log_prob
        bend = by_surprise + (2 * focusing + 1) * wrong
        curvature = wrong**focusing * prob * bend
        return np.maximum(curvature, 0)

    @cached_property
    def _focal(self) -> tuple[np.ndarray, np.ndarray]:
        """Loss, and slope in the logarithm of the probability."""
        return focal(self._log_prob, 1 - self._wrong, self._wrong, self._focusing)


def focal_curvature(
    log_prob: np.ndarray, prob: np.ndarray, wrong: np.ndarray, focusing: float
) -> np.ndarray:
    r"""Second derivative of the loss of rows in $\log p$: 0 of cross-entropy.

    $\gamma p q^{\gamma-2} ((q - (\gamma - 1) p) \log p + 2 q)$ with $q = 1 - p$. Of a row that
    focal loss gives up it is below 0.

    The arguments are those of `focal`.
    """
    if not focusing:
        return np.zeros_like(log_prob)
    safe_wrong = np.maximum(wrong, _LEAST_WRONG)
    by_surprise = (wrong - (focusing - 1) * prob) * log_prob
    bend = by_surprise + 2 * wrong
    power = safe_wrong ** (focusing - 2)
    return focusing * prob * power * bend


def row_losses(logits: np.ndarray, labels: np.ndarray, objective: Objective) -> np.ndarray:
    """Loss of each row, without its weight.

    Args:
        logits: float64 (num_rows, C), without the offsets.
        labels: int (num_rows,).
        objective: Focusing and offsets are read.

    Returns:
        float64 (num_rows,).
    """
    probabilities = softmax(logits + objective.offsets)
    rows = np.arange(len(labels))
    prob = probabilities[rows, labels]
    wrong = 1 - prob
    tiny = np.finfo(float).tiny
    positive = np.maximum(prob, tiny)
    log_prob = np.log(positive)
    losses, _ = focal(log_prob, prob, wrong, objective.focusing)
    return losses


def mean_loss(logits: np.ndarray, labels: np.ndarray, objective: Objective) -> float:
    """Mean of `row_losses`, weighted by the class of each row: the objective without its penalty."""
    losses = row_losses(logits, labels, objective)
    weights = objective.weights[labels]
    mean = np.average(losses, weights=weights)
    return float(mean)


def tensor_row_losses(logits: Any, labels: Any, objective: Objective) -> Any:
    """The same as `row_losses` on tensors of TensorFlow, so that it can be differentiated.

    Args:
        logits: float64 tensor (num_rows, C), without the offsets.
        labels: int tensor (num_rows,).
        objective: Focusing and offsets are read.

    Returns:
        float64 tensor (num_rows,).
    """
    import tensorflow as tf

    offsets = tf.constant(objective.offsets, tf.float64)
    log_probs = tf.nn.log_softmax(logits + offsets)
    log_prob = tf.gather(log_probs, labels, batch_dims=1)
    if not objective.focusing:
        return -log_prob
    wrong = -tf.math.expm1(log_prob)
    wrong = tf.maximum(wrong, _LEAST_WRONG)
    power = wrong**objective.focusing
    return -power * log_prob
