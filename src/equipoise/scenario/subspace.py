"""Heads of two classes, solved in a few directions that the heads of a fold share.

Heads of one inner fold differ in penalty, weights and draws, yet bend along nearly the same
directions. So they collect directions together: the preconditioned gradients of a few of them at a
time. Within the directions collected so far a head is moved by Newton's steps, which read one number
per row and direction. All features are read twice a round, for the gradients and for the scores of
the new directions, and a head needs fewer rounds than it would alone.

Nothing passes from fold to fold: a head of another fold knows the labels of rows that are held back.

Reference: Narkiss & Zibulevsky 2005, Sequential Subspace Optimization Method for Large-Scale
Unconstrained Problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from equipoise.scenario.loss import margin_losses
from equipoise.scenario.rows import blocks, scratch

#: Heads of a fold that are moved at the same time. Fewer leave the products of the matrix narrow, with
#: more a direction comes from heads that others would have helped on.
_SEATS = 4

#: Directions that are there from the start, those of the largest eigenvalues: their scores are columns
#: of the matrix.
_FIRST_DIRECTIONS = 16

#: Directions that are kept at most. Beyond, they are condensed to where the heads stand.
_MOST_DIRECTIONS = 80

#: A direction whose part outside the others is shorter than this share of the longest new one is left out.
_INDEPENDENT = 0.1

#: A gradient of unit length whose part outside the directions is shorter than this lies within them.
_LEAST_LENGTH = 1e-3

#: Newton's steps in the round in which a head takes its seat; in all others there is one.
_STEPS_OF_ENTRY = 2

#: Relative change of the curvature of the rows from which on a Hessian is made anew.
_STALE = 0.1

#: Rounds after which it is made anew in any case. A few rows that changed can mislead a head for good.
_ROUNDS_OF_A_HESSIAN = 4

#: Rounds after which a head leaves its seat even if it is not solved.
_MAX_ROUNDS = 100

#: Armijo's constant: the share of the promised decrease that a step must reach.
_SUFFICIENT_DECREASE = 1e-4

_MAX_HALVINGS = 30

#: Rows of a product that OpenBLAS takes at a time: eleven take longer than twelve.
_ROWS_AT_A_TIME = 4

#: A curvature is not taken for less, so that steps stay finite where the loss is flat.
_LEAST_CURVATURE = 1e-10


@dataclass(frozen=True)
class Heads:
    """J heads of two classes over one rotated matrix.

    Attributes:
        matrix: (num_rows, rank + 1), the last column is ones for the intercept.
        spectrum: (rank,), ascending mean squares of the other columns.
        sign: (num_rows,), 1 for class 1 and -1 for class 0.
        shares: (J, num_rows), row weights that sum to 1; rows that are left out have 0.
        l2: (J,), penalties.
        focusing: (J,).
        offset: (J,), of the logit of class 1.
        fold: int (J,), heads of one fold may learn from each other.
        scratch_folder: Where tables of many rows lie, see `rows.scratch`.
    """

    matrix: np.ndarray
    spectrum: np.ndarray
    sign: np.ndarray
    shares: np.ndarray
    l2: np.ndarray
    focusing: np.ndarray
    offset: np.ndarray
    fold: np.ndarray
    scratch_folder: Path | None = None


@dataclass(frozen=True)
class Minimum:
    """Where J heads stopped.

    Attributes:
        parameters: (J, rank + 1).
        value: float64 (J,).
        gradient_norm: float64 (J,), of the preconditioned gradient.
    """

    parameters: np.ndarray
    value: np.ndarray
    gradient_norm: np.ndarray


def minimise(heads: Heads, tolerance: float) -> Minimum:
    """Minimise the loss of all heads.

    A head ends when the norm of its preconditioned gradient is at most the tolerance, when its
    objective is not finite, or after 100 rounds.

    Args:
        heads: What is minimised.
        tolerance: Norm of the preconditioned gradient to stop at.
    """
    num_heads, _ = heads.shares.shape
    _, num_parameters = heads.matrix.shape
    minimum = Minimum(
        parameters=np.zeros((num_heads, num_parameters), heads.matrix.dtype),
        value=np.zeros(num_heads),
        gradient_norm=np.zeros(num_heads),
    )
    members = _members(heads)
    directions = _Directions(heads, members)
    seats = _Seats(heads, members, directions)
    while seats.is_taken.any():
        seats.move()
        arrived = _arrived(heads, directions, seats)
        finished = seats.finished(arrived.norm, tolerance)
        _record(minimum, seats, arrived, finished)
        goes_on = seats.is_taken & ~finished
        candidates = np.where(goes_on[..., None], arrived.descent, 0)
        seats.leave(finished)
        for fold in np.flatnonzero(directions.is_full(candidates)).tolist():
            seats.condense(fold)
        before = directions.count.copy()
        directions.add(candidates)
        seats.widen(before)
    return minimum


def _members(heads: Heads) -> list[np.ndarray]:
    """Heads of each fold, the strongest penalty first: it is solved soon, and others begin there."""
    members = []
    for fold in np.unique(heads.fold):
        of_fold = np.flatnonzero(heads.fold == fold)
        order = np.argsort(-heads.l2[of_fold], kind="stable")
        members.append(of_fold[order])
    return members


class _Arrived(NamedTuple):
    """Where the heads in their seats stand, with the whole matrix read; of an empty seat it says nothing.

    Attributes:
        parameters: (F, k, num_parameters).
        descent: (F, k, num_parameters), the preconditioned gradient.
        norm: (F, k), of the gradient in preconditioned coordinates.
    """

    parameters: np.ndarray
    descent: np.ndarray
    norm: np.ndarray


def _arrived(heads: Heads, directions: _Directions, seats: _Seats) -> _Arrived:
    parameters = directions.parameters(seats.point.coefficients)
    gradient = np.zeros_like(parameters)
    gradient[seats.is_taken] = _loss_gradients(heads, directions, seats)
    penalty = directions.penalised * seats.l2
    gradient += penalty * parameters
    spectrum = np.append(heads.spectrum, 1).astype(gradient.dtype)
    curvature = seats.point.curvature.sum(axis=2, keepdims=True) * spectrum + penalty
    descent = gradient / np.maximum(curvature, _LEAST_CURVATURE)
    return _Arrived(parameters, descent, norm=np.sqrt(np.vecdot(gradient, descent)))


def _loss_gradients(heads: Heads, directions: _Directions, seats: _Seats) -> np.ndarray:
    """Gradients of the mean loss of the heads in taken seats, (num_taken, num_parameters)."""
    num_rows, num_parameters = heads.matrix.shape
    places = np.argwhere(seats.is_taken)
    slopes = _filled((len(places), num_rows), heads.matrix.dtype)
    for of_head, (fold, seat) in zip(slopes, places):
        of_head[directions.rows[fold]] = seats.point.slope[fold, seat]
    gradients = np.zeros((len(slopes), num_parameters), heads.matrix.dtype)
    for rows in blocks(num_rows):
        gradients += slopes[:, rows] @ heads.matrix[rows]
    return gradients[: len(places)]


def _filled(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Zeros for rows of a product, and some more: OpenBLAS takes four at a time, and three take longer."""
    num_rows, width = shape
    num_missing = -num_rows % _ROWS_AT_A_TIME
    return np.zeros((num_rows + num_missing, width), dtype)


