"""Paired differences, simultaneous intervals, verdicts and winners on fabricated results."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit
from scipy.stats import multivariate_t
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from equipoise.compare import evidence, judging, screen, winners
from equipoise.compare import results as results_
from equipoise.compare import stage as compare
from equipoise.compare.evidence import RowEvidence
from equipoise.core import config, documents, records
from equipoise.core import files as files_
from equipoise.core.documents import Comparison
from equipoise.core.errors import ConfigError, DataError
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint
from equipoise.evaluation.resamples import patient_resamples
from equipoise.split import stage as splits
from fabricate import made

PRIMARY = "free.auroc"
SCENARIOS = ["baseline", "oversample", "undersample", "class_weight", "augment"]


AUROC = Endpoint("free", "auroc")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing_behind(results, conditions):
    return {result.key: RowEvidence() for result in results}


def run(study):
    """Verdicts alone: most of a comparison's time goes into what stands behind them."""
    return compare.run(study, evidence=nothing_behind)


def study(folder, scenarios=SCENARIOS, patients=(90, 60), **changes):
    changes.setdefault("run", {"scenarios": list(scenarios)})
    changes.setdefault("compare", {"resamples": 1000})
    changes.setdefault("split", {"scheme": "holdout", "repeats": 1})
    return made.study(folder, patients=patients, **changes)


def again(*scenarios):
    """The study of the working folder, with the settings of `made` alone."""
    return config.load_study(
        "made",
        made.params(
            run={"scenarios": list(scenarios)},
            compare={"resamples": 1000},
            split={"scheme": "holdout", "repeats": 1},
        ),
    )


def gains_of(results, backbone=made.BACKBONE):
    """Resampled AUROC of every rival above its baseline's, (B + 1, K), read off the evaluations."""
    draws = {result.key: result.evaluation.draws[AUROC] for result in results}
    rivals = [result for result in results if not result.is_baseline]
    columns = [draws[result.key] - draws[result.baseline_key] for result in rivals]
    return np.stack(columns, axis=1)


def write(study, **strengths):
    """Fabricate a result for every scenario; those not named are like the baseline."""
    for scenario in study.scenarios:
        strength, inner_score = strengths.get(scenario, (1.0, 0.5))
        made.result(study, scenario, strength, inner_score)
    return study


def test_identical_predictions_are_equivalent_and_the_baseline_wins(folder):
    comparison, _ = run(write(study(folder)))
    rows = comparison.rows[made.BACKBONE]
    for scenario in SCENARIOS[1:]:
        assert rows[scenario].verdict == "equivalent"
        assert "does not differ at all (margin 0.01)" in rows[scenario].reason
        for delta in rows[scenario].delta.values():
            assert (delta.value, delta.low, delta.high) == (0, 0, 0)
        assert rows[scenario].delta[PRIMARY].p_adjusted == 1
    assert rows["baseline"].verdict == "baseline"
    assert "delta" not in rows["baseline"].as_dict()
    assert comparison.winners == {made.BACKBONE: "baseline"}
    assert comparison.headline.startswith(
        "No remedy is better than doing nothing in AUROC; of 4 comparisons: 4 equivalent."
    )


def test_a_clearly_better_scenario_is_better_and_wins(folder):
    comparison, _ = run(write(study(folder), oversample=(5.0, 0.9), augment=(-1.0, 0.4)))
    rows = comparison.rows[made.BACKBONE]
    assert rows["oversample"].verdict == "better"
    assert rows["augment"].verdict == "worse"
    delta = rows["oversample"].delta[PRIMARY]
    assert 0 < delta.low <= delta.value <= delta.high
    assert 0 < delta.p_adjusted < 0.05
    assert comparison.winners[made.BACKBONE] == "oversample"
    assert comparison.headline.startswith(
        f"Better than doing nothing in AUROC: oversample on {made.BACKBONE}; of 4 comparisons: "
        "1 better, 1 worse and 2 equivalent."
    )
    assert comparison.verdict.startswith(comparison.headline)
    for scenario in SCENARIOS[1:]:
        assert rows[scenario].reason in comparison.verdict
    assert (comparison.margin, comparison.comparisons) == (0.01, 4)
    assert Comparison.read(folder / "reports/made/evidence.json") == comparison


