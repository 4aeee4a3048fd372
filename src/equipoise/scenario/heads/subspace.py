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
from typing import NamedTuple

import numpy as np

from equipoise.scenario.heads import descent, directions
from equipoise.scenario.heads.descent import LEAST_CURVATURE
from equipoise.scenario.heads.directions import MOST_DIRECTIONS, Directions
from equipoise.scenario.heads.loss import MarginLosses
from equipoise.scenario.heads.rows import blocks

#: Heads of a fold that are moved at the same time. Fewer leave the products of the matrix narrow, with
#: more a direction comes from heads that others would have helped on.
_SEATS = 4

#: Newton's steps in the round in which a head takes its seat; in all others there is one.
_STEPS_OF_ENTRY = 2

#: Relative change of the curvature of the rows from which on a Hessian is made anew.
_STALE = 0.1

#: Rounds after which it is made anew in any case. A few rows that changed can mislead a head for good.
_ROUNDS_OF_A_HESSIAN = 4

#: Rounds after which a head leaves its seat even if it is not solved.
_MAX_ROUNDS = 100


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

    @property
    def num_parameters(self) -> int:
        """Of a head, the intercept included."""
        _, num_parameters = self.matrix.shape
        return num_parameters


@dataclass(frozen=True)
class Minimum:
    """Where J heads stopped.

    Attributes:
        parameters: (J, rank + 1).
        value: float64 (J,).
        gradient_norm: float64 (J,), relative, see `relative_norm`.
    """

    parameters: np.ndarray
    value: np.ndarray
    gradient_norm: np.ndarray


def minimise(heads: Heads, tolerance: float) -> Minimum:
    """Minimise the loss of all heads.

    A head ends when its relative norm is at most the tolerance, when its objective is not finite, or
    after 100 rounds.

    Args:
        heads: What is minimised.
        tolerance: Relative norm of the gradient to stop at, see `relative_norm`.
    """
    num_heads = len(heads.l2)
    minimum = Minimum(
        parameters=np.zeros((num_heads, heads.num_parameters), heads.matrix.dtype),
        value=np.zeros(num_heads),
        gradient_norm=np.zeros(num_heads),
    )
    seats = _Seats(heads, _members(heads))
    while seats.is_taken.any():
        seats.move()
        arrived = seats.arrived()
        finished = seats.finished(arrived, tolerance)
        _record(minimum, seats, arrived, finished)
        goes_on = seats.is_taken & ~finished
        seats.leave(finished)
        seats.learn(np.where(goes_on[..., None], arrived.downhill, 0))
    return minimum


def relative_norm(squared_norm: np.ndarray, value: np.ndarray) -> np.ndarray:
    """How far heads are from their optima, whatever the size of their objectives.

    A Newton step gains half the square of the norm, so the square of this is about the share of the
    objective that is left to gain.

    Args:
        squared_norm: Of the gradient, in coordinates in which curvature is about 1.
        value: Objectives, above 0.

    Returns:
        The norm over the square root of twice the objective.
    """
    tiny = np.finfo(np.float64).tiny
    positive = np.maximum(value, tiny)
    share = squared_norm / (2 * positive)
    return np.sqrt(share)


def _members(heads: Heads) -> list[np.ndarray]:
    """Heads of each fold, the strongest penalty first: it is solved soon, and others begin there."""
    members = []
    for fold in np.unique(heads.fold):
        of_fold = np.flatnonzero(heads.fold == fold)
        order = np.argsort(-heads.l2[of_fold], kind="stable")
        members.append(of_fold[order])
    return members


def _record(minimum: Minimum, seats: _Seats, arrived: _Arrived, finished: np.ndarray) -> None:
    """Write the finished heads, bool (F, k), into the result."""
    number = seats.head[finished]
    minimum.parameters[number] = arrived.parameters[finished]
    minimum.value[number] = seats.point.value[finished]
    minimum.gradient_norm[number] = arrived.norm[finished]


#: Seats: int (j,), their folds, and int (j,), their numbers within the folds.
_Places = tuple[np.ndarray, ...]


