"""Paired differences, Holm, verdicts and winners on fabricated results."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from equipoise.compare import paired, wording
from equipoise.compare import results as results_
from equipoise.compare import stage as compare
from equipoise.compare.evidence import RowEvidence
from equipoise.core import config, records
from equipoise.core import files as files_
from equipoise.core.documents import Comparison
from equipoise.core.errors import ConfigError, DataError
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint
from equipoise.split import stage as splits
from fabricate import made

PRIMARY = "free.specificity_at_sensitivity"
SCENARIOS = ["baseline", "oversample", "undersample", "class_weight", "augment"]


AUROC = Endpoint("free", "auroc")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing_behind(results, manifest, conditions):
    return {result.key: RowEvidence() for result in results}


def run(study):
    """Verdicts alone: most of a comparison's time goes into what stands behind them."""
    return compare.run(study, evidence=nothing_behind)


def study(folder, scenarios=SCENARIOS, patients=(90, 60), **changes):
    changes.setdefault("run", {"scenarios": list(scenarios)})
    changes.setdefault("compare", {"resamples": 1000})  # with few, no p can pass Holm
    return made.study(folder, patients=patients, **changes)


def again(*scenarios):
    """The study of the working folder, with the settings of `made` alone."""
    return config.load_study(
        "made", made.params(run={"scenarios": list(scenarios)}, compare={"resamples": 1000})
    )


def table(comparison):
    """The printed table."""
    return wording.table(comparison)


def of_few(p_value, result):
    """The p of a percentile bootstrap made to fit the expanded interval: Student's tail for the normal one."""
    patients = result.evaluation.effective_patients
    shrunk = np.sqrt((patients - 1) / patients) * stats.norm.ppf(p_value / 2)
    return 2 * stats.t.cdf(shrunk, patients - 1)


def write(study, **strengths):
    """Fabricate a result for every scenario; those not named are like the baseline."""
    for scenario in study.scenarios:
        strength, inner_score = strengths.get(scenario, (1.0, 0.5))
        made.result(study, scenario, strength, inner_score)
    return study


def test_identical_predictions_show_no_clear_difference_and_the_baseline_wins(folder):
    comparison, _ = run(write(study(folder), oversample=(1.0, 0.9)))
    rows = comparison.rows[made.BACKBONE]
    for scenario in SCENARIOS[1:]:
        assert rows[scenario].verdict == "no clear difference"
        for delta in rows[scenario].delta.values():
            assert (delta.value, delta.low, delta.high, delta.p_value) == (0, 0, 0, 1)
    assert rows["baseline"].verdict == "baseline"
    assert "delta" not in rows["baseline"].as_dict()
    assert comparison.winners == {made.BACKBONE: "baseline"}
    assert "no remedy is clearly better than the baseline" in comparison.verdict


def test_a_clearly_better_scenario_is_better_and_wins(folder):
    comparison, results = run(write(study(folder), oversample=(5.0, 0.9), augment=(0.0, 0.99)))
    rows = comparison.rows[made.BACKBONE]
    assert rows["oversample"].verdict == "better"
    assert rows["augment"].verdict == "worse"
    delta = rows["oversample"].delta[PRIMARY]
    assert 0 < delta.low <= delta.value <= delta.high
    assert delta.p_value == pytest.approx(of_few(2 / 1001, results[0])), (
        "never 0: the estimate is a resample too"
    )
    assert comparison.winners[made.BACKBONE] == "oversample", (
        "a worse scenario cannot win by its inner score"
    )
    assert comparison.verdict.startswith(
        f"{made.BACKBONE}: oversample is better than the baseline in specificity"
    )
    assert Comparison.read(folder / "reports/made/evidence.json") == comparison


def test_among_better_scenarios_the_best_inner_score_wins_not_the_best_on_test(folder):
    strengths = {"oversample": (4.0, 0.7), "class_weight": (6.0, 0.6)}
    comparison, _ = run(write(study(folder), **strengths))
    rows = comparison.rows[made.BACKBONE]
    assert rows["oversample"].verdict == rows["class_weight"].verdict == "better"
    assert comparison.winners[made.BACKBONE] == "oversample"


