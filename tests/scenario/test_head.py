"""The solver against scikit-learn, finite differences and known identities."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from equipoise.core.errors import TrialFailed
from equipoise.evaluation import metrics
from equipoise.scenario.heads import head, solver
from equipoise.scenario.heads import rows as rows_
from equipoise.scenario.heads.rows import Standardiser
from equipoise.scenario.heads.solver import Rotated
from equipoise.strategies.base import Objective
from fabricate import made


def rows(count, width, classes=2, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate(
        [np.arange(classes), rng.choice(classes, size=count - classes, p=shares(classes))]
    )
    features = rng.normal(size=(count, width)) * rng.uniform(0.1, 20, size=width) + rng.normal(
        size=width
    )
    features += signal * np.outer(labels, rng.normal(size=width))
    return features.astype(np.float32), labels


def shares(classes):
    return np.arange(classes, 0, -1) / np.arange(1, classes + 1).sum()


def fitted(features, labels, l2=0.1, draws=None, objective=None, standardiser=None):
    objective = objective or Objective.neutral(labels.max() + 1)
    draws = np.ones(len(labels), dtype=int) if draws is None else draws
    return head.fit(
        features, labels, draws, objective, l2, standardiser or Standardiser.fit(features)
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(160, 10), (40, 90)], ids=["more rows", "more features"])
@pytest.mark.parametrize(
    ("l2", "weights"), [(0.001, [1, 1, 1]), (0.1, [1, 7, 2]), (10.0, [0.2, 3, 1])]
)
def test_fit_equals_scikit_learn(classes, shape, l2, weights):
    features, labels = rows(*shape, classes)
    objective = Objective.neutral(classes).replace(weights=np.array(weights[:classes], dtype=float))
    mine = fitted(features, labels, l2, objective=objective)
    row_weights = objective.weights[labels]
    oracle = LogisticRegression(C=1 / (l2 * row_weights.sum()), tol=1e-10, max_iter=20_000)
    standardised = mine.standardiser.apply(features)
    oracle.fit(standardised, labels, sample_weight=row_weights)
    expected = oracle.predict_proba(standardised)
    assert metrics.softmax(mine.logits(features)) == pytest.approx(expected, abs=1e-6)
    assert mine.gradient_norm < 1e-6


def value_in_float64(rotated, labels, weights, objective, l2, parameters):
    problem = solver.Problem(rotated, labels, weights[:, None], [objective], np.array([l2]))
    return problem.evaluate(parameters.T[None] / problem.scale, np.array([0]))[0][0]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_float32_batch_reaches_what_float64_reaches_one_by_one(classes):
    features, labels = rows(120, 20, classes)
    standardiser = Standardiser.fit(features)
    single, double = (
        Rotated.of(standardiser.apply(features, kind)) for kind in (np.float32, np.float64)
    )
    rng = np.random.default_rng(1)
    l2 = np.geomspace(0.001, 10, 8)
    neutral = Objective.neutral(classes)
    objectives = [
        neutral.replace(offsets=rng.normal(size=classes) * (index % 2)) for index in range(8)
    ]
    weights = (
        rng.poisson(1.0, size=(120, 8)).astype(float)
        * rng.uniform(0.5, 4, size=(classes, 8))[labels]
    )
    batch = solver.solve(single, labels, weights, objectives, l2, solver.LBFGS_TOLERANCE)
    for index in range(8):
        alone = solver.solve(
            double,
            labels,
            weights[:, [index]],
            [objectives[index]],
            l2[[index]],
            head.FINAL_TOLERANCE,
        )
        spread = []
        for rotated, parameters in (
            (single, batch.parameters[..., index]),
            (double, alone.parameters[..., 0]),
        ):
            logits = rotated.matrix @ parameters
            logits = np.hstack([np.zeros_like(logits), logits]) if classes == 2 else logits
            spread.append(metrics.softmax(logits))
        assert np.abs(spread[0] - spread[1]).max() < 5e-3
        assert batch.objective[index] == pytest.approx(alone.objective[0], rel=1e-5)


def test_heads_of_a_batch_do_not_touch_each_other():
    features, labels = rows(80, 6)
    rotated = Rotated.of(Standardiser.fit(features).apply(features))
    weights = np.ones((80, 3))
    weights[:, 1] = np.nan
    objectives = [
        Objective.neutral(2),
        Objective.neutral(2),
        Objective.neutral(2).replace(focusing=2.0),
    ]
    batch = solver.solve(
        rotated, labels, weights, objectives, np.array([0.1, 0.1, 1.0]), head.FINAL_TOLERANCE
    )
    assert np.isnan(batch.objective[1])
    for index in (0, 2):
        l2 = np.array([[0.1, 0.1, 1.0][index]])
        alone = solver.solve(
            rotated, labels, weights[:, [0]], [objectives[index]], l2, head.FINAL_TOLERANCE
        )
        assert batch.parameters[..., index] == pytest.approx(alone.parameters[..., 0], abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("focusing", [0.0, 0.5, 2.0])
def test_gradient_equals_finite_differences(classes, focusing):
    features, labels = rows(30, 4, classes)
    rotated = Rotated.of(Standardiser.fit(features).apply(features))
    rng = np.random.default_rng(7)
    objective = Objective(rng.uniform(0.5, 2, classes), focusing, rng.normal(size=classes))
    weights = objective.weights[labels][:, None] * rng.integers(0, 3, size=(30, 1))
    problem = solver.Problem(rotated, labels, weights, [objective], np.array([0.3]))
    point = rng.normal(size=(1, problem.columns, rotated.matrix.shape[1]))
    gradient = problem.evaluate(point, np.array([0]))[1]
    for place in np.ndindex(point.shape):
        step = np.zeros_like(point)
        step[place] = 1e-5
        ends = [problem.evaluate(point + sign * step, np.array([0]))[0][0] for sign in (1, -1)]
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("focusing", [0.0, 0.5, 2.0])
def test_focal_optimum_is_stationary_and_zero_focusing_is_cross_entropy(focusing, classes):
    features, labels = rows(100, 5, classes)
    mine = fitted(features, labels, objective=Objective.neutral(classes).replace(focusing=focusing))
    assert mine.gradient_norm < 1e-6
    plain = fitted(features, labels)
    assert np.array_equal(mine.logits(features), plain.logits(features)) == (focusing == 0)


@pytest.mark.parametrize("fewest_sharing", [0, 512])
def test_a_float32_search_ends_at_its_tolerance_and_not_in_a_failing_line_search(
    fewest_sharing, monkeypatch
):
    monkeypatch.setattr(solver, "FEWEST_SHARING", fewest_sharing)
    rng, place = np.random.default_rng(0), np.arange(1, 101)
    hidden = rng.normal(size=(8000, 100))
    score = hidden @ (rng.normal(size=100) / np.sqrt(place))
    labels = (20 * score / score.std() + rng.logistic(size=8000) > 1).astype(int)
    features = (hidden * np.sqrt(place**-1.25)) @ np.linalg.qr(rng.normal(size=(100, 100)))[0]
    rotated = Rotated.of(Standardiser.fit(features).apply(features, np.float32))
    weights = rng.integers(0, 2, size=(8000, 24)) * np.where(labels == 0, 1, 4)[:, None]
    objectives = [Objective.neutral(2)] * 24
    l2 = np.geomspace(1e-3, 1, 24)
    # As the stage searches; products this small lose time by waiting for each other.
    with threadpool_limits(1, user_api="blas"):
        solution = solver.search(rotated, labels, weights, objectives, l2, np.arange(24) % 4)
    is_shared = fewest_sharing <= 100
    tolerance = solver.SEARCH_TOLERANCE if is_shared else solver.LBFGS_TOLERANCE
    assert solution.gradient_norm.max() <= tolerance


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(90, 30), (30, 90)], ids=["more rows", "more features"])
def test_a_rotation_keeps_every_distance(kind, shape):
    standardised = np.random.default_rng(0).normal(size=shape).astype(kind)
    rotated = Rotated.of(standardised)
    accuracy = 1e-4 if kind == np.float32 else 1e-10
    assert rotated.matrix.dtype == kind
    assert rotated.basis.T @ rotated.basis == pytest.approx(np.eye(min(shape)), abs=accuracy)
    inner = rotated.matrix[:, :-1] @ rotated.matrix[:, :-1].T
    assert inner == pytest.approx(standardised @ standardised.T, abs=accuracy * max(shape))


def loss_of(logits, label, objective):
    """The loss of one row through the solver's own objective: only intercepts, which are not penalised."""
    classes = len(logits)
    alone = Rotated(np.ones((1, 1)), np.zeros((0, 0)), np.zeros(0))
    parameters = np.array([[logits[1] - logits[0]]]) if classes == 2 else np.array([logits])
    return value_in_float64(alone, np.array([label]), np.ones(1), objective, 5.0, parameters)


