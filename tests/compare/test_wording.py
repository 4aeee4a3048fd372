"""Words for numbers: every verdict, the headline, promises, notes, and labels."""

import pytest

from equipoise.compare import wording
from equipoise.core.documents import CheckAnswer, ClassCount, Difference, PatientLevel
from equipoise.evaluation.metrics import Endpoint
from fabricate import comparisons, made

TESTED = {"opacity": 60, "clear": 240}
SHARED = wording.terms("AUROC", 0.01, wording.trained("kfold", "probe"), TESTED, units="patients")


def delta(value, low, high, detectable=0.018, wanted=195):
    """A difference with a standard error."""
    return Difference(
        value=value,
        low=low,
        high=high,
        p_adjusted=0.5,
        standard_error=(high - low) / 5.2,
        detectable=detectable,
        patients_to_settle=wanted,
    )


def rows_of(**deltas):
    """The baseline's row and a row for each scenario: its name -> (verdict, difference)."""
    rows = {"baseline": comparisons.row()}
    for name, (verdict, difference) in deltas.items():
        reason = wording.reason(name, verdict, difference, SHARED)
        rows[name] = comparisons.rival(verdict, difference, reason=reason)
    return rows


def counts(**patients):
    return {
        name: ClassCount(images=2 * number, patients=number, image_share=0.5)
        for name, number in patients.items()
    }


def comparison_of(winner="baseline", **deltas):
    """A comparison on one backbone, 60 + 240 patients in folds."""
    return comparisons.comparison(
        {made.BACKBONE: rows_of(**deltas)},
        winners={made.BACKBONE: winner},
        comparisons=len(deltas),
        scheme="kfold",
        test=counts(clear=240, opacity=60),
    )


BETTER = ("better", delta(0.021, 0.012, 0.03))
WORSE = ("worse", delta(-0.05, -0.08, -0.02))
SAME = ("equivalent", delta(-0.0004, -0.0009, 0.0002, detectable=0.0008, wanted=0.4))
UNSURE = ("inconclusive", delta(0.008, -0.004, 0.019))


@pytest.mark.parametrize(
    ("verdict", "difference", "sentence"),
    [
        (
            *BETTER,
            "focal is better than doing nothing: AUROC of classifiers trained on data of this size differs by "
            "+0.021, from +0.012 to +0.030 (margin 0.01). With these 60 opacity and 240 clear patients a difference of "
            "0.018 or more would be seen (80 % power); to see the margin would take about 200 opacity patients.",
        ),
        (
            "worse",
            delta(-0.0031, -0.0059, -0.0003, detectable=0.0037, wanted=8),
            "focal is worse than doing nothing, but by less than the margin: AUROC of classifiers trained on data of "
            "this size differs by -0.0031, from -0.0059 to -0.0003 (margin 0.01). With these 60 opacity and 240 clear "
            "patients a difference of 0.0037 or more would be seen (80 % power): enough for the margin.",
        ),
        (
            *SAME,
            "focal is equivalent to doing nothing: AUROC of classifiers trained on data of this size differs by "
            "-0.0004, at most from -0.0009 to +0.0002 (margin 0.01). With these 60 opacity and 240 clear patients a "
            "difference of 0.0008 or more would be seen (80 % power): enough for the margin.",
        ),
        (
            *UNSURE,
            "focal is inconclusive: AUROC of classifiers trained on data of this size differs by +0.008, from -0.004 "
            "to +0.019 (margin 0.01). With these 60 opacity and 240 clear patients a difference of 0.018 or more would "
            "be seen (80 % power); about 200 opacity patients would settle the question.",
        ),
        (
            "inconclusive",
            delta(0.006, -0.001, 0.013, detectable=0.0095, wanted=54),
            "focal is inconclusive: AUROC of classifiers trained on data of this size differs by +0.006, from -0.001 "
            "to +0.013 (margin 0.01). With these 60 opacity and 240 clear patients a difference of 0.0095 or more "
            "would be seen (80 % power); this one may be none or beyond the margin.",
        ),
        (
            "equivalent",
            Difference(value=0.0, low=0.0, high=0.0, standard_error=0.0, detectable=0.0),
            "focal is equivalent to doing nothing: AUROC of classifiers trained on data of this size does not differ "
            "at all (margin 0.01).",
        ),
    ],
)
def test_a_verdict_is_a_sentence_with_all_its_numbers(verdict, difference, sentence):
    assert wording.reason("focal", verdict, difference, SHARED) == sentence


def test_a_sentence_says_what_was_trained():
    one = wording.terms("AUROC", 0.01, wording.trained("holdout", "finetune"), TESTED, "images")
    sentence = wording.reason("focal", *UNSURE, one)
    assert "AUROC of networks of this one training set differs" in sentence
    assert sentence.endswith("about 200 opacity images would settle the question.")


