"""The whole way, as a user goes it: DVC stages, what reruns when, overrides, fine-tuning, mlflow run."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from conftest import change_params, copy_checkout, copy_workspace, git, make_small, run
from equipoise import cli
from equipoise.core import config
from equipoise.core.files import read_table
from equipoise.registry import register
from equipoise.scenario import artifact
from equipoise.service.predictor import Predictor

RESULT = "results/demo/vgg16"


def repro_lines(folder) -> set[str]:
    """Names of the stages that `dvc repro` ran."""
    text = run(folder, "dvc", "repro").stdout
    return {line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")}


def client(folder) -> MlflowClient:
    address = f"sqlite:///{folder}/mlflow.db"
    return MlflowClient(tracking_uri=address, registry_uri=address)


@pytest.fixture(scope="module")
def other(workspace, tmp_path_factory):
    """A copy of the workspace that tests may change.

    Its pages show no mistakes, for which every `compare` would build the network anew.
    """
    folder = copy_workspace(workspace, tmp_path_factory.mktemp("other") / "copy")
    change_params(folder, lambda params: params["studies"]["demo"]["compare"].update(mistakes=0))
    git(folder, "commit", "-q", "-a", "-m", "no mistakes")
    repro_lines(folder)
    return folder


def test_main_prints_table_and_report(workspace):
    log = (workspace / "main.log").read_text()
    assert "difference [low, high]" in log
    assert "are random, not ImageNet's" in log
    assert f"report: {workspace}/reports/demo/report.html" in log
    assert "A leak would have been worth (AUROC, baseline on vgg16)" in log
    assert (workspace / "reports/demo/report.html").stat().st_size < 4e6


def test_repro_straight_after_runs_nothing(workspace):
    assert repro_lines(workspace) == set()


def test_only_code_that_a_page_depends_on_changes_it(other):
    """A commit to other code leaves page and lock as they are, when the page is made anew too."""
    page = other / "reports/demo/report.html"

    def commit_to(module):
        with (other / "src/equipoise" / module).open("a") as written:
            written.write("# other code\n")
        git(other, "add", "src")
        git(other, "commit", "-q", "-m", f"{module} said otherwise")

    lock, text = (other / "dvc.lock").read_bytes(), page.read_bytes()
    (numbers,) = re.findall(r"git log .* -S (\w+) -- dvc.lock", text.decode())
    assert f"md5: {numbers}\n" in lock.decode()
    commit_to("service/predictor.py")
    commit_to("cli/parser.py")
    assert repro_lines(other) == set()
    run(other, "dvc", "repro", "--force", "--single-item", "compare@demo")
    assert page.read_bytes() == text
    assert (other / "dvc.lock").read_bytes() == lock
    commit_to("compare/winners.py")
    assert repro_lines(other) == {"compare@demo"}
    assert page.read_bytes() != text
    assert (other / "dvc.lock").read_bytes() != lock


def test_the_demo_is_drawn_only_where_it_is_among_the_studies(tmp_path):
    copy_checkout(tmp_path)
    git(tmp_path, "init", "-q")
    plan = ["dvc", "repro", "--dry", "--keep-going"]
    planned = run(tmp_path, *plan, check=False).stdout
    assert "Running stage 'data/raw/dvc.yaml:phantom'" in planned
    change_params(tmp_path, lambda params: params["run"].update(studies=["breakhis"]))
    (tmp_path / "data/raw/breakhis").mkdir()
    planned = run(tmp_path, *plan, check=False).stdout
    assert "Running stage 'ingest@breakhis'" in planned
    assert "phantom" not in planned


def test_outputs_do_not_dirty_the_checkout(workspace):
    changed = set(git(workspace, "status", "--porcelain").split())
    assert changed - {"??", "M"} <= {
        "dvc.lock",
        "data/raw/dvc.lock",
        "reports/",
        "main.log",
        "predictions.csv",
    }


def test_setting_of_one_scenario_reruns_it_and_compare_only(other):
    change_params(
        other, lambda params: params["scenarios"].update(weighted_augment={"exponent": 0.5})
    )
    assert repro_lines(other) == {"scenario@demo-vgg16-weighted_augment", "compare@demo"}
    (choice,) = [
        c
        for c in json.loads((other / RESULT / "weighted_augment/best.json").read_text())
        if c["seed"] == 0
    ]
    assert choice["settings"]["exponent"] == 0.5


def test_other_split_runs_no_backbone_pass(other):
    git(other, "add", "-A")
    git(other, "commit", "-q", "-m", "the split before")
    change_params(other, lambda params: params["studies"]["demo"]["split"].update(seed=99))
    ran = repro_lines(other)
    assert "split@demo" in ran
    assert "scenario@demo-vgg16-baseline" in ran
    assert not [name for name in ran if name.startswith("embed")]
    said = run(
        other, sys.executable, "src", "report", "--study", "demo", "--against", "HEAD"
    ).stdout
    moved, of = re.match(r"(\d+) of (\d+) patients moved since HEAD", said).groups()
    assert 0 < int(moved) < int(of) == 100
    page = other / "reports/demo/report.html"
    section = f"{moved} of {of} patients stand in another part"
    assert section in page.read_text()
    assert repro_lines(other) == set()
    assert section not in page.read_text()  # DVC has that of its stage again


def test_the_leakage_verb_writes_to_its_own_folder(other, capsys):
    before = {path: path.stat().st_mtime_ns for path in (other / "results/demo").rglob("*")}
    done = run(other, sys.executable, "src", "leakage", "--study", "demo", "--backbone", "vgg16")
    assert "oversampled before the split" in done.stdout
    path = other / "results/leakage/demo/vgg16/leakage.json"
    words = ("--root", str(other), "leakage", "--study", "demo", "--backbone", "vgg16", "--json")
    capsys.readouterr()
    assert cli.main(words) == 0
    assert capsys.readouterr().out == path.read_text()
    assert {path: path.stat().st_mtime_ns for path in (other / "results/demo").rglob("*")} == before
    said = "A leak would have been worth"
    page = other / "reports/demo/report.html"
    assert said not in page.read_text()
    assert cli.main(("--root", str(other), "report", "--study", "demo")) == 0
    assert said in page.read_text()


def test_new_scenario_in_the_list_runs_only_itself_and_compare(other):
    repro_lines(other)
    change_params(other, lambda params: params["run"]["scenarios"].append("undersample"))
    assert repro_lines(other) == {"scenario@demo-vgg16-undersample", "compare@demo"}


def test_result_restored_from_the_cache_is_tracked_once(other, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    change_params(other, lambda params: params["scenarios"].update(weighted_augment={}))
    change_params(other, lambda params: params["studies"]["demo"]["split"].pop("seed"))
    change_params(
        other, lambda params: params["run"].update(scenarios=["baseline", "weighted_augment"])
    )
    text = run(other, "dvc", "repro").stdout
    assert "is cached - skipping run" in text
    for _ in range(2):
        assert cli.main(("--root", str(other), "track")) == 0
    store = client(other)
    digests = [
        run.data.tags["equipoise.result_digest"]
        for experiment in store.search_experiments()
        for run in store.search_runs([experiment.experiment_id], "tags.`equipoise.role` = 'result'")
    ]
    assert len(digests) == len(set(digests)) >= 2


def test_a_result_off_the_list_changes_no_lock_and_is_kept(other):
    """As a clone has it that pulled before a scenario was taken off `run`, or ran one by hand."""
    lock = (other / "dvc.lock").read_bytes()
    shutil.copytree(other / RESULT / "baseline", other / RESULT / "focal")
    assert repro_lines(other) <= {"compare@demo"}
    assert (other / "dvc.lock").read_bytes() == lock
    assert "up to date" in run(other, "dvc", "status").stdout
    assert (other / "results/unlisted/demo/vgg16/focal/metrics.json").is_file()
    assert repro_lines(other) == set()


def test_overrides_write_beside_and_adopt_the_run(other):
    before = (other / RESULT / "baseline/predictions.parquet").read_bytes()
    command = [
        "mlflow",
        "run",
        ".",
        "--env-manager",
        "local",
        "-e",
        "baseline",
        "-P",
        "backbone=vgg16",
        "-P",
        "trials=4",
    ]
    launched = run(other, *command)
    assert "--trials 4" in launched.stderr
    assert (other / RESULT / "baseline/predictions.parquet").read_bytes() == before
    (folder,) = (other / "results/adhoc").iterdir()
    assert json.loads((folder / "best.json").read_text())[0]["trials"] == 4
    store = client(other)
    adopted = store.search_runs(["0"], "tags.`equipoise.role` = 'result'")
    assert [run.info.status for run in adopted] == ["FINISHED"]
    assert "test/auroc" in adopted[0].data.metrics
    run(other, *command)
    assert len(store.search_runs(["0"], "tags.`equipoise.role` = 'result'")) == 1
    assert len(store.search_runs(["0"], "tags.`equipoise.role` = 'launcher'")) == 1
    everything = store.search_runs(
        [experiment.experiment_id for experiment in store.search_experiments()]
    )
    assert {run.info.status for run in everything} == {"FINISHED"}


def test_scenario_builds_the_stages_it_lacks(tmp_path):
    copy_checkout(tmp_path)
    change_params(tmp_path, make_small)
    change_params(tmp_path, lambda params: params["studies"]["demo"]["phantom"].update(patients=40))
    command = [
        sys.executable,
        "src",
        "scenario",
        "--study",
        "demo",
        "--backbone",
        "vgg16",
        "--scenario",
        "oversample",
    ]
    text = run(tmp_path, *command).stdout
    for line in ("data/raw/demo", "ingesting", "splitting", "embedding demo with vgg16"):
        assert line in text
    text = run(tmp_path, *command).stdout
    assert "embedding" not in text
    assert "splitting" not in text


def test_finetune_writes_the_same_files_and_serves_what_it_predicted(other):
    options = [
        "--set",
        "train.mode=finetune",
        "--set",
        "train.seeds=[0]",
        "--set",
        "finetune.learning_rate=0.001",
    ]
    command = [
        sys.executable,
        "src",
        "scenario",
        "--study",
        "demo",
        "--backbone",
        "vgg16",
        "--scenario",
        "baseline",
    ]
    before = (
        set((other / "results/adhoc").iterdir()) if (other / "results/adhoc").exists() else set()
    )
    run(other, *command, *options)
    (folder,) = set((other / "results/adhoc").iterdir()) - before
    probe = {path.name for path in (other / RESULT / "baseline").iterdir()}
    assert {path.name for path in folder.iterdir()} == probe | {"curve.parquet"}
    curve, _ = read_table(folder / "curve.parquet")
    assert curve["step"].tolist() == [0, 2, 4]
    assert curve["slice_loss"].notna().all()
    assert curve["train_loss"].isna().tolist() == [True, False, False]
    study = config.load_study("demo", root=other)
    predictor = Predictor(artifact.save(study, "vgg16", folder, folder / "saved"))
    stored = register.expected_predictions(folder)
    served = predictor.predict([study.raw / name for name in stored["image_id"]])
    assert np.abs(served["prob_opacity"] - stored["calibrated_opacity"]).max() < 1e-5
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["mode"] == "finetune"


def test_doctor_runs_from_a_git_address(workspace, tmp_path):
    source = tmp_path / "source"
    run(tmp_path, "git", "clone", "-q", str(workspace), str(source))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(
        elsewhere, "mlflow", "run", source.as_uri(), "--env-manager", "local", "-e", "doctor"
    )
    assert "will be drawn" in done.stdout + done.stderr
    (state,) = client(elsewhere).search_runs(["0"])
    assert state.info.status == "FINISHED"
