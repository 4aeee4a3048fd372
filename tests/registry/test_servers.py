"""The story of a champion on a real server with users; the same without a server, and without its database."""

import json
import os
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.server import get_app_client
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import OperationalError

from conftest import REPO
from equipoise import cli
from equipoise.registry import audit, gates, promotion, tracking
from fabricate import registered
from fabricate.aliases import pointed_at
from fabricate.servers import free_port, tracking_server  # noqa: F401  (a fixture)

NAME = registered.NAME
#: A verb in many processes, all at the lock at once; with a step they are killed there.
_AT_ONCE = """
import json, multiprocessing, os, signal, sys
from functools import partial
from equipoise import cli
from equipoise.registry import audit, promotion
fork = multiprocessing.get_context("fork")
barrier, lock = fork.Barrier(int(sys.argv[1])), audit.locked

def together(name):
    barrier.wait()
    return lock(name)

audit.locked = together
def step(name):
    if name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

promotion.promote = partial(promotion.promote, step=step)
promotion.rollback = partial(promotion.rollback, step=step)
processes = [fork.Process(target=lambda: sys.exit(cli.main(sys.argv[3:]))) for _ in range(int(sys.argv[1]))]
for process in processes:
    process.start()
for process in processes:
    process.join()
print(json.dumps([process.exitcode for process in processes]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A commit with a small study, and a tiny model beside it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        registered.build(folder)
    return folder


@pytest.fixture
def equipoise(folder, monkeypatch, capsys):
    """Run a verb in this process with some environment: exit code, output, errors."""

    def call(environment, *words):
        monkeypatch.chdir(folder)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = cli.main(
            (*words, "--study", "made") if words[0] in ("promote", "rollback", "audit") else words
        )
        return code, *capsys.readouterr()

    return call


def test_story_of_a_champion(tracking_server, folder, equipoise, monkeypatch):  # noqa: F811
    """Promoted, refused, forced, returned, raced for, killed, cut off, forbidden, lost: the log tells it all."""
    server, admin = tracking_server, tracking_server.environment("admin")
    for name, value in admin.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    store = MlflowClient(server.uri, server.uri)
    store.create_registered_model(NAME)

    def champion():
        return pointed_at(store, NAME)

    def verified():
        return equipoise(admin, "audit", "verify")[:2] == (0, f"{NAME}: the log is whole\n")

    good = registered.add_version(folder, server.uri, "baseline", 2.0)
    code, out, errors = equipoise(admin, "promote")
    assert (code, f"{NAME} has no alias challenger" in errors) == (3, True)
    store.set_registered_model_alias(NAME, "challenger", good)
    code, out, errors = equipoise(admin, "promote")
    assert (code, champion()) == (0, good), out + errors
    unwrapped = " ".join(out.split())
    assert unwrapped.count("there is no champion: the first one is gated on absolutes") == 2
    assert any(key.endswith("/model/MLmodel") for key in server.objects())

    worse = registered.add_version(folder, server.uri, "oversample", -0.5)
    code, out, errors = equipoise(admin, "promote", "--version", worse)
    assert (code, champion(), errors.count("\n")) == (3, good, 1)
    assert errors.startswith(
        f"PromotionRefused: version {worse} of {NAME} does not become champion: EQ-G3 AUROC"
    )
    codes = [gate.code for gate in gates.GATES]
    refused = [code for code in codes if f"{code} " in errors]
    assert refused == ["EQ-G3", "EQ-G4", "EQ-G5", "EQ-G10"]
    assert "Nothing was moved; the refusal is decision 2 of the log." in errors
    assert "the same test rows" in out
    assert equipoise(admin, "promote", "--version", worse, "--force")[0] == 2
    force = ("promote", "--version", worse, "--force", "--reason", "a drill")
    code, out, _ = equipoise(admin, *force)
    assert (code, champion(), pointed_at(store, NAME, "previous-champion")) == (
        0,
        worse,
        good,
    )
    assert f"now version {worse}; version {good} is kept for rollback (decision 3, forced)" in out
    assert "nothing moved" in equipoise(admin, *force)[1]
    code, out, _ = equipoise(admin, "rollback", "--reason", "drill over")
    assert (code, champion()) == (0, good), out
    code, out, _ = equipoise(admin, "audit")
    lines = [
        "- -> 1  done",
        "1 -> 2  refused",
        "EQ-G4 sens",
        "1 -> 2  done (forced)",
        "a drill",
        "2 -> 1  done",
    ]
    assert [line for line in lines if line in out] == lines
    assert verified()
    decision = audit.read(store, NAME)[2].decision
    assert [gate.code for gate in decision.gates] == codes

    exit_codes, told = at_once(20, "", *force)
    assert sorted(exit_codes) == [0, *[3] * 19]
    assert (
        told.count(
            "Another decision about equipoise-made is being made on this machine; nothing was done"
        )
        == 19
    )
    assert (champion(), len(audit.read(store, NAME)), verified()) == (worse, 5, True)

    assert at_once(1, "champion", "rollback", "--reason", "killed")[0] == [-9]
    code, out, _ = equipoise(admin, "audit", "verify")
    assert (code, champion(), "is unfinished; the next promote or rollback settles it" in out) == (
        4,
        good,
        True,
    )
    code, out, _ = equipoise(admin, *force)
    assert (code, champion(), "it is now completed" in out, verified()) == (0, worse, True, True)

    with (
        monkeypatch.context() as cut
    ):  # the server goes when the decision is written and not carried out
        lost = requests.ConnectionError("connection refused")
        send = requests.Session.send
        gone = []
        cut.setattr(
            requests.Session, "send", lambda *a, **b: _raise(lost) if gone else send(*a, **b)
        )

        def step(name):
            if name == "intended":
                gone.append(name)

        cut.setattr(promotion, "rollback", partial(promotion.rollback, step=step))
        code, _, errors = equipoise(admin, "rollback", "--reason", "cut off")
    assert (code, "cannot be reached" in errors, errors.count("\n")) == (5, True, 1), errors
    code, out, _ = equipoise(admin, "rollback", "--reason", "once more")
    assert (code, champion(), "it is now undone" in out, verified()) == (0, good, True, True)

    reader = server.environment("reader")
    for words in (force, ("rollback", "--reason", "may not")):
        code, out, errors = equipoise(reader, *words)
        assert (code, champion()) == (5, good), out + errors
        assert errors.startswith(
            "StoreError: User reader may not do this at the MLflow server http://127.0.0.1:"
        )
        assert (
            "on that model and the experiment equipoise-registry to promote and roll back" in errors
        )
        assert server.users["reader"] not in errors
    assert equipoise(reader, "audit", "verify")[0] == 0
    with pytest.raises(MlflowException) as refusal:  # the server itself holds the line
        store.set_registered_model_alias(NAME, "champion", worse)
    assert refusal.value.get_http_status_code() == 403
    right_that_the_page_names(server, equipoise, admin, store, good)

    equipoise(admin, "audit")  # deleting takes more than the editor's right
    store.delete_model_version(NAME, good)
    code, out, errors = equipoise(admin, "audit", "verify")
    assert (code, champion()) == (4, None)
    assert f"champion of {NAME} is gone, the log left it at version {good}, which is deleted" in out
    assert "Next: `equipoise rollback --study made --reason TEXT`" in out
    code, out, _ = equipoise(admin, "rollback", "--reason", "the champion was deleted")
    assert (code, champion(), verified()) == (0, worse, True), out


def _raise(error):
    raise error


def at_once(count, step, *words) -> tuple[list[int], str]:
    """Exit codes of so many calls at once, and what they wrote."""
    command = [sys.executable, "-c", _AT_ONCE, str(count), step, *words, "--study", "made"]
    paths = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def right_that_the_page_names(server, equipoise, admin, store, version):
    """EDIT on the model lets somebody move an alias of it, and nothing less does."""
    equipoise(admin, "audit")
    rights = get_app_client("basic-auth", server.uri)
    rights.create_user("editor", "the-password-of-editor")
    editor = {
        **admin,
        "MLFLOW_TRACKING_USERNAME": "editor",
        "MLFLOW_TRACKING_PASSWORD": "the-password-of-editor",
    }
    equipoise(editor, "audit")
    with pytest.raises(MlflowException, match="Permission denied"):
        store.set_registered_model_alias(NAME, "tried-by-editor", version)
    equipoise(admin, "audit")
    rights.grant_user_permission("editor", "registered_model", NAME, "EDIT")
    equipoise(editor, "audit")
    store.set_registered_model_alias(NAME, "tried-by-editor", version)
    assert pointed_at(store, NAME, "tried-by-editor") == version


def test_winner_goes_through_the_server(tracking_server, workspace, equipoise, tmp_path):  # noqa: F811
    """Registered by who may, into PostgreSQL and S3; predicted with by a reader, who needs no keys of S3."""
    admin, reader = tracking_server.environment("admin"), tracking_server.environment("reader")
    for verb in ("track", "register"):
        code, out, errors = equipoise(admin, "--root", str(workspace), verb)
        assert code == 0, out + errors
    assert (
        "0 results written, 2 already in" in equipoise(admin, "--root", str(workspace), "track")[1]
    )
    keys = tracking_server.objects()
    assert sum(key.endswith("/artifacts/network/model.keras") for key in keys) == 1
    assert sum(key.endswith("/metrics.json") for key in keys) == 2
    images = sorted((workspace / "data/raw/demo/clear").glob("*.png"))[:3]
    words = (
        "predict",
        "--model",
        "models:/equipoise-demo/1",
        *map(str, images),
        "--out",
        str(tmp_path / "out.csv"),
    )
    code, out, errors = equipoise(reader, *words)
    assert code == 0, out + errors
    assert pd.read_csv(tmp_path / "out.csv")["prob_opacity"].between(0, 1).sum() == 3
    code, _, errors = equipoise(reader, "--root", str(workspace), "register")
    assert (code, errors.startswith("StoreError: User reader may not do this")) == (5, True), errors


def test_wrong_password_is_said(tracking_server, equipoise):  # noqa: F811
    wrong = {
        **tracking_server.environment("reader"),
        "MLFLOW_TRACKING_PASSWORD": "no-password-of-anybody",
    }
    for words in (("audit",), ("promote",)):
        code, _, errors = equipoise(wrong, *words)
        assert code == 5
        assert "does not accept the password of user reader" in errors
        assert "MLFLOW_TRACKING_PASSWORD" in errors
        assert "no-password-of-anybody" not in errors


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
@pytest.mark.parametrize(
    "words", [("promote",), ("audit",), ("predict", "--model", f"models:/{NAME}@champion", "a.png")]
)
def test_lost_server_is_one_sentence(equipoise, monkeypatch, words, scheme):
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = f"127.0.0.1:{free_port()}"
    code, _, errors = equipoise(
        {"MLFLOW_TRACKING_URI": f"{scheme}://ada:a-secret@{address}/x?password=another"}, *words
    )
    assert (code, errors.count("\n")) == (5, 1), errors
    assert (
        f"server {scheme}://***@{address}/x?password=*** cannot be reached. Results stay in files"
        in errors
    )


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (None, False),
        (ValueError("API request to http://x failed with exception y"), False),
        (RestException({"error_code": "RESOURCE_ALREADY_EXISTS", "message": "it is there"}), False),
        (
            RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}),
            False,
        ),
        (OperationalError("select 1", {}, ValueError("connection refused")), True),
        (MlflowException("the database went", TEMPORARILY_UNAVAILABLE), True),
    ],
)
def test_other_errors_are_not_taken_for_the_servers(error, ours):
    assert bool(tracking.store_error(error)) == ours
