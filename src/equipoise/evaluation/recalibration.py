"""How far probabilities would have to be moved to be right: the logistic fit of the truth on their logits.

Both fits are made for all resamples at once. A fit that exists is always found: the plain steps of Newton's method are
taken where they lead there, and steps that must not make things worse are taken everywhere else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

#: Resamples at a time: what is computed for each row of them stays in the processor's cache.
_BLOCK = 64

#: A fit is found when a step is this small beside the fit itself. The error is then about its square.
_SMALL_STEP = 1e-5

#: Plain steps from the fit of all rows: a resample that needs more is not close to it.
_PLAIN_STEPS = 6

#: Careful steps: their most, how far one may go beside the fit itself, and how often one is halved.
_CAREFUL_STEPS = 200
_LONGEST_STEP = 4.0
_HALVINGS = 40

#: A step has to bring this share of what the slope at its start promises (Armijo 1966).
_PROMISED_SHARE = 1e-4

#: Losses are sums of floats, equal up to this share.
_ROUNDING = 1e-14

#: Of the curvature, added to its diagonal, so that there is a direction where rounding leaves none; and where all
#: probabilities are 0 or 1 the curvature that is taken for none.
_RIDGE = 1e-12
_NO_CURVATURE = 1e-200


class Line(NamedTuple):
    """Intercept and slope of the fit, float (B,) each."""

    intercept: np.ndarray
    slope: np.ndarray


def fit_slope(weights: np.ndarray, logit: np.ndarray, truth: np.ndarray) -> Line:
    r"""Fit $P(\mathrm{truth}) = \mathrm{expit}(a + b\,\mathrm{logit})$ under each row of weights.

    Args:
        weights: float (B, n), how often each row counts.
        logit: float (n,).
        truth: bool (n,).

    Returns:
        NaN where there is no fit: where a class is absent, or where one logit separates the classes.

    >>> logit = np.array([-1.0, 0.0, 0.0, 1.0])
    >>> line = fit_slope(np.ones((1, 4)), logit, np.array([False, True, False, True]))
    >>> line.slope  # the classes meet in one point only
    array([nan])
    """
    centre = logit.mean()
    spread = logit.std() or 1.0
    scaled = (logit - centre) / spread
    problem = _Problem(
        design=np.stack([np.ones_like(scaled), scaled], axis=1),
        offset=np.zeros_like(scaled),
        truth=truth.astype(np.float64),
    )
    fitted = _fit(problem, weights, _overlap(weights, logit, truth))
    slope = fitted[:, 1] / spread
    return Line(intercept=fitted[:, 0] - slope * centre, slope=slope)


def fit_intercept(weights: np.ndarray, logit: np.ndarray, truth: np.ndarray) -> np.ndarray:
    r"""Fit $P(\mathrm{truth}) = \mathrm{expit}(a + \mathrm{logit})$ under each row of weights.

    The arguments are those of `fit_slope`.

    Returns:
        float (B,), $a$; NaN where a class is absent.
    """
    problem = _Problem(
        design=np.ones((len(logit), 1)),
        offset=logit,
        truth=truth.astype(np.float64),
    )
    has_positive = np.any(weights[:, truth] > 0, axis=1)
    has_negative = np.any(weights[:, ~truth] > 0, axis=1)
    has_both = np.logical_and(has_positive, has_negative)
    fitted = _fit(problem, weights, has_both)
    return fitted[:, 0]


# --- where there is a fit -------------------------------------------------------------------------


def _overlap(weights: np.ndarray, logit: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether each class has a logit below the highest one of the other, bool (B,).

    This is when the likelihood has a maximum (Albert and Anderson 1984); False where a class is absent.
    """
    lowest, highest = _ends(weights[:, truth], logit[truth])
    other_lowest, other_highest = _ends(weights[:, ~truth], logit[~truth])
    reaches_below = lowest < other_highest
    reaches_above = other_lowest < highest
    return np.logical_and(reaches_below, reaches_above)