def test_of_one_test_part_the_inner_score_chooses_and_test_only_reports(folder):
    strengths = {"oversample": (1.9, 0.7), "class_weight": (6.0, 0.6)}
    made_up = study(folder)
    comparison, _ = run(write(made_up, **strengths))
    rows = comparison.rows[made.BACKBONE]
    assert rows["oversample"].verdict == rows["class_weight"].verdict == "better"
    assert rows["oversample"].delta[PRIMARY].low < rows["class_weight"].delta[PRIMARY].low
    assert comparison.winners[made.BACKBONE] == "oversample"
    assert any("Test chose nothing" in note for note in comparison.notes)
    assert "of classifiers of this one training set" in rows["oversample"].reason
    # Whatever test says: a result that equals the baseline there wins by its inner score.
    comparison, _ = run(write(made_up, oversample=(1.0, 0.9), class_weight=(6.0, 0.4)))
    assert comparison.rows[made.BACKBONE]["class_weight"].verdict == "better"
    assert comparison.winners[made.BACKBONE] == "oversample"


def rounds_of(made_up, *scores_and_draws):
    """Rounds of a result with these inner scores."""
    folder = made.result(made_up, "baseline")
    choice = documents.Choices.read(folder / "best.json").root[0]
    return [
        choice.model_copy(update={"score": score, "inner_draws": draws})
        for score, draws in scores_and_draws
    ]


def test_a_gain_in_the_inner_score_counts_from_one_paired_standard_error_on(folder):
    """Paired over the same resamples: what both share cancels, two rounds are averaged."""
    made_up = study(folder)
    rng = np.random.default_rng(8)
    shared, first, second = 0.05 * rng.normal(size=(3, 400))
    own = 0.01 * rng.normal(size=400)
    baseline = rounds_of(
        made_up, (0.80, (0.80 + shared + first).tolist()), (0.90, (0.90 + second).tolist())
    )
    rival = rounds_of(
        made_up,
        (0.83, (0.83 + shared + first + own).tolist()),
        (0.91, (0.91 + second + own).tolist()),
    )
    gain = winners.inner_gain(rival, baseline, sign=1)
    assert gain.value == pytest.approx(0.02)
    assert gain.standard_error == pytest.approx(own.std(ddof=1))
    assert gain.is_clear
    assert winners.inner_gain(rival, baseline, sign=-1).value == pytest.approx(-0.02)
    assert not winners.InnerGain(0.01, 0.01).is_clear
    assert winners.inner_gain(rival, rounds_of(made_up, (0.8, None)), sign=1) is None
    assert winners.inner_gain(rounds_of(made_up, (None, None)), baseline, sign=1) is None


def test_a_primary_that_a_fold_is_too_small_for_is_not_judged(folder):
    """Fifteen patients of the rarer class in test: no step of the curve is read off so few images."""
    made_up = write(
        study(folder, ["baseline", "oversample"], patients=(90, 20), **SPECIFICITY),
        oversample=(5.0, 0.9),
    )
    comparison, _ = run(made_up)
    row = comparison.rows[made.BACKBONE]["oversample"]
    assert row.verdict == "inconclusive"
    assert "cannot be judged: specificity_at_sensitivity is not computed: a fold has" in row.reason
    delta = row.delta["free.specificity_at_sensitivity"]
    assert (delta.value, delta.low, delta.high) == (None, None, None)
    number = row.free["specificity_at_sensitivity"]
    assert (number.value, number.low, number.high) == (None, None, None)
    text = (folder / "reports/made/evidence.json").read_text()
    assert "NaN" not in text


SPECIFICITY = {"compare": {"primary": "specificity_at_sensitivity", "resamples": 200}}


IN_FOLDS = {"split": {"scheme": "kfold", "folds": 3, "repeats": 2}}


def test_in_folds_the_highest_low_end_wins_whatever_the_inner_score(folder):
    strengths = {"oversample": (1.9, 0.7), "class_weight": (6.0, 0.6)}
    comparison, _ = run(write(study(folder, **IN_FOLDS), **strengths))
    rows = comparison.rows[made.BACKBONE]
    assert rows["oversample"].verdict == rows["class_weight"].verdict == "better"
    assert rows["oversample"].delta[PRIMARY].low < rows["class_weight"].delta[PRIMARY].low
    assert comparison.winners[made.BACKBONE] == "class_weight"
    assert "of classifiers trained on data of this size" in rows["oversample"].reason