def test_a_worse_scenario_is_named_in_the_verdict(folder):
    comparison, _ = run(write(study(folder), undersample=(-1.0, 0.5)))
    assert comparison.winners[made.BACKBONE] == "baseline"
    assert "; worse: undersample (-" in comparison.verdict


def test_a_metric_that_should_be_small_turns_the_verdict_round(folder):
    made_up = study(folder, compare={"primary": "brier", "resamples": 1000})
    comparison, _ = run(write(made_up, oversample=(5.0, 0.1), augment=(-1.0, 0.3)))
    assert comparison.primary == "locked.brier"
    rows = comparison.rows[made.BACKBONE]
    assert rows["oversample"].delta["locked.brier"].value < 0
    assert rows["oversample"].verdict == "better"
    assert rows["augment"].verdict == "worse"


def test_of_inner_scores_that_should_be_small_the_smallest_wins(folder):
    made_up = study(folder, tune={"objective": "brier"})
    comparison, _ = run(write(made_up, oversample=(5.0, 0.10), augment=(5.0, 0.20)))
    rows = comparison.rows[made.BACKBONE]
    assert rows["oversample"].verdict == rows["augment"].verdict == "better"
    assert comparison.winners[made.BACKBONE] == "oversample"


def test_deltas_are_differences_of_estimates_over_the_same_resamples(folder):
    made_up = write(study(folder, compare={"resamples": 200}), oversample=(1.6, 0.5))
    comparison, results = run(made_up)
    rows = comparison.rows[made.BACKBONE]
    first, other = results[0], results[1]
    assert (first.scenario, other.scenario) == ("baseline", "oversample")
    for name, delta in rows["oversample"].delta.items():
        point, metric = name.split(".")
        values = [
            rows[scenario].point(point)[metric].value for scenario in ("oversample", "baseline")
        ]
        assert delta.value == pytest.approx(values[0] - values[1]), name
    test = [result.predictions.part("test") for result in (other, first)]
    scores = [roc_auc_score(part.table["label"], part.table["prob_opacity"]) for part in test]
    auroc = rows["oversample"].delta["free.auroc"]
    assert auroc.value == pytest.approx(scores[0] - scores[1])
    # By hand: the same drawn patients for both models.
    table = test[0].table
    names, drawn = intervals.patient_resamples(
        table["patient_id"].to_numpy(), table["label"].to_numpy(), 200, 11
    )
    weights = drawn[:, np.searchsorted(names, table["patient_id"])]
    draws = [
        [
            roc_auc_score(part.table["label"], part.table["prob_opacity"], sample_weight=row)
            for row in weights[1:]
        ]
        for part in test
    ]
    differences = np.subtract(*draws)
    ends = intervals.effect(
        np.append(0, differences), 0.05, results[0].evaluation.effective_patients
    )
    assert (auroc.low, auroc.high) == pytest.approx((ends.low, ends.high), abs=1e-6)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    assert auroc.p_value == pytest.approx(of_few(min(1, 2 * (tail + 1) / 201), results[0]))


def test_pairing_makes_the_interval_of_the_difference_narrower(folder):
    comparison, _ = run(write(study(folder), oversample=(1.2, 0.5)))
    rows = comparison.rows[made.BACKBONE]
    delta = rows["oversample"].delta["free.auroc"]
    single = rows["baseline"].free["auroc"]
    assert delta.high - delta.low < 0.5 * (single.high - single.low)


def test_holm_equals_statsmodels_over_scenarios_and_backbones(folder):
    made_up = study(folder, run={"scenarios": SCENARIOS[:3], "backbones": ["vgg16", "densenet201"]})
    for backbone, strengths in (("vgg16", (1.0, 1.4, 0.8)), ("densenet201", (1.1, 1.2, 1.9))):
        for scenario, strength in zip(SCENARIOS, strengths):
            made.result(made_up, scenario, strength, backbone=backbone)
    comparison, _ = run(made_up)
    deltas = [
        row.delta[PRIMARY]
        for rows in comparison.rows.values()
        for row in rows.values()
        if row.delta
    ]
    raw = [delta.p_value for delta in deltas]
    assert len(set(raw)) > 2
    assert [delta.p_holm for delta in deltas] == pytest.approx(multipletests(raw, method="holm")[1])
    assert set(comparison.winners) == {"vgg16", "densenet201"}


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_holm_equals_statsmodels(count):
    p_values = np.random.default_rng(count).beta(0.3, 1, size=count).round(3)
    assert paired.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert paired.holm([]) == []


