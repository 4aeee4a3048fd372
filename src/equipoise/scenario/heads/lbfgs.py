"""L-BFGS for many independent minimisations at once; each is called a head here.

All heads are evaluated together, but each has its own line search, its own memory and its own end.
On the way each head's coordinates are stretched to the curvature that is measured where it stands.
Reference: Nocedal & Wright, Numerical Optimization, 2nd edition, chapters 3 and 7.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from equipoise.scenario.heads import descent

#: Steps that are remembered.
_MEMORY = 10

_MAX_ITERATIONS = 500

#: Iterations before which curvature is measured: once when a head has left its start, and once more
#: near the solution. On real features that is half of the iterations; a third time gains nothing.
_MEASURED_AT = (3, 9)

#: Finished heads are dropped when they are more than this share: dropping copies the history.
_DROPPED_FRACTION = 0.1

#: Keeps a division by the length of a direction finite.
_LEAST_NORM = 1e-30


class Evaluated(NamedTuple):
    """The objective of j heads.

    Attributes:
        value: float64 (j,).
        gradient: (j, K, num_parameters).
    """

    value: np.ndarray
    gradient: np.ndarray


class Problem(Protocol):
    """J objectives, and the coordinates in which they are minimised."""

    def evaluate(self, point: np.ndarray, heads: np.ndarray) -> Evaluated:
        """Values and gradients of the heads int (j,) at a point (j, K, num_parameters)."""

    def stretch(self, point: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Measure the curvature of heads, and take coordinates in which it is about 1 from now on.

        Returns:
            What one old unit of each coordinate is in new ones, (j, K, num_parameters).
        """


@dataclass(frozen=True)
class Minimum:
    """Where J heads stopped.

    Attributes:
        point: (J, K, num_parameters).
        value: float64 (J,).
        gradient_norm: float64 (J,).
    """

    point: np.ndarray
    value: np.ndarray
    gradient_norm: np.ndarray


def minimise(problem: Problem, start: np.ndarray, tolerance: float) -> Minimum:
    """Minimise J objectives from a common start.

    A head ends when the norm of its gradient is at most the tolerance, when no step length makes its
    objective fall, when its objective is not finite, or after 500 iterations.

    Args:
        problem: Values and gradients of some of the heads.
        start: (J, K, num_parameters).
        tolerance: Norm of the gradient to stop at.

    Returns:
        The points in the coordinates that the problem has at the end.
    """
    num_heads = len(start)
    minimum = Minimum(start.copy(), np.zeros(num_heads), np.zeros(num_heads))
    heads = _begin(problem, start)
    history = _History(())
    for iteration in range(_MAX_ITERATIONS + 1):
        gradient_norm = np.sqrt(_dot(heads.gradient, heads.gradient))
        finished = _finished(heads, gradient_norm, tolerance)
        if iteration == _MAX_ITERATIONS:
            finished[:] = True
        if finished.all() or finished.mean() > _DROPPED_FRACTION:
            _record(minimum, heads, gradient_norm, finished)
            if finished.all():
                break
            heads = heads.only(~finished)
            history = history.only(~finished)
            finished = finished[~finished]
        if iteration in _MEASURED_AT:
            factor = problem.stretch(heads.point, heads.number)
            heads = heads.stretched(factor)
            history = history.stretched(factor)
        direction, slope = _descent_direction(heads.gradient, history)
        direction[finished] = 0
        length = _first_length(direction, history)
        moved = _line_search(problem, heads, direction, slope, length, finished)
        step = moved.point - heads.point
        change = moved.gradient - heads.gradient
        history = history.extended(_Pair(step, change))
        heads = moved
    return minimum


@dataclass(frozen=True)
class _Heads:
    """Where j heads stand.

    Attributes:
        number: int (j,), which of the J heads they are.
        point: (j, K, num_parameters).
        value: float64 (j,), the objective there.
        gradient: (j, K, num_parameters).
        stalled: bool (j,), no step length made the objective fall.
    """

    number: np.ndarray
    point: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    stalled: np.ndarray

    def only(self, chosen: np.ndarray) -> _Heads:
        """The chosen heads, bool (j,)."""
        return _Heads(
            number=self.number[chosen],
            point=self.point[chosen],
            value=self.value[chosen],
            gradient=self.gradient[chosen],
            stalled=self.stalled[chosen],
        )

    def stretched(self, factor: np.ndarray) -> _Heads:
        """The same heads in coordinates of which one old unit is `factor` new ones, (j, K, num_parameters)."""
        return replace(self, point=self.point * factor, gradient=self.gradient / factor)

    def copy(self) -> _Heads:
        """The same heads in arrays that can be written to."""
        return _Heads(
            number=self.number,
            point=self.point.copy(),
            value=self.value.copy(),
            gradient=self.gradient.copy(),
            stalled=self.stalled.copy(),
        )


