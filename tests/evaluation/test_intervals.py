"""Intervals over patients against statsmodels, scikit-learn and counting by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint
from test_metrics import specificity_on_curve

from equipoise.core.errors import DataError
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint
from equipoise.evaluation.resamples import patient_resamples
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
LABELS = np.array([0, 0, 1, 1, 1, 0, 1, 0])  # a shows both classes, and joins the rarer: b, e


def test_patient_resamples_keep_the_number_drawn_of_every_stratum():
    names, drawn = patient_resamples(PATIENTS, LABELS, 300, seed=4)
    assert names.tolist() == ["a", "b", "c", "d", "e", "f"]
    assert drawn.shape == (301, 6)
    assert (drawn[0] == 1).all()
    for stratum in (["a", "b", "e"], ["c", "d", "f"]):
        assert (drawn[:, np.isin(names, stratum)].sum(axis=1) == len(stratum)).all()
    assert len(np.unique(drawn, axis=0)) > 15


def test_nobody_is_in_every_resample_but_who_is_alone_in_a_class():
    for labels_of in (
        {"a": [0], "b": [0], "c": [1], "d": [0, 1]},
        {"a": [0], "b": [0], "c": [0, 1], "d": [0, 1], "e": [1]},
        {"a": [0, 1], "b": [1, 2], "c": [0, 2]},
    ):
        people = [name for name, labels in labels_of.items() for _ in labels]
        labels = [label for labels in labels_of.values() for label in labels]
        _, drawn = patient_resamples(np.array(people), np.array(labels), 200, seed=1)
        assert (drawn[1:].min(axis=0) == 0).all(), labels_of
        assert (drawn.sum(axis=1) == len(labels_of)).all()
    _, drawn = patient_resamples(np.array(list("abc")), np.array([0, 0, 1]), 200, seed=1)
    assert (drawn[:, 2] == 1).all()
    assert drawn[1:, 0].min() == 0


def test_patients_at_large_are_drawn_whatever_their_class():
    people = np.array([f"p{index:02d}" for index in range(60)])
    labels = np.repeat([0, 1], [45, 15])
    _, drawn = patient_resamples(people, labels, 4000, seed=2, at_large=True)
    assert (drawn[0] == 1).all()
    assert (drawn.sum(axis=1) == 60).all()
    # Of 60 draws those of the rarer class are binomial: mean 15, variance 60 / 4 * 3 / 4.
    rarer = drawn[1:, labels == 1].sum(axis=1)
    assert rarer.mean() == pytest.approx(15, abs=0.25)
    assert rarer.var() == pytest.approx(11.25, rel=0.1)
    within = patient_resamples(people, labels, 4000, seed=2).drawn
    assert (within[:, labels == 1].sum(axis=1) == 15).all()
    again = patient_resamples(people, 1 - labels, 4000, seed=2, at_large=True)
    assert np.array_equal(drawn, again.drawn)


def test_patient_resamples_depend_on_the_seed_and_not_on_the_order_of_rows():
    names, drawn = patient_resamples(PATIENTS, LABELS, 50, seed=4)
    order = np.random.default_rng(0).permutation(len(PATIENTS))
    again = patient_resamples(PATIENTS[order], LABELS[order], 50, seed=4)
    assert np.array_equal(names, again[0])
    assert np.array_equal(drawn, again[1])
    assert not np.array_equal(drawn, patient_resamples(PATIENTS, LABELS, 50, seed=5)[1])


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
    names, drawn = patient_resamples(people, labels, 100, settings.seed)
    at_large = patient_resamples(people, labels, 100, settings.seed, at_large=True).drawn
    scores = made_up.probabilities("prob")[:, 1]
    for row in (0, 1, 57, 100):
        weight = drawn[row, np.searchsorted(names, people)].astype(float)
        large = at_large[row, np.searchsorted(names, people)].astype(float)
        expected = {
            "free.auroc": sk.roc_auc_score(labels, scores, sample_weight=weight),
            "free.specificity_at_sensitivity": specificity_on_curve(labels, scores, weight, 0.8),
            "raw.sensitivity": sk.recall_score(labels, scores >= 0.5, sample_weight=weight),
            "locked.sensitivity": sk.recall_score(labels, scores >= 0.3, sample_weight=weight),
            "raw.brier": sk.brier_score_loss(labels, scores, sample_weight=large),
            "locked.precision": sk.precision_score(labels, scores >= 0.3, sample_weight=large),
            "free.average_precision": sk.average_precision_score(
                labels, scores, sample_weight=large
            ),
        }
        assert {
            name: evaluation.draws[Endpoint.parse(name)][row] for name in expected
        } == pytest.approx(expected, abs=1e-6)
    sensitivity = Endpoint("raw", "sensitivity")
    interval = evaluation.interval(sensitivity)
    assert interval.low < interval.value < interval.high
    assert interval.interval == "patient bootstrap"
    assert evaluation.interval(Endpoint("raw", "brier")).interval == "patient bootstrap at large"
    # Hesterberg 2015, equation (5) and after it: Student's quantile instead of the normal one, for Kish's patients.
    images = pd.Series(people).groupby([labels, people]).size()
    worth = min(part.sum() ** 2 / (part**2).sum() for _, part in images.groupby(level=0))
    assert evaluation.effective_patients == pytest.approx(worth)
    tail = stats.norm.cdf(-np.sqrt(worth / (worth - 1)) * stats.t.ppf(0.975, worth - 1))
    low, high = np.quantile(evaluation.draws[sensitivity][1:], [tail, 1 - tail])
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_the_interval_of_an_auroc_is_students_on_the_logit_scale():
    logits, labels, people = noisy()
    evaluation = intervals.evaluate(
        made.predictions(logits, labels, people), made.settings().compare, 0.9
    )
    draws = evaluation.draws[Endpoint("free", "auroc")]
    area = sk.roc_auc_score(labels, logits)
    # The delta method: the logit changes by 1 / (a (1 - a)) of what the area changes by.
    law = stats.t(
        evaluation.effective_patients - 1,
        loc=special.logit(area),
        scale=draws[1:].std() / (area * (1 - area)),
    )
    interval = evaluation.interval(Endpoint("free", "auroc"))
    assert interval.value == pytest.approx(area)
    assert (interval.low, interval.high) == pytest.approx(special.expit(law.ppf([0.025, 0.975])))
    assert interval.interval == "patient bootstrap, Student's t on logits"


def test_with_many_patients_the_interval_of_an_auroc_is_that_of_delong():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], [400, 300])
    logits = rng.normal(size=700) + 1.5 * labels
    settings = made.settings(compare={"resamples": 2000}).compare
    interval = intervals.evaluate(made.predictions(logits, labels), settings, 0.9).interval(
        Endpoint("free", "auroc")
    )
    above = logits[labels == 1][:, None] > logits[labels == 0]
    # DeLong 1988: each image's share of the others that it is ranked rightly against.
    variance = above.mean(axis=1).var(ddof=1) / 300 + above.mean(axis=0).var(ddof=1) / 400
    area = above.mean()
    half_width = 1.96 * np.sqrt(variance) / (area * (1 - area))
    expected = special.expit(special.logit(area) + np.array([-half_width, half_width]))
    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.002)


def test_an_auroc_of_1_is_bounded_by_the_patients_that_were_ranked():
    labels = np.repeat([0, 1], [30, 8])
    evaluation = intervals.evaluate(
        made.predictions(labels * 2.0 - 1, labels), made.settings().compare, 0.9
    )
    interval = evaluation.interval(Endpoint("free", "auroc"))
    assert interval.value == 1
    # Each of 8 patients stands above another patient of the other class: 8 of 8.
    expected = proportion_confint(8, 8, method="wilson")
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert interval.interval == "Wilson, 8 patients of the rarest class"


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


def test_where_one_patient_decides_there_is_a_value_and_no_interval():
    rng = np.random.default_rng(4)
    people = np.array([f"p{index // 3:02d}" for index in range(63)])
    labels = (people == "p20").astype(int)  # one patient with three positive images
    logits = rng.normal(size=63) + 1.0 * labels
    evaluation = intervals.evaluate(
        made.predictions(logits, labels, people), made.settings().compare, 0.9
    )
    assert evaluation.one_patient_decides
    for name in ("free.auroc", "raw.sensitivity", "raw.balanced_accuracy", "raw.brier", "raw.mcc"):
        number = evaluation.interval(Endpoint.parse(name))
        assert np.isfinite(number.value), name
        assert np.isnan([number.low, number.high]).all(), name
        assert number.interval == "none: one patient decides"
    # Of the twenty others enough is known, and of all 21 together.
    for name in ("raw.specificity", "raw.accuracy"):
        number = evaluation.interval(Endpoint.parse(name))
        assert number.low < number.value < number.high
    two = intervals.evaluate(
        made.predictions(logits, (people >= "p19").astype(int), people),
        made.settings().compare,
        0.9,
    )
    assert not two.one_patient_decides
    assert np.isfinite(two.interval(Endpoint("free", "auroc")).low)


def test_a_single_step_is_shown_from_20_images_in_every_fold_on():
    rng = np.random.default_rng(6)
    for fewest in (19, 20):
        counts = [(0, 30, 40), (1, fewest, 50)]
        fold = np.concatenate([np.full(own + other, number) for number, own, other in counts])
        labels = np.concatenate([np.repeat([1, 0], [own, other]) for _, own, other in counts])
        logits = rng.normal(size=len(labels)) + 1.0 * labels
        evaluation = intervals.evaluate(
            made.predictions(logits, labels, fold=fold), made.settings().compare, 0.9
        )
        ranks = evaluation.table()["free"]
        number = ranks["specificity_at_sensitivity"]
        if fewest == 19:
            assert (number.value, number.low, number.high) == (None, None, None)
            assert Endpoint("free", "specificity_at_sensitivity") not in evaluation.draws
            assert number.interval == (
                "none: a fold has 19 positives, 20 are needed to read a single step"
            )
            assert number.by_seed == []
        else:
            # False alarms are counted over the folds, each at its own threshold.
            by_fold = evaluation.by_fold[Endpoint("free", "specificity_at_sensitivity")]
            assert number.value == pytest.approx((40 * by_fold[0] + 50 * by_fold[1]) / 90)
            assert abs(by_fold[0] - by_fold[1]) > 0.01
        assert np.isfinite(ranks["mean_specificity_near_floor"].value)
        assert np.isfinite(ranks["sensitivity_at_specificity"].value)


def test_net_benefit_is_at_the_threshold_of_the_costs_in_every_row():
    logits, labels, people = noisy()
    settings = made.settings().compare
    scores = special.expit(logits)
    for cost_ratio in (1.0, 4.0):
        at = 1 / (1 + cost_ratio)
        alarms = scores >= at
        harm = at / (1 - at)
        expected = np.mean(alarms & (labels == 1)) - harm * np.mean(alarms & (labels == 0))
        for threshold in (0.2, 0.7):
            evaluation = intervals.evaluate(
                made.predictions(logits, labels, people, threshold=threshold),
                settings,
                0.9,
                cost_ratio=cost_ratio,
            )
            for point in ("raw", "locked"):
                number = evaluation.draws[Endpoint(point, "net_benefit")][0]
                assert number == pytest.approx(expected, abs=1e-6)


def test_resamples_in_which_a_metric_does_not_exist_are_counted():
    labels = np.array([1, 0, 0, 1, 0, 0])
    fold = np.array([0, 0, 0, 1, 1, 1])
    made_up = made.predictions(np.array([1, 0, 2, 1, 0, -1.0]), labels, fold=fold)
    settings = made.settings().compare
    _, drawn = patient_resamples(made_up.table["patient_id"].to_numpy(), labels, 200, settings.seed)
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
    names, drawn = patient_resamples(
        people, labels, 200, made.settings().compare.seed, at_large=True
    )
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