@pytest.mark.parametrize(("prob", "expected"), [(0.9, 0.001054), (0.5, 0.173287), (0.1, 1.865094)])
@pytest.mark.parametrize("label", [0, 1])
def test_focal_loss_known_values(prob, expected, label):
    objective = Objective.neutral(2).replace(focusing=2.0)
    logit = np.log(prob / (1 - prob)) * (1 if label else -1)
    assert loss_of([0.0, logit], label, objective) == pytest.approx(expected, abs=1e-6)
    three = Objective.neutral(3).replace(focusing=2.0)
    logits = np.log(np.full(3, (1 - prob) / 2))
    logits[label] = np.log(prob)
    assert loss_of(logits, label, three) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("label", "adjusted", "plain"), [(0, 3.237287, 1.313262), (1, 0.040062, 0.313262)]
)
def test_logit_adjusted_loss_known_values(label, adjusted, plain):
    neutral = Objective.neutral(2)
    shifted = neutral.replace(offsets=np.log([0.1, 0.9]))
    assert loss_of([1.0, 2.0], label, shifted) == pytest.approx(adjusted, abs=1e-6)
    assert loss_of([1.0, 2.0], label, neutral) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_offsets_move_nothing_but_the_bias(classes):
    features, labels = rows(150, 8, classes)
    prior = np.bincount(labels) / len(labels)
    plain = fitted(features, labels)
    adjusted = fitted(
        features, labels, objective=Objective.neutral(classes).replace(offsets=np.log(prior))
    )
    assert adjusted.coefficients == pytest.approx(plain.coefficients, abs=1e-6)
    moved = plain.intercepts - adjusted.intercepts
    assert moved - moved[0] == pytest.approx(np.log(prior / prior[0]), abs=1e-6)


