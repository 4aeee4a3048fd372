r"""One head of several classes, solved to the end: Newton's method with conjugate gradients.

The objective is that of `solver.solve`. A number added to all scores of a row changes nothing, so
the heads whose coefficients sum to 0 over the classes hold the optimum, and only these are searched:
the unknowns are C - 1 contrasts of the classes (for two classes the logit of class 1). No Hessian is
made: a step needs its products with vectors, for which the rows are read by blocks. Loss, gradient
and scores are float64. The products only say where to step, so they are float32 until that does not
do. Where rows are many, the head of one block of them is the start.

Reference: Nocedal & Wright, Numerical Optimization, 2nd edition, chapter 7.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, helmert
from scipy.special import log_softmax

from equipoise.scenario.heads import descent
from equipoise.scenario.heads.loss import focal, focal_curvature
from equipoise.scenario.heads.rows import Features, Rows, blocks, read_if_one_block
from equipoise.strategies.base import Objective

_ALL = slice(None)

_MAX_STEPS = 200

#: Steps after which products are float64.
_SINGLE_PRECISION_STEPS = 40

#: A system is solved to this share of its right side, or to the square root of the decrement, so that
#: the last steps converge faster than linearly.
_LOOSEST_SOLUTION = 0.5

#: float32 solves no system more closely.
_TIGHTEST_SOLUTION = 1e-3

#: What is left after the last step lies this far below the tolerance.
_BELOW_TOLERANCE = 0.1

_MAX_PRODUCTS = 500

#: Products that a factored preconditioner costs about as much as: with the rows in memory, and where
#: reading them costs most.
_PRODUCTS_IN_MEMORY = 40
_PRODUCTS_BY_BLOCKS = 8

#: Up to so many columns a product is made one by one.
_FEW_COLUMNS = 4

#: A step is trusted when the curvature along it is its slope but for this share: of an exact one the
#: two are equal. Else float32 was too coarse.
_TRUSTED_SHARE = 0.5

#: Where the objective falls by no more than its rounding, a step gains nothing that does not promise
#: less than this share of what the last one did. Where a class weighs nothing that is 0.37.
_STALLED_SHARE = 0.8

#: No step moves a score by more than this at once: where a loss is flat a step would never end.
_LONGEST_STEP = 30.0

#: Decrement at which the head of one block of many rows is near enough to start from.
_ROUGH_TOLERANCE = 1e-2

#: A curvature is not taken for less: nothing is divided by 0 where the loss is flat.
_NO_CURVATURE = 1e-30


@dataclass(frozen=True)
class Minimum:
    r"""A solved head.

    Attributes:
        coefficients: float64 (num_features, C); for two classes column 0 is zero, else rows sum to 0.
        intercepts: float64 (C,), not penalised; of more than two classes they sum to 0.
        objective: The value reached.
        decrement: About $\sqrt{g^T H^{-1} g}$, the norm of the gradient in the coordinates of the Hessian.
    """

    coefficients: np.ndarray
    intercepts: np.ndarray
    objective: float
    decrement: float


def minimise(
    rows: Features,
    labels: np.ndarray,
    row_weights: np.ndarray,
    objective: Objective,
    l2: float,
    tolerance: float,
) -> Minimum:
    """Solve one head. The objective never rises on the way, but for its rounding.

    Args:
        rows: float64 (num_rows, num_features), standardised.
        labels: int (num_rows,).
        row_weights: float (num_rows,), >= 0, any scale.
        objective: Focusing and offsets are read; the weights are in `row_weights`.
        l2: Penalty > 0.
        tolerance: Decrement to stop at.

    Returns:
        The head where the steps ended: at the tolerance, where no step lowers the objective by more
        than its rounding, where it is not finite, or after 200 steps.
    """
    contrasts = _contrasts(len(objective.weights))

    def search_over(some: slice) -> _Search:
        weights = row_weights[some]
        loss = _Loss(
            labels=labels[some],
            shares=weights / weights.sum(),
            contrasts=contrasts,
            offsets=objective.offsets,
            focusing=objective.focusing,
        )
        some_rows = rows if some == _ALL else rows[some]
        return _Search(_System(some_rows, l2), loss)

    search = search_over(_ALL)
    num_blocks = len(blocks(len(rows)))
    if num_blocks > 1:
        near = search_over(slice(None, None, num_blocks)).run(_ROUGH_TOLERANCE)
        search.begin_at(near)
    search.run(tolerance)
    solved = search.unknowns @ contrasts.T
    return Minimum(
        coefficients=solved[:-1],
        intercepts=solved[-1],
        objective=search.value,
        decrement=search.decrement,
    )


def _contrasts(num_classes: int) -> np.ndarray:
    """Scores of the classes of one unit of each contrast, float64 (C, C - 1).

    Those of more than two classes are orthonormal and sum to 0, so that they are penalised as the
    coefficients of the classes are.
    """
    if num_classes == 2:
        return np.array([[0.0], [1.0]])
    return helmert(num_classes).T


# --- the loss -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loss:
    """The weighted loss of the rows as a function of their scores, float64 (num_rows, C - 1).

    Attributes:
        labels: int (num_rows,).
        shares: float64 (num_rows,), weights that sum to 1.
        contrasts: See `_contrasts`.
        offsets: float64 (C,), added to the scores of the classes.
        focusing: Of the objective.
    """

    labels: np.ndarray
    shares: np.ndarray
    contrasts: np.ndarray
    offsets: np.ndarray
    focusing: float

    def value(self, scores: np.ndarray) -> float:
        """Weighted mean."""
        log_prob = _of_class(self._log_probs(scores), self.labels)
        prob = np.exp(log_prob)
        losses, _ = focal(log_prob, prob, -np.expm1(log_prob), self.focusing)
        return float(self.shares @ losses)

    def slopes(self, scores: np.ndarray) -> _Slopes:
        """What the loss is like about these scores."""
        log_probs = self._log_probs(scores)
        log_prob = _of_class(log_probs, self.labels)
        prob = np.exp(log_prob)
        wrong = -np.expm1(log_prob)
        _, slope = focal(log_prob, prob, wrong, self.focusing)
        bend = focal_curvature(log_prob, prob, wrong, self.focusing)
        # Focal loss is not convex. The rest of the Hessian is nowhere negative, and leads downhill.
        bend = np.maximum(bend, 0)
        return _Slopes(
            labels=self.labels,
            contrasts=self.contrasts,
            probs=np.exp(log_probs),
            slope=self.shares * slope,
            bend=self.shares * bend,
        )

    def _log_probs(self, scores: np.ndarray) -> np.ndarray:
        return log_softmax(scores @ self.contrasts.T + self.offsets, axis=1)


def _of_class(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each row the entry of its class, (num_rows,) of (num_rows, C)."""
    return table[np.arange(len(labels)), labels]


