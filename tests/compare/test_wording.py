"""Words for numbers: every verdict, the reasons, the notes, the table, and labels."""

import pytest

from equipoise.compare import wording
from equipoise.core.documents import CheckAnswer, Difference
from equipoise.evaluation.metrics import Endpoint
from fabricate import comparisons, made

UNCLEAR = wording.UNCLEAR
#: value, low, high, p_holm, verdict
FOCAL_UNCLEAR = (0.01, -0.02, 0.03, 0.4, UNCLEAR)
FOCAL_BETTER = (0.02, 0.01, 0.03, 0.004, "better")


def rows_of(**deltas):
    """The baseline's row and a row for each scenario: its name -> (value, low, high, p_holm, verdict)."""
    rows = {"baseline": comparisons.row()}
    for name, (value, low, high, p_holm, verdict) in deltas.items():
        delta = Difference(value=value, low=low, high=high, p_holm=p_holm)
        reason = wording.reason(delta, verdict, len(deltas), alpha=0.05)
        rows[name] = comparisons.rival(verdict, delta, reason=reason)
    return rows


def comparison_of(**deltas):
    """A comparison on one backbone; the first better scenario wins."""
    rows = rows_of(**deltas)
    better = [name for name, row in rows.items() if row.verdict == "better"]
    winner = better[0] if better else "baseline"
    return comparisons.comparison(
        {made.BACKBONE: rows}, winners={made.BACKBONE: winner}, comparisons=len(deltas)
    )


@pytest.mark.parametrize(
    ("deltas", "sentence"),
    [
        ({}, "vgg16: the baseline stands alone, so nothing was compared."),
        (
            {"focal": FOCAL_UNCLEAR},
            "vgg16: no remedy is clearly better than the baseline in AUROC, because the 95 % interval of the paired "
            "difference of focal includes 0 (-0.020 to +0.030).",
        ),
        (
            {"focal": FOCAL_UNCLEAR, "smote": (0, -0.01, 0.04, 0.4, UNCLEAR)},
            "vgg16: no remedy is clearly better than the baseline in AUROC, because the 95 % interval of every paired "
            "difference includes 0 (all within -0.020 to +0.040).",
        ),
        (
            {
                "focal": (0.01, 0.001, 0.03, 0.08, UNCLEAR),
                "smote": (-0.1, -0.2, -0.05, 0.001, "worse"),
            },
            "vgg16: no remedy is clearly better than the baseline in AUROC; that of focal excludes 0 only before Holm "
            "over 2 comparisons; worse: smote (-0.100).",
        ),
        (
            {"focal": FOCAL_BETTER, "smote": (-0.1, -0.2, -0.05, 0.002, "worse")},
            "vgg16: focal is better than the baseline in AUROC by +0.020: the 95 % interval of the paired difference, "
            "+0.010 to +0.030, excludes 0, and after Holm over 2 comparisons p = 0.004; worse: smote (-0.100).",
        ),
        (
            {"focal": FOCAL_BETTER, "smote": (0.03, 0.01, 0.05, 0.002, "better")},
            "vgg16: focal is better than the baseline in AUROC by +0.020: the 95 % interval of the paired difference, "
            "+0.010 to +0.030, excludes 0, and after Holm over 2 comparisons p = 0.004; also better: smote (+0.030).",
        ),
        (
            {"smote": (-0.1, -0.2, -0.05, 0.0001, "worse")},
            "vgg16: no remedy is clearly better than the baseline in AUROC; worse: smote (-0.100).",
        ),
    ],
)
def test_the_verdict_says_what_and_why_in_every_case(deltas, sentence):
    assert wording.verdict(comparison_of(**deltas)) == [sentence]


def test_reasons_are_those_of_the_verdicts():
    rows = rows_of(a=(0.1, 0.05, 0.2, 0.0001, "better"), b=(0.1, 0.01, 0.2, 0.07, UNCLEAR))
    assert rows["a"].reason.endswith("excludes 0, and after Holm over 2 comparisons p < 0.001")
    assert rows["b"].reason.endswith(
        "excludes 0 on its own, but after Holm over 2 comparisons p = 0.070"
    )


