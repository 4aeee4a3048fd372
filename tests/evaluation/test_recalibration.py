"""Calibration slope and intercept against statsmodels and scikit-learn, where they exist and where they do not."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from equipoise.evaluation.recalibration import fit_intercept, fit_slope


def confident(seed):
    """Logits of a confident model on 624 films, as they were seen on a public set of chest films."""
    rng = np.random.default_rng(seed)
    logit = np.concatenate([rng.normal(7, 3, 390), rng.normal(1.5, 3.2, 234)])
    return logit, np.repeat([True, False], [390, 234])


def resampled(seed, count, rows):
    rng = np.random.default_rng([1, seed])
    drawn = rng.multinomial(rows, np.full(rows, 1 / rows), size=count)
    return np.vstack([np.ones(rows), drawn]).astype(np.float32)


def by_statsmodels(logit, truth, weight):
    family = sm.families.Binomial()
    design = sm.add_constant(logit)
    model = sm.GLM(truth.astype(float), design, family=family, freq_weights=weight.astype(float))
    return model.fit(tol=1e-13, maxiter=200).params


@pytest.mark.parametrize("seed", range(12))
def test_confident_models_have_the_fit_that_statsmodels_finds(seed):
    logit, truth = confident(seed)
    weights = resampled(seed, 6, len(truth))
    line = fit_slope(weights, logit, truth)
    intercepts = fit_intercept(weights, logit, truth)
    for row, weight in enumerate(weights):
        expected = by_statsmodels(logit, truth, weight)
        assert (line.intercept[row], line.slope[row]) == pytest.approx(tuple(expected), abs=1e-8)

        def excess(intercept, weight=weight):
            return (weight * (truth - special.expit(intercept + logit))).sum()

        root = optimize.brentq(excess, -40, 40, xtol=1e-12)
        assert intercepts[row] == pytest.approx(root, abs=1e-8)


def test_the_fit_of_scikit_learn_without_a_penalty_is_the_same():
    logit, truth = confident(3)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(logit[:, None], truth)
    line = fit_slope(np.ones((1, len(truth))), logit, truth)
    assert line.slope[0] == pytest.approx(model.coef_[0, 0], abs=1e-5)
    assert line.intercept[0] == pytest.approx(model.intercept_[0], abs=1e-5)


def test_300_of_300_confident_models_have_a_slope_in_every_resample():
    for seed in range(300):
        logit, truth = confident(seed)
        weights = resampled(seed, 2, len(truth))
        assert np.isfinite(fit_slope(weights, logit, truth).slope).all(), seed
        assert np.isfinite(fit_intercept(weights, logit, truth)).all(), seed


@given(
    st.lists(st.integers(-3, 3), min_size=4, max_size=12),
    st.integers(0, 2**12 - 1),
    st.lists(st.integers(0, 2), min_size=12, max_size=12),
    st.sampled_from([0.01, 1.0, 9.0]),
)
@effort(max_examples=150)
def test_there_is_a_fit_exactly_where_the_classes_overlap(places, bits, counts, scale):
    logit = scale * np.array(places, dtype=float)
    truth = np.array([bool(bits >> index & 1) for index in range(len(logit))])
    weight = np.array(counts[: len(logit)], dtype=float)
    line = fit_slope(weight[None], logit, truth)
    drawn = weight > 0
    positives, negatives = logit[drawn & truth], logit[drawn & ~truth]
    exists = (
        len(positives) > 0
        and len(negatives) > 0
        and positives.min() < negatives.max()
        and negatives.min() < positives.max()
    )
    assert np.isfinite(line.slope[0]) == exists
    if exists:
        # At the maximum of the likelihood what is predicted adds up to what is true.
        residual = weight * (truth - special.expit(line.intercept[0] + line.slope[0] * logit))
        assert residual.sum() == pytest.approx(0, abs=1e-6)
        assert (residual * logit).sum() / scale == pytest.approx(0, abs=1e-6)
    has_both = len(positives) > 0 and len(negatives) > 0
    assert np.isfinite(fit_intercept(weight[None], logit, truth)[0]) == has_both


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6])
def test_classes_that_hardly_overlap_have_a_steep_slope(gap):
    """Two images are on the wrong side by a little: the slope grows with one over the little."""
    logit = np.concatenate([np.linspace(-9, -1, 40), [gap], [-gap], np.linspace(1, 9, 40)])
    truth = np.repeat([False, True], 41)
    line = fit_slope(np.ones((1, 82)), logit, truth)
    residual = truth - special.expit(line.intercept + line.slope * logit)
    assert line.slope[0] > 0
    assert abs(residual.sum()) < 1e-6
    assert abs((residual * logit).sum()) < 1e-6


def test_logits_at_the_ends_have_an_intercept():
    logit = np.repeat([-27.6, 27.6], 50)
    truth = np.arange(100) % 10 < 3
    found = fit_intercept(np.ones((1, 100)), logit, truth)[0]
    assert special.expit(found + logit).mean() == pytest.approx(0.3, abs=1e-9)