@dataclass(frozen=True)
class _Slopes:
    r"""First and second derivatives of the weighted loss of rows in their scores.

    With u the class of the row (1, else 0) less p, the gradient in the scores of the classes is
    slope $u$, and the Hessian is bend $u u^T$ - slope (diag p - $p p^T$).

    Attributes:
        labels: int (num_rows,).
        contrasts: See `_contrasts`.
        probs: (num_rows, C), p.
        slope: (num_rows,), of the weighted loss in log p of the true class.
        bend: (num_rows,), its curvature in the same, nowhere taken for less than 0; of
            cross-entropy it is 0.
    """

    labels: np.ndarray
    contrasts: np.ndarray
    probs: np.ndarray
    slope: np.ndarray
    bend: np.ndarray

    def only(self, rows: slice) -> _Slopes:
        """Those of some of the rows."""
        return _Slopes(
            labels=self.labels[rows],
            contrasts=self.contrasts,
            probs=self.probs[rows],
            slope=self.slope[rows],
            bend=self.bend[rows],
        )

    def astype(self, dtype: Any) -> _Slopes:
        """The same in another precision."""
        return _Slopes(
            labels=self.labels,
            contrasts=self.contrasts.astype(dtype),
            probs=self.probs.astype(dtype),
            slope=self.slope.astype(dtype),
            bend=self.bend.astype(dtype),
        )

    def gradient(self) -> np.ndarray:
        """In the scores, (num_rows, C - 1)."""
        return self.slope[:, None] * self._ahead(self.contrasts)

    def product(self, change: np.ndarray) -> np.ndarray:
        """The Hessian of each row times a change of its scores, (num_rows, C - 1)."""
        of_class = change @ self.contrasts.T
        mean = np.vecdot(self.probs, of_class)[:, None]
        product = self.probs * (mean - of_class)
        product *= self.slope[:, None]
        if self.bend.any():
            ahead = _of_class(of_class, self.labels) - mean[:, 0]
            bent = self.bend * ahead
            product -= bent[:, None] * self.probs
            product[np.arange(len(product)), self.labels] += bent
        return product @ self.contrasts

    def curvature(self, axes: np.ndarray) -> np.ndarray:
        """Of each row along axes of the scores (C - 1, C - 1), (num_rows, C - 1), nowhere below 0."""
        of_class = self.contrasts @ axes
        spread = self.probs @ of_class**2 - (self.probs @ of_class) ** 2
        curvature = self.bend[:, None] * self._ahead(of_class) ** 2 - self.slope[:, None] * spread
        return np.maximum(curvature, 0)

    def total(self) -> np.ndarray:
        """The Hessians of all rows, summed, (C - 1, C - 1)."""
        weighted = self.slope[:, None] * self.probs
        total = weighted.T @ self.probs - np.diag(weighted.sum(axis=0))
        ahead = self._ahead(np.eye(self.probs.shape[1]))
        total += ahead.T @ (self.bend[:, None] * ahead)
        return self.contrasts.T @ total @ self.contrasts

    def _ahead(self, of_class: np.ndarray) -> np.ndarray:
        """By how much the class of a row is ahead of the mean, of scores of the classes (C, any)."""
        return of_class[self.labels] - self.probs @ of_class


