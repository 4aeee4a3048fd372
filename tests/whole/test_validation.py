"""The method itself on simulated studies: benchmarks/validation.py in small."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "validation.py"
_SPEC = importlib.util.spec_from_file_location("validation", _PATH)
validation = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(validation)
simulated = validation.simulated


def shares(function, *arguments, studies, resamples):
    """Means over studies, in this process."""
    return validation.measure(function, arguments, studies, resamples, workers=1)["means"]


def test_true_values_are_those_of_two_normal_laws():
    apart = simulated.distance(0.67)
    expected = {
        "free.auroc": norm.cdf(apart / np.sqrt(2)),
        "raw.sensitivity": norm.cdf(apart / 2),
        "raw.specificity": norm.cdf(apart / 2),
        "free.specificity_at_sensitivity": 0.67,
    }
    found = simulated.truth(apart)
    found = {str(endpoint): value for endpoint, value in found.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-5)


def test_simulated_logits_have_the_stated_distance_and_correlation():
    rng = np.random.default_rng(0)
    scores = simulated.simulate(rng, 20_000, 0.6, [2.0, 1.0])
    people = scores.people
    assert len(people) / len(set(people)) == pytest.approx(3, abs=0.05)
    apart = np.array([[2.0], [1.0]])
    centred = logit(scores.probabilities) / apart - (scores.labels - 0.5) * apart
    assert centred.mean(axis=1) == pytest.approx([0, 0], abs=0.02)
    assert centred.std(axis=1) == pytest.approx([1, 1], abs=0.02)
    assert np.corrcoef(centred)[0, 1] == pytest.approx(simulated.SHARED, abs=0.02)
    pairs = np.flatnonzero(np.diff(people) == 0)
    assert np.corrcoef(centred[0][pairs], centred[0][pairs + 1])[0, 1] == pytest.approx(
        0.6, abs=0.02
    )


def test_intervals_over_patients_cover_and_those_over_images_do_not():
    found = shares(validation.covered, 50, 0.6, "even", studies=60, resamples=200)
    error = np.sqrt(0.95 * 0.05 / 60)
    for name in (simulated.AUROC, f"difference in {simulated.AUROC}"):
        assert 0.95 - 3 * error < found[f"patients|{name}|coverage"]
        assert found[f"images|{name}|coverage"] < found[f"patients|{name}|coverage"]
    assert found[f"images|{simulated.AUROC}|coverage"] < 0.95 - 3 * error
    assert (
        found[f"patients|{simulated.AUROC}|width"] > 1.3 * found[f"images|{simulated.AUROC}|width"]
    )


CELL = simulated.Cell(positives=40, negatives=160, repeats=1, extra=0.9)


def test_simulated_heads_are_tested_on_patients_they_did_not_see():
    trained = simulated.train(np.random.default_rng(1), CELL)
    by_patient = {}
    for person, fold in zip(trained.people, trained.folds.T.tolist()):
        assert by_patient.setdefault(person, fold) == fold
    rows = trained.rows(simulated.UNDERSAMPLE)
    assert len(rows.table) == len(trained.people)
    evaluation = simulated.evaluated(rows, 100, 1, (simulated.AUROC,))
    of_folds = []
    for _, fold in rows.table.groupby(["repeat", "fold"]):
        of_folds.append(roc_auc_score(fold["label"], fold["prob_opacity"]))
    assert evaluation.draws[simulated.AUROC][0] == pytest.approx(np.mean(of_folds))


def test_a_simulated_head_without_a_penalty_is_scikit_learns_discriminant(monkeypatch):
    monkeypatch.setattr(simulated, "_PENALTY", 0.0)
    rng = np.random.default_rng(2)
    labels = (rng.uniform(size=400) < 0.3).astype(int)
    features = rng.normal(size=(400, simulated._NUM_FEATURES)) + 0.5 * labels[:, None]
    columns = simulated._columns(simulated.EXTRA)
    moments = [simulated._Moments.of(features[labels == label]) for label in (0, 1)]
    weights = simulated._head(moments, columns)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features[:, columns], labels)
    cosine = weights @ theirs.coef_[0] / np.linalg.norm(weights) / np.linalg.norm(theirs.coef_)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_the_true_auroc_of_a_head_is_that_of_many_images():
    rng = np.random.default_rng(3)
    many = simulated.Cell(3_000, 3_000, 1, 0.9)
    trained = simulated.train(rng, many)
    found = simulated.evaluated(trained.rows(simulated.EXTRA), 100, 1, (simulated.AUROC,))
    measured = found.draws[simulated.AUROC][0]
    assert measured == pytest.approx(trained.truth[simulated.EXTRA], abs=0.01)


def test_verdicts_on_simulated_remedies():
    """Family-wise error, wrong signs and claims at their level; what costs much is called worse."""
    found = shares(validation.remedied, CELL, studies=8, resamples=100)
    assert found["any equal rival better or worse"] <= 1 / 8
    assert found["any wrong sign"] == 0
    assert found["highest: claim holds"] == 1
    assert 0.005 < found["detectable"] < 0.06
    gains = simulated.expected_gains(CELL)
    assert gains[simulated.UNDERSAMPLE] < -0.01
    assert gains[simulated.EXTRA] > 0.003
    assert all(gains[rival] == 0 for rival in simulated.EQUAL)


def test_a_large_loss_and_a_large_gain_are_found():
    plain = simulated.Cell(positives=50, negatives=400, repeats=1, extra=2.5)
    found = shares(validation.remedied, plain, studies=4, resamples=100)
    assert found["one more feature better, alone"] >= 0.75
    assert found["undersample worse, alone"] >= 0.5
    assert found["winner: claim holds"] == 1
    assert "| 50 + 400, 5 x 1 |" in validation.tables({"remedies|50|400|1|2.5": {"means": found}})


def test_a_locked_sensitivity_is_measured_in_patients_no_study_holds():
    rng = np.random.default_rng(4)
    apart = [simulated.new_images(rng, label, 4_000).mean(axis=0) for label in (0, 1)]
    assert np.linalg.norm(apart[1] - apart[0]) == pytest.approx(2.4, abs=0.1)
    found = shares(validation.locked, 60, 120, studies=2, resamples=20)
    assert 0.85 < found["sensitivity"] < 1
    # The best rule for two normal laws so far apart reaches this at the floor.
    assert 0.3 < found["specificity"] < norm.cdf(2.4 - norm.ppf(simulated.FLOOR)) + 0.1


def test_the_spread_over_studies_is_told():
    def study(resamples, number):
        return {"sensitivity": [0.9, 0.96][number], "specificity": 0.5}

    cell = validation.measure(study, (), 2, 10, workers=1)
    assert cell["means"]["sensitivity"] == pytest.approx(0.93)
    assert cell["spreads"] == pytest.approx({"sensitivity": 0.03, "specificity": 0})
    text = validation.tables({"thresholds|60|120": cell})
    assert "| 60 + 120 | 2 | 0.930 ± 0.030 | 0.500 ± 0.000 |" in text