def on_several_backbones(*winners):
    """A comparison on several backbones, each with focal as its winner or with none."""
    rows = {}
    for number, winner in enumerate(winners):
        focal = FOCAL_UNCLEAR if winner == "baseline" else FOCAL_BETTER
        rows[f"net{number}"] = rows_of(focal=focal)
    return comparisons.comparison(
        rows, winners=dict(zip(rows, winners)), challenger="net0", comparisons=len(winners)
    )


@pytest.mark.parametrize(
    ("winners", "sentence"),
    [
        (
            ["baseline"] * 2,
            "No remedy is clearly better than doing nothing on either backbone in AUROC.",
        ),
        (
            ["baseline"] * 3,
            "No remedy is clearly better than doing nothing on any of 3 backbones in AUROC.",
        ),
        (
            ["focal", "baseline", "baseline"],
            "Better than doing nothing in AUROC: focal on net0; no remedy is clearly better on net1 and net2.",
        ),
        (
            ["focal", "focal"],
            "Better than doing nothing in AUROC: focal on net0 and focal on net1.",
        ),
    ],
)
def test_over_several_backbones_one_sentence_comes_first(winners, sentence):
    first, *each = wording.verdict(on_several_backbones(*winners))
    assert first == sentence
    assert len(each) == len(winners)
    for number, (winner, own) in enumerate(zip(winners, each)):
        if winner == "focal":
            assert own.startswith(f"net{number}: focal is better by +0.020: ")
        else:
            assert own.startswith(f"net{number}: no remedy is clearly better, because ")


TUNE = {"mode": "probe", "inner_folds": 3}


def noted(note, comparison=None, choices=None, tune=TUNE):
    """What one note says, as a list of sentences."""
    choices = choices or {"focal (vgg16)": [comparisons.choice()]}
    facts = wording.Facts(comparison or comparisons.comparison(), choices, tune)
    return list(note(facts))


def test_of_an_ordinary_comparison_only_roles_and_intervals_are_said():
    choices = {"baseline (vgg16)": [comparisons.choice(identified=False)]}
    assert wording.notes(comparisons.comparison(), choices, TUNE) == [
        "Positive class: opacity. Majority: clear. Minority: opacity.",
        "Intervals resample the 30 test patients 200 times; test decided the choice of the winner, so its own number "
        "is optimistic.",
    ]


def test_without_a_positive_class_or_a_minority_the_roles_say_so():
    equal = comparisons.comparison(classes=["a", "b", "c"], minority_classes=[])
    assert noted(wording.roles, equal) == [
        "Majority: clear. Minority: none, the classes are equal."
    ]


@pytest.mark.parametrize(
    ("note", "fields", "beginning"),
    [
        (wording.intervals, {"units": "images"}, "Intervals resample the 40 test images 200 times"),
        (wording.no_patient_ids, {"units": "images"}, "These data carry no patient ids"),
        (
            wording.positive_majority,
            {"majority_class": "opacity"},
            "The positive class is the majority",
        ),
        (
            wording.random_weights,
            {"weights": {"vgg16": "random", "densenet201": "imagenet"}},
            "The weights of vgg16 are random, not ImageNet's",
        ),
        (
            wording.findings,
            {"checks": [CheckAnswer(code="EQ006", answer="finding", detail="two pictures")]},
            "EQ006: one picture under two classes: two pictures.",
        ),
    ],
)
def test_a_note_speaks_where_it_applies_and_else_is_silent(note, fields, beginning):
    (sentence,) = noted(note, comparisons.comparison(**fields))
    assert sentence.startswith(beginning)
    if note is not wording.intervals:
        assert noted(note) == []


def test_a_check_without_a_finding_is_no_note():
    checks = [CheckAnswer(code="EQ006", answer="none", detail="no picture")]
    assert noted(wording.findings, comparisons.comparison(checks=checks)) == []


def test_lost_resamples_and_seeds_without_effect_are_read_off_the_rows():
    focal = comparisons.row(
        free={"auroc": comparisons.measured(degenerate=7)}, seed_has_effect=False
    )
    compared = comparisons.comparison({"vgg16": {"baseline": comparisons.row(), "focal": focal}})
    (lost,) = noted(wording.lost_resamples, compared)
    assert lost.startswith("In 7 of 200 resamples a class is absent")
    (still,) = noted(wording.seed_without_effect, compared)
    assert still.startswith("The seed has no effect on focal:")
    assert noted(wording.lost_resamples) == []
    assert noted(wording.seed_without_effect) == []