# --- the rows -------------------------------------------------------------------------------------


class _System:
    """Products with the rows, and with the Hessian that they make; the last unknown is the intercept.

    Attributes:
        penalty: float64 (num_features + 1, 1).
        in_memory: Whether the rows are one block, which is held; else each product reads them.
    """

    def __init__(self, rows: Features, l2: float) -> None:
        num_rows, num_features = rows.shape
        self.rows = rows
        self.shape = rows.shape
        self.penalty = np.full((num_features + 1, 1), l2)
        self.penalty[-1] = 0
        self.in_memory = len(blocks(num_rows)) == 1
        self._read: dict[Any, Features] = {}

    def rows_in(self, dtype: Any) -> Features:
        """The rows in float32 or float64."""
        if dtype not in self._read:
            rows = self.rows
            if isinstance(rows, Rows):
                rows = replace(rows, dtype=dtype)
            rows = read_if_one_block(rows)
            if isinstance(rows, np.ndarray):
                rows = rows.astype(dtype, copy=False)
            self._read[dtype] = rows
        return self._read[dtype]

    def scores(self, unknowns: np.ndarray) -> np.ndarray:
        """float64 (num_rows, C - 1)."""
        num_rows, _ = self.shape
        rows = self.rows_in(np.float64)
        scores = np.empty((num_rows, unknowns.shape[1]))
        for block in blocks(num_rows):
            scores[block] = rows[block] @ unknowns[:-1] + unknowns[-1]
        return scores

    def gradient(self, unknowns: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Of the objective, from the slope of the loss in the scores."""
        rows = self.rows_in(np.float64)
        gradient = self.penalty * unknowns
        for block in blocks(len(slope)):
            gradient[:-1] += rows[block].T @ slope[block]
        gradient[-1] += slope.sum(axis=0)
        return gradient

    def product(self, slopes: _Slopes, unknowns: np.ndarray) -> np.ndarray:
        """The Hessian times unknowns, float64, computed in the precision of the slopes."""
        dtype = slopes.probs.dtype
        rows = self.rows_in(dtype.type)
        given = unknowns.astype(dtype)
        product = self.penalty * unknowns
        for block in blocks(len(slopes.probs)):
            part = rows[block]
            change = _times(part, given[:-1]) + given[-1]
            bent = slopes.only(block).product(change)
            product[:-1] += _times(part.T, bent)
            product[-1] += bent.sum(axis=0)
        return product


def _times(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The product; of a few columns one after the other, which is twice as fast."""
    _, num_columns = columns.shape
    if num_columns > _FEW_COLUMNS:
        return matrix @ columns
    return np.column_stack([matrix @ column for column in columns.T])


class _Preconditioner(Protocol):
    """Nearly the inverse of a Hessian."""

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """float64 (num_features + 1, C - 1) of the same."""


class _Diagonal:
    """The diagonal of the Hessian, in the axes in which the classes do not mix on average."""

    def __init__(self, system: _System, slopes: _Slopes) -> None:
        self.axes, of_axis = _axes(slopes)
        dtype = slopes.probs.dtype
        rows = system.rows_in(dtype.type)
        diagonal = np.zeros((len(system.penalty), len(of_axis)), dtype)
        for block in blocks(len(slopes.probs)):
            curvature = slopes.only(block).curvature(self.axes.astype(dtype))
            diagonal[:-1] += np.square(rows[block]).T @ curvature
        self.diagonal = diagonal + system.penalty
        self.diagonal[-1] = of_axis

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """See `_Preconditioner`."""
        return gradient @ self.axes / self.diagonal @ self.axes.T


class _Factors:
    """A Hessian of which every row is bent alike between the classes, but for its size.

    In the axes in which the classes do not mix on average that is one matrix for each axis.
    """

    def __init__(self, system: _System, slopes: _Slopes) -> None:
        self.axes, of_axis = _axes(slopes)
        dtype = slopes.probs.dtype
        rows = system.rows_in(dtype.type)
        num_unknowns = len(system.penalty)
        gram = np.zeros((num_unknowns, num_unknowns), dtype)
        for block in blocks(len(slopes.probs)):
            size = slopes.only(block).curvature(self.axes.astype(dtype)).sum(axis=1)
            root = np.sqrt(size)
            weighted = np.empty((len(root), num_unknowns), dtype)
            np.multiply(rows[block], root[:, None], out=weighted[:, :-1])
            weighted[:, -1] = root
            gram += weighted.T @ weighted
        self.factors = []
        for share in of_axis / of_axis.sum():
            hessian = gram * dtype.type(share)
            hessian[np.diag_indices(num_unknowns)] += system.penalty[:, 0].astype(dtype)
            self.factors.append(cho_factor(hessian, lower=True, overwrite_a=True))

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """See `_Preconditioner`."""
        given = gradient @ self.axes
        solved = np.empty_like(given)
        for axis, (triangle, lower) in enumerate(self.factors):
            right = given[:, axis].astype(triangle.dtype)
            solved[:, axis] = cho_solve((triangle, lower), right)
        return solved @ self.axes.T


def _axes(slopes: _Slopes) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal axes of the contrasts, columns of float64 (C - 1, C - 1), and the curvature of each."""
    of_axis, axes = np.linalg.eigh(slopes.total().astype(np.float64))
    return axes, np.maximum(of_axis, _NO_CURVATURE)


# --- the steps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A direction in the unknowns, and what it does.

    Attributes:
        change: float64 (num_features + 1, C - 1).
        scores: float64 (num_rows, C - 1), how the scores of the rows change.
        fall: By how much the objective falls along it at first.
        is_trusted: Whether the curvature along it is about its fall.
    """

    change: np.ndarray
    scores: np.ndarray
    fall: float
    is_trusted: bool


class _Search:
    """The steps of one head.

    Attributes:
        unknowns: float64 (num_features + 1, C - 1).
        scores: float64 (num_rows, C - 1), of the rows at the unknowns.
        value: The objective.
        decrement: See `Minimum`.
        dtype: Precision of products.
        factored: The factored preconditioner, of here or a few steps before; None as long as the
            diagonal does.
        needs_factors: Whether it is made before the next step.
        lengthening: Square of a decrement over that of the same gradient through the preconditioner.
        tolerance: Decrement to stop at.
    """

    def __init__(self, system: _System, loss: _Loss) -> None:
        self.system = system
        self.loss = loss
        num_rows, num_features = system.shape
        _, num_contrasts = loss.contrasts.shape
        self.unknowns = np.zeros((num_features + 1, num_contrasts))
        self.scores = np.zeros((num_rows, num_contrasts))
        self.value = loss.value(self.scores)
        self.decrement = np.inf
        self.dtype: Any = np.float32
        self.factored: _Preconditioner | None = None
        self.needs_factors = not system.in_memory
        self.lengthening = 1.0
        self.tolerance = 0.0

    def begin_at(self, unknowns: np.ndarray) -> None:
        """Begin there, if that is lower than 0 is."""
        scores = self.system.scores(unknowns)
        value = self._value(unknowns, scores)
        if value < self.value:
            self.unknowns = unknowns
            self.scores = scores
            self.value = value

    def run(self, tolerance: float) -> np.ndarray:
        """Step until the decrement is small enough, or nothing lowers the objective; the unknowns there."""
        self.tolerance = tolerance
        last = np.inf
        for number in range(_MAX_STEPS):
            if number == _SINGLE_PRECISION_STEPS:
                self._use_double_precision()
            step = self._newton_step() if np.isfinite(self.value) else None
            if step is None:
                break
            gains = step.fall > descent.rounding(self.value) or step.fall <= _STALLED_SHARE * last
            last = step.fall
            if gains and self._moved(step):
                continue
            if self.dtype == np.float64:
                break
            self._use_double_precision()
        return self.unknowns

    def _use_double_precision(self) -> None:
        """For good; a factored preconditioner is made anew."""
        self.needs_factors = self.needs_factors or self.factored is not None
        self.dtype = np.float64
        self.factored = None

    def _newton_step(self) -> _Step | None:
        """A step that can be trusted as far as float64 goes; None where none is needed."""
        slopes = self.loss.slopes(self.scores)
        gradient = self.system.gradient(self.unknowns, slopes.gradient())
        while True:
            coarse = slopes.astype(self.dtype)
            is_last_way = self.dtype == np.float64
            try:
                preconditioner = self._preconditioner(coarse)
            except LinAlgError:
                self.needs_factors = not is_last_way
                self._use_double_precision()
                continue
            downhill = preconditioner.solve(gradient)
            square = np.vdot(gradient, downhill)
            self.decrement = float(np.sqrt(self.lengthening * square))
            if self.decrement <= self.tolerance or not square > 0:
                return None
            step = self._step(slopes, gradient, self._solved(coarse, gradient, preconditioner))
            if step.is_trusted or (is_last_way and step.fall > 0):
                self.lengthening = max(1.0, step.fall / square)
                return step
            if is_last_way:
                return self._step(slopes, gradient, -downhill)
            self._use_double_precision()

    def _preconditioner(self, coarse: _Slopes) -> _Preconditioner:
        """That of now, made anew where the last one needed too many products.

        Raises:
            LinAlgError: When the Hessian is not positive definite in this precision.
        """
        if self.needs_factors:
            self.factored = _Factors(self.system, coarse)
            self.needs_factors = False
        return self.factored or _Diagonal(self.system, coarse)

    def _solved(
        self, coarse: _Slopes, gradient: np.ndarray, preconditioner: _Preconditioner
    ) -> np.ndarray:
        """Minus the inverse Hessian times the gradient, about: conjugate gradients (algorithm 5.3)."""
        residual = gradient
        direction = -preconditioner.solve(residual)
        square = first = -np.vdot(residual, direction)
        enough = first * self._share_left() ** 2
        change = np.zeros_like(gradient)
        num_products = 0
        while square > enough and num_products < _MAX_PRODUCTS:
            product = self.system.product(coarse, direction)
            num_products += 1
            bend = np.vdot(direction, product)
            if not bend > 0:
                break
            length = square / bend
            change = change + length * direction
            residual = residual + length * product
            downhill = preconditioner.solve(residual)
            last, square = square, np.vdot(residual, downhill)
            direction = square / last * direction - downhill
        self.needs_factors = num_products > self._products_worth_factors
        return change

    def _share_left(self) -> float:
        """What a step may leave of the decrement."""
        least = max(_TIGHTEST_SOLUTION, _BELOW_TOLERANCE * self.tolerance / self.decrement)
        return max(least, min(_LOOSEST_SOLUTION, np.sqrt(self.decrement)))

    @property
    def _products_worth_factors(self) -> int:
        return _PRODUCTS_IN_MEMORY if self.system.in_memory else _PRODUCTS_BY_BLOCKS

    def _step(self, slopes: _Slopes, gradient: np.ndarray, change: np.ndarray) -> _Step:
        scores = self.system.scores(change)
        fall = -np.vdot(gradient, change)
        bend = np.vdot(scores, slopes.product(scores))
        bend += np.vdot(change, self.system.penalty * change)
        is_trusted = abs(bend - fall) <= _TRUSTED_SHARE * fall
        return _Step(change, scores, float(fall), bool(is_trusted and fall > 0))

    def _moved(self, step: _Step) -> bool:
        """Go along a step as far as the objective falls enough; False where it does nowhere."""
        longest = np.abs(step.scores).max()
        for length in descent.lengths(_LONGEST_STEP / max(longest, _LONGEST_STEP)):
            unknowns = self.unknowns + length * step.change
            scores = self.scores + length * step.scores
            value = self._value(unknowns, scores)
            if value <= descent.highest(self.value, -length * step.fall):
                self.unknowns = unknowns
                self.scores = scores
                self.value = value
                return True
        return False

    def _value(self, unknowns: np.ndarray, scores: np.ndarray) -> float:
        """The objective."""
        square = np.vdot(unknowns, self.system.penalty * unknowns)
        return self.loss.value(scores) + 0.5 * float(square)
