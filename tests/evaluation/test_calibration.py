"""The calibrator against scikit-learn, the threshold against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from equipoise.evaluation.calibration import Calibrator, lock_threshold
from equipoise.evaluation.metrics import softmax
from fabricate import made


def logits_of(scores):
    return np.stack([np.zeros(len(scores)), scores], axis=1)


def scored(seed=0, count=150, slope=3.0, shift=-1.0, share=0.3):
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < share).astype(int)
    labels[:2] = [0, 1]
    return slope * (labels + rng.normal(size=count)) + shift, labels


def fit(logits, labels, min_patients=2):
    return Calibrator.fit(logits, labels, np.arange(len(labels)), min_patients)


@pytest.mark.parametrize(("seed", "slope", "shift"), [(0, 3.0, -1.0), (1, 0.2, 4.0), (2, 1.0, 0.0)])
def test_two_classes_equal_sigmoid_calibration_of_scikit_learn(seed, slope, shift):
    scores, labels = scored(seed, slope=slope, shift=shift)
    passing = LogisticRegression().fit(scores[:, None], labels)
    passing.coef_, passing.intercept_ = (
        np.ones((1, 1)),
        np.zeros(1),
    )  # its decision function is the score
    oracle = CalibratedClassifierCV(FrozenEstimator(passing), method="sigmoid").fit(
        scores[:, None], labels
    )
    mine = fit(logits_of(scores), labels)
    assert mine.reason == ""
    assert mine.apply(logits_of(scores)) == pytest.approx(
        oracle.predict_proba(scores[:, None]), abs=1e-4
    )


def test_only_the_difference_of_two_logits_counts():
    scores, labels = scored()
    shifted = np.stack([-scores / 2 + 3, scores / 2 + 3], axis=1)
    mine, other = fit(logits_of(scores), labels), fit(shifted, labels)
    assert other.slope == pytest.approx(mine.slope, rel=1e-4)
    assert other.apply(shifted) == pytest.approx(mine.apply(logits_of(scores)), abs=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_a_perfect_val_stays_finite(scale):
    labels = np.repeat([0, 1], 20)
    scores = scale * (labels - 0.5) + scale * 0.01 * np.arange(40)
    mine = fit(logits_of(scores), labels)
    prob = mine.apply(logits_of(scores))[:, 1]
    assert np.isfinite([mine.slope, *mine.biases]).all()
    assert np.isfinite(prob).all()
    assert (np.diff(prob) >= 0).all()
    if scale == 1.0:
        assert 0 < prob.min() < prob.max() < 1


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1e4, 0.0), (1.0, 1e3), (50.0, -400.0)])
def test_the_units_of_the_logits_change_no_probability(scale, shift, num_classes):
    """Heads under a strong penalty have logits of 1e-4, fine-tuned ones of hundreds."""
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(num_classes, size=300)
    logits = rng.normal(size=(300, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    plain = fit(logits, labels)
    moved = scale * logits + shift * np.arange(num_classes)
    other = fit(moved, labels)
    assert other.slope == pytest.approx(plain.slope / scale, rel=1e-5)
    assert other.apply(moved) == pytest.approx(plain.apply(logits), abs=1e-6)
    # What the smoothed targets add up to is what is predicted: the search has ended where it should.
    counts = np.bincount(labels)
    own = (counts + 1) / (counts + num_classes)
    of_others = (counts * (1 - own)).sum() - counts * (1 - own)
    expected = counts * own + of_others / (num_classes - 1)
    assert other.apply(moved).sum(axis=0) == pytest.approx(expected, abs=1e-5)


def test_constant_logits_leave_the_share_of_each_class():
    labels = np.repeat([0, 1], [30, 10])
    logits = np.tile([0.1, 0.7], (40, 1))
    mine = fit(logits, labels)
    assert np.isfinite([mine.slope, *mine.biases]).all()
    prob = mine.apply(logits)[:, 1]
    assert prob == pytest.approx((30 / 32 + 10 * 11 / 12) / 40, abs=1e-6)


def test_a_reversed_val_never_reverses_the_ranking():
    scores, labels = scored()
    mine = fit(logits_of(-scores), labels)
    assert mine.slope > 0
    order = np.argsort(scores)
    assert (np.diff(mine.apply(logits_of(scores))[order, 1]) >= 0).all()


def test_below_the_patients_needed_the_calibrator_is_the_identity_and_says_why():
    scores, labels = scored()
    patients = np.where(labels == 1, np.arange(len(labels)) % 4, 100 + np.arange(len(labels)))
    logits = logits_of(scores)
    assert Calibrator.fit(logits, labels, patients, 4).reason == ""
    mine = Calibrator.fit(logits, labels, patients, 5)
    assert mine.reason == "val has 4 patient(s) of the rarest class, 5 are needed"
    assert mine.apply(logits) == pytest.approx(softmax(logits))


def test_a_class_absent_from_val_gives_the_identity():
    mine = Calibrator.fit(np.zeros((6, 3)), np.array([0, 1, 0, 1, 0, 1]), np.arange(6), 2)
    assert (mine.slope, mine.biases.tolist()) == (1, [0, 0, 0])
    assert "0 patient(s)" in mine.reason


def test_three_classes_fit_one_temperature_and_biases_of_the_classes():
    rng = np.random.default_rng(4)
    labels = rng.choice(3, size=240, p=[0.6, 0.3, 0.1])
    logits = 2.5 * (1.5 * np.eye(3)[labels] + rng.normal(size=(240, 3)))
    mine = fit(logits, labels)
    counts = np.bincount(labels)
    own = (counts + 1) / (counts + 3)
    targets = np.where(
        np.eye(3)[labels] == 1, own[labels][:, None], ((1 - own) / 2)[labels][:, None]
    )

    def loss(free):
        scores = free[0] * logits + np.array([0, free[1], free[2]])
        return -(targets * np.log(softmax(scores))).sum(axis=1).mean()

    oracle = minimize(loss, [1.0, 0, 0], method="BFGS").x
    assert [mine.slope, *mine.biases] == pytest.approx(
        [oracle[0], 0, oracle[1], oracle[2]], abs=1e-3
    )
    assert mine.biases[0] == 0
    assert mine.apply(logits).sum(axis=1) == pytest.approx(np.ones(240))
    assert loss([mine.slope, *mine.biases[1:]]) < loss([1.0, 0, 0])


def test_plain_data_and_back():
    scores, labels = scored()
    mine = fit(logits_of(scores), labels)
    back = Calibrator.from_dict(mine.as_dict())
    assert np.array_equal(
        back.apply(logits_of(np.arange(3.0))), mine.apply(logits_of(np.arange(3.0)))
    )


def rule(name, cost_ratio=1.0):
    return made.settings(threshold={"rule": name, "cost_ratio": cost_ratio}).threshold


def rates(prob, truth, threshold):
    called = prob >= threshold
    return called[truth].mean(), 1 - called[~truth].mean()


def any_scores():
    return arrays.arrays(float, 16, elements=st.sampled_from([0.05, 0.2, 0.21, 0.5, 0.7, 0.95]))


@given(any_scores(), arrays.arrays(bool, 16), st.sampled_from([0.3, 0.5, 0.9, 0.95]))
@effort(max_examples=80)
def test_the_floor_takes_the_highest_threshold_that_reaches_it(prob, truth, floor):
    truth[:2] = [True, False]
    threshold = lock_threshold(prob, truth, rule("sensitivity_floor"), floor)
    sensitivity, specificity = rates(prob, truth, threshold)
    reached = [rates(prob, truth, score) for score in np.unique(prob)]
    assert sensitivity >= floor - 1e-12
    assert specificity == max(other for found, other in reached if found >= floor - 1e-12)


@given(any_scores(), arrays.arrays(bool, 16))
@effort(max_examples=80)
def test_youden_takes_the_largest_sum_of_both_rates(prob, truth):
    truth[:2] = [True, False]
    threshold = lock_threshold(prob, truth, rule("youden"), 0.9)
    reached = [sum(rates(prob, truth, score)) for score in np.unique(prob)]
    assert sum(rates(prob, truth, threshold)) == pytest.approx(max(reached))


@pytest.mark.parametrize(("cost_ratio", "expected"), [(1.0, 0.5), (4.0, 0.2), (0.25, 0.8)])
def test_cost_asks_no_data(cost_ratio, expected):
    threshold = lock_threshold(
        np.array([0.9, 0.1]), np.array([True, False]), rule("cost", cost_ratio), 0.9
    )
    assert threshold == pytest.approx(expected)


def test_the_cost_threshold_minimises_expected_cost_of_calibrated_probabilities():
    prob = (np.arange(1000) + 0.5) / 1000
    ratio = 3.0
    costs = [
        ratio * prob[prob < t].sum() + (1 - prob[prob >= t]).sum() for t in np.arange(1001) / 1000
    ]
    best = np.argmin(costs) / 1000
    assert lock_threshold(prob, prob > 0.5, rule("cost", ratio), 0.9) == pytest.approx(
        best, abs=1e-3
    )


@pytest.mark.parametrize("name", ["sensitivity_floor", "youden"])
def test_the_threshold_lies_midway_between_two_scores(name):
    prob, truth = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False])
    assert lock_threshold(prob, truth, rule(name), 0.9) == pytest.approx(0.55)


def test_when_every_score_is_needed_the_threshold_lies_below_the_lowest():
    prob, truth = np.array([0.9, 0.8, 0.4]), np.array([False, True, True])
    assert lock_threshold(prob, truth, rule("sensitivity_floor"), 0.95) == pytest.approx(0.2)


def test_rounding_to_single_precision_flips_no_decision():
    scores, labels = scored(3)
    prob = expit(scores)
    threshold = lock_threshold(prob, labels == 1, rule("sensitivity_floor"), 0.9)
    assert np.array_equal(prob >= threshold, prob.astype(np.float32) >= np.float32(threshold))


@pytest.mark.parametrize(
    ("name", "expected"), [("sensitivity_floor", 0.5), ("youden", 0.5), ("cost", 0.25)]
)
def test_without_a_row_the_threshold_is_one_half_or_that_of_the_costs(name, expected):
    nobody = np.empty(0)
    truth = nobody.astype(bool)
    assert lock_threshold(nobody, truth, rule(name, cost_ratio=3.0), 0.95) == expected


@pytest.mark.parametrize("num_classes", [3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_confident_logits_of_several_classes_reach_the_optimum(seed, num_classes):
    """The law of confident films (means 7, a tenth of them wrong), on which Newton's full steps diverge."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=400)
    said = np.where(rng.random(400) < 0.1, rng.integers(num_classes, size=400), labels)
    logits = rng.normal(0, 3, size=(400, num_classes))
    logits += rng.normal(7, 3, size=(400, 1)) * np.eye(num_classes)[said]
    counts = np.bincount(labels)
    own = ((counts + 1) / (counts + num_classes))[labels]
    targets = np.repeat(((1 - own) / (num_classes - 1))[:, None], num_classes, axis=1)
    targets[np.arange(400), labels] = own

    def loss(free):
        prob = softmax(free[0] * logits + np.append(0, free[1:]))
        return -np.mean(np.sum(targets * np.log(prob), axis=1))

    mine = fit(logits, labels)
    reached = loss(np.append(mine.slope, mine.biases[1:]))
    oracle = minimize(loss, np.append(1, np.zeros(num_classes - 1)), method="BFGS")
    assert np.isfinite([mine.slope, *mine.biases]).all()
    assert reached == pytest.approx(oracle.fun, abs=1e-7)
    assert mine.slope == pytest.approx(oracle.x[0], rel=1e-3)
