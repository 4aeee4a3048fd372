"""The log of decisions: kills at every step, several machines, edits, gaps, aliases moved by hand."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from conftest import REPO
from equipoise.core import config
from equipoise.core.errors import ConfigError, DataError, PromotionRefused
from equipoise.core.files import digest_of
from equipoise.registry import (
    audit,
    gates,
    history,
    models,
    promotion,
    runs,
    tracking,
    verification,
)
from equipoise.registry.decisions import Decision, Entry
from fabricate.aliases import pointed_at

NAME = "equipoise-demo"
STEPS = ("start", "intended", "champion", "previous", "closed")
#: Makes a store with versions 1 and 2, the first one champion; kills promotions of the second.
_HELPER = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, "src")
import mlflow.store.tracking.sqlalchemy_store  # once, and not in each child
from equipoise.core import config
from equipoise.registry import audit, gates, promotion, runs, tracking
folder = sys.argv[1]
study = config.load_study("demo", root=Path.cwd())
gates.judge = lambda *arguments: []

def promote(file, version, killed_at=None):
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/{file}.db"
    def step(name):
        if name == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return promotion.promote(study, version, step=step)

def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(9)
    return child

def prepare():
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/whole.db"
    store = tracking.client(study.root)
    store.create_registered_model(audit.model_name("demo"))
    for _ in range(4):
        store.create_model_version(audit.model_name("demo"), folder)
    store.set_registered_model_alias(audit.model_name("demo"), "challenger", "2")
    promote("whole", "1")

assert os.waitpid(fork(prepare), 0)[1] == 0
for step in sys.argv[2:]:
    shutil.copy(f"{folder}/whole.db", f"{folder}/{step}.db")
    assert os.waitpid(fork(lambda: promote(step, "2", killed_at=step)), 0)[1] == signal.SIGKILL, step
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder with a store per step at which a promotion was killed."""
    folder = tmp_path_factory.mktemp("stores")
    done = subprocess.run(
        [sys.executable, "-c", _HELPER, str(folder), *STEPS],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def opened(stores, tmp_path, monkeypatch):
    """Open a copy of one of the stores; every gate is open."""
    monkeypatch.setattr(gates, "judge", lambda *arguments: [])
    monkeypatch.setattr(models, "load", lambda uri, root: None)

    def call(name):
        path = shutil.copy(stores / f"{name}.db", tmp_path / "store.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        return tracking.client(REPO), config.load_study("demo", root=REPO)

    return call


def edit(store, entry: Entry, reseal: bool = False, **changes) -> None:
    """What someone with the rights to write could do to a decision."""
    decision = entry.decision.as_dict() | changes
    store.set_tag(entry.run_id, "equipoise.decision", json.dumps(decision))
    if reseal:
        outcome = entry.outcome.as_dict() if entry.outcome else None
        seal = digest_of([decision, outcome])
        store.set_tag(entry.run_id, "equipoise.seal", seal)


@pytest.mark.parametrize(
    ("step", "left", "said", "decisions"),
    [
        ("start", ("1", None, 0), [], 2),
        ("intended", ("1", None, 1), ["undone"], 3),
        ("champion", ("2", None, 1), ["completed"], 2),
        ("previous", ("2", "1", 1), ["completed"], 2),
        ("closed", ("2", "1", 1), ["closed"], 2),
    ],
)
def test_kill_leaves_the_old_or_the_new_champion_and_is_settled(
    opened, step, left, said, decisions
):
    store, study = opened(step)
    previous = audit.by_alias(store, NAME, "previous-champion")
    sentences = verification.verify(store, NAME)
    assert (
        pointed_at(store, NAME),
        previous and str(previous.version),
        len(sentences),
    ) == left
    assert all(
        "unfinished; the next promote or rollback settles it" in sentence for sentence in sentences
    )
    lines = []
    done = promotion.promote(study, "2", say=lambda said: lines.append(str(said)))
    assert [
        word for line in lines for word in ("completed", "undone", "closed") if word in line
    ] == said
    assert done.champion == pointed_at(store, NAME) == "2"
    assert str(audit.by_alias(store, NAME, "previous-champion").version) == "1"
    assert verification.verify(store, NAME) == []
    assert len(audit.read(store, NAME)) == decisions


def test_of_two_machines_the_later_one_notices(opened, monkeypatch):
    store, study = opened("whole")
    other = Decision(kind="promote", from_version="1", to_version="3")

    def decide_elsewhere(step):
        if step == "intended":
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(audit, "who", lambda: "ci@elsewhere")
                audit.write(store, NAME, other, study.root)

    with pytest.raises(PromotionRefused, match="of ci@elsewhere is under way"):
        promotion.promote(study, "2", step=decide_elsewhere)
    assert pointed_at(store, NAME) == "1"
    assert [entry.state for entry in audit.read(store, NAME)] == ["done", "overtaken", "unfinished"]
    with pytest.raises(PromotionRefused, match="being carried out since"):
        promotion.promote(study, "2")
    monkeypatch.setattr(audit, "STALE_SECONDS", -1e6)
    lines = []
    promotion.promote(study, "2", say=lambda said: lines.append(str(said)))
    assert "undone" in lines[0]
    assert pointed_at(store, NAME) == "2"
    assert verification.verify(store, NAME) == []


def test_decision_taken_on_another_champion_moves_nothing(opened, monkeypatch):
    store, study = opened("whole")
    monkeypatch.setattr(
        gates,
        "judge",
        lambda *arguments: store.set_registered_model_alias(NAME, "champion", "3") or [],
    )
    with pytest.raises(PromotionRefused, match="the alias moved meanwhile"):
        promotion.promote(study, "2")
    assert pointed_at(store, NAME) == "3"


def test_verify_finds_edits_gaps_and_moved_aliases(opened):
    store, study = opened("whole")
    promotion.promote(study, "2", reason="a reason")
    promotion.rollback(study, "too many alarms")
    _, second, third = audit.read(store, NAME)
    assert verification.verify(store, NAME) == []

    edit(store, second, reason="another reason")
    assert [
        text
        for text in verification.verify(store, NAME)
        if "content does not give its seal" in text
    ]
    edit(store, second, reseal=True, reason="another reason")
    (sentence,) = verification.verify(store, NAME)
    assert "edited after decision 3" in sentence
    edit(store, second, reseal=True)
    edit(store, third, reseal=True, reason="no reason")
    (sentence,) = verification.verify(store, NAME)
    assert "edited after it had been closed" in sentence
    edit(store, third, reseal=True)
    assert verification.verify(store, NAME) == []

    store.delete_run(second.run_id)
    (sentence,) = verification.verify(store, NAME)
    assert f"gap: `mlflow runs restore --run-id {second.run_id}`" in sentence
    store.restore_run(second.run_id)
    store.set_registered_model_alias(NAME, "champion", "3")
    (sentence,) = verification.verify(store, NAME)
    assert "points at version 3, the log left it at version 1" in sentence
    store.delete_registered_model_alias(NAME, "champion")
    (sentence,) = verification.verify(store, NAME)
    assert "is gone, the log left it at version 1" in sentence
    assert promotion.rollback(study, "the alias was lost").champion == "1"
    store.delete_model_version(NAME, "1")
    (sentence,) = verification.verify(store, NAME)
    assert "is gone, the log left it at version 1, which is deleted" in sentence
    assert promotion.rollback(study, "its version was deleted").champion == "2"
    assert verification.verify(store, NAME) == []


@pytest.mark.parametrize(("which", "count"), [(0, 1), (1, 1)])
def test_verify_misses_a_run_that_was_removed_for_good(opened, tmp_path, which, count):
    store, study = opened("whole")
    promotion.promote(study, "2")
    run_id = audit.read(store, NAME)[which].run_id
    with sqlite3.connect(tmp_path / "store.db") as database:
        for table in ("tags", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", [run_id])
    sentences = [
        text for text in verification.verify(store, NAME) if "which is missing: a gap" in text
    ]
    assert len(sentences) == count
    assert run_id[:8] in sentences[0]
    if which == 1:  # with the tag edited too, the alias tells
        (first,) = audit.read(store, NAME)
        store.set_registered_model_tag(
            NAME, "equipoise.last_decision", f"{first.run_id} {first.seal}"
        )
        (sentence,) = verification.verify(store, NAME)
        assert "points at version 2, the log left it at version 1" in sentence


def test_alias_moved_behind_the_log_is_returned_by_rollback(opened):
    store, study = opened("whole")
    store.set_registered_model_alias(NAME, "champion", "4")
    assert promotion.rollback(study, "moved by hand").champion == "1"
    assert verification.verify(store, NAME) == []


def register_anew(store, digest: str) -> str:
    """Make a version that holds a result of this digest; MLflow counts from 1 after a deletion."""
    tags = {runs.DIGEST: digest}
    return str(store.create_model_version(NAME, "file:///nowhere", tags=tags).version)


@pytest.mark.parametrize(
    "part_with",
    [
        lambda store: store.delete_registered_model(NAME),
        lambda store: store.rename_registered_model(NAME, "another-name"),
    ],
)
@pytest.mark.parametrize("alias", ["lost", "set by hand"])
def test_a_number_that_holds_another_result_is_not_the_champion(opened, part_with, alias):
    store, study = opened("whole")
    part_with(store)
    store.create_registered_model(NAME)
    assert register_anew(store, "b" * 64) == "1"
    if alias == "set by hand":
        store.set_registered_model_alias(NAME, "champion", "1")
    before = pointed_at(store, NAME)

    told = " ".join(verification.verify(store, NAME))
    assert "its number now holds result bbbbbbbb" in told
    assert "deleted and registered anew" in told
    assert "rollback" not in told
    with pytest.raises(PromotionRefused, match="no previous champion to return to"):
        promotion.rollback(study, "as verify once advised")
    assert pointed_at(store, NAME) == before

    assert "promote --study demo --force --reason" in told
    promotion.promote(study, "1", force=True, reason="as verify advises")
    assert pointed_at(store, NAME) == "1"
    assert verification.verify(store, NAME) == []


def test_rollback_goes_to_a_result_that_a_decision_made_champion(opened):
    """Version 2 was champion by hand only; version 3 is gone, and its number was never decided about."""
    store, study = opened("whole")
    store.set_registered_model_alias(NAME, "champion", "2")
    store.set_registered_model_alias(NAME, "previous-champion", "3")
    assert promotion.rollback(study, "set by hand").champion == "1"
    with pytest.raises(PromotionRefused, match="no previous champion to return to"):
        promotion.rollback(study, "once more")


def test_a_decision_of_an_older_log_knows_its_version_by_the_digest(opened):
    store, study = opened("whole")
    number = register_anew(store, "c" * 64)
    promotion.promote(study, number)
    last = audit.read(store, NAME)[-1]
    decision = last.decision.as_dict()
    for name in ("from_content", "to_content"):
        del decision[name]
    store.set_tag(last.run_id, "equipoise.decision", json.dumps(decision))
    outcome = last.outcome.as_dict()
    store.set_tag(last.run_id, "equipoise.seal", digest_of([decision, outcome]))
    assert not [text for text in verification.verify(store, NAME) if "alias" in text]
    store.set_model_version_tag(NAME, number, runs.DIGEST, "d" * 64)
    assert [text for text in verification.verify(store, NAME) if "its number now holds" in text]


def test_edited_decision_is_not_settled_away(opened):
    store, study = opened("intended")
    edit(store, audit.read(store, NAME)[-1], to="3")
    promotion.promote(study, "2")
    assert [
        text
        for text in verification.verify(store, NAME)
        if "content does not give its seal" in text
    ]


def test_keys_of_a_later_version_stay_under_the_seal_when_settled(opened):
    store, study = opened("intended")
    edit(store, audit.read(store, NAME)[-1], reseal=True, later={"key": 1})
    promotion.promote(study, "2")
    assert verification.verify(store, NAME) == []


@pytest.mark.parametrize("gates", [5, ["text"], [{"code": "EQ-G1"}]])
def test_decision_with_gates_of_another_shape_is_read_and_found_edited(opened, gates):
    store, study = opened("whole")
    promotion.promote(study, "2")
    edit(store, audit.read(store, NAME)[-1], gates=gates)
    (sentence,) = verification.verify(store, NAME)
    assert "content does not give its seal" in sentence


def test_log_of_a_deleted_experiment_says_how_to_get_it_back(opened):
    store, study = opened("whole")
    store.delete_experiment(store.get_experiment_by_name(audit.EXPERIMENT).experiment_id)
    with pytest.raises(DataError, match="mlflow experiments restore"):
        promotion.promote(study, "2")


def test_denied_alias_is_undone_and_said(opened, monkeypatch):
    from mlflow.exceptions import RestException

    store, study = opened("whole")

    def denied(self, name, alias, version):
        raise RestException({"error_code": "PERMISSION_DENIED", "message": "Permission denied"})

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", denied)
    with pytest.raises(RestException, match="Permission denied"):
        promotion.promote(study, "2")
    last = audit.read(store, NAME)[-1]
    assert (last.state, pointed_at(store, NAME)) == ("undone", "1")
    assert "Permission denied" in last.outcome.note
    assert verification.verify(store, NAME) == []


def test_decision_names_who_when_and_what_it_follows(opened):
    store, study = opened("whole")
    promotion.promote(study, "2", reason="it is better")
    first, second = audit.read(store, NAME)
    decision = second.decision
    assert decision.follows == [[first.run_id, first.seal]]
    assert decision.who.endswith(os.uname().nodename)
    assert (decision.from_version, decision.to_version) == ("1", "2")
    assert decision.reason == "it is better"
    runs = store.search_runs(
        [store.get_experiment_by_name(audit.EXPERIMENT).experiment_id], "", ViewType.ALL
    )
    assert {run.info.status for run in runs} == {"FINISHED"}
    text = history.history_text(history.log_of(store, NAME, verifies=False))
    assert "1 -> 2" in text
    assert "reason: it is better" in text


def test_reasons_have_a_length_and_must_be_given(opened):
    _, study = opened("whole")
    with pytest.raises(DataError, match="Give a shorter reason"):
        promotion.promote(study, "2", reason="x" * 8000)
    with pytest.raises(ConfigError, match="--reason TEXT"):
        promotion.promote(study, "2", force=True, reason=" ")
    with pytest.raises(ConfigError, match="needs --reason"):
        promotion.rollback(study, " ")


def test_lock_is_of_one_model(opened):
    opened("whole")
    again = pytest.raises(PromotionRefused, match="on this machine; nothing was done")
    with audit.locked("one"), audit.locked("another"), again, audit.locked("one"):
        pass
    with audit.locked("one"):
        pass
