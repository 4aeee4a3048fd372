"""From images to patients, against pandas and counting by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn import metrics as sk

from equipoise.evaluation import intervals, patients
from equipoise.evaluation.calibration import lock_threshold
from equipoise.evaluation.metrics import Endpoint
from fabricate import made

SETTINGS = made.settings()
RULE = SETTINGS.threshold


def result(seed=0, count=120, people=40, classes=2, mixed=False):
    """Val and test rows with one to several images per patient; p is within 0.02 and 0.98 where there are two."""
    rng = np.random.default_rng(seed)
    person = np.sort(rng.integers(people, size=count))
    labels = (person % classes) if not mixed else rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.1 * np.eye(classes)[labels]
    logits = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    names = tuple("abc"[:classes])
    part = np.where(person % 5 < 2, "val", "test")
    threshold = 0.4 if classes == 2 else np.nan
    return made.predictions(
        logits, labels, [f"p{own:02d}" for own in person], names, part=part, threshold=threshold
    )


def by_patient(predictions, rule, threshold=RULE, floor=0.9):
    return patients.by_patient(predictions, rule, threshold, floor)


def test_the_mean_rule_is_the_mean_image_logit_of_each_patient():
    images = result()
    own = by_patient(images, "mean").part("test").table.set_index("patient_id")
    test = images.part("test").table
    expected = expit(logit(test["prob_b"]).groupby(test["patient_id"]).mean())
    assert own["prob_b"].to_numpy() == pytest.approx(expected.loc[own.index].to_numpy(), abs=1e-9)
    assert (own["image_id"] == own.index).all()
    assert own["label"].to_dict() == test.groupby("patient_id")["label"].first().to_dict()


def test_the_max_rule_is_the_highest_probability_of_the_positive_class():
    images = result()
    images = replace(images, meta={**images.meta, "positive_class": "a"})
    own = by_patient(images, "max").part("test").table.set_index("patient_id")
    expected = images.part("test").table.groupby("patient_id")["prob_a"].max()
    assert own["prob_a"].to_dict() == pytest.approx(expected.to_dict())
    assert (own["prob_a"] + own["prob_b"]).to_numpy() == pytest.approx(1)


def test_the_vote_is_the_share_of_images_decided_positive_at_each_operating_point():
    images = result()
    own = by_patient(images, "vote").part("test").table.set_index("patient_id")
    test = images.part("test").table
    for kind, at in (("prob", 0.5), ("calibrated", 0.4)):
        expected = (test[f"{kind}_b"] >= at).groupby(test["patient_id"]).mean()
        assert own[f"{kind}_b"].to_dict() == pytest.approx(expected.to_dict())
    assert own["prob_b"].nunique() > 2
    by_cost = by_patient(
        images, "vote", RULE.model_copy(update={"rule": "cost", "cost_ratio": 9.0})
    )
    assert set(by_cost.table["threshold"]) == {0.5}, "a majority, a share of votes has no costs"


@pytest.mark.parametrize("rule", patients.RULES)
def test_the_threshold_is_locked_again_on_the_patients_of_val(rule):
    images = result(seed=3)
    twice = pd.concat(
        [images.table, images.table.assign(fold=1, calibrated_b=images.table["calibrated_b"] / 2)]
    )
    own = by_patient(replace(images, table=twice), rule).table
    for _, rows in own.groupby("fold"):
        val = rows[rows["part"] == "val"]
        expected = lock_threshold(
            val["calibrated_b"].to_numpy(), (val["label"] == 1).to_numpy(), RULE, 0.9
        )
        assert set(rows["threshold"]) == {expected}
        positives = val.loc[val["label"] == 1, "calibrated_b"]
        assert (positives >= expected).mean() >= 0.9


def test_without_val_the_threshold_of_the_images_stays():
    own = by_patient(result().part("test"), "mean")
    assert set(own.table["threshold"]) == {0.4}


def test_a_patient_with_images_of_both_classes_is_positive():
    images = result(mixed=True)
    own = by_patient(images, "mean")
    expected = images.table.groupby(["part", "patient_id"])["label"].max()
    assert own.table.set_index(["part", "patient_id"])["label"].to_dict() == expected.to_dict()
    assert own.meta["left_out"] == 0


def test_with_three_classes_patients_of_several_are_left_out_and_counted():
    images = result(classes=3, mixed=True)
    test = images.part("test").table
    classes = test.groupby("patient_id")["label"].nunique()
    for rule in patients.RULES:
        own = by_patient(images, rule)
        assert own.meta["left_out"] == (classes > 1).sum() > 0
        assert set(own.part("test").table["patient_id"]) == set(classes.index[classes == 1])
        assert own.table["threshold"].isna().all()
        assert own.probabilities("prob").sum(axis=1) == pytest.approx(1)


def test_every_metric_has_its_interval_on_patients_by_the_same_function():
    images = result(count=200, people=60)
    evaluation = intervals.evaluate(by_patient(images, "mean"), SETTINGS.compare, 0.9)
    test = images.part("test").table
    people = (
        test.assign(logit=logit(test["prob_b"]))
        .groupby("patient_id")
        .agg({"logit": "mean", "label": "max"})
    )
    assert evaluation.draws[Endpoint("free", "auroc")][0] == pytest.approx(
        sk.roc_auc_score(people["label"], people["logit"])
    )
    decided = people["logit"] >= 0
    assert evaluation.draws[Endpoint("raw", "mcc")][0] == pytest.approx(
        sk.matthews_corrcoef(people["label"], decided)
    )
    cell = evaluation.interval(Endpoint("locked", "sensitivity"))
    assert cell.wilson_low < cell.value <= cell.wilson_high


@pytest.mark.parametrize("rule", patients.RULES)
def test_of_patients_only_order_and_decisions_are_said(rule):
    """Their scores were calibrated as those of images: a Brier score or a slope of them would say nothing."""
    people = patients.measured_by_patient(
        result(count=200, people=60), rule, RULE, SETTINGS.compare, 0.9
    )
    level = people.level()
    assert list(level.free) == ["auroc"]
    decided = [
        "patient_recognition_rate",
        "sensitivity",
        "specificity",
        "precision",
        "negative_predictive_value",
    ]
    assert list(level.raw) == list(level.locked) == decided
    rows = people.predictions.part("test").table
    sensitivity = sk.recall_score(rows["label"], rows["calibrated_b"] >= rows["threshold"])
    assert level.locked["sensitivity"].value == pytest.approx(sensitivity)
    of_three = patients.measured_by_patient(result(classes=3), rule, RULE, SETTINGS.compare, 0.9)
    assert list(of_three.level().locked) == [
        "accuracy",
        "patient_recognition_rate",
        "balanced_accuracy",
    ]
