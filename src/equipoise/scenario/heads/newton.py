r"""One head of two classes, solved to the end: Newton's method with Cholesky and step control.

The objective is that of `solver.solve`. With few rows the unknowns are one number per row (dual,
$W = X^T a$), with many rows one per feature (primal). Loss, gradient and scores are float64. The
Hessian says only where to step, so it is factored in float32, at a quarter of the time, until that
does not do. Rows of many are read by blocks, twice in a step, and no copy of them is made.

Reference: Boyd & Vandenberghe, Convex Optimization, chapter 9.5; Chapelle 2007, Training a support
vector machine in the primal, for the dual step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from equipoise.scenario.heads import descent
from equipoise.scenario.heads.loss import MarginLosses
from equipoise.scenario.heads.rows import Features, blocks, read_if_one_block
from equipoise.strategies.base import Objective

#: Up to so many rows for each feature the dual is cheaper: it needs no product of all features in a
#: step.
_DUAL_ROWS_FRACTION = 1.5

_MAX_STEPS = 60

#: Steps after which the Hessian is factored in float64.
_SINGLE_PRECISION_STEPS = 20

#: The last factor serves again while a step with it leaves at most this share of the decrement.
_GOOD_SHARE = 0.05

#: A step of a factor is trusted when the curvature along it is its slope but for this share: of an
#: exact step the two are equal. Else float32 was too coarse, or the factor is of too far away.
_TRUSTED_SHARE = 0.5


@dataclass(frozen=True)
class Minimum:
    """A solved head.

    Attributes:
        coefficients: float64 (num_features,), of the logit of class 1.
        intercept: Not penalised.
        objective: The value reached.
        decrement: $\\sqrt{g^T H^{-1} g}$, the norm of the gradient in the coordinates of the Hessian.
    """

    coefficients: np.ndarray
    intercept: float
    objective: float
    decrement: float


@dataclass(frozen=True)
class _Step:
    """A direction in the unknowns, and what it does.

    Attributes:
        change: float64 (num_unknowns,).
        scores: float64 (num_rows,), how the scores of the rows change.
        cross: Inner product of the coefficients with their change.
        square: Square of the length of the change of the coefficients.
    """

    change: np.ndarray
    scores: np.ndarray
    cross: float
    square: float


class _Space(Protocol):
    """The unknowns of a head: coefficients, or one number per row; the intercept is the last."""

    num_unknowns: int

    def factor(self, curvature: np.ndarray, dtype: Any) -> Any:
        """Factor the Hessian.

        Args:
            curvature: float64 (num_rows,), of the weighted loss of each row.
            dtype: Precision.

        Raises:
            LinAlgError: When it is not positive definite in this precision.
        """

    def step(self, factor: Any, unknowns: np.ndarray, slope: np.ndarray) -> _Step:
        """The Newton step, from the slope of the weighted loss in each score, float64 (num_rows,)."""

    def coefficients(self, unknowns: np.ndarray) -> np.ndarray:
        """float64 (num_features,)."""


class _Primal:
    """One unknown for each feature; rows are read by blocks."""

    def __init__(self, rows: Features, l2: float) -> None:
        _, num_features = rows.shape
        self.rows = read_if_one_block(rows)
        self.num_unknowns = num_features + 1
        self.penalty = np.full(self.num_unknowns, l2)
        self.penalty[-1] = 0

    def factor(self, curvature: np.ndarray, dtype: Any) -> Any:
        """See `_Space`."""
        hessian = np.diag(self.penalty.astype(dtype))
        for rows in blocks(len(self.rows)):
            root = np.sqrt(curvature[rows]).astype(dtype)
            weighted = np.empty((len(root), self.num_unknowns), dtype)
            np.multiply(self.rows[rows], root[:, None], out=weighted[:, :-1], casting="same_kind")
            weighted[:, -1] = root
            hessian += weighted.T @ weighted
        return cho_factor(hessian, lower=True, overwrite_a=True)

    def step(self, factor: Any, unknowns: np.ndarray, slope: np.ndarray) -> _Step:
        """See `_Space`."""
        gradient = self.penalty * unknowns
        for rows in blocks(len(self.rows)):
            gradient[:-1] += self.rows[rows].T @ slope[rows]
        gradient[-1] += slope.sum()
        change = -_solved(factor, gradient)
        scores = np.empty(len(slope))
        for rows in blocks(len(self.rows)):
            scores[rows] = self.rows[rows] @ change[:-1] + change[-1]
        cross = unknowns[:-1] @ change[:-1]
        square = change[:-1] @ change[:-1]
        return _Step(change, scores, cross, square)

    def coefficients(self, unknowns: np.ndarray) -> np.ndarray:
        """See `_Space`."""
        return unknowns[:-1]


class _Dual:
    """One unknown for each row: the coefficients are the rows, weighted by them and summed."""

    def __init__(self, rows: Features, l2: float) -> None:
        self.rows = rows[:]
        self.num_unknowns = len(self.rows) + 1
        self.l2 = l2
        self.products = np.empty((0, 0))

    def factor(self, curvature: np.ndarray, dtype: Any) -> Any:
        """See `_Space`; the curvature of the rows goes with the factor, the step needs both."""
        if not len(self.products) or self.products.dtype != dtype:
            rows = self.rows.astype(dtype, copy=False)
            self.products = rows @ rows.T
        root = np.sqrt(curvature)
        single = root.astype(dtype)
        matrix = self.products * single[:, None]
        matrix *= single
        matrix[np.diag_indices_from(matrix)] += dtype(self.l2)
        return root, cho_factor(matrix, lower=True, overwrite_a=True)

    def step(self, factor: Any, unknowns: np.ndarray, slope: np.ndarray) -> _Step:
        """See `_Space`.

        With D the curvature and K the products of the rows, the change u of the unknowns and v of
        the intercept solve $(l_2 + D K) u + D v = -(slope + l_2 a)$, and the sum of $D (K u + v)$ is
        that of $-slope$. Where they lead may be as rough as K is; what the step does is float64.
        """
        root, matrix = factor
        curvature = root**2
        given = np.column_stack([slope + self.l2 * unknowns[:-1], curvature])
        weighted = root[:, None] * self._products_with(given)
        solved = (given - root[:, None] * _solved(matrix, weighted)) / self.l2
        products = self._products_with(solved)
        slope_left = slope.sum() - curvature @ products[:, 0]
        curvature_left = curvature.sum() - curvature @ products[:, 1]
        shift = -slope_left / curvature_left
        change = -solved[:, 0] - shift * solved[:, 1]
        moved = self.rows @ (self.rows.T @ change)
        return _Step(
            change=np.append(change, shift),
            scores=moved + shift,
            cross=unknowns[:-1] @ moved,
            square=change @ moved,
        )

    def _products_with(self, columns: np.ndarray) -> np.ndarray:
        """K times float64 (num_rows, num_columns), in the precision of the factor."""
        products = self.products @ columns.astype(self.products.dtype)
        return products.astype(np.float64)

    def coefficients(self, unknowns: np.ndarray) -> np.ndarray:
        """See `_Space`."""
        return self.rows.T @ unknowns[:-1]


def _solved(factor: Any, right: np.ndarray) -> np.ndarray:
    """Solve with a Cholesky factor, in its precision."""
    triangle, lower = factor
    solved = cho_solve((triangle, lower), right.astype(triangle.dtype))
    return solved.astype(np.float64)


@dataclass(frozen=True)
class _Loss:
    """The weighted loss of the rows as a function of their scores.

    Attributes:
        sign: float64 (num_rows,), 1 for class 1, else -1.
        shares: float64 (num_rows,), weights that sum to 1.
        offset: Added to the scores.
        focusing: Of the objective.
    """

    sign: np.ndarray
    shares: np.ndarray
    offset: float
    focusing: float

    def value(self, scores: np.ndarray) -> float:
        """Weighted mean."""
        return float(self.shares @ self._losses(scores).loss)

    def slope(self, scores: np.ndarray) -> np.ndarray:
        """Of the weighted loss in each score, (num_rows,)."""
        return self.shares * self.sign * self._losses(scores).slope

    def curvature(self, scores: np.ndarray) -> np.ndarray:
        """Of the weighted loss in each score, (num_rows,), nowhere below 0."""
        return self.shares * self._losses(scores).curvature

    def _losses(self, scores: np.ndarray) -> MarginLosses:
        margins = self.sign * (scores + self.offset)
        return MarginLosses(margins, self.focusing)


def minimise(
    rows: Features,
    labels: np.ndarray,
    row_weights: np.ndarray,
    objective: Objective,
    l2: float,
    tolerance: float,
    start: np.ndarray | None = None,
) -> Minimum | None:
    """Solve one head of two classes.

    Args:
        rows: float64 (num_rows, num_features), standardised.
        labels: int (num_rows,), 0 or 1.
        row_weights: float (num_rows,), >= 0, any scale.
        objective: Focusing and offsets are read; the weights are in `row_weights`.
        l2: Penalty > 0.
        tolerance: Decrement to stop at.
        start: float64 (num_rows,), scores of the rows by a head that is near, which spares steps.

    Returns:
        None where the steps did not end: at a focusing above 0 the loss is not convex.
    """
    num_rows, num_features = rows.shape
    loss = _Loss(
        sign=np.where(labels == 1, 1.0, -1.0),
        shares=row_weights / row_weights.sum(),
        offset=objective.offsets[1] - objective.offsets[0],
        focusing=objective.focusing,
    )
    kind = _Dual if num_rows <= _DUAL_ROWS_FRACTION * num_features else _Primal
    search = _Search(kind(rows, l2), loss, l2)
    if start is not None:
        search.step_from(start)
    return search.run(tolerance)


class _Search:
    """The steps of one head.

    Attributes:
        unknowns: float64 (num_unknowns,).
        scores: float64 (num_rows,), of the rows at the unknowns.
        square: Square of the length of the coefficients.
        value: The objective.
        factor: Of the Hessian, here or a few steps before; None where it has to be made.
        dtype: Precision of the factor.
    """

    def __init__(self, space: _Space, loss: _Loss, l2: float) -> None:
        self.space = space
        self.loss = loss
        self.l2 = l2
        self.unknowns = np.zeros(space.num_unknowns)
        self.scores = np.zeros(len(loss.sign))
        self.square = 0.0
        self.value = loss.value(self.scores)
        self.factor: Any = None
        self.dtype: Any = np.float32

    def step_from(self, scores: np.ndarray) -> None:
        """Begin where a Newton step from a head with these scores leads, if that is lower than 0 is.

        Where such a step leads depends on nothing but the scores.
        """
        curvature = self.loss.curvature(scores)
        if not np.isfinite(curvature).all():
            return
        # The loss is taken for its parabola at the scores; this is the slope of that at 0.
        slope = self.loss.slope(scores) - curvature * scores
        try:
            self._make_factor(curvature)
        except LinAlgError:
            return
        step = self.space.step(self.factor, self.unknowns, slope)
        value = self.loss.value(step.scores) + 0.5 * self.l2 * step.square
        if value < self.value:
            self.unknowns = step.change
            self.scores = step.scores
            self.square = step.square
            self.value = value

    def run(self, tolerance: float) -> Minimum | None:
        """Step until the decrement is small enough; None when it does not become so."""
        if not np.isfinite(self.value):
            return self._minimum(np.inf)
        last = np.inf
        for number in range(_MAX_STEPS):
            if number == _SINGLE_PRECISION_STEPS:
                self.dtype = np.float64
                self.factor = None
            try:
                step, fall = self._newton_step()
            except LinAlgError:
                return None
            if not fall >= 0:
                return None
            decrement = np.sqrt(fall)
            if decrement <= tolerance:
                return self._minimum(decrement)
            if decrement > _GOOD_SHARE * last:
                self.factor = None
            if not self._moved(step, fall):
                return None
            last = decrement
        return None

    def _newton_step(self) -> tuple[_Step, float]:
        """A step, and by how much the objective falls along it at first.

        Raises:
            LinAlgError: When the Hessian is not positive definite in float64 either.
        """
        slope = self.loss.slope(self.scores)
        curvature = self.loss.curvature(self.scores)
        while True:
            is_fresh = self.factor is None
            if is_fresh:
                self._make_factor(curvature)
            step = self.space.step(self.factor, self.unknowns, slope)
            fall = -(slope @ step.scores + self.l2 * step.cross)
            bend = curvature @ step.scores**2 + self.l2 * step.square
            is_trusted = abs(bend - fall) <= _TRUSTED_SHARE * fall
            if is_trusted or (is_fresh and self.dtype == np.float64):
                return step, fall
            if is_fresh:
                self.dtype = np.float64
            self.factor = None

    def _make_factor(self, curvature: np.ndarray) -> None:
        if self.dtype == np.float32:
            try:
                self.factor = self.space.factor(curvature, np.float32)
                return
            except LinAlgError:
                self.dtype = np.float64
        self.factor = self.space.factor(curvature, np.float64)

    def _moved(self, step: _Step, fall: float) -> bool:
        """Go along a step as far as the objective falls enough; False where it does nowhere."""
        for length in descent.lengths():
            scores = self.scores + length * step.scores
            square = self.square + 2 * length * step.cross + length**2 * step.square
            value = self.loss.value(scores) + 0.5 * self.l2 * square
            if value <= descent.highest(self.value, -length * fall):
                self.unknowns = self.unknowns + length * step.change
                self.scores = scores
                self.square = square
                self.value = value
                return True
        return False

    def _minimum(self, decrement: float) -> Minimum:
        return Minimum(
            coefficients=self.space.coefficients(self.unknowns),
            intercept=float(self.unknowns[-1]),
            objective=self.value,
            decrement=float(decrement),
        )
