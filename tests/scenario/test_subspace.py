"""Heads that share directions, against scikit-learn and against each head alone in float64."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from equipoise.evaluation import metrics
from equipoise.scenario.heads import head, solver
from equipoise.scenario.heads.solver import Rotated
from equipoise.strategies.base import Objective

FOLDS = 3


@pytest.fixture(autouse=True)
def sharing(monkeypatch):
    """Heads share directions however few features there are, on one thread as in the stage."""
    monkeypatch.setattr(solver, "FEWEST_SHARING", 0)
    with threadpool_limits(1, user_api="blas"):
        yield


def rows(count, width, seed=0):
    """Standardised features whose spectrum falls, and labels with a minority of about a quarter."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, width))
    score = hidden @ (rng.normal(size=width) / np.sqrt(np.arange(1, width + 1)))
    labels = (2 * score / score.std() + rng.logistic(size=count) > 2).astype(int)
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    features = hidden * np.arange(1, width + 1) ** -0.7 @ turn
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    return standardised.astype(np.float32), labels


def batch(labels, num_heads, seed=1):
    """Weights of heads that draw rows outside their folds, their penalties, and the folds."""
    rng = np.random.default_rng(seed)
    held = rng.integers(FOLDS, size=len(labels))
    folds = np.arange(num_heads) % FOLDS
    weights = rng.integers(0, 3, size=(len(labels), num_heads)).astype(float)
    weights *= np.where(labels[:, None] == 1, rng.uniform(1, 4, num_heads), 1)
    weights[held[:, None] == folds] = 0
    return weights, np.geomspace(1e-3, 10, num_heads), folds, held


def searched(standardised, labels, weights, l2, folds, objectives=None, **changes):
    objectives = objectives or [Objective.neutral(2)] * len(l2)
    rotated = Rotated.of(standardised)
    solution = solver.search(rotated, labels, weights, objectives, l2, folds, **changes)
    return rotated, solution


@pytest.mark.parametrize("shape", [(300, 100), (120, 3), (60, 200)], ids=str)
def test_a_search_reaches_the_objective_of_scikit_learn(shape):
    standardised, labels = rows(*shape)
    weights, l2, folds, _ = batch(labels, 21)
    rotated, solution = searched(standardised, labels, weights, l2, folds)
    assert solution.gradient_norm.max() <= solver.SEARCH_TOLERANCE
    exact = standardised.astype(float)
    sign = np.where(labels == 1, 1, -1)
    for index in range(0, 21, 5):
        share = weights[:, index] / weights[:, index].sum()
        oracle = LogisticRegression(
            C=1 / (l2[index] * weights[:, index].sum()), tol=1e-8, max_iter=20_000
        )
        oracle.fit(exact, labels, sample_weight=weights[:, index])
        least = share @ np.logaddexp(0, -sign * oracle.decision_function(exact))
        least += l2[index] * (oracle.coef_**2).sum() / 2
        assert solution.objective[index] == pytest.approx(least, rel=2e-5)
        scores = rotated.matrix @ solution.parameters[:, 0, index]
        found = metrics.softmax(np.column_stack([np.zeros_like(scores), scores]))
        assert found == pytest.approx(oracle.predict_proba(exact), abs=5e-3)


@pytest.mark.parametrize("focusing", [0.0, 2.0])
def test_focusing_and_offsets_are_those_of_each_head(focusing):
    standardised, labels = rows(200, 30)
    weights, l2, folds, _ = batch(labels, 12)
    rng = np.random.default_rng(2)
    objectives = [
        Objective(np.ones(2), focusing * (index % 2), rng.normal(size=2)) for index in range(12)
    ]
    _, solution = searched(standardised, labels, weights, l2, folds, objectives)
    double = Rotated.of(standardised.astype(float))
    alone = solver.solve(double, labels, weights, objectives, l2, head.FINAL_TOLERANCE)
    assert solution.objective == pytest.approx(alone.objective, rel=2e-5)
    assert len(np.unique(np.round(alone.objective, 6))) == 12, "no two heads are the same"


def test_more_than_two_classes_are_solved_as_ever():
    standardised, _ = rows(90, 8)
    labels = np.arange(90) % 3
    weights, l2, folds, _ = batch(labels, 6)
    objectives = [Objective.neutral(3)] * 6
    rotated, solution = searched(standardised, labels, weights, l2, folds, objectives)
    plain = solver.solve(rotated, labels, weights, objectives, l2, solver.LBFGS_TOLERANCE)
    assert np.array_equal(solution.parameters, plain.parameters)


def test_labels_that_are_held_back_from_a_fold_reach_none_of_its_heads():
    standardised, labels = rows(300, 60)
    weights, l2, folds, held = batch(labels, 18)
    _, before = searched(standardised, labels, weights, l2, folds)
    other_labels = np.where(held == 0, 1 - labels, labels)
    _, after = searched(standardised, other_labels, weights, l2, folds)
    change = np.abs(after.parameters - before.parameters).max(axis=(0, 1))
    largest = np.abs(before.parameters).max(axis=(0, 1))
    # What they reach moves by more than what is left to the optimum, and the others by rounding alone.
    assert (change[folds != 0] > 0.05 * largest[folds != 0]).all()
    assert (change[folds == 0] < 1e-4 * largest[folds == 0]).all()


def test_a_head_that_diverges_touches_no_other_of_its_fold():
    standardised, labels = rows(200, 40)
    weights, l2, folds, _ = batch(labels, 15)
    _, sound = searched(standardised, labels, weights, l2, folds)
    weights[:, 14] = np.nan
    _, solution = searched(standardised, labels, weights, l2, folds)
    assert np.isnan(solution.objective[14])
    others = slice(0, 14)
    assert solution.objective[others] == pytest.approx(sound.objective[others], rel=2e-5)
    assert solution.gradient_norm[others].max() <= solver.SEARCH_TOLERANCE


def test_folds_may_have_different_numbers_of_heads():
    standardised, labels = rows(150, 20)
    weights, l2, folds, _ = batch(labels, 12)
    chosen = [0, 1, 3, 4, 6, 7, 9, 2]
    _, solution = searched(
        standardised, labels, weights[:, chosen], l2[chosen], folds[chosen], tolerance=1e-5
    )
    double = Rotated.of(standardised.astype(float))
    neutral = [Objective.neutral(2)] * len(chosen)
    alone = solver.solve(
        double, labels, weights[:, chosen], neutral, l2[chosen], head.FINAL_TOLERANCE
    )
    assert solution.objective == pytest.approx(alone.objective, rel=1e-6)
    assert sorted(np.bincount(folds[chosen])) == [1, 3, 4]


def test_few_features_are_left_to_lbfgs(monkeypatch):
    monkeypatch.setattr(solver, "FEWEST_SHARING", 31)
    standardised, labels = rows(90, 30)
    weights, l2, folds, _ = batch(labels, 6)
    rotated, solution = searched(standardised, labels, weights, l2, folds)
    neutral = [Objective.neutral(2)] * 6
    plain = solver.solve(rotated, labels, weights, neutral, l2, solver.LBFGS_TOLERANCE)
    assert np.array_equal(solution.parameters, plain.parameters)