def _record(minimum: Minimum, seats: _Seats, arrived: _Arrived, finished: np.ndarray) -> None:
    """Write the finished heads into the result."""
    number = seats.head[finished]
    minimum.parameters[number] = arrived.parameters[finished]
    minimum.value[number] = seats.point.value[finished]
    minimum.gradient_norm[number] = arrived.norm[finished]


class _Directions:
    """Directions of F folds, and their scores on the rows that the heads of a fold use.

    The first direction is the intercept. Those of a fold are orthonormal, and followed by zeros.

    Attributes:
        rows: int (F, num_used), rows that a head of the fold may weigh; others, which weigh 0, fill up.
        count: int (F,), how many directions there are.
        penalised: (num_parameters,), 1 for a coefficient, 0 for the intercept.
    """

    def __init__(self, heads: Heads, members: Sequence[np.ndarray]) -> None:
        num_folds = len(members)
        _, num_parameters = heads.matrix.shape
        dtype = heads.matrix.dtype
        self._matrix = heads.matrix
        self.penalised = np.ones(num_parameters, dtype)
        self.penalised[-1] = 0
        is_used = np.array([heads.shares[of_fold].any(axis=0) for of_fold in members])
        num_used = is_used.sum(axis=1).max()
        self.rows = np.argsort(~is_used, axis=1, kind="stable")[:, :num_used]
        columns = np.arange(num_parameters)[::-1]
        first = columns[: 1 + _FIRST_DIRECTIONS]
        places = np.arange(len(first))
        self.count = np.full(num_folds, len(first))
        self._vectors = np.zeros((num_folds, _MOST_DIRECTIONS, num_parameters), dtype)
        self._vectors[:, places, first] = 1
        shape = (num_used, _MOST_DIRECTIONS)
        tables = [scratch(shape, dtype, heads.scratch_folder) for _ in members]
        # A direction is a row, so that its scores lie side by side.
        self._tables = [table.reshape(_MOST_DIRECTIONS, num_used) for table in tables]
        for table, rows in zip(self._tables, self.rows):
            table[len(first) :] = 0
            for block in blocks(num_used):
                scores = self._matrix[rows[block][:, None], first]
                table[: len(first), block] = scores.T

    @property
    def width(self) -> int:
        """m, directions of the fold that has most."""
        return int(self.count.max())

    @property
    def vectors(self) -> np.ndarray:
        """(F, m, num_parameters)."""
        return self._vectors[:, : self.width]

    @property
    def tables(self) -> list[np.ndarray]:
        """Scores of the directions: F times (m, num_used)."""
        return [table[: self.width] for table in self._tables]

    def parameters(self, coefficients: np.ndarray) -> np.ndarray:
        """Heads (F, k, at least m) in the columns of the matrix, (F, k, num_parameters)."""
        plain = coefficients[..., : self.width].astype(self._vectors.dtype)
        return plain @ self.vectors

    def scores(self, coefficients: np.ndarray) -> np.ndarray:
        """Scores (F, k, num_used) of heads (F, k, at least m)."""
        plain = coefficients[..., : self.width].astype(self._vectors.dtype)
        return np.stack([of_fold @ table for of_fold, table in zip(plain, self.tables)])

    def gradient(self, slope: np.ndarray) -> np.ndarray:
        """Gradient (F, k, m) of a loss with slopes (F, k, num_used) in the scores."""
        return np.stack([of_fold @ table.T for of_fold, table in zip(slope, self.tables)])

    def is_full(self, candidates: np.ndarray) -> np.ndarray:
        """Folds that may have no room for candidates (F, k, num_parameters), bool (F,)."""
        _, num_candidates, _ = candidates.shape
        return self.count + num_candidates > _MOST_DIRECTIONS

    def add(self, candidates: np.ndarray) -> None:
        """Take up what is new in vectors (F, k, num_parameters)."""
        new = _independent(candidates, self.vectors)
        is_new = new.any(axis=2)
        fold, candidate = np.nonzero(is_new)
        place = self.count[fold] + (is_new.cumsum(axis=1) - 1)[fold, candidate]
        vectors = _filled((len(fold), new.shape[-1]), new.dtype)
        vectors[: len(fold)] = new[fold, candidate]
        num_rows = len(self._matrix)
        scores = np.empty((len(vectors), num_rows), new.dtype)
        for block in blocks(num_rows):
            scores[:, block] = vectors @ self._matrix[block].T
        for vector, of_vector, of_fold, at in zip(vectors, scores, fold, place):
            self._vectors[of_fold, at] = vector
            self._tables[of_fold][at] = of_vector[self.rows[of_fold]]
        self.count += is_new.sum(axis=1)

    def turn(self, fold: int, rotation: np.ndarray) -> None:
        """Put fewer directions in place of all those of a fold, their combinations (m of the fold, fewer)."""
        before, after = rotation.shape
        for everything in (self._vectors[fold], self._tables[fold]):
            everything[:after] = rotation.T @ everything[:before]
            everything[after:] = 0
        self.count[fold] = after


