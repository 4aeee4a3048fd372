"""End to end on fabricated features: tune, plan, fit, calibrate, predict. No picture, no TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score, roc_auc_score
from threadpoolctl import threadpool_limits

from conftest import REPO
from equipoise import cli
from equipoise.compare import winners
from equipoise.core import config, records
from equipoise.core import files as files_
from equipoise.core.documents import Choices, ScenarioSummary, ServedModel
from equipoise.core.errors import ConfigError, DataError
from equipoise.evaluation import calibration, metrics
from equipoise.evaluation.calibration import Calibrator
from equipoise.ingest import fingerprint
from equipoise.scenario import stage as scenario
from equipoise.scenario.heads import head
from equipoise.split import stage as splits
from equipoise.split import strata
from equipoise.strategies import base as strategies
from fabricate import made

FILES = ["best.json", "draws.parquet", "metrics.json", "model/head.npz", "model/model.json"]
FILES += ["plan.parquet", "predictions.parquet", "trials.parquet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(study, name="baseline", into=None):
    target = into or study.result_path(made.BACKBONE, name)
    return scenario.run(study, made.BACKBONE, name, into), records.Predictions.read(
        target / "predictions.parquet"
    )


def written(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def features_of(study, image_ids, views=None):
    """Read the fabricated features back without the code under test."""
    store = study.features_path(made.BACKBONE)
    index, _ = files_.read_table(store / "index.parquet")
    rows = {key: row for row, key in enumerate(zip(index["sha256"], index["view"]))}
    digest = records.Manifest.read(study.manifest_path).table.set_index("image_id")["sha256"]
    views = [0] * len(image_ids) if views is None else views
    return np.load(store / "features.npy")[
        [rows[digest[name], view] for name, view in zip(image_ids, views)]
    ]


def test_a_run_writes_its_files_with_their_columns(folder):
    study = made.study(folder)
    summary, predictions = run(study, "weighted_augment")
    target = study.result_path(made.BACKBONE, "weighted_augment")
    assert sorted(written(target)) == FILES
    summary.write(folder / "again.json")
    assert (folder / "again.json").read_bytes() == (target / "metrics.json").read_bytes()
    table = predictions.table
    assert list(table.columns) == [
        *(
            "image_id",
            "patient_id",
            "repeat",
            "fold",
            "seed",
            "part",
            "label",
            "overlap",
            "threshold",
        ),
        *("prob_clear", "prob_opacity", "calibrated_clear", "calibrated_opacity"),
    ]
    split = records.Splits.read(study.splits_path).table
    for seed in (0, 1):
        own = table[table["seed"] == seed].merge(split, on="image_id", suffixes=("", "_split"))
        assert (own["part"] == own["part_split"]).all()
        assert set(own["image_id"]) == set(split.loc[split["part"] != "train", "image_id"])
        assert not own["image_id"].duplicated().any()
    labels = records.Manifest.read(study.manifest_path).table.set_index("image_id")["label"]
    assert (labels.loc[table["image_id"]].to_numpy() == table["label"]).all()
    assert not table["overlap"].any()
    trials, _ = files_.read_table(target / "trials.parquet")
    assert trials.groupby("seed")["trial"].apply(list).tolist() == [[0, 1, 2, 3]] * 2
    choices = Choices.read(target / "best.json").root
    assert [choice.seed for choice in choices] == [0, 1]
    assert summary.inner_score == pytest.approx(np.mean([choice.score for choice in choices]))
    assert summary.digests["test"] == predictions.test_digest()
    assert summary.digests["predictions"] == files_.file_digest(target / "predictions.parquet")
    assert summary.settings["tune"]["trials"] == 4


def test_the_plan_holds_train_images_only_and_the_counts_of_best_json(folder):
    study = made.study(folder, scenarios={"weighted_augment": {"copies": 2}})
    run(study, "weighted_augment")
    target = study.result_path(made.BACKBONE, "weighted_augment")
    plan, _ = files_.read_table(target / "plan.parquet")
    split = records.Splits.read(study.splits_path).table.set_index("image_id")["part"]
    assert (split.loc[plan["image_id"]] == "train").all()
    labels = records.Manifest.read(study.manifest_path).table.set_index("image_id")["label"]
    choice = Choices.read(target / "best.json").root[0]
    drawn = np.bincount(labels.loc[plan.loc[plan["seed"] == 0, "image_id"]])
    assert drawn.tolist() == choice.plan_counts
    assert choice.plan_counts == [choice.train_counts[0], 3 * choice.train_counts[1]]
    assert choice.train_counts == np.bincount(labels[split[split == "train"].index]).tolist()


NEUTRAL = {name: strategies.load_strategy(name).neutral() for name in strategies.names()}


def test_neutral_settings_give_the_baseline_bit_for_bit(folder):
    # Three trials are the three first penalties: every scenario tries, and keeps, the same.
    study = made.study(folder, scenarios=NEUTRAL, tune={"trials": 3})
    _, expected = run(study)
    for name in NEUTRAL:
        _, found = run(study, name)
        pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)


def test_with_one_test_part_the_inner_score_is_kept_under_the_same_resamples_for_every_scenario(
    folder,
):
    """What two heads that are one share cancels: the gain of a neutral remedy is 0 and never varies."""
    study = made.study(folder, train={"seeds": [0]}, scenarios={"class_weight": {"exponent": 0.0}})
    rounds = {}
    for name in ("baseline", "class_weight"):
        run(study, name)
        rounds[name] = Choices.read(study.result_path(made.BACKBONE, name) / "best.json").root
    (first,) = rounds["baseline"]
    draws = np.array(first.inner_draws)
    assert len(draws) == study.settings.tune.gain_resamples
    assert 0 < draws.std() < 0.1
    assert draws.mean() == pytest.approx(first.score, abs=3 * draws.std())
    gain = winners.inner_gain(rounds["class_weight"], rounds["baseline"], sign=1)
    assert gain == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert not gain.is_clear


def test_a_remedy_does_change_the_predictions(folder):
    study = made.study(folder, tune={"trials": 3})
    _, plain = run(study)
    for name in ("oversample", "undersample", "class_weight", "augment", "weighted_augment"):
        _, found = run(study, name)
        raised = found.table["prob_opacity"].mean() - plain.table["prob_opacity"].mean()
        assert raised > 0.02, f"{name} favours the minority"


def test_running_again_writes_the_same_bytes(folder):
    study = made.study(folder)
    run(study, "oversample")
    first = written(study.result_path(made.BACKBONE, "oversample"))
    run(study, "oversample")
    assert written(study.result_path(made.BACKBONE, "oversample")) == first
    run(study, "oversample", folder / "elsewhere")
    assert written(folder / "elsewhere") == first


def test_stored_probabilities_give_the_stored_metrics(folder):
    study = made.study(folder)
    summary, predictions = run(study, "oversample")
    test = predictions.part("test").table
    by_seed = [rows for _, rows in test.groupby("seed")]
    shown = summary.metrics
    expected = [roc_auc_score(rows["label"], rows["prob_opacity"]) for rows in by_seed]
    assert shown["free"]["auroc"].value == pytest.approx(np.mean(expected), abs=1e-6)
    assert shown["free"]["auroc"].by_seed == pytest.approx(expected, abs=1e-6)
    raw = np.mean([recall_score(rows["label"], rows["prob_opacity"] >= 0.5) for rows in by_seed])
    assert shown["raw"]["sensitivity"].value == pytest.approx(raw, abs=1e-6)
    locked = np.mean(
        [
            recall_score(rows["label"], rows["calibrated_opacity"] >= rows["threshold"])
            for rows in by_seed
        ]
    )
    assert shown["locked"]["sensitivity"].value == pytest.approx(locked, abs=1e-6)


@pytest.mark.parametrize("name", ["baseline", "class_weight"])
def test_scikit_learn_on_the_planned_rows_ranks_the_same(folder, name):
    study = made.study(folder, num_features=20, signal=1.0)
    _, predictions = run(study, name)
    target = study.result_path(made.BACKBONE, name)
    plan, _ = files_.read_table(target / "plan.parquet")
    plan = plan[plan["seed"] == 0]
    choice = Choices.read(target / "best.json").root[0]
    labels = records.Manifest.read(study.manifest_path).table.set_index("image_id")["label"]
    truth = labels.loc[plan["image_id"]].to_numpy()
    train = features_of(study, plan["image_id"], plan["view"]).astype(float)
    mean, spread = (
        train.mean(axis=0),
        train.std(axis=0),
    )  # both scenarios draw every train image once
    balanced = len(truth) / (2 * np.bincount(truth))
    weights = balanced[truth] ** choice.settings.get("exponent", 0.0)
    oracle = LogisticRegression(
        C=1 / (choice.settings["l2"] * weights.sum()), tol=1e-9, max_iter=5000
    )
    oracle.fit((train - mean) / spread, truth, sample_weight=weights)
    test = predictions.part("test").table
    test = test[test["seed"] == 0]
    expected = oracle.predict_proba((features_of(study, test["image_id"]) - mean) / spread)[:, 1]
    mine = roc_auc_score(test["label"], test["prob_opacity"])
    assert mine == pytest.approx(roc_auc_score(test["label"], expected), abs=0.005)
    assert test["prob_opacity"].to_numpy() == pytest.approx(expected, abs=1e-4)


def test_the_calibrator_and_threshold_come_from_val_and_the_served_model_is_the_evaluated_one(
    folder,
):
    study = made.study(folder)
    _, predictions = run(study)
    target = study.result_path(made.BACKBONE, "baseline")
    served = ServedModel.read(target / "model" / "model.json")
    solved = head.Head.load(target / "model" / "head.npz")
    table = predictions.table[predictions.table["seed"] == 0]
    logits = solved.logits(features_of(study, table["image_id"]))
    assert metrics.softmax(logits)[:, 1] == pytest.approx(
        table["prob_opacity"].to_numpy(), abs=1e-12
    )
    val = (table["part"] == "val").to_numpy()
    patients = table["patient_id"].to_numpy()[val]
    expected = Calibrator.fit(logits[val], table["label"].to_numpy()[val], patients, 3)
    assert served.calibrator.model_dump() == expected.as_dict()
    assert expected.reason == ""
    calibrated = Calibrator.from_dict(served.calibrator.model_dump()).apply(logits)[:, 1]
    assert calibrated == pytest.approx(table["calibrated_opacity"].to_numpy(), abs=1e-12)
    assert (table["threshold"] == served.threshold).all()
    called = calibrated[val] >= served.threshold
    assert called[table["label"].to_numpy()[val] == 1].mean() >= 0.9


def test_few_val_patients_leave_the_calibrator_the_identity(folder):
    study = made.study(folder, calibrate={"min_patients": 500})
    _, predictions = run(study)
    table = predictions.table
    assert np.allclose(table["prob_opacity"], table["calibrated_opacity"])
    choices = Choices.read(study.result_path(made.BACKBONE, "baseline") / "best.json").root
    assert "500 are needed" in choices[0].calibrator.reason


def test_the_seed_has_no_effect_on_a_baseline_without_a_search_and_an_effect_on_draws(folder):
    study = made.study(folder, tune={"trials": 1})
    assert run(study)[0].seed_has_effect is False
    assert run(study, "undersample")[0].seed_has_effect is True
    alone = config.load_study(
        "made", made.params(tune={"trials": 1}, train={"seeds": [3]}), root=folder
    )
    assert run(alone)[0].seed_has_effect is None


def test_the_positive_class_may_be_class_0_and_the_majority(folder):
    study = made.study(folder, classes=("sick", "well"), positive="sick")
    summary, predictions = run(study)
    assert summary.majority_class == summary.positive_class == "sick"
    test = predictions.part("test").table
    test = test[test["seed"] == 0]
    called = test["prob_sick"] >= 0.5
    sensitivity = summary.metrics["raw"]["sensitivity"].by_seed[0]
    assert sensitivity == pytest.approx(called[test["label"] == 0].mean(), abs=1e-6)


def test_kfold_tests_every_image_once_and_serves_a_refit_on_all_rows(folder):
    study = made.study(folder, split={"scheme": "kfold"})
    _, predictions = run(study)
    target = study.result_path(made.BACKBONE, "baseline")
    assert sorted(written(target)) == sorted([*FILES, "model/refit_predictions.parquet"])
    images = records.Manifest.read(study.manifest_path).table["image_id"]
    test = predictions.part("test").table
    for _, rows in test.groupby("seed"):
        assert sorted(rows["image_id"]) == sorted(images)
        assert rows["fold"].nunique() == 3
    refit, _ = files_.read_table(target / "model/refit_predictions.parquet")
    assert refit["image_id"].tolist() == images.tolist()
    solved = head.Head.load(target / "model" / "head.npz")
    served = ServedModel.read(target / "model" / "model.json")
    assert "refit on all rows" in served.evidence
    everything = features_of(study, images)
    assert solved.standardiser.mean == pytest.approx(everything.mean(axis=0), abs=1e-5)
    calibrated = Calibrator.from_dict(served.calibrator.model_dump()).apply(
        solved.logits(everything)
    )[:, 1]
    assert refit["calibrated_opacity"].to_numpy() == pytest.approx(calibrated, abs=1e-12)
    first = test[test["seed"] == 0]
    pooled = np.log(first["prob_opacity"] / first["prob_clear"]).to_numpy()
    logits = np.stack([np.zeros(len(pooled)), pooled], axis=1)
    expected = Calibrator.fit(logits, first["label"].to_numpy(), first["patient_id"].to_numpy(), 3)
    assert served.calibrator.slope == pytest.approx(expected.slope, rel=1e-4)


def out_of_fold_logits(study, choice):
    """Scores of the train rows of a round, by scikit-learn on its inner folds; also their labels and patients."""
    rows = records.Splits.read(study.splits_path).round(choice.repeat, choice.fold)
    train = rows[rows["part"] == "train"]
    known = records.Manifest.read(study.manifest_path).table.set_index("image_id")["label"]
    labels = known.loc[train["image_id"]].to_numpy()
    patients = train["patient_id"].to_numpy()
    features = features_of(study, train["image_id"]).astype(float)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    # Seeded by the split, the study's inner folds and the round: the same for every scenario.
    seed = [study.settings.split.seed, 4, choice.repeat, choice.fold]
    images = pd.DataFrame({"patient": patients, "label": labels})
    fold_of = strata.assign_folds(images, choice.inner_folds, seed)
    logits = np.zeros((len(labels), 2))
    for fold in range(choice.inner_folds):
        inside = fold_of != fold
        strength = 1 / (choice.settings["l2"] * inside.sum())
        oracle = LogisticRegression(C=strength, tol=1e-9, max_iter=5000)
        oracle.fit(scaled[inside], labels[inside])
        logits[~inside, 1] = oracle.decision_function(scaled[~inside])
    return logits, labels, patients


def test_kfold_calibrates_and_locks_on_the_inner_out_of_fold_scores_of_train(folder):
    study = made.study(folder, split={"scheme": "kfold"}, train={"seeds": [0]})
    _, predictions = run(study)
    assert set(predictions.table["part"]) == {"test"}
    choices = Choices.read(study.result_path(made.BACKBONE, "baseline") / "best.json").root
    assert len(choices) == 3
    for choice in choices:
        logits, labels, patients = out_of_fold_logits(study, choice)
        expected = Calibrator.fit(logits, labels, patients, 3)
        assert (expected.reason, choice.calibrator.reason) == ("", "")
        assert choice.calibrator.slope == pytest.approx(expected.slope, rel=1e-2)
        assert choice.calibrator.biases == pytest.approx(expected.biases, abs=1e-2)
        used = Calibrator.from_dict(choice.calibrator.model_dump())
        prob = used.apply(logits)[:, 1]
        found = (prob >= choice.threshold)[labels == 1]
        assert found.mean() == pytest.approx(0.9, abs=0.06)
        rows = predictions.table[predictions.table["fold"] == choice.fold]
        assert (rows["threshold"] == choice.threshold).all()
        raw = np.log(rows["prob_opacity"] / rows["prob_clear"]).to_numpy()
        calibrated = used.apply(np.stack([np.zeros(len(raw)), raw], axis=1))[:, 1]
        assert rows["calibrated_opacity"].to_numpy() == pytest.approx(calibrated, abs=1e-9)


def test_the_head_of_a_round_in_kfold_is_fitted_on_every_row_outside_test(folder):
    study = made.study(folder, split={"scheme": "kfold"}, train={"seeds": [0]})
    run(study)
    plan, _ = files_.read_table(study.result_path(made.BACKBONE, "baseline") / "plan.parquet")
    images = set(records.Manifest.read(study.manifest_path).table["image_id"])
    split = records.Splits.read(study.splits_path)
    for repeat, fold in split.rounds():
        rows = split.round(repeat, fold)
        tested = set(rows.loc[rows["part"] == "test", "image_id"])
        assert set(plan.loc[plan["fold"] == fold, "image_id"]) == images - tested


def test_min_patients_counts_those_of_train_in_kfold(folder):
    sections = {"split": {"scheme": "kfold"}, "train": {"seeds": [0]}}
    study = made.study(folder, (45, 9), calibrate={"min_patients": 7}, **sections)
    run(study)
    for choice in Choices.read(study.result_path(made.BACKBONE, "baseline") / "best.json").root:
        assert choice.calibrator.slope == 1
        assert choice.calibrator.reason == (
            "train (out of fold) has 6 patient(s) of the rarest class, 7 are needed"
        )
        assert 0 < choice.threshold < 1
    served = ServedModel.read(study.result_path(made.BACKBONE, "baseline") / "model/model.json")
    assert served.calibrator.reason == "", "all nine patients were tested once"
    fewer = made.params(calibrate={"min_patients": 6}, **sections)
    run(config.load_study("made", fewer, root=folder))
    for choice in Choices.read(study.result_path(made.BACKBONE, "baseline") / "best.json").root:
        assert choice.calibrator.reason == ""


@pytest.mark.parametrize(
    ("threshold", "expected"), [({}, 0.5), ({"rule": "cost", "cost_ratio": 3.0}, 0.25)]
)
def test_without_inner_folds_kfold_leaves_scores_as_they_are_and_says_so(
    folder, threshold, expected
):
    """Two patients of a class, one for each of two folds: a search would need two in train."""
    study = made.study(
        folder,
        patients=(20, 2),
        split={"scheme": "kfold", "folds": 2},
        threshold=threshold,
    )
    _, predictions = run(study, "class_weight")
    table = predictions.table
    assert np.allclose(table["prob_opacity"], table["calibrated_opacity"])
    assert (table["threshold"] == expected).all()
    for choice in Choices.read(study.result_path(made.BACKBONE, "class_weight") / "best.json").root:
        assert choice.calibrator.reason == (
            "a class has fewer than 2 train patients, so no inner fold scored any; the threshold "
            "is 0.5 or that of the costs"
        )
        assert choice.threshold == expected
        assert choice.settings == {"exponent": 1.0, "l2": 0.01}


def test_counts_and_checks_of_kfold_know_no_val(folder):
    study = made.study(folder, split={"scheme": "kfold"})
    summary, _ = run(study)
    assert list(summary.distribution) == ["all", "train", "test", "plan"]
    answers = {check.code: check.answer for check in summary.checks}
    assert (answers["EQ003"], answers["EQ005"]) == ("passed", "passed")


def test_repeats_redraw_the_folds(folder):
    study = made.study(
        folder, split={"scheme": "kfold", "folds": 2, "repeats": 2}, train={"seeds": [0]}
    )
    _, predictions = run(study)
    test = predictions.part("test").table
    assert test.groupby(["repeat", "image_id"]).size().eq(1).all()
    fold = test.pivot(index="image_id", columns="repeat", values="fold")
    assert (fold[0] != fold[1]).any()
    # Served: calibrated on the first repeat alone, in which every patient was tested once.
    served = ServedModel.read(study.result_path(made.BACKBONE, "baseline") / "model/model.json")
    first = test[test["repeat"] == 0]
    pooled = np.log(first["prob_opacity"] / first["prob_clear"]).to_numpy()
    logits = np.stack([np.zeros(len(pooled)), pooled], axis=1)
    expected = Calibrator.fit(logits, first["label"].to_numpy(), first["patient_id"].to_numpy(), 3)
    assert served.calibrator.slope == pytest.approx(expected.slope, rel=1e-4)
    prob = Calibrator.from_dict(served.calibrator.model_dump()).apply(logits)[:, 1]
    locked = calibration.lock_threshold(
        prob, first["label"].to_numpy() == 1, study.settings.threshold, 0.9
    )
    assert served.threshold == pytest.approx(locked, abs=1e-9)


def test_a_remedy_that_the_search_switched_off_says_so_in_every_round(folder):
    """Views that look like the other class: every copy hurts, so the search keeps none."""
    study = made.study(folder, patients=(60, 40), tune={"trials": 20}, train={"seeds": [0]})
    store = study.features_path(made.BACKBONE)
    features = np.load(store / "features.npy")
    index, _ = files_.read_table(store / "index.parquet")
    views = (index["view"] > 0).to_numpy()
    features[views] = -5 * features[views]
    np.save(store / "features.npy", features)
    run(study, "augment")
    chosen = Choices.read(study.result_path(made.BACKBONE, "augment") / "best.json").root
    assert [choice.settings["copies"] for choice in chosen] == [0]
    assert [choice.switched_off for choice in chosen] == [True]
    run(study)
    chosen = Choices.read(study.result_path(made.BACKBONE, "baseline") / "best.json").root
    assert [choice.switched_off for choice in chosen] == [False]


def test_official_sides_that_share_patients_are_evaluated_with_and_without_them(folder):
    study = made.study(folder, split={"scheme": "official"}, official_overlap=3)
    summary, predictions = run(study)
    test = predictions.part("test").table
    parts = records.Splits.read(study.splits_path).table
    shared = set(parts.loc[parts["part"] == "test", "patient_id"]) & set(
        parts.loc[parts["part"] != "test", "patient_id"]
    )
    assert len(shared) == 6
    assert set(test.loc[test["overlap"], "patient_id"]) == shared
    assert not predictions.part("val").table["overlap"].any()
    rest = test[~test["overlap"]]
    assert summary.non_overlapping.rows.test == rest["image_id"].nunique()
    assert summary.rows.test == test["image_id"].nunique()
    for shown, rows in ((summary.metrics, test), (summary.non_overlapping.metrics, rest)):
        expected = [
            roc_auc_score(own["label"], own["prob_opacity"]) for _, own in rows.groupby("seed")
        ]
        assert shown["free"]["auroc"].value == pytest.approx(np.mean(expected), abs=1e-6)
    answers = {check.code: check.answer for check in summary.checks}
    assert answers["EQ-OFFICIAL"] == "failed"


def test_official_sides_that_share_all_patients_of_a_class_still_give_the_result_on_all_rows(
    folder,
):
    study = made.study(folder, split={"scheme": "official"}, official_overlap=3)
    manifest = records.Manifest.read(study.manifest_path)
    table = manifest.table.copy()
    # Only shared patients of the rare class stay on the published test side.
    mixed = (
        table[table["label"] == 1].groupby("patient_id")["official_split"].transform("nunique") > 1
    )
    table.loc[mixed.index[~mixed], "official_split"] = "train"
    manifest = records.Manifest(table, manifest.meta).write(study.manifest_path)
    meta = study.features_path(made.BACKBONE) / "meta.json"
    files_.write_json(meta, {**files_.read_json(meta), "manifest": manifest.digest})
    splits.run(study)
    summary, _ = run(study)
    assert 0 < summary.metrics["free"]["auroc"].value <= 1


def test_official_sides_without_shared_patients_have_no_second_result(folder):
    study = made.study(folder, split={"scheme": "official"}, official_overlap=0)
    assert run(study)[0].non_overlapping is None


THREE = {"patients": (30, 14, 12), "classes": ("a", "b", "c")}


def test_three_classes_with_a_metric_of_two_are_refused(folder):
    metric = "specificity_at_sensitivity"
    study = made.study(folder, **THREE, tune={"objective": metric})
    with pytest.raises(
        ConfigError,
        match=r"specificity_at_sensitivity needs two classes; these data have 3. Set tune.objective",
    ):
        run(study)
    half = config.load_study("made", made.params(compare={"primary": metric}), root=folder)
    with pytest.raises(ConfigError, match="specificity_at_sensitivity needs two classes"):
        run(half)


@pytest.mark.parametrize("scheme", ["holdout", "kfold"])
def test_three_classes_are_ranked_one_versus_rest(folder, scheme):
    study = made.study(folder, **THREE, split={"scheme": scheme})
    summary, predictions = run(study, "weighted_augment")
    test = predictions.part("test").table
    expected = [
        roc_auc_score(rows["label"], rows[["prob_a", "prob_b", "prob_c"]], multi_class="ovr")
        for _, rows in test.groupby(["seed", "fold"])
    ]
    assert summary.metrics["free"]["auroc"].value == pytest.approx(np.mean(expected), abs=1e-6)
    assert test["threshold"].isna().all()
    assert summary.minority_classes == ["b", "c"]
    assert predictions.probabilities("calibrated").sum(axis=1) == pytest.approx(
        np.ones(len(predictions.table))
    )
    target = study.result_path(made.BACKBONE, "weighted_augment")
    assert ServedModel.read(target / "model/model.json").threshold is None


def test_one_train_patient_of_a_class_runs_with_published_settings(folder):
    study = made.study(folder, patients=(20, 3))
    summary, _ = run(study, "class_weight")
    target = study.result_path(made.BACKBONE, "class_weight")
    choice = Choices.read(target / "best.json").root[0]
    assert choice.settings == {"exponent": 1.0, "l2": 0.01}
    assert choice.identified is False
    assert ScenarioSummary.read(target / "metrics.json").inner_score is None
    assert 0 <= summary.metrics["free"]["auroc"].value <= 1


def test_a_parent_made_from_another_manifest_is_refused(folder):
    study = made.study(folder)
    manifest = records.Manifest.read(study.manifest_path)
    records.Manifest(manifest.table.assign(bytes=101), manifest.meta).write(study.manifest_path)
    with pytest.raises(
        DataError, match=r"splits/made.parquet was made from another manifest.*Run split again"
    ):
        run(study)
    splits.run(study)
    with pytest.raises(
        DataError, match=r"features/made/vgg16 was made from another manifest.*Run embed again"
    ):
        run(study)
    assert not study.result_path(made.BACKBONE, "baseline").exists()


def test_workers_and_threads_change_no_byte(folder):
    study = made.study(folder)
    summary, _ = run(study)
    files = {
        path.name: path.read_bytes()
        for path in study.result_path(made.BACKBONE, "baseline").glob("*.*")
    }
    two_workers = study.engine.model_copy(update={"workers": 2})
    with threadpool_limits(limits=2):
        again, _ = run(study.model_copy(update={"engine": two_workers}))
    assert again.result_digest == summary.result_digest
    for path in study.result_path(made.BACKBONE, "baseline").glob("*.*"):
        assert path.read_bytes() == files[path.name], path.name


def test_a_missing_view_is_refused_with_advice(folder):
    made.study(folder)
    more = config.load_study("made", made.params(embed={"views": 3}), root=folder)
    with pytest.raises(
        DataError, match=r"No feature of picture .*, view 3 .*Run `equipoise embed` again"
    ):
        run(more, "augment")


def test_fixed_copies_beyond_the_views_are_refused_in_words(folder):
    study = made.study(folder, scenarios={"augment": {"copies": 3}})
    with pytest.raises(ConfigError):
        run(study, "augment")


def test_settings_of_a_scenario_that_does_not_exist_are_refused(folder):
    study = made.study(folder, scenarios={"oversampel": {"target_fraction": 0.5}})
    with pytest.raises(ConfigError, match="oversampel"):
        run(study, "oversample")


def test_an_unknown_scenario_names_the_nearest(folder):
    with pytest.raises(ConfigError, match="Did you mean 'oversample'"):
        scenario.run(made.study(folder), made.BACKBONE, "oversampel")


def test_fine_tuning_with_kfold_is_refused(folder):
    study = made.study(folder, split={"scheme": "kfold"}, train={"mode": "finetune"})
    with pytest.raises(ConfigError, match="no single model to serve"):
        run(study)


@pytest.mark.parametrize("gone", ["the folder", "an image"])
def test_a_scenario_does_not_answer_from_images_that_were_removed(folder, capsys, gone):
    """Features and split are there and fit together: only the raw folder says that they are of other images."""
    study = made.study(folder, train={"seeds": [0]})
    study.raw.mkdir(parents=True)
    if gone == "the folder":
        fingerprint.remember(study, records.Manifest.read(study.manifest_path))
        study.raw.rmdir()
    else:
        (study.raw / "README.txt").write_text("once there were images beside me")
    names = ("--study", "made", "--backbone", "vgg16", "--scenario", "oversample")
    assert cli.main(["scenario", *names]) == 1
    told = capsys.readouterr()
    assert "ingesting" in told.out
    assert "dvc checkout" in told.err or "holds no image file" in told.err
    assert not study.result_path("vgg16", "oversample").exists()


def test_a_scenario_runs_where_the_originals_stayed_at_home(folder, capsys):
    made.study(folder, train={"seeds": [0]})
    names = ("--study", "made", "--backbone", "vgg16", "--scenario", "oversample")
    assert cli.main(["scenario", *names]) == 0
    assert "is not on this machine; going on from the manifest" in capsys.readouterr().out


def test_a_scenario_on_kept_features_imports_nothing_it_does_not_need(folder):
    made.study(folder, train={"seeds": [0]})
    # Each of them takes a third of a second and more, in every stage.
    heavy = {"tensorflow", "keras", "mlflow", "sklearn", "imblearn", "scipy.stats", "matplotlib"}
    code = (
        "import sys; from equipoise import cli; assert cli.main(['scenario', '--study', 'made', '--backbone', 'vgg16', "
        f"'--scenario', 'oversample']) == 0; print(sorted({heavy} & set(sys.modules)))"
    )
    source = str(REPO / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