def test_drawing_a_row_twice_is_writing_it_twice():
    features, labels = rows(60, 7, 3)
    draws = np.random.default_rng(2).integers(0, 4, size=60)
    standardiser = Standardiser.fit(features)
    counted = fitted(features, labels, draws=draws, standardiser=standardiser)
    again = np.repeat(np.arange(60), draws)
    written = fitted(features[again], labels[again], standardiser=standardiser)
    assert counted.coefficients == pytest.approx(written.coefficients, abs=1e-7)
    assert counted.intercepts == pytest.approx(written.intercepts, abs=1e-7)


def test_integer_class_weights_are_repeated_rows():
    features, labels = rows(60, 7)
    standardiser = Standardiser.fit(features)
    weighted = fitted(
        features, labels, objective=Objective.neutral(2).replace(weights=np.array([1.0, 3.0]))
    )
    repeated = fitted(
        features, labels, draws=np.where(labels == 1, 3, 1), standardiser=standardiser
    )
    assert weighted.coefficients == pytest.approx(repeated.coefficients, abs=1e-9)


def test_the_scale_of_the_weights_changes_nothing():
    features, labels = rows(60, 7)
    objective = Objective.neutral(2).replace(weights=np.array([0.4, 2.0]))
    small, large = (
        fitted(features, labels, objective=objective.replace(weights=objective.weights * scale))
        for scale in (1, 1e5)
    )
    assert large.coefficients == pytest.approx(small.coefficients, abs=1e-9)
    assert large.intercepts == pytest.approx(small.intercepts, abs=1e-9)