def _independent(candidates: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Orthonormal directions of candidates outside the vectors.

    Args:
        candidates: (F, k, num_parameters); 0 where there is none.
        vectors: (F, m, num_parameters), orthonormal.

    Returns:
        (F, k, num_parameters); 0 where there are fewer.
    """
    tiny = np.finfo(candidates.dtype).tiny
    outside = candidates / np.maximum(_norms(candidates), tiny)
    outside -= (outside @ vectors.transpose(0, 2, 1)) @ vectors
    outside[_norms(outside)[..., 0] < _LEAST_LENGTH] = 0
    squares, axes = np.linalg.eigh(outside @ outside.transpose(0, 2, 1))
    longest = np.maximum(squares[:, -1:], tiny)
    is_long = squares > _INDEPENDENT**2 * longest
    lengths = np.sqrt(np.maximum(squares, tiny))
    chosen = axes * (is_long / lengths)[:, None]
    return chosen.transpose(0, 2, 1).astype(outside.dtype) @ outside


def _norms(vectors: np.ndarray) -> np.ndarray:
    """(F, k, 1) of (F, k, num_parameters)."""
    return np.sqrt(np.vecdot(vectors, vectors))[..., None]


class _Point(NamedTuple):
    """Where the heads of all seats stand on their rows.

    Attributes:
        coefficients: float64 (F, k, most directions), along the directions; 0 beyond those there are.
        scores: (F, k, num_used).
        value: float64 (F, k), the objective.
        slope: (F, k, num_used), weighted slope of the loss of a row in its score.
        curvature: (F, k, num_used), the same of the curvature.
    """

    coefficients: np.ndarray
    scores: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


class _Seats:
    """The heads that are moved at present: k of each of F folds.

    A head that is solved leaves its seat to the next one of its fold, which begins where it ended.

    Attributes:
        head: int (F, k), which of the J heads; -1 in a seat that stays empty.
        point: Where they stand.
        l2: (F, k, 1).
    """

    def __init__(
        self, heads: Heads, members: Sequence[np.ndarray], directions: _Directions
    ) -> None:
        num_folds, num_used = directions.rows.shape
        num_seats = min(_SEATS, max(len(of_fold) for of_fold in members))
        shape = (num_folds, num_seats)
        dtype = heads.matrix.dtype
        self._heads = heads
        self._directions = directions
        self._waiting = [list(of_fold) for of_fold in members]
        self._sign = heads.sign[directions.rows][:, None]
        self._weights = np.zeros((*shape, num_used), dtype)
        self._offset = np.zeros((*shape, 1), dtype)
        self._focusing = np.zeros((*shape, 1), dtype)
        self._hessian = np.zeros((*shape, _MOST_DIRECTIONS, _MOST_DIRECTIONS), dtype)
        # The curvature of the rows that a Hessian was made with.
        self._measured = np.zeros((*shape, num_used), dtype)
        self._rounds = np.zeros(shape, dtype=int)
        self.head = np.full(shape, -1)
        self.l2 = np.ones((*shape, 1), dtype)
        for place in np.ndindex(shape):
            self._take(place)
        nowhere = np.zeros((*shape, _MOST_DIRECTIONS))
        self.point = self._at(nowhere, directions.scores(nowhere))

    @property
    def is_taken(self) -> np.ndarray:
        """Seats that hold a head, bool (F, k)."""
        return self.head >= 0

    def move(self) -> None:
        """Newton's step of every head within the directions; two in folds where a head has just sat down."""
        is_new = self.is_taken & (self._rounds == 0)
        self._step(self.is_taken)
        for _ in range(1, _STEPS_OF_ENTRY):
            self._step(self.is_taken & is_new.any(axis=1, keepdims=True))
        self._rounds += 1

    def finished(self, norm: np.ndarray, tolerance: float) -> np.ndarray:
        """Heads that move no further, bool (F, k), given the norms of their gradients."""
        solved = norm <= tolerance
        diverged = ~np.isfinite(self.point.value)
        given_up = self._rounds >= _MAX_ROUNDS
        return self.is_taken & (solved | diverged | given_up)

    def leave(self, finished: np.ndarray) -> None:
        """Give the seats of finished heads, bool (F, k), to those that wait."""
        if not finished.any():
            return
        for place in zip(*np.nonzero(finished)):
            self._take(place)
        self.point = self._at(self.point.coefficients, self.point.scores)

    def widen(self, before: np.ndarray) -> None:
        """Add what is new to the Hessians, where folds had int (F,) directions before."""
        for fold, table in enumerate(self._directions.tables):
            after = self._directions.count[fold]
            new = slice(before[fold], after)
            seats = np.flatnonzero(self.is_taken[fold])
            products = _products(table[new], self._measured[fold, seats], table[:after])
            self._hessian[fold, seats, new, :after] = products
            self._hessian[fold, seats, :after, new] = products.transpose(0, 2, 1)

    def condense(self, fold: int) -> None:
        """Keep of the directions of a fold the intercept and those in which its heads stand."""
        count = self._directions.count[fold]
        coefficients = self.point.coefficients[fold]
        standing = coefficients[:, :count].copy()
        intercept = np.zeros((1, count))
        intercept[0, 0] = 1
        rotation, _ = np.linalg.qr(np.vstack([intercept, standing]).T)
        rotation = rotation.astype(self._weights.dtype)
        self._directions.turn(fold, rotation)
        _, after = rotation.shape
        coefficients[:] = 0
        coefficients[:, :after] = standing @ rotation
        hessian = self._hessian[fold]
        turned = rotation.T @ hessian[:, :count, :count] @ rotation
        hessian[:] = 0
        hessian[:, :after, :after] = turned

    def _take(self, place: tuple[int, int]) -> None:
        """Seat the next head of a fold, or leave the seat empty."""
        fold, _ = place
        self._measured[place] = 0
        self._rounds[place] = 0
        if not self._waiting[fold]:
            self.head[place] = -1
            self._weights[place] = 0
            return
        head = self._waiting[fold].pop(0)
        self.head[place] = head
        self._weights[place] = self._heads.shares[head, self._directions.rows[fold]]
        self._offset[place] = self._heads.offset[head]
        self._focusing[place] = self._heads.focusing[head]
        self.l2[place] = self._heads.l2[head]

    def _at(self, coefficients: np.ndarray, scores: np.ndarray) -> _Point:
        """Everything that is known of a point from its coefficients and its scores."""
        loss = np.zeros(self.head.shape)
        slope = np.empty_like(scores)
        curvature = np.empty_like(scores)
        for rows in blocks(scores.shape[-1]):
            weights = self._weights[..., rows]
            sign = self._sign[..., rows]
            margins = sign * (scores[..., rows] + self._offset)
            losses = margin_losses(margins, self._focusing)
            # In float64: the noise of a float32 sum made line searches fail close to the solution.
            loss += np.einsum("fkn,fkn->fk", weights, losses.loss, dtype=np.float64)
            slope[..., rows] = weights * losses.slope * sign
            curvature[..., rows] = weights * losses.curvature
        penalised = coefficients[..., 1:]
        value = loss + 0.5 * self.l2[..., 0] * np.vecdot(penalised, penalised)
        # A head that diverged must touch no other one of its fold.
        diverged = ~np.isfinite(value)
        slope[diverged] = 0
        curvature[diverged] = 0
        return _Point(coefficients, scores, value, slope, curvature)

    def _step(self, chosen: np.ndarray) -> None:
        """One step of Newton of the chosen heads, halved until the objective falls enough (Armijo)."""
        if not chosen.any():
            return
        self._measure()
        point = self.point
        moves = chosen & np.isfinite(point.value)
        step, promised = self._newton_step(moves)
        moves &= promised < 0
        step[~moves] = 0
        along = self._directions.scores(step)
        resolution = np.finfo(along.dtype).eps
        highest = point.value + 10 * resolution * np.abs(point.value)
        length = np.ones((*moves.shape, 1), along.dtype)
        for _ in range(_MAX_HALVINGS):
            # What fell already is evaluated at the same place again.
            self.point = self._at(point.coefficients + length * step, point.scores + length * along)
            decrease = _SUFFICIENT_DECREASE * length[..., 0] * promised
            fell = self.point.value <= highest + decrease
            too_long = moves & ~fell
            if not too_long.any():
                return
            length[too_long] *= 0.5
        length[too_long] = 0
        self.point = self._at(point.coefficients + length * step, point.scores + length * along)

    def _newton_step(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps (F, k, m) of the chosen heads, bool (F, k), and slopes (F, k) along them; of others 0."""
        m = self._directions.width
        coefficients = self.point.coefficients[..., :m]
        penalty = np.repeat(self.l2, m, axis=2).astype(np.float64)
        penalty[..., 0] = 0
        gradient = self._directions.gradient(self.point.slope) + penalty * coefficients
        hessian = self._hessian[..., :m, :m][chosen].astype(np.float64)
        diagonal = np.arange(m)
        hessian[:, diagonal, diagonal] += penalty[chosen] + _LEAST_CURVATURE
        step = np.zeros_like(self.point.coefficients)
        step[chosen, :m] = -np.linalg.solve(hessian, gradient[chosen][..., None])[..., 0]
        return step, np.vecdot(step[..., :m], gradient)

    def _measure(self) -> None:
        """Make Hessians anew where the curvature of the rows has changed."""
        curvature = self.point.curvature
        change = np.abs(curvature - self._measured).sum(axis=2)
        is_stale = change > _STALE * self._measured.sum(axis=2)
        is_stale |= self.is_taken & (
            self._rounds % _ROUNDS_OF_A_HESSIAN == _ROUNDS_OF_A_HESSIAN - 1
        )
        for fold, table in enumerate(self._directions.tables):
            seats = np.flatnonzero(is_stale[fold])
            if not len(seats):
                continue
            measured = curvature[fold, seats]
            self._measured[fold, seats] = measured
            m, _ = table.shape
            self._hessian[fold, seats, :m, :m] = _squares(table, measured)


def _squares(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Products of all rows of a table (m, n) with each other, (j, m, m), weighted by (j, n)."""
    _, num_rows = table.shape
    total: Any = 0
    for rows in blocks(num_rows):
        scaled = table[:, rows] * np.sqrt(weights[:, None, rows])
        total = total + scaled @ scaled.transpose(0, 2, 1)
    return total


def _products(left: np.ndarray, weights: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of rows of (q, n) with those of (m, n), (j, q, m), weighted by (j, n)."""
    _, num_rows = left.shape
    total: Any = 0
    for rows in blocks(num_rows):
        scaled = left[:, rows] * weights[:, None, rows]
        products = scaled.reshape(-1, scaled.shape[-1]) @ right[:, rows].T
        total = total + products.reshape(len(weights), len(left), len(right))
    return total