@dataclass(frozen=True)
class _Pair:
    """One step of all heads and how their gradients changed over it: s and y of the textbook.

    Attributes:
        step: (j, K, num_parameters).
        change: (j, K, num_parameters).
    """

    step: np.ndarray
    change: np.ndarray

    def only(self, chosen: np.ndarray) -> _Pair:
        """The pair of the chosen heads, bool (j,)."""
        return _Pair(self.step[chosen], self.change[chosen])

    def stretched(self, factor: np.ndarray) -> _Pair:
        """The pair in other coordinates, see `_Heads.stretched`."""
        return _Pair(self.step * factor, self.change / factor)

    @cached_property
    def curvature(self) -> np.ndarray:
        """(j,)."""
        return _dot(self.step, self.change)

    @cached_property
    def rho(self) -> np.ndarray:
        """1 / curvature, (j,); 0 where there is no positive curvature, which passes the pair over."""
        curvature = self.curvature
        positive = curvature > np.finfo(curvature.dtype).tiny
        zeros = np.zeros_like(curvature)
        return np.divide(1, curvature, out=zeros, where=positive)

    @cached_property
    def scale(self) -> np.ndarray:
        """Size of the inverse Hessian along the step, (j,) (equation 7.20); 1 without curvature."""
        squares = _dot(self.change, self.change)
        usable = (self.rho > 0) & (squares > 0)
        ones = np.ones_like(squares)
        return np.divide(self.curvature, squares, out=ones, where=usable)


@dataclass(frozen=True)
class _History:
    """The last pairs; the newest is last."""

    pairs: tuple[_Pair, ...]

    def only(self, chosen: np.ndarray) -> _History:
        """The history of the chosen heads, bool (j,)."""
        return _History(tuple(pair.only(chosen) for pair in self.pairs))

    def stretched(self, factor: np.ndarray) -> _History:
        """The history in other coordinates, see `_Heads.stretched`."""
        return _History(tuple(pair.stretched(factor) for pair in self.pairs))

    def extended(self, pair: _Pair) -> _History:
        """With one more pair; the oldest is forgotten when there are too many."""
        pairs = (*self.pairs, pair)
        return _History(pairs[-_MEMORY:])


def _begin(problem: Problem, start: np.ndarray) -> _Heads:
    num_heads = len(start)
    number = np.arange(num_heads)
    first = problem.evaluate(start, number)
    nowhere = np.zeros(num_heads, dtype=bool)
    return _Heads(number, start, first.value, first.gradient, stalled=nowhere)


def _finished(heads: _Heads, gradient_norm: np.ndarray, tolerance: float) -> np.ndarray:
    """Heads that move no further, bool (j,)."""
    solved = gradient_norm <= tolerance
    diverged = ~np.isfinite(heads.value)
    return solved | heads.stalled | diverged


def _record(
    minimum: Minimum, heads: _Heads, gradient_norm: np.ndarray, finished: np.ndarray
) -> None:
    """Write the finished heads into the result."""
    number = heads.number[finished]
    minimum.point[number] = heads.point[finished]
    minimum.value[number] = heads.value[finished]
    minimum.gradient_norm[number] = gradient_norm[finished]


def _descent_direction(gradient: np.ndarray, history: _History) -> tuple[np.ndarray, np.ndarray]:
    """Direction of each head, and the slope of its objective along it, (j,).

    Where L-BFGS leads uphill, the direction is the negative gradient.
    """
    direction = _two_loop(gradient, history)
    slope = _dot(gradient, direction)
    uphill = ~(slope < 0)
    direction[uphill] = -gradient[uphill]
    steepest = -_dot(gradient, gradient)
    slope[uphill] = steepest[uphill]
    return direction, slope


def _two_loop(gradient: np.ndarray, history: _History) -> np.ndarray:
    """The L-BFGS direction of every head (algorithm 7.4)."""
    direction = -gradient
    pairs = history.pairs
    alphas = []
    for pair in reversed(pairs):
        alpha = pair.rho * _dot(pair.step, direction)
        direction -= _each(alpha) * pair.change
        alphas.append(alpha)
    if pairs:
        newest = pairs[-1]
        direction *= _each(newest.scale)
    for pair, alpha in zip(pairs, reversed(alphas)):
        beta = pair.rho * _dot(pair.change, direction)
        direction += _each(alpha - beta) * pair.step
    return direction


def _first_length(direction: np.ndarray, history: _History) -> np.ndarray:
    """Step length tried first, (j,): 1, and as long as nothing is known at most a unit step."""
    dtype = direction.dtype
    if history.pairs:
        return np.ones(len(direction), dtype)
    norm = np.sqrt(_dot(direction, direction))
    unit = 1 / np.maximum(norm, _LEAST_NORM)
    return np.minimum(1, unit).astype(dtype)


def _line_search(
    problem: Problem,
    heads: _Heads,
    direction: np.ndarray,
    slope: np.ndarray,
    longest: np.ndarray,
    finished: np.ndarray,
) -> _Heads:
    """Halve the step of each head until its objective falls enough (Armijo, equation 3.4).

    Finished heads stay where they are. So does a head that has no such step, which then is stalled.
    """
    moved = heads.copy()
    pending = np.flatnonzero(~finished)
    for length in descent.lengths(longest):
        step = _each(length[pending]) * direction[pending]
        point = heads.point[pending] + step
        value, gradient = problem.evaluate(point, heads.number[pending])
        change = length[pending] * slope[pending]
        fell = value <= descent.highest(heads.value[pending], change, direction.dtype)
        accepted = pending[fell]
        moved.point[accepted] = point[fell]
        moved.value[accepted] = value[fell]
        moved.gradient[accepted] = gradient[fell]
        pending = pending[~fell]
        if not len(pending):
            break
    moved.stalled[pending] = True
    return moved


def _each(values: np.ndarray) -> np.ndarray:
    """One value per head (j,), to be multiplied with what is (j, K, num_parameters)."""
    return values[:, None, None]


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Inner product per head: (j, K, num_parameters) twice -> (j,)."""
    return np.vecdot(left, right).sum(axis=1)