def test_rows_that_are_never_drawn_have_no_say():
    features, labels = rows(60, 7)
    draws = np.ones(60, dtype=int)
    draws[40:] = 0
    standardiser = Standardiser.fit(features)
    kept = fitted(features, labels, draws=draws, standardiser=standardiser)
    wild = features.copy()
    wild[40:] = 1e6
    assert np.array_equal(
        kept.coefficients, fitted(wild, labels, draws=draws, standardiser=standardiser).coefficients
    )


def test_standardised_features_have_zero_mean_and_unit_spread():
    features, _ = rows(90, 5)
    values = Standardiser.fit(features).apply(features)
    assert values.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-9)
    assert values.std(axis=0) == pytest.approx(np.ones(5))


@pytest.fixture
def small_blocks(monkeypatch, tmp_path):
    """Blocks of 64 rows, and files beside the test for more of them."""
    monkeypatch.setattr(rows_, "BLOCK_ROWS", 64)
    return tmp_path / "scratch"


def test_one_block_is_standardised_as_numpy_does():
    features, _ = rows(rows_.CONVERSION_BLOCK + 30, rows_.CONVERSION_BLOCK + 1)
    whole = features.astype(np.float64)
    mine = Standardiser.fit(features)
    assert np.array_equal(mine.mean, whole.mean(axis=0))
    assert np.array_equal(mine.scale, whole.std(axis=0))
    assert np.array_equal(mine.apply(features), (whole - mine.mean) / mine.scale)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("focusing", [0.0, 2.0])
def test_blocks_of_rows_give_the_fit_of_all_rows_at_once(classes, focusing, request):
    features, labels = rows(500, 70, classes)
    objective = Objective.neutral(classes).replace(
        focusing=focusing, weights=np.arange(1.0, classes + 1)
    )
    draws = np.random.default_rng(3).integers(0, 3, size=500)
    whole = fitted(features, labels, draws=draws, objective=objective)
    request.getfixturevalue("small_blocks")
    mine = fitted(
        rows_.Rows(features, np.arange(500), features.dtype),
        labels,
        draws=draws,
        objective=objective,
    )
    assert np.abs(mine.standardiser.mean - whole.standardiser.mean).max() < 1e-12
    assert mine.standardiser.scale == pytest.approx(whole.standardiser.scale, rel=1e-12)
    assert mine.coefficients == pytest.approx(whole.coefficients, abs=1e-6)
    assert mine.logits(features) == pytest.approx(whole.logits(features), abs=1e-5)
    weights = draws * objective.weights[labels]
    if not focusing:
        oracle = LogisticRegression(C=1 / (0.1 * weights.sum()), tol=1e-10, max_iter=20_000)
        standardised = mine.standardiser.apply(features)
        oracle.fit(standardised, labels, sample_weight=weights)
        assert metrics.softmax(mine.logits(features)) == pytest.approx(
            oracle.predict_proba(standardised), abs=1e-6
        )


