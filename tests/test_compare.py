"""Paired differences, Holm, verdicts and winners on fabricated results."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

import made
from equipoise import compare, config, metrics, records, splits
from equipoise.errors import ConfigError, DataError

PRIMARY = "free.specificity_at_sensitivity"
SCENARIOS = ["baseline", "oversample", "undersample", "class_weight", "augment"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(folder, scenarios=SCENARIOS, patients=(90, 60), **changes):
    changes.setdefault("run", {"scenarios": list(scenarios)})
    return made.study(folder, patients=patients, **changes)


def write(study, **strengths):
    """Fabricate a result for every scenario; those not named are like the baseline."""
    for scenario in study.scenarios:
        strength, inner_score = strengths.get(scenario, (1.0, 0.5))
        made.result(study, scenario, strength, inner_score)
    return study


def test_identical_predictions_show_no_clear_difference_and_the_baseline_wins(folder):
    comparison, _ = compare.run(write(study(folder), oversample=(1.0, 0.9)))
    rows = comparison["rows"][made.BACKBONE]
    for scenario in SCENARIOS[1:]:
        assert rows[scenario]["verdict"] == "no clear difference"
        for delta in rows[scenario]["delta"].values():
            assert (delta["value"], delta["low"], delta["high"], delta["p_value"]) == (0, 0, 0, 1)
    assert rows["baseline"]["verdict"] == "baseline"
    assert "delta" not in rows["baseline"]
    assert comparison["winners"] == {made.BACKBONE: "baseline"}
    assert "no remedy is clearly better than the baseline" in comparison["verdict"]


def test_a_clearly_better_scenario_is_better_and_wins(folder):
    comparison, _ = compare.run(write(study(folder), oversample=(5.0, 0.9), augment=(0.0, 0.99)))
    rows = comparison["rows"][made.BACKBONE]
    assert rows["oversample"]["verdict"] == "better"
    assert rows["augment"]["verdict"] == "worse"
    delta = rows["oversample"]["delta"][PRIMARY]
    assert 0 < delta["low"] <= delta["value"] <= delta["high"]
    assert delta["p_value"] == pytest.approx(2 / 201), "never 0: the estimate counts as one resample"
    assert comparison["winners"][made.BACKBONE] == "oversample", "a worse scenario cannot win by its inner score"
    assert comparison["verdict"].startswith(f"{made.BACKBONE}: oversample is better than the baseline in specificity")
    assert records.read_json(folder / "reports/made/comparison.json") == comparison


def test_among_better_scenarios_the_best_inner_score_wins_not_the_best_on_test(folder):
    strengths = {"oversample": (4.0, 0.7), "class_weight": (6.0, 0.6)}
    comparison, _ = compare.run(write(study(folder), **strengths))
    rows = comparison["rows"][made.BACKBONE]
    assert rows["oversample"]["verdict"] == rows["class_weight"]["verdict"] == "better"
    assert comparison["winners"][made.BACKBONE] == "oversample"


def test_a_worse_scenario_is_named_in_the_verdict(folder):
    comparison, _ = compare.run(write(study(folder), undersample=(-1.0, 0.5)))
    assert comparison["winners"][made.BACKBONE] == "baseline"
    assert comparison["verdict"].endswith("undersample is worse.")


def test_a_metric_that_should_be_small_turns_the_verdict_round(folder):
    made_up = study(folder, compare={"primary": "brier"})
    comparison, _ = compare.run(write(made_up, oversample=(5.0, 0.1), augment=(-1.0, 0.3)))
    assert comparison["primary"] == "locked.brier"
    rows = comparison["rows"][made.BACKBONE]
    assert rows["oversample"]["delta"]["locked.brier"]["value"] < 0
    assert rows["oversample"]["verdict"] == "better"
    assert rows["augment"]["verdict"] == "worse"


def test_of_inner_scores_that_should_be_small_the_smallest_wins(folder):
    made_up = study(folder, tune={"objective": "brier"})
    comparison, _ = compare.run(write(made_up, oversample=(5.0, 0.10), augment=(5.0, 0.20)))
    rows = comparison["rows"][made.BACKBONE]
    assert rows["oversample"]["verdict"] == rows["augment"]["verdict"] == "better"
    assert comparison["winners"][made.BACKBONE] == "oversample"


def test_deltas_are_differences_of_estimates_over_the_same_resamples(folder):
    made_up = write(study(folder), oversample=(1.6, 0.5))
    comparison, results = compare.run(made_up)
    rows = comparison["rows"][made.BACKBONE]
    first, other = results[0], results[1]
    assert (first.scenario, other.scenario) == ("baseline", "oversample")
    for name, delta in rows["oversample"]["delta"].items():
        point, metric = name.split(".")
        values = [rows[scenario][point][metric]["value"] for scenario in ("oversample", "baseline")]
        assert delta["value"] == pytest.approx(values[0] - values[1]), name
    test = [result.predictions.part("test") for result in (other, first)]
    scores = [roc_auc_score(part.table["label"], part.table["prob_opacity"]) for part in test]
    auroc = rows["oversample"]["delta"]["free.auroc"]
    assert auroc["value"] == pytest.approx(scores[0] - scores[1])
    # By hand: the same drawn patients for both models.
    table = test[0].table
    names, drawn = metrics.patient_resamples(table["patient_id"].to_numpy(), table["label"].to_numpy(), 200, 11)
    weights = drawn[:, np.searchsorted(names, table["patient_id"])]
    draws = [
        [roc_auc_score(part.table["label"], part.table["prob_opacity"], sample_weight=row) for row in weights[1:]]
        for part in test
    ]
    differences = np.subtract(*draws)
    assert (auroc["low"], auroc["high"]) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=1e-6)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    assert auroc["p_value"] == pytest.approx(min(1, 2 * (tail + 1) / 201))


def test_pairing_makes_the_interval_of_the_difference_narrower(folder):
    comparison, _ = compare.run(write(study(folder), oversample=(1.2, 0.5)))
    rows = comparison["rows"][made.BACKBONE]
    delta = rows["oversample"]["delta"]["free.auroc"]
    single = rows["baseline"]["free"]["auroc"]
    assert delta["high"] - delta["low"] < 0.5 * (single["high"] - single["low"])


def test_holm_equals_statsmodels_over_scenarios_and_backbones(folder):
    made_up = study(folder, run={"scenarios": SCENARIOS[:3], "backbones": ["vgg16", "densenet201"]})
    for backbone, strengths in (("vgg16", (1.0, 1.4, 0.8)), ("densenet201", (1.1, 1.2, 1.9))):
        for scenario, strength in zip(SCENARIOS, strengths):
            made.result(made_up, scenario, strength, backbone=backbone)
    comparison, _ = compare.run(made_up)
    deltas = [row["delta"][PRIMARY] for rows in comparison["rows"].values() for row in rows.values() if "delta" in row]
    raw = [delta["p_value"] for delta in deltas]
    assert len(set(raw)) > 2
    assert [delta["p_holm"] for delta in deltas] == pytest.approx(multipletests(raw, method="holm")[1])
    assert set(comparison["winners"]) == {"vgg16", "densenet201"}


def test_holm_known_values(folder, monkeypatch):
    made_up = write(study(folder))
    results = compare.read_results(made_up)
    given = dict(zip(SCENARIOS[1:], (0.01, 0.04, 0.03, 0.005)))
    monkeypatch.setattr(
        compare,
        "_delta",
        lambda result, *rest: {"value": 0.1, "low": 0.0, "high": 0.2, "p_value": given[result.scenario]},
    )
    comparison = compare.compare(made_up, results, compare.control(made_up, results))
    rows = comparison["rows"][made.BACKBONE]
    found = [rows[scenario]["delta"][PRIMARY]["p_holm"] for scenario in SCENARIOS[1:]]
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [rows[scenario]["verdict"] for scenario in SCENARIOS[1:]] == [
        *("better", "no clear difference", "no clear difference", "better")
    ]


def test_the_challenger_is_the_winner_with_the_best_inner_score(folder):
    made_up = study(folder, run={"scenarios": ["baseline", "oversample"], "backbones": ["vgg16", "densenet201"]})
    for backbone, score in (("vgg16", 0.6), ("densenet201", 0.7)):
        made.result(made_up, "baseline", inner_score=score, backbone=backbone)
        made.result(made_up, "oversample", inner_score=0.99, backbone=backbone)
    comparison, _ = compare.run(made_up)
    assert comparison["winners"] == {"vgg16": "baseline", "densenet201": "baseline"}
    assert comparison["challenger"] == "densenet201"


def test_the_same_results_give_the_same_bytes(folder):
    made_up = write(study(folder), oversample=(2.0, 0.6))
    first = compare.run(made_up)[0]
    before = (folder / "reports/made/comparison.json").read_bytes()
    compare.run(made_up)
    assert (folder / "reports/made/comparison.json").read_bytes() == before
    write(made_up, oversample=(2.1, 0.6))
    assert compare.run(made_up)[0]["digest"] != first["digest"]


def rewrite(folder, change):
    """Change the predictions of a result in place."""
    path = folder / "predictions.parquet"
    predictions = change(records.Predictions.read(path))
    predictions.write(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda p: dataclasses.replace(p, table=p.table.drop(p.table.index[p.table["part"] == "test"][0])),
            "test rows",
        ),
        (lambda p: dataclasses.replace(p, table=p.table.assign(patient_id="x" + p.table["patient_id"])), "test rows"),
        (lambda p: dataclasses.replace(p, table=p.table.assign(fold=1)), "test rows"),
        (
            lambda p: records.Predictions(
                p.table.rename(columns=lambda name: name.replace("opacity", "shadow")),
                {"classes": ["clear", "shadow"], "positive_class": "shadow"},
            ),
            "classes: ",
        ),
        (lambda p: records.Predictions(p.table, {**p.meta, "positive_class": "clear"}), "test rows"),
    ],
    ids=["a row less", "other patients", "other folds", "other classes", "other positive class"],
)
def test_unlike_results_are_refused_with_what_differs(folder, change, what):
    made_up = write(study(folder, ["baseline", "oversample"]))
    rewrite(made_up.result_path(made.BACKBONE, "oversample"), change)
    with pytest.raises(DataError, match=f"vgg16/baseline and vgg16/oversample differ in their {what}"):
        compare.run(made_up)
    assert not (folder / "reports/made/comparison.json").exists()


def test_another_positive_class_is_named(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    path = made_up.result_path(made.BACKBONE, "oversample") / "metrics.json"
    records.write_json(path, {**records.read_json(path), "positive_class": "clear"})
    with pytest.raises(DataError, match="differ in their positive class: opacity and clear"):
        compare.run(made_up)


def test_other_rows_than_those_of_test_do_not_matter(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    rewrite(
        made_up.result_path(made.BACKBONE, "oversample"),
        lambda p: dataclasses.replace(p, table=p.table[p.table["part"] == "test"]),
    )
    assert compare.run(made_up)[0]["winners"][made.BACKBONE] == "baseline"


def test_a_missing_result_is_refused_with_the_command(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    shutil.rmtree(made_up.result_path(made.BACKBONE, "oversample"))
    with pytest.raises(DataError, match="--study made --backbone vgg16 --scenario oversample"):
        compare.run(made_up)


def test_without_the_baseline_nothing_is_compared(folder):
    made_up = write(study(folder, ["oversample", "augment"]))
    with pytest.raises(ConfigError, match=r"lacks the baseline.*Add `baseline`"):
        compare.run(made_up)


def test_the_baseline_alone_is_a_comparison_of_nothing(folder):
    comparison, _ = compare.run(write(study(folder, ["baseline"])))
    assert comparison["winners"] == {made.BACKBONE: "baseline"}
    assert "no clear" not in compare.table_text(comparison)


def test_unknown_names_are_refused(folder):
    made_up = write(study(folder))
    for changes in ({"scenarios": ["baseline", "oversampel"]}, {"backbones": ["vgg61"]}):
        values = made.params(run={"scenarios": ["baseline"], **changes})
        with pytest.raises(ConfigError, match=r"Did you mean '(oversample|vgg16)'"):
            compare.run(config.load_study("made", values))
    values = made.params(run={"scenarios": ["baseline"]}, compare={"primary": "aurok"})
    results = compare.read_results(made_up)
    controlled = compare.control(made_up, results)
    with pytest.raises(ConfigError, match="Did you mean 'auroc'"):
        compare.compare(config.load_study("made", values), results, controlled)


THREE = {"patients": (60, 40, 35), "classes": ("a", "b", "c"), "tune": {"objective": "auroc"}}


def test_three_classes_compare_by_auroc_and_not_by_specificity(folder):
    made_up = study(folder, ["baseline", "oversample"], compare={"primary": "auroc"}, **THREE)
    comparison, _ = compare.run(write(made_up, oversample=(4.0, 0.9)))
    assert comparison["primary"] == "free.auroc"
    assert comparison["rows"][made.BACKBONE]["oversample"]["verdict"] == "better"
    assert "balanced accuracy" in compare.table_text(comparison)
    wrong = config.load_study("made", made.params(run={"scenarios": ["baseline"]}))
    with pytest.raises(ConfigError, match="specificity_at_sensitivity, which does not exist"):
        compare.run(wrong)


def test_shared_patients_of_official_sides_forbid_registration(folder):
    made_up = study(folder, ["baseline"], split={"scheme": "official"}, official_overlap=2)
    comparison, _ = compare.run(write(made_up))
    assert comparison["registrable"] is False
    assert any("EQ-OFFICIAL" in note for note in comparison["notes"])
    own = config.load_study("made", made.params(run={"scenarios": ["baseline"]}))
    splits.run(own)
    write(own)
    assert compare.run(own)[0]["registrable"] is True


def test_notes_tell_what_a_reader_must_know(folder):
    made_up = study(folder, ["baseline", "oversample"], patients=(40, 70))
    write(made_up)
    for scenario in made_up.scenarios:
        folder_of = made_up.result_path(made.BACKBONE, scenario)
        summary, best = (records.read_json(folder_of / name) for name in ("metrics.json", "best.json"))
        records.write_json(folder_of / "metrics.json", {**summary, "seed_has_effect": scenario != "baseline"})
        best[0]["calibrator"]["reason"] = "val has 1 patient(s) of the rarest class, 10 are needed"
        records.write_json(folder_of / "best.json", best)
    notes = " ".join(compare.run(made_up)[0]["notes"])
    assert "The positive class is the majority" in notes
    assert "The weights of vgg16 are random" in notes
    assert "The seed has no effect on baseline:" in notes
    assert "Calibration is the identity for every scenario: val has 1 patient(s)" in notes
    assert "not identified by these data, so published settings are kept: oversample (vgg16)" in notes


def test_table_text_has_a_line_for_every_scenario_and_marks_the_winner(folder):
    comparison, _ = compare.run(write(study(folder), oversample=(5.0, 0.9)))
    lines = compare.table_text(comparison).splitlines()
    rows = comparison["rows"][made.BACKBONE]
    assert lines[0].startswith("made, vgg16 (* the winner; difference in specificity at 90 % sensitivity")
    assert [line.split()[0] for line in lines[1:] if line] == ["scenario", *SCENARIOS]
    better = next(line for line in lines if line.startswith("oversample"))
    assert better.endswith("better *")
    assert sum(line.endswith("*") for line in lines) == 1
    auroc = rows["oversample"]["free"]["auroc"]
    assert f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]" in better
    assert f"p={rows['oversample']['delta'][PRIMARY]['p_holm']:.3f}" in better


def test_the_distribution_adds_up_to_the_manifest(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    table = pd.DataFrame(compare.distribution(compare.read_results(made_up)))
    assert list(table["stage"].unique()) == ["all", "train", "val", "test", "plan: baseline", "plan: oversample"]
    images = table.groupby("stage")["images"].sum()
    assert images["all"] == images["train"] + images["val"] + images["test"]
    assert images["all"] == len(records.Manifest.read(made_up.manifest_path).table)
    whole = table[table["stage"] == "all"]
    assert whole["imbalance_ratio"].iloc[0] == pytest.approx(whole["images"].max() / whole["images"].min(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("free.auroc", "AUROC"),
        ("raw.sensitivity", "sensitivity at 0.5"),
        ("locked.balanced_accuracy", "balanced accuracy at the locked threshold"),
        ("locked.brier", "Brier score at the locked threshold"),
    ],
)
def test_metric_labels(name, words):
    assert compare.metric_label(name, 0.9) == words