def test_fine_tuning_that_kept_its_start_is_said_when_every_round_did():
    choices = {
        "focal (vgg16)": [comparisons.choice(kept_step=0), comparisons.choice(kept_step=0)],
        "smote (vgg16)": [comparisons.choice(kept_step=0), comparisons.choice(kept_step=40)],
        "a probe": [comparisons.choice()],
    }
    (sentence,) = noted(wording.kept_starting_weights, choices=choices)
    assert sentence.endswith("in every round of focal (vgg16).")


def test_identity_calibration_names_those_it_concerns_and_every_reason_once():
    choices = {
        "baseline (vgg16)": [comparisons.choice("few patients"), comparisons.choice()],
        "focal (vgg16)": [comparisons.choice("few patients"), comparisons.choice("no spread")],
    }
    assert noted(wording.identity_calibration, choices=choices) == [
        "Calibration is the identity for every scenario: few patients.",
        "Calibration is the identity for focal (vgg16): no spread.",
    ]


def test_a_parameter_is_not_identified_when_no_round_identified_it():
    vague = comparisons.choice(identified=False)
    choices = {
        "smote (vgg16)": [vague, vague],
        "focal (vgg16)": [vague],
        "class_weight (vgg16)": [vague, comparisons.choice()],
        "baseline (vgg16)": [vague],
    }
    (sentence,) = noted(wording.not_identified, choices=choices)
    assert sentence.endswith("settings are kept: focal (vgg16), smote (vgg16).")


def test_fewer_inner_folds_are_a_matter_of_the_probe():
    few = {"focal (vgg16)": [comparisons.choice(), comparisons.choice(inner_folds=2)]}
    assert noted(wording.fewer_inner_folds, choices=few) == [
        "A class has few train patients: inner folds fell from 3 to as few as 2."
    ]
    assert noted(wording.fewer_inner_folds) == []
    finetuned = {"mode": "finetune", "inner_folds": 3}
    assert noted(wording.fewer_inner_folds, choices=few, tune=finetuned) == []


def test_the_table_has_a_column_for_each_endpoint_once():
    compared = comparison_of(focal=FOCAL_BETTER)
    title, heads, baseline, focal = wording.table(compared).splitlines()
    assert title == "made, vgg16 (* the winner; difference in AUROC, p after Holm)"
    assert heads.split("  ")[0] == "scenario"
    assert heads.count("AUROC") == 1
    for head in ("sens @0.5", "spec @0.5", "sens locked", "spec locked"):
        assert head in heads
    assert baseline.split() == ["baseline", *["0.800", "[0.700,", "0.900]"] * 5, "-", "baseline"]
    assert focal.endswith("+0.020 [+0.010, +0.030] p=0.004  better *")


def test_a_number_that_does_not_exist_is_a_dash_in_the_table():
    nothing = comparisons.measured(value=float("nan"), low=None, high=None)
    alone = {"vgg16": {"baseline": comparisons.row(free={"auroc": nothing})}}
    *_, baseline = wording.table(comparisons.comparison(alone)).splitlines()
    assert baseline.split()[1:4] == ["-", "[-,", "-]"]


def test_without_patient_ids_the_table_says_so():
    title, *_ = wording.table(comparisons.comparison(units="images")).splitlines()
    assert title.endswith("p after Holm; intervals are per image: there are no patient ids)")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (Endpoint("free", "auroc"), "AUROC"),
        (Endpoint("raw", "sensitivity"), "sensitivity at 0.5"),
        (Endpoint("locked", "balanced_accuracy"), "balanced accuracy at the locked threshold"),
        (Endpoint("locked", "brier"), "Brier score at the locked threshold"),
        (Endpoint("free", "sensitivity_at_specificity"), "sensitivity at 90 % specificity"),
        (Endpoint("free", "specificity_at_sensitivity"), "specificity at 90 % sensitivity"),
    ],
)
def test_metric_labels(endpoint, words):
    assert wording.metric_label(endpoint, 0.9) == words


def test_of_more_than_two_classes_no_label_names_a_threshold():
    raw = wording.metric_label(Endpoint("raw", "f1"), 0.9, binary=False)
    locked = wording.metric_label(Endpoint("locked", "ece"), 0.9, binary=False)
    assert raw == "F1 by the largest raw probability"
    assert locked == "ECE by the largest calibrated probability"