def evaluation(draws):
    return intervals.Evaluation({AUROC: np.asarray(draws, dtype=float)}, {}, {}, 0.05)


def of_p(p_value, sign=1):
    """An evaluation whose difference to 0 has that p over 1,999 resamples."""
    below = round(p_value * 2000 / 2) - 1
    return evaluation(sign * np.array([0.1] + [-0.1] * below + [0.1] * (1999 - below)))


def test_holm_known_values_and_verdicts():
    given = dict(zip("abcd", (0.01, 0.04, 0.03, 0.005)))
    evaluations = {
        "base": evaluation(np.zeros(2000)),
        **{name: of_p(p) for name, p in given.items()},
    }
    baselines = dict.fromkeys("abcd", "base")
    found = paired.paired(evaluations, baselines, AUROC, 0.05, 1)
    assert [row.delta.p_value for row in found.values()] == pytest.approx(
        list(given.values()), rel=1e-4
    )
    assert [row.delta.p_holm for row in found.values()] == pytest.approx(
        [0.03, 0.06, 0.06, 0.02], rel=1e-4
    )
    unclear = "no clear difference"
    assert [row.verdict for row in found.values()] == ["better", unclear, unclear, "better"]
    turned = paired.paired(evaluations, baselines, AUROC, 0.05, -1)
    assert [row.verdict for row in turned.values()] == ["worse", unclear, unclear, "worse"]
    assert paired.paired(evaluations, {}, AUROC, 0.05, 1) == {}
    empty = {"a": evaluation([0.5, np.nan, np.nan]), "base": evaluation([0, 0, 0])}
    with pytest.raises(DataError, match=r"a: free\.auroc exists in no resample"):
        paired.paired(empty, {"a": "base"}, AUROC, 0.05, 1)


def test_the_challenger_is_the_winner_with_the_best_inner_score(folder):
    made_up = study(
        folder, run={"scenarios": ["baseline", "oversample"], "backbones": ["vgg16", "densenet201"]}
    )
    for backbone, score in (("vgg16", 0.6), ("densenet201", 0.7)):
        made.result(made_up, "baseline", inner_score=score, backbone=backbone)
        made.result(made_up, "oversample", inner_score=0.99, backbone=backbone)
    comparison, _ = run(made_up)
    assert comparison.winners == {"vgg16": "baseline", "densenet201": "baseline"}
    assert comparison.challenger == "densenet201"


def test_the_same_results_give_the_same_bytes(folder):
    made_up = write(study(folder, ["baseline", "oversample"]), oversample=(2.0, 0.6))
    first = compare.run(made_up)
    files = [path for path in sorted((folder / "reports/made").rglob("*")) if path.is_file()]
    assert len(files) == 2
    before = [path.read_bytes() for path in files]
    compare.run(made_up)
    assert [path.read_bytes() for path in files] == before
    write(made_up, oversample=(2.1, 0.6))
    assert compare.run(made_up).comparison.digest != first.comparison.digest


def rewrite(folder, change):
    """Change the predictions of a result in place."""
    path = folder / "predictions.parquet"
    predictions = change(records.Predictions.read(path))
    files_.write_table(path, predictions.table, predictions.meta)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda p: dataclasses.replace(
                p, table=p.table.drop(p.table.index[p.table["part"] == "test"][0])
            ),
            "test rows",
        ),
        (
            lambda p: dataclasses.replace(
                p, table=p.table.assign(patient_id="x" + p.table["patient_id"])
            ),
            "test rows",
        ),
        (lambda p: dataclasses.replace(p, table=p.table.assign(fold=1)), "test rows"),
        (
            lambda p: records.Predictions(
                p.table.rename(columns=lambda name: name.replace("opacity", "shadow")),
                {"classes": ["clear", "shadow"], "positive_class": "shadow"},
            ),
            "classes: ",
        ),
        (
            lambda p: records.Predictions(p.table, {**p.meta, "positive_class": "clear"}),
            "test rows",
        ),
    ],
    ids=["a row less", "other patients", "other folds", "other classes", "other positive class"],
)
def test_unlike_results_are_refused_with_what_differs(folder, change, what):
    made_up = write(study(folder, ["baseline", "oversample"]))
    rewrite(made_up.result_path(made.BACKBONE, "oversample"), change)
    with pytest.raises(
        DataError, match=f"vgg16/baseline and vgg16/oversample differ in their {what}"
    ):
        run(made_up)
    assert not (folder / "reports/made/comparison.json").exists()


