"""Newton's steps against the other solver, scikit-learn and finite differences."""

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from equipoise.scenario.heads import head, newton, solver
from equipoise.scenario.heads import rows as rows_
from equipoise.scenario.heads.loss import MarginLosses
from equipoise.scenario.heads.solver import Rotated
from equipoise.strategies.base import Objective

#: More rows than features, about as many, and fewer: the primal, and twice the dual.
SHAPES = pytest.mark.parametrize("shape", [(200, 20), (90, 80), (40, 120)], ids=str)


def case(shape, seed=0, spread=2.0):
    """Correlated standardised features, labels, and weights of which some are large."""
    rng = np.random.default_rng(seed)
    count, width = shape
    features = rng.normal(size=shape) * np.arange(1, width + 1) ** -0.7
    features = features @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    labels = (spread * features[:, 0] + rng.logistic(size=count) > 0.5).astype(int)
    return features, labels, rng.integers(1, 4, size=count) * np.where(labels == 1, 5.0, 1.0)


def logits_of_the_other_solver(features, labels, weights, objective, l2):
    rotated = Rotated.of(features)
    solution = solver.solve(
        rotated, labels, weights[:, None], [objective], np.array([l2]), head.FINAL_TOLERANCE
    )
    return rotated.matrix @ solution.parameters[:, 0, 0]


@SHAPES
@pytest.mark.parametrize("l2", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("focusing", [0.0, 0.5, 2.0])
def test_it_ends_where_the_other_solver_ends(shape, l2, focusing):
    features, labels, weights = case(shape)
    objective = Objective(np.ones(2), focusing, np.array([0.3, -0.9]))
    found = newton.minimise(features, labels, weights, objective, l2, head.FINAL_TOLERANCE)
    assert found.decrement <= head.FINAL_TOLERANCE
    logits = features @ found.coefficients + found.intercept
    expected = logits_of_the_other_solver(features, labels, weights, objective, l2)
    assert 1 / (1 + np.exp(-logits)) == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-6)


@SHAPES
def test_it_is_scikit_learn_s_newton(shape):
    features, labels, weights = case(shape, seed=1)
    found = newton.minimise(features, labels, weights, Objective.neutral(2), 0.02, 1e-10)
    oracle = LogisticRegression(C=1 / (0.02 * weights.sum()), solver="newton-cholesky", tol=1e-12)
    oracle.fit(features, labels, sample_weight=weights)
    assert found.coefficients == pytest.approx(oracle.coef_[0], abs=1e-8)
    assert found.intercept == pytest.approx(oracle.intercept_[0], abs=1e-8)


@SHAPES
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_where_it_starts_does_not_matter(shape, l2):
    features, labels, weights = case(shape, seed=2)
    objective = Objective(np.ones(2), 0.0, np.array([0.3, -0.9]))
    cold = newton.minimise(features, labels, weights, objective, l2, head.FINAL_TOLERANCE)
    rng = np.random.default_rng(0)
    near = features @ cold.coefficients + cold.intercept + 0.1 * rng.normal(size=len(labels))
    for start in (near, 20 * rng.normal(size=len(labels)), np.full(len(labels), np.nan)):
        found = newton.minimise(
            features, labels, weights, objective, l2, head.FINAL_TOLERANCE, start
        )
        assert found.decrement <= head.FINAL_TOLERANCE
        assert found.coefficients == pytest.approx(cold.coefficients, abs=1e-6)
        assert found.intercept == pytest.approx(cold.intercept, abs=1e-6)


@SHAPES
def test_a_penalty_too_small_for_float32_is_solved_in_float64(shape):
    features, labels, weights = case(shape, spread=0.5)
    features[:, 1] = features[:, 0]
    found = newton.minimise(features, labels, weights, Objective.neutral(2), 1e-9, 1e-8)
    margin = np.where(labels == 1, 1, -1) * (features @ found.coefficients + found.intercept)
    slope = -weights / weights.sum() * np.where(labels == 1, 1, -1) / (1 + np.exp(margin))
    gradient = features.T @ slope + 1e-9 * found.coefficients
    assert np.abs(gradient).max() < 1e-7
    assert found.coefficients[1] == pytest.approx(found.coefficients[0], rel=1e-3, abs=1e-3)


def test_weights_that_are_no_numbers_give_no_number():
    features, labels, weights = case((40, 10))
    weights[3] = np.nan
    found = newton.minimise(features, labels, weights, Objective.neutral(2), 0.1, 1e-8)
    assert not np.isfinite(found.objective)


@pytest.mark.parametrize("focusing", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_curvature_is_the_change_of_the_slope(focusing):
    margin = np.linspace(-6, 12, 91)
    ends = [MarginLosses(margin + step, focusing).slope for step in (1e-5, -1e-5)]
    expected = (ends[0] - ends[1]) / 2e-5
    assert (expected < -1e-6).any() == (focusing > 0), "focal loss is not convex"
    assert MarginLosses(margin, focusing).curvature == pytest.approx(
        np.maximum(expected, 0), abs=1e-8
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_stretched_coordinates_have_a_curvature_of_one(classes):
    features, labels, weights = case((60, 5))
    labels = (labels + (np.arange(60) % 4 == 0)) % classes
    rotated = Rotated.of(features)
    objectives = [Objective.neutral(classes)] * 2
    problem = solver.Problem(
        rotated, labels, np.column_stack([weights, weights**2]), objectives, np.array([0.1, 2.0])
    )
    heads = np.array([0, 1])
    point = np.random.default_rng(3).normal(size=problem.start().shape)
    plain = point * problem.scale
    factor = problem.stretch(point, heads)
    point = point * factor
    assert point * problem.scale == pytest.approx(plain), "the head stays where it is"
    at_point = problem.evaluate(point, heads)
    for place in np.ndindex(point.shape[1:]):
        if classes == 3 and place[1] == point.shape[2] - 1:
            continue  # one scale for the intercepts of all classes
        step = np.zeros_like(point)
        step[:, *place] = 1e-3
        ends = [problem.evaluate(point + sign * step, heads).value for sign in (1, -1)]
        second = (ends[0] + ends[1] - 2 * at_point.value) / 1e-6
        assert second == pytest.approx(np.ones(2), abs=2e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_final_fit_of_many_rows_holds_no_copy_of_them(monkeypatch, classes):
    monkeypatch.setattr(rows_, "BLOCK_ROWS", 256)
    monkeypatch.setattr(rows_.tempfile, "TemporaryFile", None)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8_000, 80)).astype(np.float32)
    signs = features[:, :2] + rng.logistic(size=(len(features), 2)) > 1
    labels = signs[:, : classes - 1].sum(axis=1)
    standardiser = rows_.Standardiser.fit(features)
    tracemalloc.start()
    head.fit(features, labels, np.ones(len(labels)), Objective.neutral(classes), 0.1, standardiser)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    in_float64 = features.size * 8
    assert peak < 0.6 * in_float64, "numbers per row, not per row and feature"