def _ends(weights: np.ndarray, logit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest logit (B,) among the rows that count; NaN where none does."""
    if not len(logit):
        nothing = np.full(len(weights), np.nan)
        return nothing, nothing
    order = np.argsort(logit)
    ranked = logit[order]
    ranked_weights = np.take(weights, order, axis=1)
    counts = ranked_weights > 0
    is_there = counts.any(axis=1)
    first = counts.argmax(axis=1)
    backwards = counts[:, ::-1]
    from_the_end = backwards.argmax(axis=1)
    last = len(ranked) - 1 - from_the_end
    lowest = np.where(is_there, ranked[first], np.nan)
    highest = np.where(is_there, ranked[last], np.nan)
    return lowest, highest


# --- Newton's method ------------------------------------------------------------------------------


class _Problem(NamedTuple):
    """A logistic fit of p numbers on n rows.

    Attributes:
        design: float (n, p).
        offset: float (n,), added to the scores.
        truth: float (n,), 0 or 1.
    """

    design: np.ndarray
    offset: np.ndarray
    truth: np.ndarray

    def scores(self, fitted: np.ndarray) -> np.ndarray:
        """Logits float (B, n) of fits (B, p)."""
        scores = fitted @ self.design.T
        scores += self.offset
        return scores

    def loss(self, weights: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        """Negative log likelihood, float (B,)."""
        scores = self.scores(fitted)
        of_rows = np.logaddexp(0.0, scores) - self.truth * scores
        return np.vecdot(weights, of_rows)

    @property
    def products(self) -> np.ndarray:
        """Every column of the design times every other one, float (n, p * p)."""
        left = self.design[:, :, None]
        right = self.design[:, None, :]
        products = left * right
        return products.reshape(len(self.design), -1)


class _Slopes(NamedTuple):
    """Gradient (B, p) of the log likelihood and its curvature (B, p, p)."""

    gradient: np.ndarray
    curvature: np.ndarray

    def step(self) -> np.ndarray:
        """Newton's step, float (B, p)."""
        num_parameters = self.gradient.shape[1]
        diagonal = np.eye(num_parameters)
        size = np.trace(self.curvature, axis1=1, axis2=2)
        scale = np.maximum(size, _NO_CURVATURE)
        ridge = _RIDGE * scale[:, None, None] * diagonal
        curvature = self.curvature + ridge
        column = self.gradient[:, :, None]
        solved = np.linalg.solve(curvature, column)
        return solved[:, :, 0]


def _fit(problem: _Problem, weights: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """The fit under each row of weights, float (B, p); NaN where there is none."""
    num_parameters = problem.design.shape[1]
    fitted = np.full((len(weights), num_parameters), np.nan)
    if not exists.any():
        return fitted
    # A resample has no rows but these, so that they have a fit where it has one.
    start = _fit_of_all_rows(
        problem.design.tobytes(),
        problem.offset.tobytes(),
        problem.truth.tobytes(),
    )
    resamples = np.flatnonzero(exists)
    block_ends = range(_BLOCK, len(resamples), _BLOCK)
    for block in np.split(resamples, block_ends):
        weights_of_block = weights[block].astype(np.float64)
        fit_of_block = _plain(problem, weights_of_block, start)
        is_lost = np.isnan(fit_of_block).any(axis=1)
        if is_lost.any():
            fit_of_block[is_lost] = _careful(problem, weights_of_block[is_lost])
        fitted[block] = fit_of_block
    return fitted


@lru_cache(maxsize=8)
def _fit_of_all_rows(design: bytes, offset: bytes, truth: bytes) -> np.ndarray:
    """The fit that counts every row once, float (p,): the same for all resamples of these rows."""
    truth_of_row = np.frombuffer(truth)
    num_rows = len(truth_of_row)
    problem = _Problem(
        design=np.frombuffer(design).reshape(num_rows, -1),
        offset=np.frombuffer(offset),
        truth=truth_of_row,
    )
    every_row_once = np.ones((1, num_rows))
    return _careful(problem, every_row_once)[0]


def _plain(problem: _Problem, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Newton's method from one start for all resamples, float (B, p); NaN where a few steps do not end."""
    products = problem.products
    # At the start rows of all resamples have the same probabilities: the first step is one product of matrices.
    prob = _expit(problem.scores(start))
    residual = problem.truth - prob
    spread = prob * (1 - prob)
    gradient_of_row = residual[:, None] * problem.design
    curvature_of_row = spread[:, None] * products
    gradient = weights @ gradient_of_row
    curvature = weights @ curvature_of_row
    shape = (len(weights), len(start), len(start))
    slopes = _Slopes(gradient, curvature.reshape(shape))
    first_step = _not_too_long(slopes.step(), start[None])
    fitted = start + first_step
    for _ in range(_PLAIN_STEPS):
        slopes = _slopes(problem, weights, fitted, products)
        step = _not_too_long(slopes.step(), fitted)
        fitted = fitted + step
        is_small = _is_small(step, fitted)
        if is_small.all():
            break
    return np.where(is_small[:, None], fitted, np.nan)


def _slopes(
    problem: _Problem, weights: np.ndarray, fitted: np.ndarray, products: np.ndarray
) -> _Slopes:
    # In place where that can be: these arrays are larger than the cache of the processor.
    prob = _expit(problem.scores(fitted))
    residual = problem.truth - prob
    residual *= weights
    spread = weights * prob
    spread *= np.subtract(1, prob, out=prob)
    curvature = spread @ products
    num_parameters = fitted.shape[1]
    return _Slopes(
        gradient=residual @ problem.design,
        curvature=curvature.reshape(len(fitted), num_parameters, num_parameters),
    )


def _expit(scores: np.ndarray) -> np.ndarray:
    """Probabilities of logits, in their place; a third of the time that SciPy's takes."""
    np.negative(scores, out=scores)
    with np.errstate(over="ignore"):
        np.exp(scores, out=scores)
    scores += 1
    return np.reciprocal(scores, out=scores)


def _is_small(step: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Whether a step is small beside the fit, bool (B,)."""
    size = 1 + _largest(fitted)
    return _largest(step) < _SMALL_STEP * size


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest of each row in size, float (B,)."""
    return np.abs(values).max(axis=1)


def _careful(problem: _Problem, weights: np.ndarray) -> np.ndarray:
    """Newton's method from 0, a step halved until it helps, float (B, p).

    The loss is convex and has a minimum, so this ends wherever it starts.
    """
    products = problem.products
    fitted = np.zeros((len(weights), problem.design.shape[1]))
    for _ in range(_CAREFUL_STEPS):
        slopes = _slopes(problem, weights, fitted, products)
        step = _not_too_long(slopes.step(), fitted)
        promised = np.vecdot(slopes.gradient, step)
        step = step * _helpful_share(problem, weights, fitted, step, promised)
        fitted = fitted + step
        if _is_small(step, fitted).all():
            break
    return fitted


def _not_too_long(step: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    longest = _LONGEST_STEP * (1 + _largest(fitted))
    length = _largest(step)
    share = longest / np.maximum(length, longest)
    return step * share[:, None]


def _helpful_share(
    problem: _Problem,
    weights: np.ndarray,
    fitted: np.ndarray,
    step: np.ndarray,
    promised: np.ndarray,
) -> np.ndarray:
    """The largest of 1, 1/2, 1/4, ... of each step that lowers the loss enough, float (B, 1)."""
    before = problem.loss(weights, fitted)
    share = np.ones(len(fitted))
    for _ in range(_HALVINGS):
        tried = fitted + share[:, None] * step
        after = problem.loss(weights, tried)
        enough = before - _PROMISED_SHARE * share * promised
        rounding = _ROUNDING * np.abs(before)
        is_worse = after > enough + rounding
        if not is_worse.any():
            break
        share = np.where(is_worse, share / 2, share)
    return share[:, None]
