"""Intervals over patients against statsmodels, scikit-learn and counting by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint
from test_metrics import specificity_on_curve

from equipoise.core.errors import DataError
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint
from fabricate import made


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(16, 16, 0.8064, 1.0), (15, 16, 0.7167, 0.9889), (45, 50, 0.7864, 0.9565)],
)
def test_wilson_known_values(successes, trials, low, high):
    assert intervals.wilson(successes, trials, 0.05) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_wilson_equals_statsmodels(alpha):
    for trials in (1, 7, 40):
        for successes in range(trials + 1):
            expected = proportion_confint(successes, trials, alpha=alpha, method="wilson")
            assert intervals.wilson(successes, trials, alpha) == pytest.approx(expected, abs=1e-12)


PATIENTS = np.array(["b", "a", "c", "a", "d", "e", "f", "b"])
LABELS = np.array([0, 0, 1, 1, 1, 0, 1, 0])  # a shows both classes


def test_patient_resamples_keep_the_number_drawn_of_every_stratum():
    names, drawn = intervals.patient_resamples(PATIENTS, LABELS, 300, seed=4)
    assert names.tolist() == ["a", "b", "c", "d", "e", "f"]
    assert drawn.shape == (301, 6)
    assert (drawn[0] == 1).all()
    for stratum in (["a"], ["b", "e"], ["c", "d", "f"]):
        assert (drawn[:, np.isin(names, stratum)].sum(axis=1) == len(stratum)).all()
    assert len(np.unique(drawn, axis=0)) > 15


def test_patient_resamples_depend_on_the_seed_and_not_on_the_order_of_rows():
    names, drawn = intervals.patient_resamples(PATIENTS, LABELS, 50, seed=4)
    order = np.random.default_rng(0).permutation(len(PATIENTS))
    again = intervals.patient_resamples(PATIENTS[order], LABELS[order], 50, seed=4)
    assert np.array_equal(names, again[0])
    assert np.array_equal(drawn, again[1])
    assert not np.array_equal(drawn, intervals.patient_resamples(PATIENTS, LABELS, 50, seed=5)[1])


def noisy(count=80, seed=0, patients=30):
    rng = np.random.default_rng(seed)
    people = rng.integers(patients, size=count)
    labels = (people % 3 == 0).astype(int)
    return (
        rng.normal(size=count) + 1.2 * labels,
        labels,
        np.array([f"p{person}" for person in people]),
    )


def test_evaluate_weights_rows_by_how_often_their_patient_is_drawn():
    logits, labels, people = noisy()
    made_up = made.predictions(logits, labels, people, threshold=0.3)
    settings = made.settings(compare={"resamples": 100}).compare
    evaluation = intervals.evaluate(made_up, settings, 0.8)
    names, drawn = intervals.patient_resamples(people, labels, 100, settings.seed)
    scores = made_up.probabilities("prob")[:, 1]
    for row in (0, 1, 57, 100):
        weight = drawn[row, np.searchsorted(names, people)].astype(float)
        expected = {
            "free.auroc": sk.roc_auc_score(labels, scores, sample_weight=weight),
            "free.specificity_at_sensitivity": specificity_on_curve(labels, scores, weight, 0.8),
            "raw.sensitivity": sk.recall_score(labels, scores >= 0.5, sample_weight=weight),
            "locked.sensitivity": sk.recall_score(labels, scores >= 0.3, sample_weight=weight),
            "raw.brier": sk.brier_score_loss(labels, scores, sample_weight=weight),
        }
        assert {
            name: evaluation.draws[Endpoint.parse(name)][row] for name in expected
        } == pytest.approx(expected, abs=1e-6)
    interval = evaluation.interval(Endpoint("free", "auroc"))
    assert interval.low < interval.value < interval.high
    assert interval.interval == "patient bootstrap"
    # Hesterberg 2015, equation (5) and after it: Student's quantile instead of the normal one, for Kish's patients.
    images = pd.Series(people).groupby([labels, people]).size()
    worth = min(part.sum() ** 2 / (part**2).sum() for _, part in images.groupby(level=0))
    assert evaluation.effective_patients == pytest.approx(worth)
    tail = stats.norm.cdf(-np.sqrt(worth / (worth - 1)) * stats.t.ppf(0.975, worth - 1))
    low, high = np.quantile(evaluation.draws[Endpoint("free", "auroc")][1:], [tail, 1 - tail])
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_evaluate_does_not_depend_on_the_order_of_rows():
    logits, labels, people = noisy()
    order = np.random.default_rng(1).permutation(len(labels))
    settings = made.settings().compare
    left = intervals.evaluate(made.predictions(logits, labels, people), settings, 0.9)
    right = intervals.evaluate(
        made.predictions(logits[order], labels[order], people[order]), settings, 0.9
    )
    for name, values in left.draws.items():
        assert values == pytest.approx(right.draws[name], abs=1e-6), name


def test_rank_metrics_are_averaged_over_folds_and_counts_are_pooled():
    labels = np.array([0, 0, 1, 1, 0, 1, 1, 1, 1, 1])
    fold = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    logits = np.array(
        [-9, -8, -7, -6, 5, 6, 6, 6, 6, 6.0]
    )  # each fold ranks perfectly, on its own scale
    evaluation = intervals.evaluate(
        made.predictions(logits, labels, fold=fold), made.settings().compare, 0.9
    )
    assert evaluation.draws[Endpoint("free", "auroc")][0] == 1
    assert sk.roc_auc_score(labels, logits) < 1
    assert evaluation.draws[Endpoint("raw", "accuracy")][0] == pytest.approx(
        0.7
    )  # 7 of 10, not the mean of 2/4 and 5/6
    assert evaluation.draws[Endpoint("raw", "sensitivity")][0] == pytest.approx(5 / 7)


def test_seeds_are_averaged_and_shown_one_by_one():
    logits, labels, people = noisy(40)
    tables = [
        made.predictions(logits * sign, labels, people, seed=seed).table
        for seed, sign in ((3, 1), (8, -1))
    ]
    both = made.predictions(logits, labels, people)
    both = replace(both, table=pd.concat(tables, ignore_index=True))
    evaluation = intervals.evaluate(both, made.settings().compare, 0.9)
    first = sk.roc_auc_score(labels, logits)
    assert evaluation.by_seed[Endpoint("free", "auroc")] == pytest.approx([first, 1 - first])
    assert evaluation.draws[Endpoint("free", "auroc")][0] == pytest.approx(0.5)
    assert (
        evaluation.table()["free"]["auroc"].by_seed == evaluation.by_seed[Endpoint("free", "auroc")]
    )


def test_wilson_over_patients_bounds_a_proportion_of_0_or_1():
    labels = np.array([1] * 6 + [0] * 8)
    people = np.array([f"p{index // 2}" for index in range(14)])  # 3 and 4 patients
    logits = np.where(labels == 1, 3.0, 2.0)  # every decision is positive
    evaluation = intervals.evaluate(
        made.predictions(logits, labels, people), made.settings().compare, 0.9
    )
    found, missed = (
        evaluation.interval(Endpoint("raw", "sensitivity")),
        evaluation.interval(Endpoint("raw", "specificity")),
    )
    assert (found.value, found.interval) == (1, "Wilson, 3 patients")
    assert (found.low, found.high) == pytest.approx(intervals.wilson(3, 3, 0.05))
    assert (missed.value, missed.interval) == (0, "Wilson, 4 patients")
    assert (missed.low, missed.high) == pytest.approx(intervals.wilson(0, 4, 0.05))


def test_resamples_in_which_a_metric_does_not_exist_are_counted():
    labels = np.array([1, 0, 0, 1, 0, 0])
    fold = np.array([0, 0, 0, 1, 1, 1])
    made_up = made.predictions(np.array([1, 0, 2, 1, 0, -1.0]), labels, fold=fold)
    settings = made.settings().compare
    _, drawn = intervals.patient_resamples(
        made_up.table["patient_id"].to_numpy(), labels, 200, settings.seed
    )
    lacking = (drawn[1:, [0, 3]] == 0).any(axis=1) | (drawn[1:, 1:3].sum(axis=1) == 0)
    lacking |= drawn[1:, 4:].sum(axis=1) == 0
    interval = intervals.evaluate(made_up, settings, 0.9).interval(Endpoint("free", "auroc"))
    assert 0 < interval.degenerate < 200
    assert interval.degenerate == lacking.sum()


def test_a_metric_without_any_value_has_no_interval():
    evaluation = intervals.Evaluation(
        draws={Endpoint("free", "auroc"): np.array([0.5, np.nan, np.nan])},
        among={},
        by_seed={Endpoint("free", "auroc"): [0.5]},
        alpha=0.05,
    )
    interval = evaluation.interval(Endpoint("free", "auroc"))
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.degenerate == 2


def test_images_of_a_patient_share_one_vote_in_the_patient_recognition_rate():
    logits, labels, people = noisy()
    evaluation = intervals.evaluate(
        made.predictions(logits, labels, people), made.settings().compare, 0.9
    )
    right = pd.Series((logits >= 0) == labels).groupby(people).mean()
    assert evaluation.draws[Endpoint("raw", "patient_recognition_rate")][0] == pytest.approx(
        right.mean(), abs=1e-6
    )
    assert right.mean() != pytest.approx(evaluation.draws[Endpoint("raw", "accuracy")][0], abs=1e-4)
    names, drawn = intervals.patient_resamples(people, labels, 200, made.settings().compare.seed)
    expected = np.average(right.loc[names], weights=drawn[9])
    assert evaluation.draws[Endpoint("raw", "patient_recognition_rate")][9] == pytest.approx(
        expected, abs=1e-6
    )


def test_folds_are_shown_apart_and_only_where_there_are_several():
    logits, labels, people = noisy(90)
    fold = np.array([int(person[1:]) % 3 for person in people])
    labels = np.random.default_rng(3).integers(2, size=90)
    several = intervals.evaluate(
        made.predictions(logits, labels, people, fold=fold), made.settings().compare, 0.9
    )
    aurocs = [sk.roc_auc_score(labels[fold == own], logits[fold == own]) for own in range(3)]
    assert several.by_fold[Endpoint("free", "auroc")] == pytest.approx(aurocs)
    recalls = [sk.recall_score(labels[fold == own], logits[fold == own] >= 0) for own in range(3)]
    assert several.by_fold[Endpoint("raw", "sensitivity")] == pytest.approx(recalls, abs=1e-6)
    assert (
        intervals.evaluate(
            made.predictions(logits, labels, people), made.settings().compare, 0.9
        ).by_fold
        == {}
    )


def test_wilson_stands_beside_the_bootstrap_where_every_row_is_a_patient():
    logits, labels, people = noisy(60)
    settings = made.settings().compare
    single = intervals.evaluate(made.predictions(logits, labels), settings, 0.9).interval(
        Endpoint("raw", "specificity")
    )
    negatives = int((labels == 0).sum())
    right = int(((labels == 0) & (logits < 0)).sum())
    expected = proportion_confint(right, negatives, method="wilson")
    assert (single.wilson_low, single.wilson_high) == pytest.approx(expected, abs=1e-6)
    assert single.interval == "patient bootstrap"
    shared = intervals.evaluate(made.predictions(logits, labels, people), settings, 0.9)
    assert "wilson_low" not in shared.interval(Endpoint("raw", "specificity")).as_dict()


def test_only_the_named_metrics_are_computed():
    logits, labels, _ = noisy(40)
    endpoints = [Endpoint("free", "auroc"), Endpoint("locked", "f1")]
    evaluation = intervals.evaluate(
        made.predictions(logits, labels), made.settings().compare, 0.9, endpoints
    )
    assert list(evaluation.draws) == endpoints


def test_an_image_predicted_twice_is_refused():
    logits, labels, _ = noisy(40)
    image_id = [f"image{index % 39}" for index in range(40)]
    twice = made.predictions(logits, labels, image_id=image_id)
    with pytest.raises(
        DataError, match="'image0' is predicted more than once in repeat 0, fold 0, seed 0"
    ):
        intervals.evaluate(twice, made.settings().compare, 0.9)


def test_a_class_absent_from_test_is_an_error_with_the_counts():
    with pytest.raises(DataError, match=r"lack a class \(clear 4, opacity 0\)"):
        intervals.evaluate(
            made.predictions(np.zeros(4), np.zeros(4, dtype=int)), made.settings().compare, 0.9
        )


def test_three_classes_have_no_specificity_at_sensitivity_and_decide_by_argmax():
    rng = np.random.default_rng(2)
    labels = np.arange(30) % 3
    logits = rng.normal(size=(30, 3)) + np.eye(3)[labels]
    made_up = made.predictions(logits, labels, classes=("a", "b", "c"))
    evaluation = intervals.evaluate(made_up, made.settings().compare, 0.9)
    assert Endpoint("free", "specificity_at_sensitivity") not in evaluation.draws
    assert evaluation.draws[Endpoint("raw", "accuracy")][0] == pytest.approx(
        (logits.argmax(axis=1) == labels).mean()
    )
    expected = sk.roc_auc_score(labels, made_up.probabilities("prob"), multi_class="ovr")
    assert evaluation.draws[Endpoint("free", "auroc")][0] == pytest.approx(expected)
