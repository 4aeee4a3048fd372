"""What stands behind a verdict, against statsmodels, published values and counting by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from equipoise.compare import evidence
from equipoise.evaluation import intervals, patients
from fabricate import made

SETTINGS = made.settings()


def decided(right, labels):
    """Patients decided rightly or not, at both operating points."""
    logits = np.where(right, 1.0, -1.0) * np.where(np.asarray(labels) == 1, 1, -1)
    return made.predictions(logits, labels)


def counts_of(test):
    return [
        test.both_right,
        test.only_scenario_right,
        test.only_baseline_right,
        test.both_wrong,
    ]


def test_mcnemar_known_value_of_2_and_10_discordant_patients_of_one_class():
    labels = np.repeat([1, 0], [40, 30])
    mine, other = np.ones(70, bool), np.ones(70, bool)
    mine[:2], other[2:12], mine[20:23], other[20:23] = False, False, False, False
    mine[40:45] = False
    by_class = evidence.mcnemar(decided(mine, labels), decided(other, labels), "patients")["raw"]
    assert list(by_class) == ["clear", "opacity"]
    found = by_class["opacity"]
    assert found.class_name == "opacity"
    assert found.p_value == pytest.approx(0.038574, abs=5e-7)
    assert counts_of(found) == [25, 10, 2, 3]
    assert counts_of(by_class["clear"]) == [25, 0, 5, 0]
    assert by_class["clear"].p_value == pytest.approx(stats.binomtest(0, 5).pvalue)


def test_a_moved_threshold_gains_on_one_class_and_loses_on_the_other():
    """13 positives gained and 42 negatives lost: together p = 0.0001 would say that decisions got worse."""
    labels = np.repeat([1, 0], [60, 240])
    mine, other = np.ones(300, bool), np.ones(300, bool)
    other[:13], mine[60:102] = False, False
    found = evidence.mcnemar(decided(mine, labels), decided(other, labels), "patients")["raw"]
    gained, lost = found["opacity"], found["clear"]
    assert (gained.only_scenario_right, gained.only_baseline_right) == (13, 0)
    assert (lost.only_scenario_right, lost.only_baseline_right) == (0, 42)
    for test, discordant in ((gained, 13), (lost, 42)):
        assert test.p_value == pytest.approx(2 / 2**discordant)
    assert stats.binomtest(13, 55).pvalue < 0.001


def test_mcnemar_of_equal_decisions_is_1_and_counts_each_patient_once():
    labels = np.arange(10) % 2
    same = decided(np.ones(10, bool), labels)
    several = pd.concat(
        [same.table.assign(seed=seed, fold=fold) for seed in (0, 1) for fold in (0, 1)]
    )
    same = replace(same, table=several.reset_index(drop=True))
    for found in evidence.mcnemar(same, same, "patients")["locked"].values():
        assert (found.p_value, found.both_right, found.both_wrong) == (1, 5, 0)


def test_of_three_classes_each_is_tested_on_its_own_patients():
    labels = np.arange(30) % 3
    right, other = np.ones(30, bool), np.ones(30, bool)
    other[labels == 2] = False

    def given(right):
        decided_for = np.where(right, labels, (labels + 1) % 3)
        return made.predictions(3 * np.eye(3)[decided_for], labels, classes=("a", "b", "c"))

    found = evidence.mcnemar(given(right), given(other), "patients")["locked"]
    assert [counts_of(found[name]) for name in "abc"] == [
        [10, 0, 0, 0],
        [10, 0, 0, 0],
        [0, 10, 0, 0],
    ]


def test_where_every_patient_shows_every_class_no_patient_is_left_to_be_tested():
    """Of more than two classes a patient who shows several has no one class."""
    labels = np.arange(30) % 3
    people = np.array([f"p{index // 3}" for index in range(30)])
    images = made.predictions(3 * np.eye(3)[labels], labels, people, classes=("a", "b", "c"))
    nobody = patients.by_patient(images, "mean", SETTINGS.threshold, 0.9)
    assert not patients.of_every_class(nobody)
    assert nobody.meta["left_out"] == 10
    found = evidence.mcnemar(nobody, nobody, "patients")
    assert [counts_of(test) for test in found["locked"].values()] == [[0, 0, 0, 0]] * 3


def test_per_thousand_counts_what_changed_between_the_decisions():
    labels = np.array([1] * 20 + [0] * 80)
    before, after = (labels == 1).astype(float), (labels == 1).astype(float)
    before[:4] = 0  # 4 of 20 missed, then 1 of 20
    after[:1] = 0
    after[20:31] = 1  # and 11 false alarms
    kept = [made.predictions(np.where(given == 1, 2.0, -2.0), labels) for given in (after, before)]
    evaluations = [intervals.evaluate(given, SETTINGS.compare, 0.9) for given in kept]
    found = evidence.per_thousand(*evaluations, kept[0], "patients")["locked"]
    assert found.positives_per_1000 == pytest.approx(200)
    assert found.positives_found.value == pytest.approx(30)
    assert found.false_alarms.value == pytest.approx(110)
    assert found.false_alarms.low < 110 < found.false_alarms.high
    assert found.sentence.startswith(
        "Per 1,000 patients, 200 of them opacity, at the locked threshold: 30 more found (+"
    )
    back = evidence.per_thousand(*evaluations[::-1], kept[0], "patients")["raw"]
    assert ": 30 fewer found (" in back.sentence
    assert ", 110 fewer false alarms (-" in back.sentence
    same = evidence.per_thousand(evaluations[0], evaluations[0], kept[0], "images")["raw"].sentence
    assert same.endswith("at 0.5: as many found (+0 to +0), as many false alarms (+0 to +0).")


def decided_two():
    return decided(np.ones(6, bool), [0, 1, 0, 1, 0, 1])


def test_patients_of_no_discordance_at_one_point_only():
    labels = np.arange(12) % 2
    images = decided(np.ones(12, bool), labels)
    other = replace(images, table=images.table.assign(calibrated_opacity=0.9, calibrated_clear=0.1))
    mine, base = (
        patients.by_patient(given, "mean", SETTINGS.threshold, 0.9) for given in (images, other)
    )
    found = evidence.mcnemar(mine, base, "patients")
    assert [test.p_value for test in found["raw"].values()] == [1, 1]
    negatives = found["locked"]["clear"]
    assert (negatives.only_scenario_right, negatives.p_value) == (6, pytest.approx(2 / 2**6))
    assert found["locked"]["opacity"].p_value == 1
