"""The critical value against closed forms and scipy, error rates by simulation, and the four verdicts."""

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import multivariate_t

from equipoise.compare import simultaneous


def draws_of(estimates, deviations, correlation=0.0, resamples=2000, seed=0):
    """Resampled differences with exactly these standard deviations and this correlation."""
    estimates, deviations = np.asarray(estimates), np.asarray(deviations)
    count = len(estimates)
    wanted = np.full((count, count), correlation) + (1 - correlation) * np.eye(count)
    plain = np.random.default_rng(seed).normal(size=(resamples, count))
    plain -= plain.mean(axis=0)
    root = np.linalg.cholesky(np.atleast_2d(np.cov(plain, rowvar=False, ddof=0)))
    exact = plain @ np.linalg.inv(root).T @ np.linalg.cholesky(wanted).T
    return np.vstack([estimates, estimates + exact * deviations])


def half_widths(draws, patients=31.0, folds=1, alpha=0.05):
    differences = simultaneous.paired_differences(draws, patients, folds, alpha)
    return [(item.high - item.low) / 2 for item in differences]


@pytest.mark.parametrize("patients", [5.0, 31.0, 200.0])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.8])
def test_a_single_rival_gets_students_interval(patients, alpha):
    (half,) = half_widths(draws_of([0.01], [0.02]), patients, alpha=alpha)
    assert half == pytest.approx(0.02 * stdtrit(patients - 1, 1 - alpha / 2), rel=1e-3)


@pytest.mark.parametrize(("count", "correlation"), [(2, 0.0), (5, 0.5), (10, 0.8)])
def test_the_critical_value_is_that_of_the_multivariate_t(count, correlation):
    bound = half_widths(draws_of([0.0] * count, [1.0] * count, correlation))[0]
    shape = np.full((count, count), correlation) + (1 - correlation) * np.eye(count)
    law = multivariate_t(shape=shape, df=30)
    inside = law.cdf(
        np.full(count, bound),
        lower_limit=np.full(count, -bound),
        maxpts=100_000,
        random_state=1,
    )
    assert inside == pytest.approx(0.95, abs=0.001)


def test_rivals_that_are_the_same_cost_nothing():
    same = draws_of([0.01], [0.02])
    assert half_widths(np.hstack([same] * 8)) == pytest.approx(half_widths(same) * 8)


def test_p_and_interval_agree():
    for estimate in (0.0, 0.01, 0.05, 0.06, 0.07, 0.2):
        draws = draws_of([estimate, 0.0], [0.02, 0.03], 0.4)
        first, second = simultaneous.paired_differences(draws, 31.0, 1, 0.05)
        assert (first.p_adjusted < 0.05) == (first.low > 0)
        assert second.p_adjusted == 1.0


def test_overlapping_training_sets_widen_the_interval():
    draws = draws_of([0.01], [0.02])
    one_part = half_widths(draws, patients=60.0)[0]
    assert half_widths(draws, 60.0, folds=5)[0] == pytest.approx(one_part * np.sqrt(1.25))
    few = half_widths(draws, patients=20.0)[0]
    assert half_widths(draws, 20.0, folds=5)[0] == pytest.approx(few * np.sqrt(1.5))


def test_a_difference_that_never_varies_is_equivalent_when_it_is_none():
    draws = draws_of([0.0, 0.01], [0.0, 0.02])
    nothing, _ = simultaneous.paired_differences(draws, 31.0, 1, 0.05)
    assert (nothing.low, nothing.high, nothing.p_adjusted) == (0.0, 0.0, 1.0)
    assert nothing.verdict(0.01) == "equivalent"
    (alone,) = simultaneous.paired_differences(draws[:, :1], 31.0, 1, 0.05)
    assert alone.verdict(0.01) == "equivalent"


def test_resamples_without_a_number_are_left_out():
    draws = draws_of([0.01, 0.02], [0.02, 0.03], 0.4)
    holed = draws.copy()
    holed[7, 1] = np.nan
    kept = np.delete(draws, 7, axis=0)
    assert half_widths(holed) == half_widths(kept)


def test_ten_perfect_rivals_and_twelve_patients_are_all_better():
    """No smallest p: what every resample says is said."""
    draws = draws_of([0.48] * 10, [0.07] * 10, 0.9)
    differences = simultaneous.paired_differences(draws, 12.0, 5, 0.05)
    assert {item.verdict(0.01) for item in differences} == {"better"}


@pytest.mark.parametrize(
    ("estimate", "deviation", "word"),
    [
        (0.05, 0.01, "better"),
        (-0.05, 0.01, "worse"),
        (0.001, 0.002, "equivalent"),
        (0.001, 0.02, "inconclusive"),
        (0.006, 0.001, "better"),
    ],
)
def test_the_four_verdicts(estimate, deviation, word):
    (item,) = simultaneous.paired_differences(draws_of([estimate], [deviation]), 100.0, 1, 0.05)
    assert item.verdict(margin=0.01) == word


def test_equal_rivals_are_told_apart_in_one_family_of_twenty_at_most():
    rng = np.random.default_rng(7)
    patients, rivals, studies = 40, 10, 120
    wrong = 0
    for _ in range(studies):
        shared = rng.normal(size=(patients, 1))
        values = 0.6 * shared + 0.8 * rng.normal(size=(patients, rivals))
        weights = rng.multinomial(patients, np.full(patients, 1 / patients), size=500) / patients
        draws = np.vstack([values.mean(axis=0), weights @ values])
        differences = simultaneous.paired_differences(draws, patients, 1, 0.05)
        wrong += any(item.low > 0 or item.high < 0 for item in differences)
    assert wrong / studies < 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / studies)


def test_the_patients_that_would_settle_it():
    (item,) = simultaneous.paired_differences(draws_of([0.0], [0.02]), 60.0, 1, 0.05)
    settled = item.patients_to_settle(60.0, margin=0.01)
    assert settled == pytest.approx(60 * (item.detectable / 0.01) ** 2)
    assert item.detectable == pytest.approx((item.high + 0.8416 * 0.02), rel=1e-3)