class _Point(NamedTuple):
    """Where the heads of all seats stand on their rows.

    Attributes:
        coefficients: float64 (F, k, MOST_DIRECTIONS), along the directions; 0 beyond those there are.
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

    def at(self, places: _Places) -> _Point:
        """Of j seats, (j, ...)."""
        arrays = [of_all[places] for of_all in self]
        return _Point(*arrays)

    def put(self, places: _Places, point: _Point) -> None:
        """Write that of j seats in its place."""
        for of_all, of_some in zip(self, point):
            of_all[places] = of_some

    def copy(self) -> _Point:
        """The same in arrays that can be written to."""
        arrays = [of_all.copy() for of_all in self]
        return _Point(*arrays)


class _Arrived(NamedTuple):
    """Where the heads stand once all features are read; of an empty seat it says nothing.

    Attributes:
        parameters: (F, k, num_parameters).
        downhill: (F, k, num_parameters), the preconditioned gradient.
        norm: (F, k), of the gradient, see `relative_norm`.
    """

    parameters: np.ndarray
    downhill: np.ndarray
    norm: np.ndarray


class _Seats:
    """The heads that are moved at present: k of each of F folds.

    A head that is solved leaves its seat to the next one of its fold, which begins where it ended.

    Attributes:
        head: int (F, k), which of the J heads; -1 in a seat that stays empty.
        point: Where they stand.
    """

    def __init__(self, heads: Heads, members: Sequence[np.ndarray]) -> None:
        """Seat the first heads of each fold, at 0."""
        is_used = [heads.shares[of_fold].any(axis=0) for of_fold in members]
        self._heads = heads
        self._directions = Directions(
            heads.matrix,
            np.array(is_used),
            heads.scratch_folder,
        )
        self._waiting = [of_fold.tolist() for of_fold in members]
        rows = self._directions.rows
        self._sign = heads.sign[rows]
        num_folds, num_used = rows.shape
        num_seats = min(_SEATS, max(map(len, members)))
        shape = (num_folds, num_seats)
        dtype = heads.matrix.dtype
        self.head = np.full(shape, -1)
        self._rounds = np.zeros(shape, dtype=int)
        self._l2 = np.ones((*shape, 1), dtype)
        self._offset = np.zeros((*shape, 1), dtype)
        self._focusing = np.zeros((*shape, 1), dtype)
        self._weights = np.zeros((*shape, num_used), dtype)
        # Hessians of the loss along the directions, and the curvature of the rows behind them.
        self._hessian = np.zeros((*shape, MOST_DIRECTIONS, MOST_DIRECTIONS), dtype)
        self._measured = np.zeros((*shape, num_used), dtype)
        self.point = _Point(
            coefficients=np.zeros((*shape, MOST_DIRECTIONS)),
            scores=np.zeros((*shape, num_used), dtype),
            value=np.zeros(shape),
            slope=np.zeros((*shape, num_used), dtype),
            curvature=np.zeros((*shape, num_used), dtype),
        )
        self.leave(np.ones(shape, dtype=bool))

    @property
    def is_taken(self) -> np.ndarray:
        """Seats that hold a head, bool (F, k)."""
        return self.head >= 0

    def move(self) -> None:
        """Newton's step of every head within the directions; two in folds where a head has just sat down."""
        is_new = self.is_taken & (self._rounds == 0)
        has_new = is_new.any(axis=1, keepdims=True)
        self._step(self.is_taken)
        for _ in range(1, _STEPS_OF_ENTRY):
            self._step(self.is_taken & has_new)
        self._rounds += 1

    def arrived(self) -> _Arrived:
        """Read all features: where the heads stand, and where each would go."""
        point = self.point
        parameters = self._directions.parameters(point.coefficients)
        gradient = self._directions.whole_gradient(point.slope, self.is_taken)
        penalty = np.repeat(self._l2, self._heads.num_parameters, axis=2)
        penalty[..., -1] = 0
        gradient += penalty * parameters
        # The eigenbasis makes this nearly the diagonal of the Hessian; the intercept's column is ones.
        mean_curvature = point.curvature.sum(axis=2, keepdims=True)
        squares = np.append(self._heads.spectrum, 1)
        curvature = mean_curvature * squares.astype(gradient.dtype) + penalty
        downhill = gradient / np.maximum(curvature, LEAST_CURVATURE)
        squared_norm = np.vecdot(gradient, downhill)
        norm = relative_norm(squared_norm, point.value)
        return _Arrived(parameters, downhill, norm)

    def finished(self, arrived: _Arrived, tolerance: float) -> np.ndarray:
        """Heads that move no further, bool (F, k)."""
        solved = arrived.norm <= tolerance
        diverged = ~np.isfinite(self.point.value)
        given_up = self._rounds >= _MAX_ROUNDS
        return self.is_taken & (solved | diverged | given_up)

    def leave(self, finished: np.ndarray) -> None:
        """Give the seats of finished heads, bool (F, k), to those that wait."""
        if not finished.any():
            return
        places = np.nonzero(finished)
        for place in zip(*places):
            self._take(place)
        before = self.point.at(places)
        begun = self._at(places, before.coefficients, before.scores)
        self.point.put(places, begun)

    def learn(self, candidates: np.ndarray) -> None:
        """Take up new directions from candidates (F, k, num_parameters), and extend the Hessians."""
        _, num_candidates, _ = candidates.shape
        is_full = self._directions.is_full(num_candidates)
        for fold in np.flatnonzero(is_full).tolist():
            self._condense(fold)
        before = self._directions.count.copy()
        self._directions.add(candidates)
        for fold, table in enumerate(self._directions.tables):
            after = self._directions.count[fold]
            new = slice(before[fold], after)
            seats = np.flatnonzero(self.is_taken[fold])
            measured = self._measured[fold, seats]
            products = directions.products(table[new], measured, table[:after])
            self._hessian[fold, seats, new, :after] = products
            self._hessian[fold, seats, :after, new] = products.mT

    def _condense(self, fold: int) -> None:
        """Keep of the directions of a fold the intercept and those in which its heads stand."""
        count = self._directions.count[fold]
        coefficients = self.point.coefficients[fold]
        standing = coefficients[:, :count].copy()
        intercept = np.eye(1, count)
        kept = np.vstack([intercept, standing])
        rotation, _ = np.linalg.qr(kept.T)
        rotation = rotation.astype(self._heads.matrix.dtype)
        self._directions.turn(fold, rotation)
        after = self._directions.count[fold]
        coefficients[:] = 0
        coefficients[:, :after] = standing @ rotation
        hessian = self._hessian[fold]
        turned = rotation.T @ hessian[:, :count, :count] @ rotation
        hessian[:] = 0
        hessian[:, :after, :after] = turned

    def _take(self, place: tuple[int, ...]) -> None:
        """Seat the next head of a fold, or leave the seat empty."""
        fold, _ = place
        self._measured[place] = 0
        self._rounds[place] = 0
        if not self._waiting[fold]:
            self.head[place] = -1
            self._weights[place] = 0
            return
        heads = self._heads
        head = self._waiting[fold].pop(0)
        rows = self._directions.rows[fold]
        self.head[place] = head
        self._weights[place] = heads.shares[head, rows]
        self._offset[place] = heads.offset[head]
        self._focusing[place] = heads.focusing[head]
        self._l2[place] = heads.l2[head]

    def _at(self, places: _Places, coefficients: np.ndarray, scores: np.ndarray) -> _Point:
        """Everything that is known of a point of j heads, from its coefficients and its scores."""
        folds, seats = places
        _, num_used = scores.shape
        offset = self._offset[places]
        focusing = self._focusing[places]
        loss = np.zeros(len(folds))
        slope = np.empty_like(scores)
        curvature = np.empty_like(scores)
        for rows in blocks(num_used):
            weights = self._weights[folds, seats, rows]
            sign = self._sign[folds, rows]
            margins = sign * (scores[:, rows] + offset)
            losses = MarginLosses(margins, focusing)
            # In float64: the noise of a float32 sum made line searches fail close to the solution.
            loss += np.einsum(
                "jn,jn->j",
                weights,
                losses.loss,
                dtype=np.float64,
            )
            signed = weights * sign
            slope[:, rows] = signed * losses.slope
            curvature[:, rows] = weights * losses.curvature
        penalised = coefficients[:, 1:]
        squared = np.vecdot(penalised, penalised)
        value = loss + 0.5 * self._l2[places][:, 0] * squared
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
        moves = chosen & np.isfinite(self.point.value)
        step, promised = self._newton_step(moves)
        moves &= promised < 0
        along = self._directions.scores(step)
        start = self.point.copy()
        for length in descent.lengths():
            places = np.nonzero(moves)
            coefficients = start.coefficients[places] + length * step[places]
            scores = start.scores[places] + length * along[places]
            tried = self._at(places, coefficients, scores)
            self.point.put(places, tried)
            change = length * promised
            highest = descent.highest(start.value, change, along.dtype)
            fell = self.point.value <= highest
            moves &= ~fell
            if not moves.any():
                return
        places = np.nonzero(moves)
        self.point.put(places, start.at(places))

    def _newton_step(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps (F, k, m) of the chosen heads, bool (F, k), and slopes (F, k) along them; of others 0."""
        m = self._directions.width
        coefficients = self.point.coefficients[..., :m]
        l2 = self._l2.astype(np.float64)
        penalty = np.repeat(l2, m, axis=2)
        penalty[..., 0] = 0
        gradient = self._directions.gradient(self.point.slope)
        gradient = gradient + penalty * coefficients
        of_loss = self._hessian[..., :m, :m]
        hessian = of_loss[chosen].astype(np.float64)
        diagonal = np.arange(m)
        hessian[:, diagonal, diagonal] += penalty[chosen] + LEAST_CURVATURE
        downhill = -gradient[chosen][..., None]
        solved = np.linalg.solve(hessian, downhill)
        step = np.zeros_like(self.point.coefficients)
        step[chosen, :m] = solved[..., 0]
        promised = np.vecdot(step[..., :m], gradient)
        return step, promised

    def _measure(self) -> None:
        """Make Hessians anew where the curvature of the rows has changed, or for long were not made."""
        curvature = self.point.curvature
        change = np.abs(curvature - self._measured)
        is_stale = change.sum(axis=2) > _STALE * self._measured.sum(axis=2)
        is_old = self._rounds % _ROUNDS_OF_A_HESSIAN == _ROUNDS_OF_A_HESSIAN - 1
        is_made = is_stale | (is_old & self.is_taken)
        for fold, table in enumerate(self._directions.tables):
            seats = np.flatnonzero(is_made[fold])
            if not len(seats):
                continue
            measured = curvature[fold, seats]
            self._measured[fold, seats] = measured
            m = len(table)
            squares = directions.squares(table, measured)
            self._hessian[fold, seats, :m, :m] = squares
