"""Words for numbers: every verdict, the reasons, and labels."""

import pytest

from equipoise.compare import wording

UNCLEAR = wording.UNCLEAR


def comparison_of(**deltas):
    """Enough of a comparison for its sentences: scenario -> (value, low, high, p_holm, verdict)."""
    rows = {"baseline": {"verdict": "baseline", "reason": "", "inner_score": None}}
    for name, (value, low, high, p_holm, verdict) in deltas.items():
        delta = {"value": value, "low": low, "high": high, "p_holm": p_holm}
        reason = wording.reason(delta, verdict, len(deltas), 0.05)
        rows[name] = {
            "verdict": verdict,
            "reason": reason,
            "inner_score": 0.5,
            "delta": {"free.auroc": delta},
        }
    better = [name for name, row in rows.items() if row["verdict"] == "better"]
    winners = {"vgg16": better[0] if better else "baseline"}
    made_up = {
        "rows": {"vgg16": rows},
        "winners": winners,
        "primary": "free.auroc",
        "sensitivity_floor": 0.9,
    }
    return made_up | {"alpha": 0.05, "comparisons": len(deltas)}


@pytest.mark.parametrize(
    ("deltas", "sentence"),
    [
        ({}, "vgg16: the baseline stands alone, so nothing was compared."),
        (
            {"focal": (0.01, -0.02, 0.03, 0.4, UNCLEAR)},
            "vgg16: no remedy is clearly better than the baseline in AUROC, because the 95 % interval of the paired "
            "difference of focal includes 0 (-0.020 to +0.030).",
        ),
        (
            {"focal": (0.01, -0.02, 0.03, 0.4, UNCLEAR), "smote": (0, -0.01, 0.04, 0.4, UNCLEAR)},
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
            {
                "focal": (0.02, 0.01, 0.03, 0.004, "better"),
                "smote": (-0.1, -0.2, -0.05, 0.002, "worse"),
            },
            "vgg16: focal is better than the baseline in AUROC by +0.020: the 95 % interval of the paired difference, "
            "+0.010 to +0.030, excludes 0, and after Holm over 2 comparisons p = 0.004; worse: smote (-0.100).",
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
    rows = comparison_of(a=(0.1, 0.05, 0.2, 0.0001, "better"), b=(0.1, 0.01, 0.2, 0.07, UNCLEAR))[
        "rows"
    ]["vgg16"]
    assert rows["a"]["reason"].endswith("excludes 0, and after Holm over 2 comparisons p < 0.001")
    assert rows["b"]["reason"].endswith(
        "excludes 0 on its own, but after Holm over 2 comparisons p = 0.070"
    )


def several(*winners):
    """Comparisons of backbones, each with focal as its winner or with none."""
    parts = {}
    for number, winner in enumerate(winners):
        delta = (
            (0.02, 0.01, 0.03, 0.004, "better")
            if winner != "baseline"
            else (0.01, -0.02, 0.03, 0.4, wording.UNCLEAR)
        )
        parts[f"net{number}"] = comparison_of(focal=delta)["rows"]["vgg16"]
    whole = comparison_of(focal=(0, 0, 0, 1, wording.UNCLEAR)) | {
        "rows": parts,
        "comparisons": len(winners),
    }
    return wording.verdict(whole | {"winners": dict(zip(parts, winners))})


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
    first, *each = several(*winners)
    assert first == sentence
    assert [line.split(":")[0] for line in each] == [
        f"net{number}" for number in range(len(winners))
    ]
    assert "net0: focal is better by +0.020" in " ".join(each) or winners[0] == "baseline"
    assert (
        "net1: no remedy is clearly better, because" in " ".join(each) or winners[1] != "baseline"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("free.auroc", "AUROC"),
        ("raw.sensitivity", "sensitivity at 0.5"),
        ("locked.balanced_accuracy", "balanced accuracy at the locked threshold"),
        ("locked.brier", "Brier score at the locked threshold"),
        ("free.sensitivity_at_specificity", "sensitivity at 90 % specificity"),
    ],
)
def test_metric_labels(name, words):
    assert wording.metric_label(name, 0.9) == words


def test_of_more_than_two_classes_no_label_names_a_threshold():
    assert wording.metric_label("raw.f1", 0.9, binary=False) == "F1 by the largest raw probability"
    assert (
        wording.metric_label("locked.ece", 0.9, binary=False)
        == "ECE by the largest calibrated probability"
    )
