"""Many linear heads at once: a shared rotation and limited-memory quasi-Newton steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from equipoise.scenario.rows import Rows, blocks, scratch
from equipoise.strategies.base import Objective

#: Typical p(1-p) of a fitted model: scales the diagonal preconditioner. Any positive value gives the same optimum.
_CURVATURE = 0.15


_MEMORY = 10


_MAX_ITERATIONS = 500


#: Gradient norms (preconditioned) at which a head is solved: searching, and final fits.
SEARCH_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Rotated:
    """A standardised matrix in the eigenbasis of its Gram matrix.

    Attributes:
        matrix: (num_rows, rank + 1), the last column is ones for the intercept.
        basis: (num_features, rank), orthonormal columns.
        spectrum: (rank,), eigenvalues of the Gram matrix over the number of rows.
    """

    matrix: np.ndarray
    basis: np.ndarray
    spectrum: np.ndarray

    @classmethod
    def of(cls, standardised: np.ndarray | Rows) -> Rotated:
        """Rotate (num_rows, num_features); the smaller of the two Gram matrices is decomposed."""
        count, width = standardised.shape
        if count >= width:
            gram = sum(_gram(standardised[rows]) for rows in blocks(count)) / count
            # Any orthonormal basis gives the same optimum, so a search needs no float64 here: 3 times as fast.
            single = gram.dtype == np.float32
            values, basis = eigh(gram, overwrite_a=True, driver="evd" if single else None)
            values = np.maximum(values, np.finfo(np.float32).eps * values[-1]) if single else values
        else:
            whole = standardised[:]
            values, left = eigh((whole @ whole.T).astype(np.float64) / count, overwrite_a=True)
            basis = whole.T @ (left / np.sqrt(np.maximum(values, np.finfo(float).tiny) * count))
        kept = values > 1e-10 * values[-1]
        basis = basis[:, kept].astype(standardised.dtype)
        matrix = scratch((count, basis.shape[1] + 1), standardised.dtype)
        matrix[:, -1] = 1
        for rows in blocks(count):
            matrix[rows, :-1] = standardised[rows] @ basis
        return cls(matrix, basis, values[kept])


def _gram(part: np.ndarray) -> np.ndarray:
    return part.T @ part


@dataclass(frozen=True)
class Solution:
    """Solved heads in the rotated basis.

    Attributes:
        parameters: (rank + 1, K, J), the last row is the intercept; K is 1 for two classes, else C.
        gradient_norm: (J,).
        objective: (J,), the value reached.
    """

    parameters: np.ndarray
    gradient_norm: np.ndarray
    objective: np.ndarray


def solve(
    rotated: Rotated,
    labels: np.ndarray,
    row_weights: np.ndarray,
    objectives: Sequence[Objective],
    l2: np.ndarray,
    tolerance: float,
) -> Solution:
    r"""Minimise $L = \sum_i w_i (1-p_{y_i})^\gamma (-\log p_{y_i}) / \sum_i w_i + l_2 \lVert W \rVert^2 / 2$, J heads.

    For two classes $W$ is one column (the logit of class 1), as in scikit-learn: its `C` is $1 / (l_2 \sum_i w_i)$
    where its `sample_weight` is $w$. The intercept is not penalised.

    Args:
        rotated: The rows, shared by all heads.
        labels: int (num_rows,).
        row_weights: float (num_rows, J), >= 0, any scale: draws of the row times the weight of its class.
        objectives: J objectives; of them focusing and offsets are read, the weights are in `row_weights`.
        l2: float (J,), penalties > 0, no unit (features have unit spread).
        tolerance: Norm of the preconditioned gradient to stop at.
    """
    problem, heads = (
        _Problem(rotated, labels, row_weights, objectives, l2),
        np.arange(row_weights.shape[1]),
    )
    point = np.zeros((rotated.matrix.shape[1], problem.columns, len(heads)), dtype=problem.dtype)
    solution = Solution(point.copy(), np.zeros(len(heads)), np.zeros(len(heads)))
    value, gradient = problem.evaluate(point, heads)
    steps: list[np.ndarray] = []
    changes: list[np.ndarray] = []
    stalled = np.zeros(len(heads), dtype=bool)
    for iteration in range(_MAX_ITERATIONS + 1):
        norm = np.sqrt(_dot(gradient, gradient))
        done = (norm <= tolerance) | stalled | ~np.isfinite(value) | (iteration == _MAX_ITERATIONS)
        # Dropping columns copies the history: worth it only when a good part of the batch is finished.
        if done.all() or done.mean() > 0.25:
            own = heads[done]
            solution.parameters[..., own] = point[..., done] * problem.scale[:, None, own]
            solution.gradient_norm[own], solution.objective[own] = norm[done], value[done]
            if done.all():
                break
            heads, point, gradient, value = (
                heads[~done],
                point[..., ~done],
                gradient[..., ~done],
                value[~done],
            )
            steps = [step[..., ~done] for step in steps]
            changes = [change[..., ~done] for change in changes]
            stalled, done = stalled[~done], done[~done]
        direction = _two_loop(gradient, steps, changes)
        slope = _dot(gradient, direction)
        uphill = ~(slope < 0)
        direction[..., uphill] = -gradient[..., uphill]
        slope[uphill] = -_dot(gradient, gradient)[uphill]
        direction[..., done] = 0
        length = np.ones(len(heads), dtype=problem.dtype)
        if not steps:
            length = np.minimum(
                1, 1 / np.maximum(np.sqrt(_dot(direction, direction)), 1e-30)
            ).astype(problem.dtype)
        # Each head's step is halved until its objective falls enough, with room for rounding noise in the objective.
        moved, new_value, new_gradient = point.copy(), value.copy(), gradient.copy()
        noise = 10 * np.finfo(problem.dtype).eps * np.abs(value)
        pending = np.flatnonzero(~done)
        for _ in range(30):
            trial = point[..., pending] + length[pending] * direction[..., pending]
            trial_value, trial_gradient = problem.evaluate(trial, heads[pending])
            fell = (
                trial_value
                <= value[pending] + 1e-4 * length[pending] * slope[pending] + noise[pending]
            )
            chosen = pending[fell]
            moved[..., chosen] = trial[..., fell]
            new_value[chosen], new_gradient[..., chosen] = (
                trial_value[fell],
                trial_gradient[..., fell],
            )
            pending = pending[~fell]
            if not len(pending):
                break
            length[pending] *= 0.5
        stalled[pending] = True
        steps, changes = (
            [*steps, moved - point][-_MEMORY:],
            [*changes, new_gradient - gradient][-_MEMORY:],
        )
        point, value, gradient = moved, new_value, new_gradient
    return solution


class _Problem:
    """Objective and gradient of J heads in preconditioned coordinates."""

    def __init__(
        self,
        rotated: Rotated,
        labels: np.ndarray,
        weights: np.ndarray,
        objectives: Sequence[Objective],
        l2: np.ndarray,
    ) -> None:
        self.matrix, self.dtype = rotated.matrix, rotated.matrix.dtype
        classes = len(objectives[0].weights)
        self.columns = 1 if classes == 2 else classes
        self.blocks = blocks(len(self.matrix))
        self.weights, totals = np.empty(weights.shape, self.dtype), weights.sum(axis=0)
        for rows in self.blocks:
            self.weights[rows] = weights[rows] / totals
        self.focusing = np.array([objective.focusing for objective in objectives], dtype=self.dtype)
        self.offsets = np.array([objective.offsets for objective in objectives], dtype=self.dtype).T
        self.l2 = l2.astype(self.dtype)
        self.penalised = np.append(np.ones(len(rotated.spectrum)), 0.0).astype(self.dtype)[
            :, None, None
        ]
        curvature = np.append(rotated.spectrum, 1.0)[:, None]
        self.scale = (1 / np.sqrt(_CURVATURE * curvature + self.penalised[:, 0] * l2)).astype(
            self.dtype
        )
        self.labels = labels
        self.sign = np.where(labels == 1, 1, -1).astype(self.dtype)[:, None]

    def evaluate(self, scaled: np.ndarray, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (j,) and gradients (rank + 1, K, j) of the chosen heads at preconditioned parameters."""
        scale, l2 = self.scale[:, None, heads], self.l2[heads]
        parameters = scaled * scale
        flat = parameters.reshape(len(parameters), -1)
        total, gradient = np.zeros(len(heads)), np.zeros_like(flat)
        for rows in self.blocks:
            part = self.matrix[rows]
            scores = (part @ flat).reshape(len(part), self.columns, len(heads))
            loss, slope = (self._binary if self.columns == 1 else self._softmax)(
                scores, rows, heads
            )
            total += loss
            gradient += part.T @ slope.reshape(len(part), -1)
        shrunk = self.penalised * parameters
        value = total + 0.5 * l2 * _dot(shrunk, shrunk)
        return value, (gradient.reshape(parameters.shape) + l2 * shrunk) * scale

    def _binary(
        self, scores: np.ndarray, rows: slice, heads: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        sign = self.sign[rows]
        margin = sign * (scores[:, 0] + (self.offsets[1] - self.offsets[0])[heads])
        small = np.exp(-np.abs(margin))
        log_prob = np.minimum(margin, 0) - np.log1p(small)
        wrong = np.where(margin >= 0, small, 1) / (1 + small)  # 1 - p of the true class
        loss, slope = _focal(log_prob, 1 - wrong, wrong, self.focusing[heads])
        weights = self.weights[rows][:, heads]
        return _column_sums(weights, loss), (weights * sign * wrong * slope)[:, None, :]

    def _softmax(
        self, scores: np.ndarray, rows: slice, heads: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        logits = scores + self.offsets[:, heads]
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        probs = np.exp(log_probs)
        own = np.arange(len(scores)), self.labels[rows]
        log_prob = log_probs[own]
        wrong = 1 - probs[own]
        loss, slope = _focal(log_prob, probs[own], wrong, self.focusing[heads])
        toward = -probs
        toward[own] += 1
        weights = self.weights[rows][:, heads]
        return _column_sums(weights, loss), (weights * slope)[:, None, :] * toward


def _focal(
    log_prob: np.ndarray, prob: np.ndarray, wrong: np.ndarray, focusing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""$-(1-p)^\gamma \log p$ and its slope in $\log p$: $\gamma (1-p)^{\gamma-1} p \log p - (1-p)^\gamma$."""
    if not focusing.any():
        return -log_prob, np.full_like(log_prob, -1)
    safe = np.maximum(wrong, np.finfo(wrong.dtype).tiny)
    power = safe**focusing
    return -power * log_prob, focusing * power / safe * prob * log_prob - power


def _column_sums(weights: np.ndarray, loss: np.ndarray) -> np.ndarray:
    # Summed in float64: the noise of a float32 sum made line searches fail close to the solution.
    return np.einsum("nj,nj->j", weights, loss, dtype=np.float64)


def _two_loop(
    gradient: np.ndarray, steps: list[np.ndarray], changes: list[np.ndarray]
) -> np.ndarray:
    """The L-BFGS direction of every head (Nocedal & Wright, algorithm 7.4); pairs without curvature are passed over."""
    direction = -gradient
    curvatures = [_dot(step, change) for step, change in zip(steps, changes)]
    inverse = [
        np.divide(1, c, out=np.zeros_like(c), where=c > np.finfo(c.dtype).tiny) for c in curvatures
    ]
    alphas = []
    for step, change, weight in zip(reversed(steps), reversed(changes), reversed(inverse)):
        alpha = weight * _dot(step, direction)
        direction -= alpha * change
        alphas.append(alpha)
    if steps:
        squares = _dot(changes[-1], changes[-1])
        usable = (inverse[-1] > 0) & (squares > 0)
        direction *= np.divide(curvatures[-1], squares, out=np.ones_like(squares), where=usable)
    for step, change, weight, alpha in zip(steps, changes, inverse, reversed(alphas)):
        direction += (alpha - weight * _dot(change, direction)) * step
    return direction


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Inner product per head: (rank + 1, K, J) twice -> (J,)."""
    return np.einsum("akj,akj->j", left, right)