@pytest.mark.parametrize(("classes", "fewest_sharing"), [(2, 0), (2, 512), (3, 0)])
def test_blocks_of_rows_give_the_search_of_all_rows_at_once(
    request, monkeypatch, classes, fewest_sharing
):
    monkeypatch.setattr(solver, "FEWEST_SHARING", fewest_sharing)
    features, labels = rows(500, 30, classes)
    weights = np.random.default_rng(1).integers(0, 2, size=(500, 12)).astype(float)
    l2, folds = np.geomspace(1e-3, 1, 12), np.arange(12) % 2
    solutions, scratch_folder = [], None
    for fixture in (None, "small_blocks"):
        if fixture:
            scratch_folder = request.getfixturevalue(fixture)
        standardiser = Standardiser.fit(features)
        standardised = rows_.Rows(features, np.arange(500), np.float32, standardiser)
        rotated = Rotated.of(standardised, scratch_folder)
        objectives = [Objective.neutral(classes)] * 12
        solution = solver.search(rotated, labels, weights, objectives, l2, folds, scratch_folder)
        solutions.append(solution)
        assert isinstance(rotated.matrix.base, np.memmap) == bool(fixture)
    # Both end somewhere below a gradient of 3e-4; kernels put them 2e-7 to 5e-7 apart.
    assert solutions[1].objective == pytest.approx(solutions[0].objective, rel=1e-5)
    assert scratch_folder.is_dir()
    assert not list(scratch_folder.iterdir()), "a file without a name"


def test_dead_and_constant_features_are_left_out():
    features, labels = rows(90, 6)
    features[:, 1] = 3.7
    features[:, 2] = 0
    features[:, 3] = 1000 + 1e-5 * features[:, 3]  # below float32's resolution at its mean
    features[:, 4] *= 1e-12
    mine = fitted(features, labels)
    assert mine.standardiser.kept.tolist() == [0, 5]
    fewer = fitted(features[:, [0, 5]], labels)
    assert mine.logits(features) == pytest.approx(fewer.logits(features[:, [0, 5]]), abs=1e-9)


def test_features_that_all_have_a_tiny_spread_are_used_as_well_as_large_ones():
    features, labels = rows(90, 6)
    tiny = (features.astype(np.float64) * 1e-12).astype(np.float32)
    assert Standardiser.fit(tiny).kept.tolist() == list(range(6))
    expected = fitted(features, labels).logits(features)
    assert fitted(tiny, labels).logits(tiny) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_features_that_are_all_constant_fail_the_trial(value):
    with pytest.raises(TrialFailed, match="Every feature is the same"):
        Standardiser.fit(np.full((20, 4), value, dtype=np.float32))


def test_a_fit_that_is_not_a_number_fails_the_trial():
    features, labels = rows(30, 3)
    with pytest.raises(TrialFailed, match="diverged"):
        fitted(
            features,
            labels,
            objective=Objective.neutral(2).replace(weights=np.array([1.0, np.nan])),
        )


def test_separable_rows_and_repeated_columns_give_finite_heads():
    features, labels = rows(40, 4)
    features = np.hstack([features, features, 50 * labels[:, None].astype(np.float32)])
    mine = fitted(features, labels, l2=0.001)
    assert np.isfinite(mine.coefficients).all()
    assert (mine.logits(features).argmax(axis=1) == labels).all()
    assert mine.coefficients[:4] == pytest.approx(mine.coefficients[4:8], abs=1e-7)


def test_two_classes_keep_logit_0_at_zero():
    matrix = made.train_matrix()
    mine = fitted(matrix.features, matrix.labels)
    assert (mine.logits(matrix.features)[:, 0] == 0).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_saved_head_comes_back_the_same(tmp_path, classes):
    features, labels = rows(50, 4, classes)
    mine = fitted(features, labels)
    mine.save(tmp_path / "head.npz")
    back = head.Head.load(tmp_path / "head.npz")
    assert np.array_equal(mine.logits(features), back.logits(features))
    assert back.gradient_norm == mine.gradient_norm
    assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]


def test_softmax_stands_extreme_logits():
    assert metrics.softmax(np.array([[1e4, -1e4], [3.0, 3.0]])).tolist() == [[1, 0], [0.5, 0.5]]
