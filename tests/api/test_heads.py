"""Heads fitted to arrays are those of a study, and folds, plans and verdicts agree with scikit-learn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.utils.class_weight import compute_sample_weight

import equipoise
from conftest import REPO
from equipoise import cli
from equipoise.core.errors import ConfigError, DataError, EquipoiseError, TrialFailed
from equipoise.core.records import Manifest
from equipoise.embed.store import FeatureStore
from equipoise.scenario import stage
from fabricate import made

SCENARIOS = ["baseline", "oversample", "smote"]
FOLDS = {"scheme": "kfold", "folds": 3, "repeats": 2}
#: What the fabricated study has and arrays do not have by default.
SETTINGS = {
    f"{section}.{key}": value
    for section in ("tune", "train", "calibrate")
    for key, value in made.SMALL[section].items()
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return made.study(folder, split=FOLDS, embed={"views": 0})


@pytest.fixture(scope="module")
def arrays(study):
    """Features, labels, patients and images of the study, in the order of its manifest."""
    table = Manifest.read(study.manifest_path).table
    store = FeatureStore.open(study.features_path(made.BACKBONE))
    rows = store.rows(table["sha256"].tolist(), np.zeros(len(table), dtype=int))
    return np.array(store.matrix[rows]), table["class_name"], table["patient_id"], table["image_id"]


@pytest.fixture(scope="module")
def heads(arrays):
    features, labels, patients, images = arrays
    return equipoise.fit_heads(
        features,
        labels,
        patients,
        SCENARIOS,
        images=images,
        positive="opacity",
        folds=3,
        repeats=2,
        settings=SETTINGS,
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_they_are_those_of_the_scenario_stage_to_the_last_bit(study, heads, scenario):
    stage.run(study, made.BACKBONE, scenario)
    folder = study.result_path(made.BACKBONE, scenario)
    stored = pd.read_parquet(folder / "predictions.parquet")
    pd.testing.assert_frame_equal(heads.predictions[scenario].table, stored, check_exact=True)
    chosen = json.loads((folder / "best.json").read_text())
    assert heads.choices[scenario].as_list() == chosen


def test_compare_takes_them_in_every_form(heads, tmp_path):
    verdicts = equipoise.compare(heads, resamples=200)
    assert set(verdicts.table.index) == set(SCENARIOS)
    table = heads.table
    pd.testing.assert_frame_equal(equipoise.compare(table, resamples=200).table, verdicts.table)
    table.to_csv(tmp_path / "long.csv", index=False)
    read = equipoise.compare(tmp_path / "long.csv", resamples=200, positive="opacity")
    pd.testing.assert_frame_equal(read.table, verdicts.table)


def test_the_page_of_a_notebook_is_that_of_the_verb(heads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heads.table.to_csv("long.csv", index=False)
    equipoise.compare("long.csv", resamples=200, positive="opacity").write_page("out/notebook.html")
    options = ["--resamples", "200", "--positive", "opacity", "--page", "out/verb.html"]
    assert cli.main(["judge", "long.csv", *options]) == 0
    assert Path("out/notebook.html").read_bytes() == Path("out/verb.html").read_bytes()


def test_workers_change_no_number(arrays):
    features, labels, patients, _ = arrays
    few = {"positive": "opacity", "folds": 2, "repeats": 1, "settings": SETTINGS}
    here, there = (
        equipoise.fit_heads(features, labels, patients, ["baseline"], workers=workers, **few)
        for workers in (1, 2)
    )
    pd.testing.assert_frame_equal(here.table, there.table, check_exact=True)


def test_views_serve_augment_and_fixed_settings_are_kept(arrays):
    features, labels, patients, _ = arrays
    views = np.stack([features + 0.01, features - 0.01])
    fitted = equipoise.fit_heads(
        features,
        labels,
        patients,
        {"baseline": {}, "augment": {"copies": 2}},
        views=views,
        positive="opacity",
        folds=2,
        repeats=1,
        settings=SETTINGS,
    )
    chosen = fitted.chosen.set_index("method")
    assert set(chosen.loc["augment", "copies"]) == {2}
    same = fitted.predictions["baseline"].probabilities("prob")
    assert not np.allclose(fitted.predictions["augment"].probabilities("prob"), same)


# --- folds and plans ------------------------------------------------------------------------------


def test_folds_are_scikit_learns_cv_and_keep_patients_whole(arrays):
    features, labels, patients, _ = arrays
    images = pd.DataFrame({"patient": patients, "label": labels})
    folds = equipoise.split(images, positive="opacity", folds=4, repeats=1)
    tested = np.zeros(len(images), dtype=int)
    for train, test in folds:
        tested[test] += 1
        assert not set(patients.iloc[train]) & set(patients.iloc[test])
        assert len(train) + len(test) == len(images)
        assert set(labels.iloc[test]) == {"clear", "opacity"}
    assert (tested == 1).all()

    truth = (labels == "opacity").to_numpy()
    scores = cross_val_predict(
        LogisticRegression(), features, truth, cv=list(folds), method="predict_proba"
    )[:, 1]
    fold_of = folds.table.query("part == 'test'").set_index("image_id")["fold"]
    fold = fold_of.loc[folds.manifest.table["image_id"]].to_numpy()
    table = pd.DataFrame({"patient": patients, "label": truth, "fold": fold, "prob": scores})
    found = equipoise.compare({"plain": table, "other": table}, resamples=200).table
    by_fold = [roc_auc_score(truth[fold == k], scores[fold == k]) for k in range(4)]
    assert found.loc["plain", "auroc"] == pytest.approx(np.mean(by_fold), abs=1e-12)


def test_a_holdout_has_three_parts():
    table = pd.DataFrame({"patient": range(60), "label": [0, 0, 1] * 20})
    folds = equipoise.split(table, scheme="holdout", test_fraction=0.2, val_fraction=0.25)
    assert pd.Series(folds.parts()).value_counts().to_dict() == {"train": 36, "test": 12, "val": 12}


def test_weights_of_a_plan_are_those_of_scikit_learn():
    labels = ["well"] * 30 + ["ill"] * 10
    planned = equipoise.plan("class_weight", labels)
    expected = compute_sample_weight("balanced", labels)
    np.testing.assert_allclose(planned.sample_weights(), expected)
    drawn = equipoise.plan("undersample", labels, seed=3)
    assert drawn.counts.set_index("class")["draws"].to_dict() == {"well": 10, "ill": 10}
    assert set(drawn.sample_weights()) == {0, 1}
    with pytest.raises(ConfigError, match="weights of rows cannot say"):
        equipoise.plan("augment", labels, views=2, copies=1).sample_weights()


# --- a study --------------------------------------------------------------------------------------


def test_a_finished_study_is_read_back(workspace):
    results = equipoise.load("demo", root=workspace / "reports")
    kept = json.loads((workspace / "reports/demo/comparison.json").read_text())
    table = results.table
    for backbone, rows in kept["rows"].items():
        for scenario, row in rows.items():
            assert table.loc[(backbone, scenario), "verdict"] == row["verdict"]
            auroc = row["free"]["auroc"]["value"]
            assert table.loc[(backbone, scenario), "auroc"] == pytest.approx(auroc, abs=1e-6)
    predictions = {name: results.predictions("vgg16", name) for name in results.scenarios}
    judged = equipoise.compare(predictions, root=workspace).table
    expected = table.loc["vgg16", "auroc"]
    np.testing.assert_allclose(judged["auroc"], expected[judged.index], atol=1e-6)
    assert results.metrics("vgg16", "baseline").scenario == "baseline"
    with pytest.raises(ConfigError, match="Did you mean 'baseline'"):
        results.predictions("vgg16", "basline")


# --- how it behaves in a notebook -----------------------------------------------------------------


def test_records_show_themselves_escaped_and_in_the_colour_of_the_verdict(heads):
    methods = {f"<b>{name}</b>": one for name, one in heads.predictions.items()}
    verdicts = equipoise.compare(methods, baseline="<b>baseline</b>", resamples=200)
    shown = verdicts._repr_html_()
    assert "&lt;b&gt;smote&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert 'color:#0072b2;font-weight:bold">equivalent<' in shown
    assert verdicts.forest()._repr_svg_().startswith("<svg ")
    for record in (heads, heads.folds, equipoise.plan("focal", [0, 1, 1])):
        assert record._repr_html_().count("<tr>") > 1
        assert repr(record)


def test_it_prints_nothing_changes_no_folder_and_loads_nothing_heavy(tmp_path):
    code = """