def test_another_positive_class_is_named(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    path = made_up.result_path(made.BACKBONE, "oversample") / "metrics.json"
    files_.write_json(path, {**files_.read_json(path), "positive_class": "clear"})
    with pytest.raises(DataError, match="differ in their positive class: opacity and clear"):
        run(made_up)


def test_other_rows_than_those_of_test_do_not_matter(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    rewrite(
        made_up.result_path(made.BACKBONE, "oversample"),
        lambda p: dataclasses.replace(p, table=p.table[p.table["part"] == "test"]),
    )
    assert run(made_up).comparison.winners[made.BACKBONE] == "baseline"


def set_prob(value):
    """Give the first test row a raw probability."""

    def change(predictions):
        table = predictions.table
        table.loc[table.index[table["part"] == "test"][0], "prob_opacity"] = value
        return predictions

    return change


def add_twice(predictions):
    row = predictions.table[predictions.table["part"] == "test"].iloc[:1]
    return dataclasses.replace(
        predictions, table=pd.concat([predictions.table, row], ignore_index=True)
    )


def one_class(predictions):
    kept = (predictions.table["part"] != "test") | (predictions.table["label"] == 1)
    return dataclasses.replace(predictions, table=predictions.table[kept])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (set_prob(1.2), r"prob_\.\.\. that are not numbers within 0\.\.1"),
        (set_prob(-0.1), r"prob_\.\.\. that are not numbers within 0\.\.1"),
        (set_prob(np.nan), r"prob_\.\.\. that are not numbers within 0\.\.1"),
        (one_class, r"The test rows lack a class \(clear 0, opacity \d+\)"),
        (add_twice, r"Image '.*' is predicted more than once in repeat 0, fold 0, seed 0"),
    ],
    ids=["above 1", "below 0", "NaN", "one class", "an image twice"],
)
def test_what_cannot_be_compared_is_refused_with_the_folder_and_the_reason(
    folder, change, sentence
):
    made_up = write(study(folder, ["baseline", "oversample"]))
    rewrite(made_up.result_path(made.BACKBONE, "oversample"), change)
    with pytest.raises(DataError, match=f"results/made/vgg16/oversample: .*{sentence}"):
        run(made_up)