def test_what_cannot_be_judged_says_why_and_gives_no_number():
    nothing = Difference(value=0.2, low=None, high=None)
    sentence = wording.reason(
        "focal", "inconclusive", nothing, SHARED, obstacle="one patient decides"
    )
    assert sentence == "focal cannot be judged: one patient decides."


def test_a_remedy_that_the_search_switched_off_is_said_to_be():
    off = wording.switched_off(10, 10)
    sentence = wording.reason("augment", *SAME, SHARED, switched_off=off)
    assert sentence.startswith(
        "augment (switched off by the search) is equivalent to doing nothing"
    )
    partly = wording.reason("augment", *SAME, SHARED, switched_off=wording.switched_off(3, 10))
    assert partly.startswith("augment (switched off by the search in 3 of 10 rounds) is")


def headline(broken=(), **deltas):
    return wording.headline(comparison_of(**deltas), broken)


def test_the_headline_counts_the_verdicts_and_names_the_better():
    assert headline() == "The baseline stands alone, so nothing was compared."
    assert headline(focal=SAME) == (
        "No remedy is better than doing nothing in AUROC; of 1 comparison: 1 equivalent."
    )
    assert headline(a=UNSURE, b=WORSE, c=BETTER, d=BETTER) == (
        "Better than doing nothing in AUROC: c on vgg16 and d on vgg16; of 4 comparisons: 2 better, 1 worse and 1 "
        "inconclusive."
    )


def test_the_headline_says_where_what_differs_does_not_matter():
    small = ("worse", delta(-0.002, -0.003, -0.001, detectable=0.001, wanted=2))
    assert headline(a=small, b=SAME).endswith(
        "of 2 comparisons: 1 worse (by less than the margin of 0.01) and 1 equivalent."
    )
    assert headline(a=small, b=WORSE).endswith(
        "of 2 comparisons: 2 worse (1 of them by less than the margin of 0.01)."
    )


WIDE = ("inconclusive", delta(0.01, -0.05, 0.07, detectable=0.083, wanted=4000))


def test_data_that_are_too_few_are_said_to_be_first():
    sentence = (
        "These data are too few to compare remedies: with 60 opacity and 240 clear patients only a difference of "
        "0.083 or more would be seen (80 % power)."
    )
    assert headline(a=WIDE).startswith(sentence)
    assert headline(a=WIDE, b=WIDE, c=SAME).startswith(sentence)
    # One remedy that varies widely says nothing about the data.
    assert "too few" not in headline(a=WIDE, b=UNSURE, c=UNSURE)
    # What every patient shows is not doubted for their number.
    assert "too few" not in headline(a=("better", delta(0.5, 0.3, 0.7, detectable=0.3)))
    lost = ("inconclusive", Difference(value=0.2, low=None, high=None))
    assert "too few to compare remedies: 60 opacity and 240 clear patients give no" in headline(
        a=lost
    )


def test_the_verdict_is_the_headline_and_a_sentence_for_each_rival():
    compared = comparison_of(a=SAME, b=WORSE).model_copy(update={"headline": "What counts."})
    first, *sentences = wording.verdict(compared)
    assert first == "What counts."
    assert [sentence.split()[0] for sentence in sentences] == ["a", "b"]
    two = comparisons.comparison(
        {"net0": rows_of(a=SAME), "net1": rows_of(a=WORSE)}, comparisons=2, headline="First."
    )
    assert [sentence.split(" is ")[0] for sentence in wording.verdict(two)] == [
        "First.",
        "net0: a",
        "net1: a",
    ]


# --- promises -------------------------------------------------------------------------------------


def of_sensitivity(images, patients=None, **fields):
    """A row whose locked threshold reaches these sensitivities."""
    decisions = {"sensitivity": comparisons.measured(images), "specificity": comparisons.measured()}
    row = comparisons.row(locked=decisions, **fields)
    if patients is None:
        return row
    level = PatientLevel(
        patients=30, left_out=0, locked={"sensitivity": comparisons.measured(patients)}
    )
    return row.model_copy(update={"patient": {"mean": level}})