import os, sys
import equipoise
assert not {"numpy", "pandas", "argparse"} & set(sys.modules)
import numpy as np
labels = np.arange(60) % 3 == 0
features = np.random.default_rng(0).normal(size=(60, 4)) + labels[:, None]
heads = equipoise.fit_heads(features, labels, None, ["baseline", "oversample"], folds=2, repeats=1, trials=3)
equipoise.compare(heads, resamples=200)._repr_html_()
assert callable(equipoise.compare) and callable(equipoise.split) and equipoise.compare.judging
assert set(equipoise.__all__) <= set(dir(equipoise))
heavy = {"tensorflow", "keras", "mlflow", "dvc"} & set(sys.modules)
assert not heavy, heavy
assert os.getcwd() == sys.argv[1] and not os.listdir()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_says_that_it_is_typed():
    assert (REPO / "src/equipoise/py.typed").is_file()


# --- what is refused ------------------------------------------------------------------------------


FEATURES = np.random.default_rng(1).normal(size=(40, 3))
LABELS = np.arange(40) % 2
PATIENTS = np.arange(40)


def fit(features=FEATURES, labels=LABELS, patients=PATIENTS, strategies=("baseline",), **settings):
    return equipoise.fit_heads(features, labels, patients, strategies, **settings)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit(patients=PATIENTS[:-1]), "There are 39 patients and 40 labels"),
        (lambda: fit(FEATURES[1:]), "There are 39 rows of features and 40 labels"),
        (lambda: fit(FEATURES[:, 0]), r"have the shape \(40,\)"),
        (lambda: fit(np.where(PATIENTS == 7, np.nan, FEATURES.T).T), "1 row, counted from 0.*: 7"),
        (lambda: fit(FEATURES * 1e39), "too large for float32"),
        (lambda: fit([["a"]] * 40), "no table of numbers"),
        (lambda: fit(labels=LABELS * 0), "All 40 labels are 0"),
        (lambda: fit(labels=[None, *LABELS[1:]]), "1 row, counted from 0, with no label: 0"),
        (lambda: fit(labels=np.where(LABELS, "a", "b")), "which of them is the disease"),
        (lambda: fit(labels=LABELS, positive=2), "There is no class '2'"),
        (lambda: fit(strategies=["oversampl"]), "Did you mean 'oversample'"),
        (lambda: fit(strategies=[]), "No strategy is named"),
        (lambda: fit(strategies=["augment"]), "needs augmented views"),
        (lambda: fit(views=FEATURES), r"\(number of views, 40, 3\)"),
        (lambda: fit(trials=0), "tune.trials is 0"),
        (lambda: fit(settings={"tune.trails": 3}), "Did you mean 'tune.trials'"),
        (lambda: fit(settings={"train.mode": "finetune"}), "no network to"),
        (lambda: fit(workers=0), "at least 1 is expected"),
        (lambda: fit(folds=30), "needs at least 30 patients of every class"),
        (lambda: fit(images=["x"] * 40), "'x' stands in 40 rows"),
        (lambda: equipoise.plan("smote", PATIENTS < 9), "came without features"),
        (lambda: equipoise.plan("patient_balanced", LABELS), "came without patients"),
        (lambda: equipoise.plan("focal", LABELS, gama=1), "Did you mean 'gamma'"),
        (lambda: equipoise.plan("focal", LABELS, gamma=9), "a number from 0.0 to 5.0"),
        (lambda: equipoise.split(pd.DataFrame({"label": LABELS})), "say patient=None"),
        (lambda: equipoise.split(pd.DataFrame({"lable": LABELS})), "Did you mean 'lable'"),
        (lambda: equipoise.split({"label": LABELS}), "a DataFrame"),
        (lambda: equipoise.compare({}), "There are no predictions"),
        (lambda: equipoise.compare(3), "Predictions are int"),
        (lambda: equipoise.compare({"a": 3}), "predictions of a are int"),
        (lambda: equipoise.compare(["nowhere.csv"]), "There is no file nowhere.csv"),
        (lambda: equipoise.load("demo", root="/"), "No params.yaml in /"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(call, said):
    with pytest.raises((ConfigError, DataError), match=said):
        call()


def test_features_that_know_nothing_are_an_error_of_the_same_family():
    with pytest.raises(TrialFailed, match="Every feature is the same"):
        fit(FEATURES * 0)
    assert issubclass(TrialFailed, EquipoiseError)


def test_folds_of_other_rows_are_refused():
    table = pd.DataFrame({"patient": PATIENTS, "label": LABELS})
    folds = equipoise.split(table, folds=2, repeats=1)
    with pytest.raises(DataError, match="made of other rows"):
        fit(labels=1 - LABELS, folds=folds)
    with pytest.raises(ConfigError, match="leave repeats out"):
        fit(folds=folds, repeats=3)


def test_a_name_of_a_mapping_goes_before_a_column_method():
    table = pd.DataFrame({"label": LABELS, "prob": PATIENTS / 40, "method": "same"})
    found = equipoise.compare({"a": table, "b": table.assign(prob=0.5)}, resamples=200)
    assert list(found.table.index) == ["a", "b"]


def test_numbers_of_classes_are_ordered_by_value():
    planned = equipoise.plan("baseline", [10, 2, 2, 1, -1])
    assert planned.classes == ("-1", "1", "2", "10")


def test_rows_of_a_table_in_memory_are_named_by_position():
    good = pd.DataFrame({"label": LABELS, "prob": 0.5}, index=range(100, 140))
    bad = good.assign(prob=np.where(PATIENTS == 3, 1.5, 0.5))
    with pytest.raises(DataError, match=r"b: a probability outside 0..1 .*position 3 \(1.5\)"):
        equipoise.compare({"a": good, "b": bad})
