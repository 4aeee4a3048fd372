"""Killed, out of disk or locked out: what is there afterwards is whole, and the same command goes on from there."""

import ctypes
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from conftest import REPO
from equipoise import cli, pipeline
from equipoise.core import files as files_
from equipoise.core.errors import DataError
from fabricate import made

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals of Linux")

SCENARIO = (
    "scenario",
    "--study",
    "made",
    "--backbone",
    made.BACKBONE,
    "--scenario",
    "class_weight",
)


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return made.study(
        tmp_path, run={"scenarios": ["baseline", "class_weight"]}, train={"seeds": [0]}
    )


def verb(*arguments, before=None, **environment):
    """Run a verb as a user would, in the working folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept |= {"PYTHONPATH": str(REPO / "src"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-m", "equipoise", *arguments]
    return subprocess.run(command, env=kept, capture_output=True, text=True, preexec_fn=before)


def files(folder="."):
    """Bytes of what a study leaves; names of temporary files included.

    The cache is left out, and the journal of searches, which holds times.
    """
    found = {
        path.as_posix(): path
        for top in ("data", "results")
        for path in Path(folder, top).rglob("*")
    }
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if path.is_file() and "data/cache" not in name and not name.endswith("data/searches.log")
    }


def searches():
    """What the journal of searches shows: name -> values and parameters of its trials."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend("data/searches.log")
    )
    shown = {}
    for name in optuna.get_all_study_names(storage):
        trials = optuna.load_study(study_name=name, storage=storage).trials
        shown[name] = [(trial.state, trial.value, trial.params) for trial in trials]
    return shown


def assert_a_sentence(done, *texts):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in (*texts, "again"):
        assert text in done.stderr


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kill(tmp_path):
    """Start a verb that dies at an operation on a file of the workspace, or count the operations (-1)."""
    killed = REPO / "tests/fabricate/killed"

    def start(arguments, operation):
        log = tmp_path.with_name("operations.log")
        log.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(killed), str(REPO / "src")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KILLED_WITHIN": str(tmp_path),
            "KILLED_LOG": str(log),
            "KILLED_OPERATION": str(operation),
            "KILLED_AFTER": "0",
        }
        command = [sys.executable, "-m", "equipoise", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, start_new_session=True)
        return done.returncode, len(log.read_text().splitlines())

    return start


def test_a_killed_scenario_ends_in_the_same_bytes_and_leaves_no_temporary_file(
    study, kill, tmp_path
):
    fresh = tmp_path.with_name("fresh")
    shutil.copytree(tmp_path, fresh)
    assert verb(*SCENARIO).returncode == 0
    wanted, shown = files(), searches()
    assert len(shown) == len(study.settings.train.seeds)
    shutil.rmtree("results"), shutil.rmtree("data"), shutil.copytree(fresh / "data", "data")
    _, operations = kill(SCENARIO, -1)
    for share in (0.6, 0.95):
        (
            shutil.rmtree("results", ignore_errors=True),
            shutil.rmtree("data"),
            shutil.copytree(fresh / "data", "data"),
        )
        assert kill(SCENARIO, round(share * operations))[0] == -signal.SIGKILL
        assert verb(*SCENARIO).returncode == 0
        assert files() == wanted
        assert searches() == shown


def test_every_verb_is_killed_by_make_kill():
    path = REPO / "tests/whole/slow/kills.py"
    spec = importlib.util.spec_from_file_location("kills", path)
    kills = sys.modules["kills"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    killed = {case.words[0] for case in kills.VERBS}
    assert killed | set(kills.INSIDE_OTHERS) | set(kills.NOT_KILLED) == set(cli.VERBS)
    assert sum(case.kills for cases in kills.WAYS.values() for case in cases) >= 120


@pytest.mark.parametrize("cut", [b"", b'{"', b"{}"])
def test_a_lock_file_that_dvc_left_half_written_is_no_dead_end(tmp_path, cut):
    path = tmp_path / "rwlock"
    pipeline._drop_cut_lock(path, seconds=0)
    path.write_bytes(cut)
    pipeline._drop_cut_lock(path, seconds=0)
    assert path.exists() == (cut == b"{}")


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "table.json"
    child = """
import os, signal, sys
from pathlib import Path
from equipoise.core import files
with files.atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "dies" else sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    dead = subprocess.Popen([sys.executable, "-c", child, str(path), "dies"], **pipes)
    assert dead.wait() == -signal.SIGKILL
    living = subprocess.Popen([sys.executable, "-c", child, str(path), "lives"], **pipes)
    name = living.stdout.readline().strip()
    files_.write_json(path, 1)
    left = sorted(item.name for item in tmp_path.iterdir())
    living.communicate("")
    assert left == [name, "table.json"]
    assert dead.communicate()[0].strip() not in left


# --- no room, no rights, no server -----------------------------------------------------------------------------------


def no_room(limit_bytes):
    """Files may grow to that many bytes only: a write beyond gives an error, as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


@pytest.mark.parametrize("limit_bytes", [2_000])
def test_a_full_disk_says_what_could_not_be_written_and_nothing_half_written_stays(
    study, limit_bytes
):
    before = files()
    assert_a_sentence(verb(*SCENARIO, before=no_room(limit_bytes)), "cannot be")
    after = files()
    assert {name: content for name, content in after.items() if name in before} == before
    assert not [name for name in after if "/." in name]
    assert not Path(study.result_path(made.BACKBONE, "class_weight"), "metrics.json").exists()
    assert verb(*SCENARIO).returncode == 0
    assert files_.read_json(study.result_path(made.BACKBONE, "class_weight") / "metrics.json")[
        "scenario"
    ]


def without_roots_override():
    """Root writes everywhere; without these two capabilities (1, 2) it asks for permission like everybody."""
    library = ctypes.CDLL(None)
    for capability in (1, 2):
        library.prctl(24, capability, 0, 0, 0)


@pytest.mark.parametrize("where", ["results", "data/cache"])
def test_a_read_only_folder_is_named(study, where):
    Path(where).mkdir(parents=True, exist_ok=True)
    Path(where).chmod(0o555)
    try:
        done = verb(*SCENARIO, before=without_roots_override)
    finally:
        Path(where).chmod(0o755)
    assert_a_sentence(done, where, "Permission denied")


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "kept.json"
    files_.write_json(path, "old")
    code = f"""
import resource
from pathlib import Path
from equipoise.core import files
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
files.write_json(Path({str(path)!r}), "x" * 10_000)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        text=True,
        capture_output=True,
    )
    assert f"{path} cannot be written: File too large" in done.stderr
    assert json.loads(path.read_text()) == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("reader", [files_.read_json, files_.read_table])
def test_a_folder_where_a_file_should_be_is_a_sentence(tmp_path, reader):
    with pytest.raises(DataError, match="is not readable as"):
        reader(tmp_path)


def test_a_lost_server_loses_no_result_and_track_mirrors_it_later(
    study, empty_store, monkeypatch, capsys
):
    assert cli.main(SCENARIO) == 0
    kept = files("results")
    capsys.readouterr()
    with monkeypatch.context() as cut_off:
        cut_off.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        cut_off.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert cli.main(["track", "--study", "made"]) == 5
    told = capsys.readouterr().err
    assert "cannot be reached" in told
    assert "run the same command again" in told
    assert files("results") == kept
    shutil.copy(empty_store, ".")
    for written, present in ((1, 0), (0, 1)):
        assert cli.main(["track", "--study", "made"]) == 0
        told = capsys.readouterr().out
        assert f"{written} results written, {present} already" in told
