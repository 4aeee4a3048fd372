"""The command line: bad input is one sentence and an exit code, never a traceback."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from conftest import REPO, change_params, copy_checkout, git, run
from equipoise import cli


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    git(folder, "init", "-q")
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ingest", "--study", "dmo"], 2, "There is no study 'dmo'. Did you mean 'demo'?"),
        (
            ["embed", "--study", "demo", "--backbone", "vgg"],
            2,
            "There is no backbone 'vgg'. Did you mean 'vgg16'?",
        ),
        (
            ["scenario", "--study", "demo", "--backbone", "vgg16", "--scenario", "oversampling"],
            2,
            "There is no scenario 'oversampling'. Did you mean 'oversample'?",
        ),
        (
            [
                "scenario",
                "--study",
                "demo",
                "--backbone",
                "vgg16",
                "--scenario",
                "baseline",
                "--set",
                "tune.trial=3",
            ],
            2,
            "Did you mean 'tune.trials'?",
        ),
        (
            [
                "scenario",
                "--study",
                "demo",
                "--backbone",
                "vgg16",
                "--scenario",
                "baseline",
                "--set",
                "split.seed=3",
            ],
            2,
            "cannot be overridden for one scenario",
        ),
        (
            [
                "scenario",
                "--study",
                "demo",
                "--backbone",
                "vgg16",
                "--scenario",
                "baseline",
                "--trials",
                "0",
            ],
            2,
            "tune.trials is 0",
        ),
        (["ingest", "--study", "chest_xray"], 1, "data/raw/chest_xray"),
        (["split", "--study", "demo"], 1, "data/manifest/demo.parquet"),
        (["compare", "--study", "demo"], 1, "holds no predictions"),
        (["register", "--study", "demo"], 1, "reports/demo/comparison.json"),
        (["phantom", "--study", "chest_xray"], 2, "there is nothing to draw"),
        (["fetch", "breakhs"], 2, "There is no dataset 'breakhs'. Did you mean 'breakhis'?"),
        (["fetch", "medmnist"], 2, "names no archive to download"),
        (
            ["export", "--study", "demo", "--layout", "csv"],
            1,
            "data/manifest/demo.parquet",
        ),
        (
            ["leakage", "--study", "chest_xray", "--backbone", "vgg16"],
            1,
            "data/raw/chest_xray",
        ),
        (
            ["report", "--study", "demo", "--against", "HEAD"],
            1,
            "reports/demo/evidence.json",
        ),
    ],
)
def test_bad_input_is_a_sentence(checkout, monkeypatch, capsys, arguments, code, sentence):
    monkeypatch.chdir(checkout)
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_empty_phantom_section_has_nothing_to_draw(tmp_path, monkeypatch, capsys):
    copy_checkout(tmp_path)
    change_params(tmp_path, lambda params: params["studies"]["demo"].update(phantom={}))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["phantom", "--study", "demo"]) == 2
    assert "phantom section of study 'demo' is empty" in capsys.readouterr().err


def test_outside_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 2
    assert "No params.yaml" in capsys.readouterr().err


def test_damaged_params_name_the_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text("run: {studies: [demo\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ingest", "--study", "demo"]) == 2
    assert "line 2" in capsys.readouterr().err


def test_doctor_says_what_is_missing(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["doctor", "--json"]) == 0
    lines = {line["what"]: line for line in json.loads(capsys.readouterr().out)}
    assert lines["demo: raw images"] == {
        "level": "ok",
        "what": "demo: raw images",
        "detail": "will be drawn",
    }
    assert lines["extra keras"]["level"] == "ok"
    assert "tensorflow 2." in lines["extra keras"]["detail"]
    change_params(checkout, lambda params: params["run"].update(studies=["chest_xray"]))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "data/raw/chest_xray is not there" in out
    assert "will be downloaded from https://storage" in out


def test_installed_program_and_module_are_the_same(tmp_path):
    for command in (
        ["equipoise"],
        [sys.executable, "-m", "equipoise"],
        [sys.executable, str(REPO / "src")],
    ):
        if command == ["equipoise"] and not shutil.which(
            "equipoise", path=str(Path(sys.executable).parent)
        ):
            pytest.skip("equipoise is not installed in this environment")
        done = run(tmp_path, *command, "--version", PYTHONPATH=str(REPO / "src"))
        assert done.stdout.strip() == "0.1.0"


@pytest.fixture
def in_git(tmp_path):
    """params.yaml in a git checkout; DVC is never reached."""
    shutil.copy(REPO / "params.yaml", tmp_path)
    git(tmp_path, "init", "-q")
    return tmp_path


def unlist(section):
    return lambda params: params["studies"]["demo"].pop(section)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda params: params["run"].update(studies=[]), "run.studies in params.yaml is []"),
        (
            lambda params: params["run"].update(studies="demo"),
            "run.studies in params.yaml is 'demo'",
        ),
        (lambda params: params["run"].update(studies=["dema"]), "Did you mean 'demo'?"),
        (lambda params: params["run"].update(backbones=["vgg61"]), "Did you mean 'vgg16'?"),
        (lambda params: params["run"].update(scenarios=["focall"]), "Did you mean 'focal'?"),
        (
            lambda params: params["run"].update(scenarios=None),
            "run.scenarios in params.yaml is None",
        ),
        (lambda params: params["scenarios"].pop("augment"), "Write `augment: {}`"),
        (unlist("tune"), "Write `tune: {}` under studies.demo"),
    ],
)
@pytest.mark.parametrize("verb", ["main", "doctor"])
def test_what_is_wrong_with_run_is_said_before_dvc_speaks(in_git, capsys, change, said, verb):
    change_params(in_git, change)
    code = cli.main(["--root", str(in_git), verb])
    told = capsys.readouterr()
    if verb == "main":
        assert (code, told.out, told.err.count("\n")) == (2, "", 1)
        assert told.err.startswith("ConfigError: ")
        assert said in told.err
    else:
        assert (code, said in told.out) == (1, True)


@pytest.mark.parametrize("verb", ["main", "doctor"])
def test_a_folder_that_came_as_a_zip_is_told_how_to_become_a_checkout(tmp_path, capsys, verb):
    shutil.copy(REPO / "params.yaml", tmp_path)
    assert cli.main(["--root", str(tmp_path), verb]) in (1, 2)
    told = "".join(capsys.readouterr())
    for command in ("git init", "git add -A", "git commit -m start"):
        assert command in told


def test_a_stage_names_the_section_that_its_study_leaves_out(in_git, capsys):
    change_params(in_git, unlist("split"))
    assert cli.main(["--root", str(in_git), "split", "--study", "demo"]) == 2
    assert "Write `split: {}` under studies.demo" in capsys.readouterr().err
