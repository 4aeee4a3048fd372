"""Many linear heads at once: one rotation of the features, one objective for all of them.

All heads of a search share one feature matrix $X$. A head is a column of row weights (rows that are
left out weigh 0) with its own focusing, offsets and $l_2$. $X$ is rotated once into the eigenbasis of
its Gram matrix, where the curvature is nearly diagonal. A batched L-BFGS then moves all heads
together, with one matrix product each way per step. Rows are walked in blocks, so memory holds one
block, the numbers per row and head, and the Gram matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import eigh

from equipoise.scenario import lbfgs
from equipoise.scenario.lbfgs import Evaluated
from equipoise.scenario.loss import focal
from equipoise.scenario.rows import Features, blocks, scratch
from equipoise.strategies.base import Objective

#: Norm of the preconditioned gradient at which a head counts as solved while searching.
SEARCH_TOLERANCE = 1e-4

#: Typical p(1-p) of a fitted model: scales the preconditioner. Any positive value gives the same
#: optimum.
_CURVATURE = 0.15

#: With at least as many rows as features the eigenbasis is found by way of the features. In float32
#: that is faster from this share of the features on, because the way of the rows needs float64.
_FEWEST_ROWS_FRACTION = 0.75

#: Directions whose eigenvalue is below this share of the largest one are left out.
_RANK_TOLERANCE = 1e-10


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
    def of(cls, standardised: Features, scratch_folder: Path | None = None) -> Rotated:
        """Rotate a standardised matrix.

        Args:
            standardised: float32 or float64 (num_rows, num_features).
            scratch_folder: Where a rotated matrix of many rows lies, see `rows.scratch`.
        """
        num_rows, num_features = standardised.shape
        dtype = standardised.dtype
        fewest_rows = float(num_features)
        if dtype == np.float32:
            fewest_rows *= _FEWEST_ROWS_FRACTION
        if num_rows >= fewest_rows:
            spectrum, basis = _eigenbasis_of_features(standardised)
        else:
            spectrum, basis = _eigenbasis_of_rows(standardised[:])
        least = _RANK_TOLERANCE * spectrum[-1]
        kept = spectrum > least
        spectrum = spectrum[kept]
        basis = basis[:, kept].astype(dtype)
        rank = len(spectrum)
        matrix = scratch((num_rows, rank + 1), dtype, scratch_folder)
        matrix[:, rank] = 1
        for rows in blocks(num_rows):
            part = standardised[rows]
            matrix[rows, :rank] = part @ basis
        return cls(matrix, basis, spectrum)


def _eigenbasis_of_features(standardised: Features) -> tuple[np.ndarray, np.ndarray]:
    """Ascending eigenvalues and eigenvectors of $X^T X / n$; for about as many rows as features or more."""
    num_rows = len(standardised)
    total: Any = 0
    for rows in blocks(num_rows):
        part = standardised[rows]
        total = total + part.T @ part
    gram = total / num_rows
    if gram.dtype != np.float32:
        return eigh(gram, overwrite_a=True)
    # Any orthonormal basis gives the same optimum, so a search needs no float64 here: 3 times as
    # fast.
    eigenvalues, basis = eigh(gram, overwrite_a=True, driver="evd")
    resolution = np.finfo(np.float32).eps
    least = resolution * eigenvalues[-1]
    return np.maximum(eigenvalues, least), basis


def _eigenbasis_of_rows(standardised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by way of the smaller $X X^T / n$; for fewer rows than features."""
    num_rows = len(standardised)
    products = standardised @ standardised.T
    gram = products.astype(np.float64) / num_rows
    eigenvalues, left_vectors = eigh(gram, overwrite_a=True)
    tiny = np.finfo(float).tiny
    positive = np.maximum(eigenvalues, tiny)
    singular_values = np.sqrt(positive * num_rows)
    scaled_vectors = left_vectors / singular_values
    return eigenvalues, standardised.T @ scaled_vectors


