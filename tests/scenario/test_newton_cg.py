"""Newton's steps for several classes against scikit-learn, scipy.optimize and finite differences."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from equipoise.evaluation.metrics import softmax
from equipoise.scenario.heads import head, newton, newton_cg, solver
from equipoise.scenario.heads import rows as rows_
from equipoise.scenario.heads.loss import focal, focal_curvature
from equipoise.scenario.heads.solver import Rotated
from equipoise.strategies.base import Objective

#: More rows than features, about as many, and fewer.
SHAPES = pytest.mark.parametrize("shape", [(200, 12), (60, 50), (40, 90)], ids=str)

TOLERANCE = head.FINAL_TOLERANCE


def case(shape, classes=3, seed=0, spread=2.0):
    """Correlated standardised features, labels of all classes, and weights of which some are large."""
    rng = np.random.default_rng(seed)
    count, width = shape
    features = rng.normal(size=shape) * np.arange(1, width + 1) ** -0.7
    features = features @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    scores = spread * features @ rng.normal(size=(width, classes)) / np.sqrt(width)
    labels = (scores + rng.gumbel(size=(count, classes))).argmax(axis=1)
    labels[:classes] = np.arange(classes)
    return features, labels, rng.integers(1, 4, size=count) * (1.0 + 3 * labels)


def solved(features, labels, weights, objective=None, l2=0.1):
    objective = objective or Objective.neutral(labels.max() + 1)
    return newton_cg.minimise(features, labels, weights, objective, l2, TOLERANCE)


def prob_of(found, features):
    return softmax(features @ found.coefficients + found.intercepts)


def objective_of(flat, features, labels, weights, objective, l2):
    """The objective as the docs write it, of all coefficients and intercepts of the classes."""
    parameters = flat.reshape(features.shape[1] + 1, -1)
    prob = softmax(features @ parameters[:-1] + parameters[-1] + objective.offsets)
    prob = prob[np.arange(len(labels)), labels]
    loss = (1 - prob) ** objective.focusing * -np.log(prob)
    return np.average(loss, weights=weights) + l2 * np.sum(parameters[:-1] ** 2) / 2


@SHAPES
@pytest.mark.parametrize(("classes", "l2"), [(3, 1e-6), (4, 1e-3), (3, 0.1), (5, 1e3)])
def test_it_is_scikit_learn_s_multinomial_fit(shape, classes, l2):
    features, labels, weights = case(shape, classes)
    found = solved(features, labels, weights, l2=l2)
    assert found.decrement <= TOLERANCE
    oracle = LogisticRegression(
        C=1 / (l2 * weights.sum()), solver="newton-cholesky", tol=1e-10, max_iter=1000
    )
    oracle.fit(features, labels, sample_weight=weights)
    expected = oracle.predict_proba(features)
    assert prob_of(found, features) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("focusing", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_it_is_the_minimum_that_scipy_reaches_from_the_same_start(focusing, classes):
    features, labels, weights = case((50, 4), classes, seed=3)
    objective = Objective(np.ones(classes), focusing, np.linspace(-1, 0.5, classes))
    found = solved(features, labels, weights, objective, l2=0.02)
    columns = slice(1, None) if classes == 2 else slice(None)

    def value(flat):
        parameters = np.zeros((5, classes))
        parameters[:, columns] = flat.reshape(5, -1)
        return objective_of(parameters.ravel(), features, labels, weights, objective, 0.02)

    start = np.zeros((5, classes))[:, columns].ravel()
    oracle = minimize(value, start, method="BFGS", options={"gtol": 1e-7})
    assert found.objective == pytest.approx(oracle.fun, abs=1e-9)
    parameters = np.zeros((5, classes))
    parameters[:, columns] = oracle.x.reshape(5, -1)
    expected = softmax(features @ parameters[:-1] + parameters[-1])
    assert prob_of(found, features) == pytest.approx(expected, abs=1e-4)


@SHAPES
@pytest.mark.parametrize("l2", [1e-3, 1.0])
@pytest.mark.parametrize("focusing", [0.0, 0.5, 2.0, 5.0])
def test_it_ends_where_the_search_s_solver_ends_or_lower(shape, l2, focusing):
    features, labels, weights = case(shape, seed=1)
    objective = Objective(np.ones(3), focusing, np.array([0.3, -0.9, 0.2]))
    found = solved(features, labels, weights, objective, l2)
    rotated = Rotated.of(features)
    other = solver.solve(rotated, labels, weights[:, None], [objective], np.array([l2]), TOLERANCE)
    assert found.decrement <= TOLERANCE
    assert found.objective <= other.objective[0] * (1 + 1e-12)
    expected = softmax(rotated.matrix @ other.parameters[..., 0])
    assert prob_of(found, features) == pytest.approx(expected, abs=1e-6)


@SHAPES
def test_two_classes_end_where_cholesky_ends(shape):
    features, labels, weights = case(shape, classes=2)
    objective = Objective(np.ones(2), 1.0, np.array([0.3, -0.9]))
    found = solved(features, labels, weights, objective)
    other = newton.minimise(features, labels, weights, objective, 0.1, TOLERANCE)
    assert (found.coefficients[:, 0] == 0).all()
    assert found.intercepts[0] == 0
    assert found.coefficients[:, 1] == pytest.approx(other.coefficients, abs=1e-6)
    assert found.intercepts[1] == pytest.approx(other.intercept, abs=1e-6)


def test_a_number_added_to_every_class_changes_nothing():
    features, labels, weights = case((80, 6), classes=4)
    plain = solved(features, labels, weights)
    moved = solved(features, labels, weights, Objective(np.ones(4), 0.0, np.full(4, 7.5)))
    assert moved.coefficients == pytest.approx(plain.coefficients, abs=1e-8)
    assert moved.intercepts == pytest.approx(plain.intercepts, abs=1e-8)
    assert plain.intercepts.sum() == pytest.approx(0, abs=1e-12)
    assert plain.coefficients.sum(axis=1) == pytest.approx(np.zeros(6), abs=1e-12)


@SHAPES
@pytest.mark.parametrize("focusing", [0.0, 2.0])
@pytest.mark.parametrize("l2", [1e-6, 1e-3])
def test_separable_rows_have_an_end(shape, focusing, l2):
    features, labels, weights = case(shape)
    features[:, :3] += 6 * np.eye(3)[labels]
    objective = Objective.neutral(3).replace(focusing=focusing)
    found = solved(features, labels, weights, objective, l2)
    assert found.decrement <= TOLERANCE
    assert (prob_of(found, features).argmax(axis=1) == labels).all()


@SHAPES
def test_a_class_that_weighs_nothing_is_never_said(shape):
    features, labels, weights = case(shape)
    weights[labels == 1] = 0
    found = solved(features, labels, weights)
    prob = prob_of(found, features)
    assert prob[:, 1].max() < 1e-6
    # There the loss is flat, and what is left of a gradient is rounding: kernels differ in the decrement,
    # not in the objective (by 1e-15).
    further = np.vstack([found.coefficients, found.intercepts - [0, 9, 0]]).ravel()
    neutral = Objective.neutral(3)
    reached = objective_of(further, features, labels, weights, neutral, l2=0.1)
    assert found.objective == pytest.approx(reached, rel=1e-12)
    others = labels != 1
    two = solved(features[others], labels[others] // 2, weights[others], l2=0.05)
    assert prob[:, 2] == pytest.approx(prob_of(two, features)[:, 1], abs=1e-6), (
        "of two columns, each half as long"
    )


def test_repeated_and_constant_columns_share_and_hold_nothing():
    features, labels, weights = case((70, 8))
    features = np.hstack([features, features[:, :2], np.zeros((70, 1))])
    found = solved(features, labels, weights, l2=1e-6)
    assert found.decrement <= TOLERANCE
    assert found.coefficients[8:10] == pytest.approx(found.coefficients[:2], abs=1e-5)
    assert (found.coefficients[10] == 0).all()


def test_focal_loss_that_is_flat_at_the_start_still_falls():
    rng = np.random.default_rng(166)
    features, labels, weights = case((279, 43), classes=2, seed=166)
    offsets = np.array([3.0, -3.0])
    objective = Objective(np.ones(2), 5.0, rng.permutation(offsets))
    for l2 in (1e-3, 500.0):
        found = solved(features, labels, weights, objective, l2)
        start = objective_of(np.zeros(44 * 2), features, labels, weights, objective, l2)
        assert found.decrement <= TOLERANCE
        assert found.objective < start


@SHAPES
def test_a_penalty_of_next_to_nothing_ends_by_itself(shape):
    features, labels, weights = case(shape, spread=0.5)
    features[:, 1] = features[:, 0]
    found = solved(features, labels, weights, l2=1e-12)
    start = objective_of(
        np.zeros((shape[1] + 1) * 3), features, labels, weights, Objective.neutral(3), 0
    )
    assert found.objective < start
    assert (prob_of(found, features).argmax(axis=1) == labels).mean() > 0.4


def test_weights_that_are_no_numbers_give_no_number():
    features, labels, weights = case((40, 10))
    weights[3] = np.nan
    assert not np.isfinite(solved(features, labels, weights).objective)


@pytest.mark.parametrize("focusing", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_curvature_of_the_loss_is_the_change_of_its_slope(focusing):
    log_prob = np.log(np.linspace(0.001, 0.999, 97))

    def slope(at):
        return focal(at, np.exp(at), -np.expm1(at), focusing)[1]

    expected = (slope(log_prob + 1e-6) - slope(log_prob - 1e-6)) / 2e-6
    prob = np.exp(log_prob)
    found = focal_curvature(log_prob, prob, 1 - prob, focusing)
    assert (found < -1e-6).any() == (focusing > 0), "focal loss is not convex"
    assert found == pytest.approx(expected, abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("focusing", [0.0, 2.0])
def test_blocks_of_rows_give_the_fit_of_all_rows_at_once_and_need_no_file(monkeypatch, focusing):
    features, labels, weights = case((700, 30))
    objective = Objective(np.ones(3), focusing, np.array([0.3, -0.9, 0.2]))
    whole = solved(features, labels, weights, objective, 0.01)
    monkeypatch.setattr(rows_, "BLOCK_ROWS", 64)
    monkeypatch.setattr(rows_.tempfile, "TemporaryFile", None)
    stored = features.astype(np.float32)
    rows = rows_.Rows(
        stored,
        np.arange(700),
        np.float64,
        rows_.Standardiser(np.arange(30), np.zeros(30), np.ones(30)),
    )
    found = solved(rows, labels, weights, objective, 0.01)
    assert found.decrement <= TOLERANCE
    assert found.coefficients == pytest.approx(whole.coefficients, abs=1e-5)
    again = solved(stored.astype(np.float64), labels, weights, objective, 0.01)
    assert found.coefficients == pytest.approx(again.coefficients, abs=1e-7)


def test_a_few_columns_are_multiplied_as_many_are():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 20))
    for count in (1, 3, 9):
        columns = rng.normal(size=(20, count))
        assert newton_cg._times(matrix, columns) == pytest.approx(matrix @ columns)
