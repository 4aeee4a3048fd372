"""Many linear heads at once: one rotation of the features, one objective for all of them.

All heads of a search share one feature matrix $X$. A head is a column of row weights (rows that are
left out weigh 0) with its own focusing, offsets and $l_2$. $X$ is rotated once into the eigenbasis of
its Gram matrix, where the curvature is nearly diagonal. In it `subspace` solves the heads of a search,
which help each other within their fold; heads of more than two classes or on few features, and a head
alone, are moved by a batched L-BFGS. Rows are walked in blocks, so memory holds one block, the numbers
per row and head, and the Gram matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import eigh

from equipoise.scenario.heads import lbfgs, subspace
from equipoise.scenario.heads.descent import LEAST_CURVATURE
from equipoise.scenario.heads.kept import Arrays, Kept, key_of
from equipoise.scenario.heads.lbfgs import Evaluated
from equipoise.scenario.heads.loss import MarginLosses, focal
from equipoise.scenario.heads.rows import Features, blocks, read_if_one_block, scratch
from equipoise.strategies.base import Objective

#: Relative norm at which a head that shares directions counts as solved: about 4e-6 of its objective
#: is left. On real features (seven remedies, 80 heads each, 1,285 and 3,125 x 1,280) at most 7e-6
#: were left (focal loss: 2e-5), AUROC of a trial was within 7e-5 of that of the optimum, as a rule within 1e-5,
#: where trials are 1.5e-4 apart, and no best trial was another one.
SEARCH_TOLERANCE = 2e-3

#: Norm of the preconditioned gradient at which L-BFGS counts a head of a search as solved. Between more
#: than two classes its norm says less about what is left.
LBFGS_TOLERANCE = 3e-4

#: Directions of a rotation from which on heads of a search share some. Narrower products are so cheap that
#: Newton's steps cost more than they spare: on 1,285 rows of 256 features 1.4 to 1.7 times as much
#: as L-BFGS, on 512 0.8 to 1.1, on 1,024 0.5 to 0.7.
FEWEST_SHARING = 512

#: Curvature of the loss of a row at the start, p(1-p) at p = 1/2: scales the first coordinates. Any
#: positive value gives the same optimum.
_FIRST_CURVATURE = 0.25

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
    def of(
        cls,
        standardised: Features,
        scratch_folder: Path | None = None,
        kept: Kept | None = None,
    ) -> Rotated:
        """Rotate a standardised matrix.

        Args:
            standardised: float32 or float64 (num_rows, num_features).
            scratch_folder: Where a rotated matrix of many rows lies, see `rows.scratch`.
            kept: Where eigenbases are kept and read back; None keeps nothing.
        """
        num_rows = len(standardised)
        at_hand = read_if_one_block(standardised)
        if kept is None:
            eigenbasis = _eigenbasis(at_hand)
        else:
            eigenbasis = kept.arrays(key_of("rotation", standardised), lambda: _eigenbasis(at_hand))
        basis = eigenbasis["basis"]
        _, rank = basis.shape
        matrix = scratch((num_rows, rank + 1), basis.dtype, scratch_folder)
        matrix[:, rank] = 1
        for rows in blocks(num_rows):
            matrix[rows, :rank] = at_hand[rows] @ basis
        return cls(matrix, basis, eigenbasis["spectrum"])


def _eigenbasis(standardised: Features) -> Arrays:
    """Spectrum (rank,) and basis (num_features, rank) of a standardised matrix."""
    num_rows, num_features = standardised.shape
    dtype = standardised.dtype
    fewest_rows = float(num_features)
    if dtype == np.float32:
        fewest_rows *= _FEWEST_ROWS_FRACTION
    if num_rows >= fewest_rows:
        spectrum, basis = _eigenbasis_of_features(standardised)
    else:
        spectrum, basis = _eigenbasis_of_rows(standardised[:])
    is_kept = spectrum > _RANK_TOLERANCE * spectrum[-1]
    # In the order in which a file gives it back: products of the other order round differently.
    basis = np.ascontiguousarray(basis[:, is_kept], dtype)
    return {"spectrum": spectrum[is_kept], "basis": basis}


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
        gradient_norm: (J,), norm of the preconditioned gradient where the head stopped; of heads that share
            directions the relative one, see `subspace.relative_norm`.
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
    return Problem(rotated, labels, row_weights, objectives, l2).solved(tolerance)


def search(
    rotated: Rotated,
    labels: np.ndarray,
    row_weights: np.ndarray,
    objectives: Sequence[Objective],
    l2: np.ndarray,
    folds: np.ndarray,
    scratch_folder: Path | None = None,
    tolerance: float = SEARCH_TOLERANCE,
) -> Solution:
    """Minimise the loss of the heads of a search, as `solve` does; those of a fold may help each other.

    Args:
        rotated: As of `solve`, and so are the labels, weights, objectives and penalties.
        labels: int (num_rows,).
        row_weights: float (num_rows, J). No head of a fold weighs a row that is held back from another.
        objectives: J objectives.
        l2: float (J,).
        folds: int (J,), which inner fold is held back from each head.
        scratch_folder: Where tables of many rows lie, see `rows.scratch`.
        tolerance: Relative norm at which heads that share directions stop; L-BFGS has its own.
    """
    problem = Problem(rotated, labels, row_weights, objectives, l2)
    if problem.columns > 1 or len(rotated.spectrum) < FEWEST_SHARING:
        return problem.solved(LBFGS_TOLERANCE)
    heads = subspace.Heads(
        matrix=problem.matrix,
        spectrum=rotated.spectrum,
        sign=problem.sign,
        shares=problem.weights,
        l2=problem.l2,
        focusing=problem.focusing[:, 0],
        offset=problem.offsets[:, 1] - problem.offsets[:, 0],
        fold=folds,
        scratch_folder=scratch_folder,
    )
    minimum = subspace.minimise(heads, tolerance)
    return Solution(minimum.parameters.T[:, None], minimum.gradient_norm, minimum.value)


def roughly(
    standardised: Features,
    labels: np.ndarray,
    row_weights: np.ndarray,
    objective: Objective,
    l2: float,
    tolerance: float,
) -> np.ndarray:
    """One head near its optimum, without a rotation: cheap, and good enough to start from.

    Args:
        standardised: float32 or float64 (num_rows, num_features).
        labels: int (num_rows,).
        row_weights: float (num_rows,), as a column of those of `solve`.
        objective: As of `solve`.
        l2: Penalty.
        tolerance: As of `solve`.

    Returns:
        Parameters float32 (num_features + 1, K), the last row is the intercept.
    """
    # They are read several times, so of many rows as many as one block are enough.
    step = len(blocks(len(standardised)))
    some = standardised[::step].astype(np.float32, copy=False)
    intercept = np.ones((len(some), 1), np.float32)
    _, num_features = some.shape
    plain = Rotated(
        matrix=np.hstack([some, intercept]),
        basis=np.empty((0, 0)),
        spectrum=np.ones(num_features, np.float32),
    )
    weights = row_weights[::step, None]
    solution = solve(plain, labels[::step], weights, [objective], np.array([l2]), tolerance)
    return solution.parameters[..., 0]


class Problem:
    """Objective and gradient of J heads in preconditioned coordinates.

    A head is a row of every array, so that heads are taken out in one piece.

    Attributes:
        columns: K, columns of coefficients: 1 for two classes, else C.
        scale: (J, K, rank + 1); plain parameters are preconditioned ones times this. It changes
            where curvature is measured, see `stretch`.
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
        self.sign = sign.astype(dtype)
        self.weights = _shares(weights, dtype)
        self.l2 = l2.astype(dtype)
        focusing = [[objective.focusing] for objective in objectives]
        self.focusing = np.array(focusing, dtype)
        offsets = [objective.offsets for objective in objectives]
        self.offsets = np.array(offsets, dtype)
        # 1 for a coefficient, 0 for the intercept.
        _, num_parameters = rotated.matrix.shape
        self.penalised = np.ones(num_parameters, dtype)
        self.penalised[-1] = 0
        curvature = _FIRST_CURVATURE * np.append(rotated.spectrum, 1.0)
        scale = self._scale(curvature, self.l2)
        self.scale = np.repeat(scale, self.columns, axis=1)

    def start(self) -> np.ndarray:
        """All parameters 0, (J, K, rank + 1)."""
        return np.zeros_like(self.scale)

    def solved(self, tolerance: float) -> Solution:
        """All heads, by L-BFGS from 0."""
        minimum = lbfgs.minimise(self, self.start(), tolerance)
        parameters = minimum.point * self.scale
        return Solution(
            parameters=parameters.transpose(2, 1, 0),
            gradient_norm=minimum.gradient_norm,
            objective=minimum.value,
        )

    def evaluate(self, scaled: np.ndarray, heads: np.ndarray) -> Evaluated:
        """Value and gradient of some heads.

        Args:
            scaled: (j, K, rank + 1), preconditioned parameters.
            heads: int (j,), which of the J heads they are of.

        Returns:
            Values float64 (j,), and gradients (j, K, rank + 1) in preconditioned coordinates.
        """
        scale = self.scale[heads]
        l2 = self.l2[heads]
        parameters = scaled * scale
        mean_loss = self._mean_loss(parameters, heads)
        coefficients = self.penalised * parameters
        squares = np.vecdot(coefficients, coefficients).sum(axis=1)
        value = mean_loss.value + 0.5 * l2 * squares
        gradient = mean_loss.gradient
        gradient += l2[:, None, None] * coefficients
        gradient *= scale
        return Evaluated(value, gradient)

    def stretch(self, scaled: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Measure the curvature of heads where they stand, and scale their parameters to it.

        Args:
            scaled: (j, K, rank + 1), preconditioned parameters, as they are until now.
            heads: int (j,), which of the J heads they are of.

        Returns:
            Old scale over new scale, (j, K, rank + 1).
        """
        before = self.scale[heads]
        curvature = self._curvature(scaled * before, heads)
        self.scale[heads] = self._scale(curvature, self.l2[heads])
        return before / self.scale[heads]

    def _scale(self, curvature: np.ndarray, l2: np.ndarray) -> np.ndarray:
        """One over the square root of the curvature of loss and penalty, (j, K, rank + 1)."""
        whole = curvature + self.penalised * l2[:, None, None]
        scale = 1 / np.sqrt(np.maximum(whole, LEAST_CURVATURE))
        return scale.astype(self.dtype)

    def _curvature(self, parameters: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Diagonal of the Hessian of the mean loss, (j, K, rank + 1)."""
        flat = parameters.reshape(-1, parameters.shape[-1])
        curvature = np.zeros_like(flat)
        of_block = self._two_class_curvature if self.columns == 1 else self._multi_class_curvature
        for rows in blocks(len(self.matrix)):
            part = self.matrix[rows]
            score_curvature = of_block(self._scores(flat, part), rows, heads)
            curvature += score_curvature.reshape(len(flat), -1) @ np.square(part)
        curvature = curvature.reshape(parameters.shape)
        # One scale for all intercepts of a head: a number added to each changes no probability, and
        # only with one scale do they keep the mean that they start from.
        curvature[..., -1] = curvature[..., -1].mean(axis=1, keepdims=True)
        return curvature

    def _mean_loss(self, parameters: np.ndarray, heads: np.ndarray) -> Evaluated:
        """Weighted mean loss and its gradient in plain parameters (j, K, rank + 1)."""
        flat = parameters.reshape(-1, parameters.shape[-1])
        value = np.zeros(len(heads))
        gradient = np.zeros_like(flat)
        block_loss = self._two_class_loss if self.columns == 1 else self._multi_class_loss
        for rows in blocks(len(self.matrix)):
            part = self.matrix[rows]
            loss = block_loss(self._scores(flat, part), rows, heads)
            value += loss.value
            gradient += loss.gradient.reshape(len(flat), -1) @ part
        return Evaluated(value, gradient.reshape(parameters.shape))

    def _scores(self, flat: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Scores of a block of rows, (j, K, num_rows), from parameters (j * K, rank + 1)."""
        scores = flat @ part.T
        return scores.reshape(-1, self.columns, len(part))

    def _two_class_loss(self, scores: np.ndarray, rows: slice, heads: np.ndarray) -> Evaluated:
        """Weighted loss of a block of rows, and its gradient in their scores (j, 1, num_rows)."""
        weights = self.weights[heads, rows]
        row_losses = MarginLosses(self._margins(scores, rows, heads), self.focusing[heads])
        gradient = weights * row_losses.slope
        gradient *= self.sign[rows]
        return Evaluated(_weighted_sums(weights, row_losses.loss), gradient[:, None])

    def _two_class_curvature(
        self, scores: np.ndarray, rows: slice, heads: np.ndarray
    ) -> np.ndarray:
        """Weighted curvature of a block of rows in their scores, (j, 1, num_rows)."""
        margins = self._margins(scores, rows, heads)
        curvature = MarginLosses(margins, self.focusing[heads]).curvature
        return (self.weights[heads, rows] * curvature)[:, None]

    def _margins(self, scores: np.ndarray, rows: slice, heads: np.ndarray) -> np.ndarray:
        """Logit of the true class against the other, (j, num_rows)."""
        offsets = self.offsets[heads]
        offset = offsets[:, 1] - offsets[:, 0]
        margins = scores[:, 0] + offset[:, None]
        margins *= self.sign[rows]
        return margins

    def _multi_class_loss(self, scores: np.ndarray, rows: slice, heads: np.ndarray) -> Evaluated:
        """Weighted loss of a block of rows, and its gradient in their scores (j, C, num_rows)."""
        weights = self.weights[heads, rows]
        probs, loss, slope = self._class_losses(scores, rows, heads)
        log_prob_gradient = -probs
        log_prob_gradient[_places(self.labels[rows])] += 1
        weighted_slope = weights * slope
        gradient = weighted_slope[:, None] * log_prob_gradient
        return Evaluated(_weighted_sums(weights, loss), gradient)

    def _multi_class_curvature(
        self, scores: np.ndarray, rows: slice, heads: np.ndarray
    ) -> np.ndarray:
        """Weighted curvature of a block of rows in their scores, (j, C, num_rows).

        Of focal loss it is the part that is never negative, which is all that a scale needs.
        """
        probs, _, slope = self._class_losses(scores, rows, heads)
        weighted_slope = self.weights[heads, rows] * slope
        return -weighted_slope[:, None] * probs * (1 - probs)

    def _class_losses(
        self, scores: np.ndarray, rows: slice, heads: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities (j, C, num_rows), and the loss of the true class with its slope, (j, num_rows)."""
        log_probs = _log_softmax(scores + self.offsets[heads][..., None])
        probs = np.exp(log_probs)
        true_class = _places(self.labels[rows])
        prob = probs[true_class]
        loss, slope = focal(log_probs[true_class], prob, 1 - prob, self.focusing[heads])
        return probs, loss, slope


def _places(labels: np.ndarray) -> tuple[slice, np.ndarray, np.ndarray]:
    """Where the true class of each row stands in a table (j, C, num_rows)."""
    return slice(None), labels, np.arange(len(labels))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities over axis 1, (j, C, num_rows)."""
    highest = logits.max(axis=1, keepdims=True)
    shifted = logits - highest
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def _shares(weights: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Of row weights (num_rows, J) each head's, scaled to sum 1 so that the loss is a mean: (J, num_rows)."""
    num_rows, num_heads = weights.shape
    shares = np.empty((num_heads, num_rows), dtype)
    totals = weights.sum(axis=0)
    for rows in blocks(num_rows):
        shares[:, rows] = (weights[rows] / totals).T
    return shares


def _weighted_sums(weights: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Sum of weight times loss per head, float64 (j,)."""
    # In float64: the noise of a float32 sum made line searches fail close to the solution.
    return np.einsum("jn,jn->j", weights, loss, dtype=np.float64)