def test_a_promise_is_broken_by_image_or_by_patient():
    rows = {
        "baseline": of_sensitivity(0.95, 0.86),
        "kept": of_sensitivity(0.9, 0.93),
        "focal": of_sensitivity(0.84),
        "as printed": of_sensitivity(0.8997),
    }
    compared = comparisons.comparison({"vgg16": rows})  # the floor is 0.9
    broken = wording.broken_promises(compared, "sensitivity_floor")
    assert [(item.scenario, item.units, item.reached.value) for item in broken] == [
        ("baseline", "patients", 0.86),
        ("focal", "images", 0.84),
    ]
    assert wording.broken_promises(compared, "youden") == []
    assert wording.headline(compared, broken).endswith(
        "The locked threshold misses the 90 % sensitivity it was chosen for on test: baseline on vgg16 finds 0.860 "
        "[0.760, 0.960] of patients; chance may explain it."
    )
    facts = wording.Facts(compared, {}, TUNE, broken)
    (note,) = wording.broken_thresholds(facts)
    assert (
        "focal on vgg16 finds 0.840 [0.740, 0.940] of images; chance may explain all of these."
        in note
    )


def test_a_miss_that_chance_does_not_explain_is_not_excused():
    rows = {"baseline": of_sensitivity(0.7), "focal": of_sensitivity(0.85)}
    compared = comparisons.comparison({"vgg16": rows})
    broken = wording.broken_promises(compared, "sensitivity_floor")
    assert wording.broken_words(broken, 0.9).endswith("of images; chance may explain 1 of these 2.")
    assert wording.broken_words(broken[:1], 0.9).endswith("finds 0.700 [0.600, 0.800] of images.")


TUNE = {"mode": "probe", "inner_folds": 3, "trials": 20, "l2_first": [0.01, 0.1, 1.0]}


def noted(note, comparison=None, choices=None, tune=TUNE):
    """What one note says, as a list of sentences."""
    choices = choices or {"focal (vgg16)": [comparisons.choice()]}
    facts = wording.Facts(comparison or comparisons.comparison(), choices, tune)
    return list(note(facts))


def test_of_an_ordinary_comparison_only_roles_and_intervals_are_said():
    choices = {"baseline (vgg16)": [comparisons.choice(identified=False)]}
    assert wording.notes(comparisons.comparison(), choices, TUNE) == [
        "Positive class: opacity. Majority: clear. Minority: opacity.",
        "Intervals resample the 30 test patients 200 times.",
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
            {"checks": [CheckAnswer(code="EQ006", answer="failed", detail="two pictures")]},
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
    checks = [CheckAnswer(code="EQ006", answer="passed", detail="no picture")]
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
    (sentence,) = noted(wording.kept_probes, choices=choices)
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
    (sentence,) = noted(wording.not_identified, choices=choices, tune={**TUNE, "trials": 3})
    assert sentence.startswith("Only published settings were tried")


def test_fewer_inner_folds_are_a_matter_of_the_probe():
    few = {"focal (vgg16)": [comparisons.choice(), comparisons.choice(inner_folds=2)]}
    assert noted(wording.fewer_inner_folds, choices=few) == [
        "A class has few train patients: inner folds fell from 3 to as few as 2."
    ]
    assert noted(wording.fewer_inner_folds) == []
    finetuned = {"mode": "finetune", "inner_folds": 3}
    assert noted(wording.fewer_inner_folds, choices=few, tune=finetuned) == []


def test_how_the_winner_was_chosen_is_said_where_one_is():
    assert noted(wording.winners_claim) == []
    (of_folds,) = noted(wording.winners_claim, comparison_of(winner="focal", focal=BETTER))
    assert of_folds.startswith("Of the better remedies the one that is better by most at least")
    one = comparison_of(winner="focal", focal=BETTER).model_copy(update={"scheme": "official"})
    (of_one_part,) = noted(wording.winners_claim, one)
    assert of_one_part.endswith("Test chose nothing and only reports.")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (Endpoint("free", "auroc"), "AUROC"),
        (Endpoint("raw", "sensitivity"), "sensitivity at 0.5"),
        (Endpoint("locked", "balanced_accuracy"), "balanced accuracy at the locked threshold"),
        (Endpoint("locked", "brier"), "Brier score of calibrated probabilities"),
        (Endpoint("free", "sensitivity_at_specificity"), "sensitivity at 90 % specificity"),
        (Endpoint("free", "specificity_at_sensitivity"), "specificity at 90 % sensitivity"),
        (
            Endpoint("free", "mean_specificity_near_floor"),
            "mean specificity at 85 to 100 % sensitivity",
        ),
        (Endpoint("locked", "net_benefit"), "net benefit of calibrated probabilities"),
    ],
)
def test_metric_labels(endpoint, words):
    assert wording.metric_label(endpoint, 0.9) == words


def test_of_more_than_two_classes_no_label_names_a_threshold():
    raw = wording.metric_label(Endpoint("raw", "f1"), 0.9, binary=False)
    locked = wording.metric_label(Endpoint("locked", "ece"), 0.9, binary=False)
    assert raw == "F1 by the largest raw probability"
    assert locked == "ECE of calibrated probabilities"