def test_ten_perfect_rivals_against_a_coin_toss_are_all_better(folder):
    """Twelve patients of the rarer class; no smallest p stands in the way."""
    scenarios = [*SCENARIOS, "weighted_augment", "focal", "class_balanced", "logit_adjust"]
    scenarios += ["patient_balanced", "smote"]
    made_up = study(
        folder,
        scenarios,
        patients=(60, 12),
        split={"scheme": "kfold", "folds": 3, "repeats": 1},
    )
    write(made_up, **dict.fromkeys(scenarios[1:], (60.0, 0.5)))
    made.result(made_up, "baseline", strength=0.0)
    comparison, _ = run(made_up)
    rows = comparison.rows[made.BACKBONE]
    assert [rows[name].verdict for name in scenarios[1:]] == ["better"] * 10
    assert rows["smote"].free["auroc"].value == 1
    assert 0.3 < rows["baseline"].free["auroc"].value < 0.7
    assert comparison.winners[made.BACKBONE] in scenarios[1:]
    assert comparison.headline.startswith("Better than doing nothing in AUROC: ")


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
    names, drawn = patient_resamples(
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
    # A single rival that varies: Student's interval with the bootstrap's standard deviation.
    patients = results[0].evaluation.effective_patients
    half = differences.std() * stdtrit(patients - 1, 0.975)
    assert auroc.standard_error == pytest.approx(differences.std(), abs=1e-9)
    assert (auroc.low, auroc.high) == pytest.approx(
        (auroc.value - half, auroc.value + half), rel=1e-3
    )
    secondary = rows["oversample"].delta["raw.sensitivity"].as_dict()
    assert list(secondary) == ["value", "low", "high"], "nothing beside the primary is judged"


def test_pairing_makes_the_interval_of_the_difference_narrower(folder):
    comparison, _ = run(write(study(folder), oversample=(1.2, 0.5)))
    rows = comparison.rows[made.BACKBONE]
    delta = rows["oversample"].delta["free.auroc"]
    single = rows["baseline"].free["auroc"]
    assert delta.high - delta.low < 0.5 * (single.high - single.low)


@pytest.mark.parametrize(("scheme", "inflation"), [("holdout", 1.0), ("kfold", 1.5)])
def test_the_intervals_hold_together_over_scenarios_and_backbones(folder, scheme, inflation):
    """By scipy's multivariate t: the common critical value leaves 95 % of max |t| inside."""
    made_up = study(
        folder,
        run={"scenarios": SCENARIOS[:3], "backbones": ["vgg16", "densenet201"]},
        split={"scheme": scheme, "folds": 3, "repeats": 1},
    )
    for backbone, strengths in (("vgg16", (1.0, 1.4, 0.8)), ("densenet201", (1.1, 1.2, 1.9))):
        for scenario, strength in zip(SCENARIOS, strengths):
            made.result(made_up, scenario, strength, backbone=backbone)
    comparison, results = run(made_up)
    deltas = [
        row.delta[PRIMARY]
        for rows in comparison.rows.values()
        for row in rows.values()
        if row.delta
    ]
    gains = gains_of(results)
    gains = gains[~np.isnan(gains).any(axis=1)]
    errors = gains[1:].std(axis=0) * np.sqrt(inflation)
    assert [delta.standard_error for delta in deltas] == pytest.approx(errors)
    criticals = [(delta.high - delta.value) / delta.standard_error for delta in deltas]
    assert criticals == pytest.approx([criticals[0]] * 4)
    law = multivariate_t(
        shape=np.corrcoef(gains[1:], rowvar=False),
        df=results[0].evaluation.effective_patients - 1,
        allow_singular=True,
    )
    bound = np.full(4, criticals[0])
    inside = law.cdf(bound, lower_limit=-bound, maxpts=100_000, random_state=1)
    assert inside == pytest.approx(0.95, abs=0.002)
    assert set(comparison.winners) == {"vgg16", "densenet201"}
    assert comparison.effective_patients == results[0].evaluation.effective_patients


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_holm_equals_statsmodels(count):
    p_values = np.random.default_rng(count).beta(0.3, 1, size=count).round(3)
    assert evidence.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert evidence.holm([]) == []


def evaluation(draws):
    return intervals.Evaluation({AUROC: np.asarray(draws, dtype=float)}, {}, {}, 0.05)


def varying(estimate, deviation=0.01, seed=0, resamples=500):
    """An evaluation whose number varies like this over the resamples."""
    noise = np.random.default_rng(seed).normal(size=resamples)
    noise = (noise - noise.mean()) / noise.std()
    return evaluation(np.append(estimate, estimate + deviation * noise))


def family(rivals, sign=1):
    """Rivals beside a baseline that is 0 in every resample."""
    evaluations = {"base": evaluation(np.zeros(501)), **rivals}
    return judging.Family(
        evaluations=evaluations,
        baselines=dict.fromkeys(rivals, "base"),
        primary=AUROC,
        sign=sign,
        folds=1,
        patients=40,
    )


COMPARE = made.settings(compare={"margin": 0.01}).compare


def test_four_verdicts_and_what_a_lower_number_means():
    rivals = {
        "up": varying(0.05),
        "down": varying(-0.05, seed=1),
        "same": varying(0.001, deviation=0.002, seed=2),
        "who knows": varying(0.01, seed=3),
    }
    judged = judging.judge(family(rivals), COMPARE)
    words = ["better", "worse", "equivalent", "inconclusive"]
    assert [row.verdict for row in judged.values()] == words
    turned = judging.judge(family(rivals, sign=-1), COMPARE)
    assert [row.verdict for row in turned.values()] == ["worse", "better", *words[2:]]
    for rival in rivals:
        # The numbers keep the direction of the metric, whatever is better.
        assert turned[rival].delta.value == judged[rival].delta.value
        ends = turned[rival].delta.low, turned[rival].delta.high
        assert ends == pytest.approx((judged[rival].delta.low, judged[rival].delta.high))
    settled = judged["who knows"].delta
    assert settled.patients_to_settle == pytest.approx(40 * (settled.detectable / 0.01) ** 2)
    assert judging.judge(family({}), COMPARE) == {}


def test_where_one_patient_decides_nothing_is_judged():
    alone = dataclasses.replace(varying(0.3), one_patient_decides=True)
    judged = judging.judge(family({"up": alone}), COMPARE)
    assert judged["up"].verdict == "inconclusive"
    assert judged["up"].obstacle.startswith("one patient of the rarer class decides")
    assert judged["up"].delta.value == 0.3
    assert np.isnan([judged["up"].delta.low, judged["up"].delta.high]).all()


def test_a_rival_without_numbers_does_not_spoil_the_others():
    lost = evaluation(np.append(0.5, np.full(500, np.nan)))
    judged = judging.judge(family({"lost": lost, "up": varying(0.3)}), COMPARE)
    assert judged["lost"].verdict == "inconclusive"
    assert judged["lost"].obstacle.startswith("auroc does not exist in enough resamples")
    assert judged["up"].verdict == "better"


def test_the_challenger_is_the_winner_with_the_best_inner_score(folder):
    made_up = study(
        folder, run={"scenarios": ["baseline", "oversample"], "backbones": ["vgg16", "densenet201"]}
    )
    for backbone, score in (("vgg16", 0.6), ("densenet201", 0.7)):
        made.result(made_up, "baseline", inner_score=score, backbone=backbone)
        made.result(made_up, "oversample", inner_score=0.5, backbone=backbone)
    comparison, _ = run(made_up)
    assert comparison.winners == {"vgg16": "baseline", "densenet201": "baseline"}
    assert comparison.challenger == "densenet201"


def test_the_same_results_give_the_same_bytes(folder):
    made_up = write(study(folder, ["baseline", "oversample"]), oversample=(2.0, 0.6))
    first = compare.run(made_up)
    files = [path for path in sorted((folder / "reports/made").rglob("*")) if path.is_file()]
    assert len(files) == 5  # evidence, its short form, and three of DVC's metrics
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
    assert "sensitivity" in row.patient["mean"].raw
    assert "brier" not in row.patient["mean"].raw
    assert row.by_fold == {}
    assert row.per_class == {}
    tests = [
        test
        for name in SCENARIOS[1:]
        for test in comparison.rows[made.BACKBONE][name].mcnemar["raw"].values()
    ]
    holm = multipletests([test.p_value for test in tests], method="holm")[1]
    assert [test.p_holm for test in tests] == pytest.approx(holm)
    assert [test.class_name for test in tests[:2]] == comparison.classes
    tested = 0
    for first in tests[:2]:
        alike, unlike = first.both_right + first.both_wrong, first.only_scenario_right
        tested += alike + unlike + first.only_baseline_right
    assert tested == comparison.test_patients
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
    assert str(screen.page(short)) == str(screen.page(comparison))
    assert (folder / "reports/made/comparison.json").stat().st_size < 20_000


def test_without_patient_ids_nothing_is_said_about_patients(folder):
    made_up = write(study(folder, ["baseline", "oversample"]))
    controlled = compare.control(made_up, results_.read_results(made_up))
    manifest = records.Manifest.read(made_up.manifest_path)
    meta = {**manifest.meta, "patient_ids": False}
    dataclasses.replace(manifest, meta=meta).write(made_up.manifest_path)
    results = results_.read_results(made_up)
    comparison = compare.compare(made_up, results, controlled)
    assert comparison.units == "images"
    row = comparison.rows[made.BACKBONE]["oversample"]
    assert row.patient == {}
    assert list(row.per_1000) == ["images"]
    assert row.mcnemar["raw"]["opacity"].units == "images"


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
    lost = comparison.rows[made.BACKBONE]["baseline"].free["auroc"].degenerate
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
    assert comparison.headline.startswith("The baseline stands alone, so nothing was compared.")
    assert "better" not in comparison.verdict


def test_unknown_names_are_refused(folder):
    made_up = write(study(folder))
    for changes in ({"scenarios": ["baseline", "oversampel"]}, {"backbones": ["vgg166"]}):
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
    assert "balanced accuracy" in str(screen.page(comparison))
    wrong = config.load_study(
        "made",
        made.params(
            run={"scenarios": ["baseline"]}, compare={"primary": "specificity_at_sensitivity"}
        ),
    )
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


def test_the_screen_has_a_line_for_every_scenario_and_marks_the_winner(folder):
    comparison, _ = run(write(study(folder), oversample=(5.0, 0.9)))
    text = str(screen.page(comparison))
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[0].startswith("Better than doing nothing in AUROC: oversample on vgg16;")
    start = next(number for number, line in enumerate(lines) if line.startswith("made, vgg16"))
    of_table = lines[start + 1 : start + 1 + len(SCENARIOS)]
    assert [line.split()[0] for line in of_table] == SCENARIOS
    assert [line.split()[1] == "*" for line in of_table] == [
        name == "oversample" for name in SCENARIOS
    ]
    row = comparison.rows[made.BACKBONE]["oversample"]
    delta = row.delta[PRIMARY]
    assert f"better      {delta.value:+.3f} [{delta.low:+.3f}, {delta.high:+.3f}]" in text
    numbers = [row.free["auroc"], row.locked["sensitivity"], row.locked["specificity"]]
    assert of_table[1].split()[-3:] == [f"{measured.value:.3f}" for measured in numbers]


def test_a_missed_floor_is_said_first_and_in_a_note(folder):
    made_up = study(folder, ["baseline", "oversample"], tune={"sensitivity_floor": 0.99})
    comparison, results = compare.run(write(made_up))
    test = results[0].predictions.part("test").table
    of_positives = test[test["label"] == 1]
    found = (of_positives["calibrated_opacity"] >= of_positives["threshold"]).mean()
    assert found < 0.99
    sentence = "The locked threshold misses the 99 % sensitivity it was chosen for on test: "
    assert f"{sentence}baseline on vgg16 finds {found:.3f} [" in comparison.headline
    assert "oversample" not in comparison.headline
    (note,) = [note for note in comparison.notes if note.startswith(sentence)]
    assert f"oversample on vgg16 finds {found:.3f} [" in note
    by_cost = study_of_cost(made_up)
    assert "misses" not in run(by_cost).comparison.headline


def study_of_cost(made_up):
    """The same study, its threshold locked by costs: no sensitivity was promised."""
    rule = made_up.settings.threshold.model_copy(update={"rule": "cost"})
    settings = made_up.settings.model_copy(update={"threshold": rule})
    return made_up.model_copy(update={"settings": settings})


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