@dataclass(frozen=True)
class Solution:
    """Solved heads in the rotated basis.

    Attributes:
        parameters: (rank + 1, K, J), the last row is the intercept; K is 1 for two classes, else C.
        gradient_norm: (J,), norm of the preconditioned gradient where the head stopped.
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
    r"""Minimise the loss of J heads.

    $L = \sum_i w_i (1-p_{y_i})^\gamma (-\log p_{y_i}) / \sum_i w_i + l_2 \lVert W \rVert^2 / 2$

    For two classes $W$ is one column (the logit of class 1), as in scikit-learn: its `C` is
    $1 / (l_2 \sum_i w_i)$ where its `sample_weight` is $w$. The intercept is not penalised.

    Args:
        rotated: The rows, shared by all heads.
        labels: int (num_rows,).
        row_weights: float (num_rows, J), >= 0, any scale: draws of the row times the weight of its
            class.
        objectives: J objectives. Focusing and offsets are read; the weights are in `row_weights`.
        l2: float (J,), penalties > 0, no unit (features have unit spread).
        tolerance: Norm of the preconditioned gradient to stop at.
    """
    problem = Problem(rotated, labels, row_weights, objectives, l2)
    start = problem.start()
    minimum = lbfgs.minimise(problem.evaluate, start, tolerance)
    scale = problem.scale[:, None, :]
    return Solution(
        parameters=minimum.point * scale,
        gradient_norm=minimum.gradient_norm,
        objective=minimum.value,
    )


class Problem:
    """Objective and gradient of J heads in preconditioned coordinates.

    Attributes:
        columns: K, columns of coefficients: 1 for two classes, else C.
        scale: (rank + 1, J); plain parameters are preconditioned ones times this.
    """

    def __init__(
        self,
        rotated: Rotated,
        labels: np.ndarray,
        weights: np.ndarray,
        objectives: Sequence[Objective],
        l2: np.ndarray,
    ) -> None:
        dtype = rotated.matrix.dtype
        num_classes = len(objectives[0].weights)
        self.matrix = rotated.matrix
        self.dtype = dtype
        self.columns = 1 if num_classes == 2 else num_classes
        self.labels = labels
        sign = np.where(labels == 1, 1, -1)
        self.sign = sign.astype(dtype)[:, None]
        self.weights = _shares(weights, dtype)
        self.l2 = l2.astype(dtype)
        focusing = [objective.focusing for objective in objectives]
        self.focusing = np.array(focusing, dtype)
        offsets = [objective.offsets for objective in objectives]
        self.offsets = np.array(offsets, dtype).T
        # 1 for a coefficient, 0 for the intercept.
        _, num_parameters = rotated.matrix.shape
        penalised = np.ones(num_parameters, dtype)
        penalised[-1] = 0
        self.penalised = penalised[:, None, None]
        scale = _preconditioner(rotated.spectrum, penalised, l2)
        self.scale = scale.astype(dtype)

    def start(self) -> np.ndarray:
        """All parameters 0, (rank + 1, K, J)."""
        num_parameters, num_heads = self.scale.shape
        shape = (num_parameters, self.columns, num_heads)
        return np.zeros(shape, self.dtype)

    def evaluate(self, scaled: np.ndarray, heads: np.ndarray) -> Evaluated:
        """Value and gradient of some heads.

        Args:
            scaled: (rank + 1, K, j), preconditioned parameters.
            heads: int (j,), which of the J heads they are of.

        Returns:
            Values float64 (j,), and gradients (rank + 1, K, j) in preconditioned coordinates.
        """
        scale = self.scale[:, None, heads]
        l2 = self.l2[heads]
        parameters = scaled * scale
        mean_loss = self._mean_loss(parameters, heads)
        coefficients = self.penalised * parameters
        squares = np.einsum("akj,akj->j", coefficients, coefficients)
        value = mean_loss.value + 0.5 * l2 * squares
        gradient = mean_loss.gradient + l2 * coefficients
        return Evaluated(value, gradient * scale)

    def _mean_loss(self, parameters: np.ndarray, heads: np.ndarray) -> Evaluated:
        """Weighted mean loss and its gradient in plain parameters (rank + 1, K, j)."""
        num_heads = len(heads)
        flat = parameters.reshape(len(parameters), -1)
        value = np.zeros(num_heads)
        gradient = np.zeros_like(flat)
        block_loss = self._two_class_loss if self.columns == 1 else self._multi_class_loss
        for rows in blocks(len(self.matrix)):
            part = self.matrix[rows]
            num_rows = len(part)
            scores = part @ flat
            scores = scores.reshape(num_rows, self.columns, num_heads)
            loss = block_loss(scores, rows, heads)
            value += loss.value
            score_gradient = loss.gradient.reshape(num_rows, -1)
            gradient += part.T @ score_gradient
        return Evaluated(value, gradient.reshape(parameters.shape))

    def _two_class_loss(self, scores: np.ndarray, rows: slice, heads: np.ndarray) -> Evaluated:
        """Weighted loss of a block of rows, and its gradient in their scores (num_rows, 1, j)."""
        weights = self.weights[rows][:, heads]
        sign = self.sign[rows]
        offset = self.offsets[1] - self.offsets[0]
        shifted = scores[:, 0] + offset[heads]
        margin = sign * shifted
        # The exponent is never positive: nothing overflows.
        small = np.exp(-np.abs(margin))
        log_prob = np.minimum(margin, 0) - np.log1p(small)
        wrong = np.where(margin >= 0, small, 1)
        wrong = wrong / (1 + small)
        prob = 1 - wrong
        focusing = self.focusing[heads]
        loss, slope = focal(log_prob, prob, wrong, focusing)
        gradient = weights * sign * wrong * slope
        return Evaluated(_weighted_sums(weights, loss), gradient[:, None, :])

    def _multi_class_loss(self, scores: np.ndarray, rows: slice, heads: np.ndarray) -> Evaluated:
        """Weighted loss of a block of rows, and its gradient in their scores (num_rows, C, j)."""
        weights = self.weights[rows][:, heads]
        offsets = self.offsets[:, heads]
        log_probs = _log_softmax(scores + offsets)
        probs = np.exp(log_probs)
        numbers = np.arange(len(scores))
        true_class = (numbers, self.labels[rows])
        log_prob = log_probs[true_class]
        prob = probs[true_class]
        wrong = 1 - prob
        focusing = self.focusing[heads]
        loss, slope = focal(log_prob, prob, wrong, focusing)
        log_prob_gradient = -probs
        log_prob_gradient[true_class] += 1
        weighted_slope = weights * slope
        gradient = weighted_slope[:, None, :] * log_prob_gradient
        return Evaluated(_weighted_sums(weights, loss), gradient)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities over axis 1, (num_rows, C, j)."""
    highest = logits.max(axis=1, keepdims=True)
    shifted = logits - highest
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def _shares(weights: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Row weights (num_rows, J) of which each column sums to 1, so that the loss is a mean."""
    shares = np.empty(weights.shape, dtype)
    totals = weights.sum(axis=0)
    for rows in blocks(len(weights)):
        shares[rows] = weights[rows] / totals
    return shares


def _preconditioner(spectrum: np.ndarray, penalised: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """One over the square root of the typical curvature in each direction: (rank + 1, J)."""
    with_intercept = np.append(spectrum, 1.0)
    loss_curvature = _CURVATURE * with_intercept[:, None]
    penalty_curvature = penalised[:, None] * l2
    return 1 / np.sqrt(loss_curvature + penalty_curvature)


def _weighted_sums(weights: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Sum of weight times loss per head, float64 (j,)."""
    # In float64: the noise of a float32 sum made line searches fail close to the solution.
    return np.einsum("nj,nj->j", weights, loss, dtype=np.float64)
