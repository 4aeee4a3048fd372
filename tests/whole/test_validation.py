"""The method itself on simulated studies: benchmarks/validation.py in small."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm

from equipoise.evaluation import intervals
from fabricate import made

_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "validation.py"
_SPEC = importlib.util.spec_from_file_location("validation", _PATH)
validation = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(validation)


def shares(function, *arguments, studies, resamples):
    """Means over studies, in this process."""
    return validation.measure(function, arguments, studies, resamples, workers=1)["means"]


def test_true_values_are_those_of_two_normal_laws():
    apart = validation.distance(0.67)
    expected = {
        "free.auroc": norm.cdf(apart / np.sqrt(2)),
        "raw.sensitivity": norm.cdf(apart / 2),
        "raw.specificity": norm.cdf(apart / 2),
        "free.specificity_at_sensitivity": 0.67,
    }
    found = validation.truth(apart)
    found = {str(endpoint): value for endpoint, value in found.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-5)


def test_simulated_logits_have_the_stated_distance_and_correlation():
    rng = np.random.default_rng(0)
    people, labels, probs = validation.simulate(rng, 20_000, 0.6, [2.0, 1.0])
    assert len(people) / len(set(people)) == pytest.approx(3, abs=0.05)
    centred = logit(probs) / [[2.0], [1.0]] - (labels - 0.5) * [[2.0], [1.0]]
    assert centred.mean(axis=1) == pytest.approx([0, 0], abs=0.02)
    assert centred.std(axis=1) == pytest.approx([1, 1], abs=0.02)
    assert np.corrcoef(centred)[0, 1] == pytest.approx(validation.SHARED, abs=0.02)
    pairs = np.flatnonzero(np.diff(people) == 0)
    assert np.corrcoef(centred[0][pairs], centred[0][pairs + 1])[0, 1] == pytest.approx(
        0.6, abs=0.02
    )


def test_the_simulations_see_what_the_product_computes():
    rng = np.random.default_rng(3)
    people, labels, (prob,) = validation.simulate(rng, 12, 0.5, [1.0])
    settings = made.settings(compare={"resamples": 150, "alpha": validation.ALPHA}).compare
    ids = np.array([f"p{person:03d}" for person in people])
    product = intervals.evaluate(
        made.predictions(logit(prob), labels, ids), settings, validation.FLOOR
    )
    units, weights = validation.resampled(people, labels, 150, settings.seed, "patients")
    own = validation.evaluation(labels, prob, weights, validation.ALONE, units)
    for name in validation.ALONE:
        assert own.draws[name] == pytest.approx(product.draws[name], abs=1e-9), name
        mine, its = own.interval(name), product.interval(name)
        assert (mine.low, mine.high) == pytest.approx((its.low, its.high), abs=1e-9)


def test_intervals_over_patients_cover_and_those_over_images_do_not():
    found = shares(validation.covered, 50, 0.6, "even", studies=200, resamples=200)
    error = np.sqrt(0.95 * 0.05 / 200)
    for name in (validation.AUROC, validation.PRIMARY, f"difference in {validation.AUROC}"):
        assert 0.95 - 3 * error < found[f"patients|{name}|coverage"]
        assert found[f"images|{name}|coverage"] < found[f"patients|{name}|coverage"] - 2 * error
    assert found[f"images|{validation.AUROC}|coverage"] < 0.95 - 5 * error
    assert (
        found[f"patients|{validation.AUROC}|width"]
        > 1.3 * found[f"images|{validation.AUROC}|width"]
    )


def test_rivals_that_equal_their_baselines_rarely_get_a_verdict():
    found = shares(validation.erred, 50, 0.6, validation.AUROC, studies=60, resamples=600)
    assert found["patients|any verdict"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    assert found["patients|any better"] <= found["patients|any verdict"]
    # Without the correction, or without the patients, the same studies find differences that are not there.
    assert found["patients|any without Holm"] > 0.15
    assert found["images|any verdict"] > 0.15


def test_a_large_gain_is_found():
    found = shares(validation.decided, 100, 0.3, 0.25, studies=10, resamples=400)
    assert found["alone"] >= 0.9
    assert found["wrongly worse"] == 0
