"""`judge`: anybody's predictions give compare's numbers, scikit-learn's areas, or a sentence with the rows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from conftest import REPO
from equipoise import cli
from equipoise.compare import stage as compare
from equipoise.compare.evidence import RowEvidence
from equipoise.core import config
from equipoise.core.errors import ConfigError, DataError
from equipoise.judge.verdicts import judge_files
from fabricate import made

SCENARIOS = ["baseline", "oversample", "class_weight"]
STRENGTHS = {"baseline": 1.0, "oversample": 1.6, "class_weight": 1.1}
QUICK = {"compare.resamples": 200}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(*paths, baseline=None, positive=None, **overrides):
    settings = config.judging_settings(None, {**QUICK, **overrides})
    found = judge_files([Path(path) for path in paths], settings, baseline, positive)
    return json.loads(found.document().text())


def predictions(strength=1.0, positives=40, negatives=80, **columns):
    """Two images of each patient; the true class stands out by `strength` standard deviations."""
    labels = np.repeat([1, 0], [positives, negatives])
    rows = np.arange(len(labels))
    noise = np.random.default_rng(7).normal(size=len(labels))
    table = pd.DataFrame(
        {
            "image": [f"i{row:03d}" for row in rows],
            "patient": [f"p{row // 2:03d}" for row in rows],
            "label": labels,
            "prob": 1 / (1 + np.exp(-noise - strength * labels)),
        }
    )
    return table.assign(**columns)


def write(folder, **tables):
    """A CSV for each method; their names."""
    names = []
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        names.append(f"{name}.csv")
    return names


# --- the same numbers as compare ------------------------------------------------------------------


def study_of(folder, scheme):
    split = {"scheme": scheme, "folds": 3, "repeats": 2 if scheme == "kfold" else 1}
    own = made.study(folder, patients=(45, 30), split=split, run={"scenarios": SCENARIOS})
    for scenario, strength in STRENGTHS.items():
        made.result(own, scenario, strength)
    compare.run(own, evidence=lambda results, _: {result.key: RowEvidence() for result in results})
    evidence = json.loads((folder / "reports/made/evidence.json").read_text())
    return evidence["rows"][made.BACKBONE]


def judged_like(rows, *paths):
    """Judge by the settings of the fabricated study and compare every number with its rows."""
    # Outside of any project, whose own defaults would be read.
    found = judged(*paths, **{"tune.sensitivity_floor": 0.9})["rows"]
    assert list(found) == SCENARIOS
    for name, row in found.items():
        assert row["verdict"] == rows[name]["verdict"]
        assert row["auroc"] == rows[name]["free"]["auroc"]["value"]
        for point, metrics in row["metrics"].items():
            assert metrics
            for metric, number in metrics.items():
                assert number == rows[name][point][metric], (name, point, metric)
        if name != "baseline":
            delta = rows[name]["delta"]["free.auroc"]
            assert delta["low"] < delta["value"] < delta["high"]
            assert delta == {key: row[key] for key in delta}
    return found


@pytest.mark.parametrize("scheme", ["kfold", "holdout"])
def test_our_own_files_give_the_numbers_of_compare_to_the_last_digit(folder, scheme):
    rows = study_of(folder, scheme)
    of_scenario = folder / f"results/made/{made.BACKBONE}"
    parquet = [of_scenario / name / "predictions.parquet" for name in sorted(SCENARIOS)]
    from_parquet = judged_like(rows, *parquet)
    exported = []
    for path in parquet:
        exported.append(folder / f"{path.parent.name}.csv")
        pd.read_parquet(path).to_csv(exported[-1], index=False)
    assert judged_like(rows, *exported) == from_parquet


def test_areas_are_those_of_scikit_learn_within_folds(folder):
    fold = (np.arange(120) // 2) % 4
    tables = {"a": predictions(0.5, fold=fold), "b": predictions(1.5, fold=fold)}
    found = judged(*write(folder, **tables))
    areas = {}
    for name, table in tables.items():
        of_folds = [roc_auc_score(part["label"], part["prob"]) for _, part in table.groupby("fold")]
        areas[name] = np.mean(of_folds)
        assert found["rows"][name]["auroc"] == pytest.approx(areas[name], abs=1e-12)
    assert found["rows"]["b"]["value"] == pytest.approx(areas["b"] - areas["a"], abs=1e-12)
    assert (found["folds"], found["units"], found["test_patients"]) == (4, "patients", 60)


def test_more_classes_are_measured_as_scikit_learn_does(folder):
    classes = ["benign", "malignant", "other"]
    labels = np.arange(90) % 3
    tables = {}
    for name, strength in (("a", 0.5), ("b", 2.0)):
        logits = np.random.default_rng(1).normal(size=(90, 3)) + strength * np.eye(3)[labels]
        prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        columns = {f"prob_{own}": prob[:, place] for place, own in enumerate(classes)}
        tables[name] = pd.DataFrame({"label": [classes[label] for label in labels], **columns})
    found = judged(*write(folder, **tables))
    for name, table in tables.items():
        prob = table.filter(like="prob_").to_numpy()
        area = roc_auc_score(labels, prob, multi_class="ovr", average="macro")
        assert found["rows"][name]["auroc"] == pytest.approx(area, abs=1e-12)
        accuracy = found["rows"][name]["metrics"]["raw"]["accuracy"]["value"]
        assert accuracy == pytest.approx(np.mean(prob.argmax(axis=1) == labels))
    assert found["rows"]["b"]["verdict"] == "better"


# --- what a file may look like --------------------------------------------------------------------


def test_one_long_file_gives_the_rows_of_two(folder):
    tables = {"a": predictions(0.5), "b": predictions(1.5)}
    long = pd.concat([table.assign(method=name) for name, table in tables.items()])
    long.to_csv(folder / "long.csv", sep=";", index=False, encoding="utf-8-sig")
    long.to_parquet(folder / "long.parquet", index=False)
    expected = judged(*write(folder, **tables))
    assert judged("long.csv") == judged("long.parquet") == expected


def test_another_order_of_rows_is_the_same_comparison(folder):
    tables = {"a": predictions(0.5), "b": predictions(1.5)}
    expected = judged(*write(folder, **tables))
    shuffled = tables | {"b": tables["b"].sample(frac=1, random_state=0)}
    rows = judged(*write(folder, **shuffled))["rows"]
    for key in ("value", "low", "high", "auroc", "p_adjusted"):
        assert rows["b"][key] == expected["rows"]["b"][key]


def test_columns_of_named_classes_are_the_single_column(folder):
    single = {"a": predictions(0.5), "b": predictions(1.5)}
    expected = judged(*write(folder, **single))
    named = {}
    for name, table in single.items():
        words = table["label"].map({0: "clear", 1: "opacity"})
        named[name] = table.assign(
            label=words, prob_opacity=table["prob"], prob_clear=1 - table["prob"]
        ).drop(columns="prob")
    found = judged(*write(folder, **named), positive="opacity")
    assert found["rows"]["b"]["low"] == expected["rows"]["b"]["low"]
    assert found["positive_class"] == "opacity"
    assert found["rows"]["b"]["metrics"]["raw"] == expected["rows"]["b"]["metrics"]["raw"]


def test_labels_that_are_no_class_are_refused_and_numbers_follow_the_columns(folder):
    table = predictions(1.5)
    columns = {"prob_clear": 1 - table["prob"], "prob_opacity": table["prob"]}
    numbered = table.assign(**columns).drop(columns="prob")
    found = judged(*write(folder, a=numbered, b=numbered))
    assert found["positive_class"] == "opacity"
    assert any("0 clear and 1 opacity." in note for note in found["notes"])
    words = numbered["label"].map({0: "clear", 1: "opacity"}).astype(object)
    odd = numbered.assign(label=words)
    odd.loc[4, "label"] = "opacities"
    with pytest.raises(
        DataError, match=r"none of clear and opacity \(1 row\): line 6 \(opacities\)"
    ):
        judged(*write(folder, a=odd, b=odd))
    odd.loc[4, "label"] = "1"
    with pytest.raises(DataError, match="labels of some rows are names"):
        judged(*write(folder, a=odd, b=odd))


def test_a_class_that_nobody_has_is_refused(folder):
    table = predictions(1.5)
    three = {"prob_a": 1 - table["prob"], "prob_b": table["prob"], "prob_c": 0.0}
    unseen = table.assign(**three).drop(columns="prob")
    with pytest.raises(DataError, match="No row has the label c, for which there are"):
        judged(*write(folder, a=unseen, b=unseen))


def test_probabilities_that_do_not_add_up_are_told(folder):
    table = predictions(1.5)
    off = table.assign(prob_no=1 - table["prob"], prob_yes=table["prob"]).drop(columns="prob")
    off.loc[7, "prob_no"] = 0.0
    found = judged(*write(folder, a=off, b=off))
    assert any(
        "a.csv: the probabilities of 1 row do not sum to 1 (line 9)" in note
        for note in found["notes"]
    )


def test_the_baseline_is_named_or_called_so_or_the_first(folder):
    names = write(folder, a=predictions(0.5), b=predictions(1.5), baseline=predictions(0.4))
    assert judged(*names)["baseline"] == "baseline"
    assert judged(*names[:2])["baseline"] == "a"
    found = judged(*names[:2], baseline="b")
    assert found["rows"]["a"]["verdict"] == "worse"
    assert found["rows"]["a"]["reason"].startswith("a is worse than b: AUROC of models")
    assert found["headline"].startswith("No method is better than b in AUROC")


def test_without_patients_intervals_are_per_image_and_that_is_said(folder):
    tables = {"a": predictions(0.5), "b": predictions(1.5)}
    with_patients = judged(*write(folder, **tables))
    bare = {name: table[["label", "prob"]] for name, table in tables.items()}
    found = judged(*write(folder, **bare))
    assert found["units"] == "images"
    assert any("no patient ids: intervals are per image" in note for note in found["notes"])
    assert not any("no patient ids" in note for note in with_patients["notes"])
    assert found["rows"]["b"]["value"] == with_patients["rows"]["b"]["value"]
    assert found["rows"]["b"]["low"] != with_patients["rows"]["b"]["low"]


def test_a_locked_threshold_is_used_where_every_method_brings_one(folder):
    table = predictions(1.5)
    locked = table.assign(calibrated=table["prob"] / 2, threshold=0.3)
    found = judged(*write(folder, a=locked, b=locked.assign(threshold=0.2)))
    is_positive = table["label"] == 1
    for name, threshold in (("a", 0.3), ("b", 0.2)):
        reached = locked.loc[is_positive, "calibrated"] >= threshold
        sensitivity = found["rows"][name]["metrics"]["locked"]["sensitivity"]["value"]
        assert sensitivity == pytest.approx(reached.mean())
    found = judged(*write(folder, a=locked, b=table))
    assert found["rows"]["a"]["metrics"]["locked"] == {}
    assert any(note.endswith("by the largest probability alone.") for note in found["notes"])


# --- what is refused ------------------------------------------------------------------------------


def changed(rows, **values):
    table = predictions(1.5)
    for column, value in values.items():
        table[column] = table[column].astype(object)
        table.loc[rows, column] = value
    return table


REFUSED = {
    "outside": (changed([3, 4, 5, 6], prob=1.5), "outside 0..1 in prob (4 rows): line 5 (1.5), "),
    "nan": (changed([3], prob=np.nan), "no number in prob (1 row): line 5"),
    "comma": (changed([3], prob="0,5"), "where 0.5 is written with a point (1 row): line 5 (0,5)"),
    "unlabelled": (changed([3], label=np.nan), "no label (1 row): line 5"),
    "nobody": (changed([3], patient=np.nan), "nothing stands in patient (1 row): line 5"),
    "twice": (changed([3], image="i004"), "predicted once more without a column fold or repeat"),
    "fewer": (predictions(1.5)[5:], "a has 5 rows that b lacks: i000 (repeat 0, fold 0), i001"),
    "others": (changed([3], image="x"), "a has 1 row that b lacks: i003"),
    "label": (changed([3], label=0), "disagree in label on 1 row: i003 (repeat 0, fold 0)"),
    "patient": (changed([3], patient="x"), "disagree in patient on 1 row: i003"),
    "third": (changed([3], label=2), "holds 3 classes (1, 0, 2), and there is one column"),
    "no prob": (predictions().drop(columns="prob"), "lacks the column(s) prob (or prob_<class>"),
    "no patient": (predictions().drop(columns="patient"), "a has a column patient and b has none"),
    "empty": (predictions()[:0], "holds no rows"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_compared_is_refused_with_its_rows(folder, what):
    table, sentence = REFUSED[what]
    with pytest.raises(DataError, match=re.escape(sentence)):
        judged(*write(folder, a=predictions(0.5), b=table))


def test_a_cell_of_any_length_leaves_the_sentence_a_sentence(folder):
    for column in ("patient", "image"):
        table = changed([3], **{column: "x" * 50_000})
        with pytest.raises(DataError, match=r"x\.\.\. \(50,0\d\d characters\)") as refusal:
            judged(*write(folder, a=table, b=predictions(0.5)))
        assert len(str(refusal.value)) < 2_000


def test_a_patient_in_two_folds_of_a_repeat_is_a_leak(folder):
    rows = np.arange(120)
    leaking = {name: predictions(fold=rows % 5) for name in "ab"}
    with pytest.raises(
        DataError, match=r"a leak: a patient tested in another fold .*line 3 \(p000\)"
    ):
        judged(*write(folder, **leaking))
    independent = {name: predictions(repeat=rows % 5) for name in "ab"}
    assert judged(*write(folder, **independent))["rows"]["b"]["verdict"] == "equivalent"


def test_a_single_class_and_a_single_method_are_refused(folder):
    names = write(folder, a=predictions()[:40], b=predictions()[:40], c=predictions())
    with pytest.raises(DataError, match="have the label 1; at least two classes"):
        judged(*names[:2])
    with pytest.raises(DataError, match="one method, c, and nothing to compare it with"):
        judged("c.csv")
    with pytest.raises(DataError, match=r"c\.csv and c\.csv are both called c"):
        judged("c.csv", "c.csv")


def test_repeats_of_nobody_are_refused(folder):
    repeated = pd.concat([predictions(repeat=repeat) for repeat in (0, 1)])
    bare = repeated[["label", "prob", "repeat"]]
    with pytest.raises(DataError, match="several values of repeat, and no column image or patient"):
        judged(*write(folder, a=bare, b=bare))


def test_names_that_do_not_exist_are_refused_with_the_nearest(folder):
    words = {"label": np.where(predictions()["label"], "malignant", "benign")}
    names = write(folder, a=predictions(**words), b=predictions(**words))
    with pytest.raises(ConfigError, match="Say which that is: --positive benign"):
        judged(*names)
    with pytest.raises(ConfigError, match=r"Did you mean 'malignant'\?"):
        judged(*names, positive="malignent")
    with pytest.raises(ConfigError, match="There is no method 'c'"):
        judged(*names, positive="malignant", baseline="c")
    with pytest.raises(ConfigError, match=r"compare\.margin is 2"):
        judged(*names, **{"compare.margin": 2})


# --- settings -------------------------------------------------------------------------------------


def test_the_packaged_settings_are_those_of_params():
    assert config.judging_settings(None, {}) == config.judging_settings(REPO, {})


def test_a_project_gives_its_own_defaults(folder):
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params["defaults"]["compare"]["margin"] = 0.03
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert config.judging_settings(folder, {}).compare.margin == 0.03
    assert config.judging_settings(folder, {"compare.margin": 0.04}).compare.margin == 0.04


def test_params_of_another_program_are_left_alone(folder):
    (folder / "params.yaml").write_text("train: {epochs: 5}\n")
    assert config.judging_settings(folder, {}) == config.judging_settings(None, {})


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_writes_page_and_json(folder, capsys):
    names = write(folder, plain=predictions(0.5), **{"<b>new": predictions(1.5)})
    command = ["judge", *names, "--resamples", "200", "--margin", "0.05"]
    assert cli.main([*command, "--page", "out/page.html", "--json", "out/numbers.json"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"<b>new +better +\+0\.\d+ \[\+0\.\d+, \+0\.\d+\]", shown)
    assert "difference to plain in AUROC" in shown
    numbers = json.loads((folder / "out/numbers.json").read_text())
    row = numbers["rows"]["<b>new"]
    assert numbers["margin"] == 0.05
    assert row["low"] < row["value"] < row["high"]
    assert 0 <= row["p_adjusted"] < 0.05
    page = (folder / "out/page.html").read_text()
    assert "Better than plain in AUROC: &lt;b&gt;new" in page
    assert "<b>new" not in page
    assert page.count("<svg") == 4  # differences, wide and narrow; ROC, precision-recall
    assert cli.main([*command, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers


def test_it_needs_no_project_and_loads_nothing_heavy(folder):
    names = write(folder, a=predictions(0.5), b=predictions(1.5))
    code = (
        "import sys\n"
        "from equipoise.cli import main\n"
        f"assert main(['judge', *{names}, '--page', 'page.html', '--resamples', '200']) == 0\n"
        "heavy = {'mlflow', 'dvc', 'tensorflow', 'keras', 'optuna', 'sklearn', 'imblearn', 'distributed'}\n"
        "print('loaded:', *sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


# --- the examples of docs/judge.md ----------------------------------------------------------------

EXAMPLES = re.findall(r"```python\n(.*?)```", (REPO / "docs/judge.md").read_text(), flags=re.S)


def test_the_scikit_learn_example_runs(folder):
    exec(EXAMPLES[0], {})  # noqa: S102, the example itself
    found = judged("plain.csv", "balanced.csv", baseline="plain")
    assert found["rows"]["balanced"]["verdict"] == "equivalent"
    assert (found["folds"], found["test_images"]) == (5, 569)


def test_the_nnunet_example_reads_folders_of_folds(folder):
    space = {}
    exec(EXAMPLES[1], space)  # noqa: S102, the example itself
    truth = {}
    for trainer, strength in (("plain", 1.0), ("focal", 3.0)):
        rng = np.random.default_rng(0)
        for case in range(60):
            name = f"case{case // 2}_{case % 2}"
            truth[name] = int(case // 2 % 3 == 0)
            lesion = 1 / (1 + np.exp(-rng.normal() - strength * truth[name]))
            validation = folder / trainer / f"fold_{case // 2 % 2}" / "validation"
            validation.mkdir(parents=True, exist_ok=True)
            voxels = np.full((2, 2, 2, 2), 0.0)
            voxels[1, 1, 1, 1] = lesion
            np.savez(validation / f"{name}.npz", probabilities=voxels)
        space["table_of"](folder / trainer, truth).to_csv(f"{trainer}.csv", index=False)
    found = judged("plain.csv", "focal.csv", baseline="plain")
    assert (found["folds"], found["test_patients"], found["test_images"]) == (2, 30, 60)
    assert found["rows"]["focal"]["value"] > 0