def test_another_study_is_named(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    rewrite(
        made_up.result_path(made.BACKBONE, "oversample"),
        lambda p: records.Predictions(p.table, {**p.meta, "study": "other"}),
    )
    with pytest.raises(DataError, match="differ in their study:  and other"):
        run(made_up)


def test_everything_behind_the_verdict_is_in_the_evidence_and_the_short_form_is_short(folder):
    comparison, results = compare.run(write(study(folder), oversample=(5.0, 0.9)))
    row = comparison.rows[made.BACKBONE]["oversample"]
    assert set(row.patient) == {"mean", "max", "vote"}
    assert row.patient["mean"].patients == comparison.test_patients
    assert "brier" in row.patient["mean"].raw
    assert "brier" not in row.patient["vote"].raw
    assert row.by_fold == {}
    assert row.per_class == {}
    tests = [comparison.rows[made.BACKBONE][name].mcnemar["raw"] for name in SCENARIOS[1:]]
    holm = multipletests([test.p_value for test in tests], method="holm")[1]
    assert [test.p_holm for test in tests] == pytest.approx(holm)
    first = tests[0]
    alike, unlike = first.both_right + first.both_wrong, first.only_scenario_right
    assert alike + unlike + first.only_baseline_right == comparison.test_patients
    per = row.per_1000["images"]["raw"]
    test = [result.predictions.part("test").table for result in results[:2]]
    found = [((table["prob_opacity"] >= 0.5) & (table["label"] == 1)).sum() for table in test]
    assert per.positives_found.value == pytest.approx(
        1000 * (found[1] - found[0]) / len(test[0]), abs=1e-3
    )
    short = Comparison.read(folder / "reports/made/comparison.json")
    assert short.digest == comparison.digest
    cell, whole = short.rows[made.BACKBONE]["oversample"].locked["f1"], row.locked["f1"]
    assert list(cell.as_dict()) == ["value", "low", "high"]
    assert (cell.value, cell.low, cell.high) == pytest.approx(
        (whole.value, whole.low, whole.high), rel=1e-4
    )
    assert list(short.rows[made.BACKBONE]["oversample"].delta) == [PRIMARY]
    assert table(short) == table(comparison)
    assert (folder / "reports/made/comparison.json").stat().st_size < 20_000


def test_without_patient_ids_nothing_is_said_about_patients(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    path = made_up.manifest_path.with_suffix(".json")
    files_.write_json(path, {**files_.read_json(path), "patient_ids": False})
    row = compare.run(made_up).comparison.rows[made.BACKBONE]["oversample"]
    assert row.patient == {}
    assert list(row.per_1000) == ["images"]
    assert row.mcnemar["raw"].units == "images"


def test_three_classes_have_each_class_and_no_counts_of_positives(folder):
    made_up = study(folder, ["baseline", "oversample"], compare={"primary": "auroc"}, **THREE)
    row = compare.run(write(made_up)).comparison.rows[made.BACKBONE]["oversample"]
    assert list(row.per_class) == ["a", "b", "c"]
    assert "per_1000" not in row.as_dict()
    mean = np.mean([row.per_class[name]["free"]["auroc"].value for name in "abc"])
    assert mean == pytest.approx(row.free["auroc"].value)


def test_a_small_val_is_a_note_with_what_the_floor_means(folder):
    made_up = study(
        folder, ["baseline"], calibrate={"min_patients": 500}, tune={"sensitivity_floor": 0.99}
    )
    notes = " ".join(run(write(made_up)).comparison.notes)
    val = records.Predictions.read(
        made_up.result_path(made.BACKBONE, "baseline") / "predictions.parquet"
    ).part("val")
    positives = (val.table["label"] == 1).sum()
    assert "Val is small: clear " in notes
    assert (
        f"the locked threshold is one of {positives} positive val scores, with 0 below it" in notes
    )
    assert "Val is small" not in " ".join(run(again("baseline")).comparison.notes)


def test_resamples_in_which_a_fold_lacks_a_class_are_a_note(folder):
    made_up = study(folder, ["baseline"], patients=(12, 4), split={"scheme": "kfold", "folds": 4})
    comparison, _ = run(write(made_up))
    lost = comparison.rows[made.BACKBONE]["baseline"].free["specificity_at_sensitivity"].degenerate
    assert lost > 100
    assert f"In {lost} of 1000 resamples a class is absent" in " ".join(comparison.notes)


def test_a_missing_result_is_refused_with_the_command(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    shutil.rmtree(made_up.result_path(made.BACKBONE, "oversample"))
    with pytest.raises(DataError, match="--study made --backbone vgg16 --scenario oversample"):
        run(made_up)


def test_without_the_baseline_nothing_is_compared(folder):
    made_up = write(study(folder, ["oversample", "augment"]))
    with pytest.raises(ConfigError, match=r"lacks the baseline.*Add `baseline`"):
        run(made_up)


def test_the_baseline_alone_is_a_comparison_of_nothing(folder):
    comparison, _ = run(write(study(folder, ["baseline"])))
    assert comparison.winners == {made.BACKBONE: "baseline"}
    assert "no clear" not in table(comparison)
    assert comparison.verdict == "vgg16: the baseline stands alone, so nothing was compared."


def test_unknown_names_are_refused(folder):
    made_up = write(study(folder))
    for changes in ({"scenarios": ["baseline", "oversampel"]}, {"backbones": ["vgg61"]}):
        values = made.params(run={"scenarios": ["baseline"], **changes})
        with pytest.raises(ConfigError, match=r"Did you mean '(oversample|vgg16)'"):
            run(config.load_study("made", values))
    values = made.params(run={"scenarios": ["baseline"]}, compare={"primary": "aurok"})
    results = results_.read_results(made_up)
    controlled = compare.control(made_up, results)
    with pytest.raises(ConfigError, match="Did you mean 'auroc'"):
        compare.compare(config.load_study("made", values), results, controlled)


THREE = {"patients": (60, 40, 35), "classes": ("a", "b", "c"), "tune": {"objective": "auroc"}}


def test_three_classes_compare_by_auroc_and_not_by_specificity(folder):
    made_up = study(folder, ["baseline", "oversample"], compare={"primary": "auroc"}, **THREE)
    comparison, _ = run(write(made_up, oversample=(4.0, 0.9)))
    assert comparison.primary == "free.auroc"
    assert comparison.rows[made.BACKBONE]["oversample"].verdict == "better"
    assert "balanced accuracy" in table(comparison)
    wrong = config.load_study("made", made.params(run={"scenarios": ["baseline"]}))
    with pytest.raises(ConfigError, match="specificity_at_sensitivity, which does not exist"):
        run(wrong)


def test_shared_patients_of_official_sides_forbid_registration(folder):
    made_up = study(folder, ["baseline"], split={"scheme": "official"}, official_overlap=2)
    comparison, _ = run(write(made_up))
    assert comparison.registrable is False
    assert any("EQ-OFFICIAL" in note for note in comparison.notes)
    own = config.load_study("made", made.params(run={"scenarios": ["baseline"]}))
    splits.run(own)
    write(own)
    assert run(own).comparison.registrable is True


def test_notes_tell_what_a_reader_must_know(folder):
    made_up = study(folder, ["baseline", "oversample"], patients=(40, 70))
    write(made_up)
    for scenario in made_up.scenarios:
        folder_of = made_up.result_path(made.BACKBONE, scenario)
        summary, best = (
            files_.read_json(folder_of / name) for name in ("metrics.json", "best.json")
        )
        files_.write_json(
            folder_of / "metrics.json", {**summary, "seed_has_effect": scenario != "baseline"}
        )
        best[0]["calibrator"]["reason"] = "val has 1 patient(s) of the rarest class, 10 are needed"
        files_.write_json(folder_of / "best.json", best)
    notes = " ".join(run(made_up).comparison.notes)
    assert "The positive class is the majority" in notes
    assert "The weights of vgg16 are random" in notes
    assert "The seed has no effect on baseline:" in notes
    assert "Calibration is the identity for every scenario: val has 1 patient(s)" in notes
    assert (
        "not identified by these data, so published settings are kept: oversample (vgg16)" in notes
    )


def test_table_text_has_a_line_for_every_scenario_and_marks_the_winner(folder):
    comparison, _ = run(write(study(folder), oversample=(5.0, 0.9)))
    lines = table(comparison).splitlines()
    rows = comparison.rows[made.BACKBONE]
    assert lines[0].startswith(
        "made, vgg16 (* the winner; difference in specificity at 90 % sensitivity"
    )
    assert [line.split()[0] for line in lines[1:] if line] == ["scenario", *SCENARIOS]
    better = next(line for line in lines if line.startswith("oversample"))
    assert better.endswith("better *")
    assert sum(line.endswith("*") for line in lines) == 1
    auroc = rows["oversample"].free["auroc"]
    assert f"{auroc.value:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]" in better
    assert f"p={rows['oversample'].delta[PRIMARY].p_holm:.3f}" in better


def test_the_distribution_adds_up_to_the_manifest(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    table = pd.DataFrame(results_.distribution(results_.read_results(made_up)))
    assert list(table["stage"].unique()) == [
        "all",
        "train",
        "val",
        "test",
        "plan: baseline",
        "plan: oversample",
    ]
    images = table.groupby("stage")["images"].sum()
    assert images["all"] == images["train"] + images["val"] + images["test"]
    assert images["all"] == len(records.Manifest.read(made_up.manifest_path).table)
    whole = table[table["stage"] == "all"]
    assert whole["imbalance_ratio"].iloc[0] == pytest.approx(
        whole["images"].max() / whole["images"].min(), abs=1e-4
    )
