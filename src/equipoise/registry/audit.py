"""The log of decisions about a champion: a run of MLflow each, naming the decisions it follows.

A decision is written before it is carried out and closed afterwards. So a kill in between leaves a
trace, which the next call completes or undoes. A decision is one tag of plain JSON, and so one
write. Its seal is a digest of what was decided and what came of it. Whoever follows a decision
repeats its seal, and the registered model repeats the newest one. This shows edits and gaps; it
does not stop someone who may write everything.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from filelock import Timeout
from mlflow.entities import RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from equipoise.core.errors import DataError, PromotionRefused
from equipoise.core.text import first_line
from equipoise.registry import runs, tracking
from equipoise.registry.decisions import (
    Content,
    Decision,
    Entry,
    GateRecord,
    Outcome,
    seal_of,
)

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS = "previous-champion"
#: The MLflow experiment that holds the log.
EXPERIMENT = "equipoise-registry"
#: A decision of another machine that stands open for longer than this was killed there.
STALE_SECONDS = 120
#: Tags of the run of a decision.
_MODEL = "equipoise.model"
_DECISION = "equipoise.decision"
_OUTCOME = "equipoise.outcome"
_SEAL = "equipoise.seal"
#: Tag of the registered model: run and seal of the newest closed decision.
_NEWEST = "equipoise.last_decision"
#: MLflow cuts a tag at 8,000 characters.
_DECISION_CHARACTERS = 7500
_NOTE_CHARACTERS = 500
_RUNS_PER_PAGE = 500
#: What MLflow answers when something is not there; the second is for a model without this alias.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def model_name(study: str) -> str:
    """Name of a study's registered model."""
    return f"equipoise-{study}"


# --- aliases and versions -------------------------------------------------------------------------


def who() -> str:
    """user@host; the user is the one who signs in to the tracking server where that is given."""
    return f"{runs.user()}@{socket.gethostname()}"


def by_alias(store: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version an alias points to, or None."""
    return _look_up(store.get_model_version_by_alias, name, alias)


def version_of(store: MlflowClient, name: str, version: str | None) -> ModelVersion | None:
    """A version by its number, or None."""
    return _look_up(store.get_model_version, name, version) if version else None


def _look_up(ask: Callable[..., Any], *words: str) -> Any:
    """The answer of the registry, or None for what is not there."""
    try:
        return ask(*words)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold this machine's lock on a model; the system frees it when a process dies.

    Raises:
        PromotionRefused: When another process holds it.
    """
    registry = mlflow.get_registry_uri()
    if registry.startswith("sqlite:///"):
        registry = str(Path(registry.removeprefix("sqlite:///")).resolve())
    try:
        lock = tracking.machine_lock([registry, name], timeout_seconds=0).acquire()
    except Timeout as error:
        raise PromotionRefused(
            f"Another decision about {name} is being made on this machine; nothing was done. Wait for it and look at "
            f"`equipoise audit`."
        ) from error
    with lock:
        yield


# --- reading --------------------------------------------------------------------------------------


def read(store: MlflowClient, name: str) -> list[Entry]:
    """The decisions about a model, oldest first: in the order in which they follow each other."""
    experiment = store.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    if experiment.lifecycle_stage == "deleted":
        raise DataError(
            f"The experiment {EXPERIMENT}, which holds the log, is deleted. Restore it: "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )
    runs = _runs_of(store, experiment.experiment_id, name)
    return sorted((_entry(run) for run in runs), key=_place_in_log)


def _runs_of(store: MlflowClient, experiment: str, name: str) -> Iterator[Any]:
    """Every run of a model in the log, page by page, deleted ones included."""
    clause = f"tags.`{_MODEL}` = '{name}'"
    token = None
    while True:
        page = store.search_runs(
            [experiment], clause, ViewType.ALL, _RUNS_PER_PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _place_in_log(entry: Entry) -> tuple[int, str, str]:
    return entry.decision.number, entry.decision.at, entry.run_id


def _entry(run: Any) -> Entry:
    tags = run.data.tags
    decision = _json_object(tags.get(_DECISION)) or {}
    outcome = _json_object(tags.get(_OUTCOME))
    deleted = run.info.lifecycle_stage == "deleted"
    return Entry(
        run_id=run.info.run_id,
        status="DELETED" if deleted else run.info.status,
        decision=_as_decision(decision),
        outcome=Outcome.model_construct(**outcome) if outcome else None,
        seal=tags.get(_SEAL, ""),
        computed_seal=seal_of(decision, outcome),
        open_seal=seal_of(decision, None),
    )


def _json_object(text: str | None) -> dict[str, Any] | None:
    """The object that a tag holds; None for a tag that is missing or holds something else."""
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _as_decision(content: dict[str, Any]) -> Decision:
    """A decision without a check of its types, so that `verify` can show one that was edited."""
    values = dict(content)
    gates = values.get("gates")
    if isinstance(gates, list):
        records = [GateRecord.model_construct(**gate) for gate in gates if isinstance(gate, dict)]
        values["gates"] = records
    for name in ("from_content", "to_content"):
        if isinstance(values.get(name), dict):
            values[name] = Content.model_construct(**values[name])
    return Decision.model_construct(**values)


class Repeated(NamedTuple):
    """Run and seal of the newest closed decision, as the registered model repeats them; empty where it names none."""

    run_id: str
    seal: str


def repeated_by_model(store: MlflowClient, name: str) -> Repeated | None:
    """What a registered model says of its log; None where there is no such model."""
    model = _look_up(store.get_registered_model, name)
    if model is None:
        return None
    run_id, _, seal = model.tags.get(_NEWEST, "").partition(" ")
    return Repeated(run_id, seal)


def newest_move(entries: Sequence[Entry]) -> Entry | None:
    """The decision that made the champion as the log left it."""
    for entry in reversed(entries):
        if entry.moved:
            return entry
    return None


def previous(store: MlflowClient, name: str, entries: Sequence[Entry]) -> ModelVersion | None:
    """The version to go back to: the newest former champion of the log that still exists.

    Only what a decision made champion counts: a version that took over a number holds another result.
    """
    current = by_alias(store, name, CHAMPION)
    for entry in reversed(entries):
        if not entry.moved or entry.is_about(current):
            continue
        version = version_of(store, name, entry.decision.to_version)
        if entry.is_about(version):
            return version
    return None


# --- writing --------------------------------------------------------------------------------------


def no_step(name: str) -> None:
    """Do nothing between two writes; a test puts a kill in its place."""


def write(
    store: MlflowClient, name: str, decision: Decision, root: Path, state: str | None = None
) -> Entry:
    """Write a decision at the end of the log; with a state it is closed at once.

    Args:
        store: The tracking store.
        name: Of the registered model.
        decision: What was decided; number, model, who, at and follows are filled in here.
        root: Folder that holds params.yaml.
        state: What came of it; None while it has still to be carried out.
    """
    filled = _filled(decision, name, read(store, name))
    text = json.dumps(filled.as_dict())
    if len(text) > _DECISION_CHARACTERS:
        raise DataError(
            f"The decision takes {len(text)} characters, a tag holds 8,000. Give a shorter reason."
        )
    outcome = _outcome(state) if state else None
    seal = seal_of(filled.as_dict(), outcome.as_dict() if outcome else None)
    tags = {_MODEL: name, _DECISION: text, _SEAL: seal}
    if outcome:
        tags[_OUTCOME] = json.dumps(outcome.as_dict())
    label = f"{name}: {filled.kind} {filled.from_version} -> {filled.to_version}"
    experiment = tracking.experiment_id(store, EXPERIMENT, root)
    run = store.create_run(experiment, run_name=label, tags=tags)
    entry = Entry(
        run_id=run.info.run_id,
        status="RUNNING",
        decision=filled,
        outcome=outcome,
        seal=seal,
        computed_seal=seal,
        open_seal=seal_of(filled.as_dict(), None),
    )
    if outcome:
        _end(store, entry)
    return entry


def _filled(decision: Decision, name: str, entries: Sequence[Entry]) -> Decision:
    """A decision with its number, its author and what it follows."""
    numbers = [entry.decision.number for entry in entries]
    followed = {run_id for entry in entries for run_id, _ in entry.decision.follows}
    ends = [entry for entry in entries if entry.run_id not in followed]
    return decision.model_copy(
        update={
            "number": 1 + max(numbers, default=0),
            "model": name,
            "who": who(),
            "at": _now(),
            "follows": [[entry.run_id, entry.seal] for entry in ends],
        }
    )


def close(
    store: MlflowClient,
    entry: Entry,
    state: str,
    note: str = "",
    step: Callable[[str], None] = no_step,
) -> Entry:
    """Write what came of a decision; `step` is called after the outcome is written."""
    outcome = _outcome(state, note)
    seal = seal_of(entry.decision.as_dict(), outcome.as_dict())
    written = RunTag(_OUTCOME, json.dumps(outcome.as_dict()))
    store.log_batch(entry.run_id, tags=[written, RunTag(_SEAL, seal)])
    closed = replace(entry, outcome=outcome, seal=seal, computed_seal=seal)
    step("closed")
    _end(store, closed)
    return closed


def _outcome(state: str, note: str = "") -> Outcome:
    return Outcome(state=state, by=who(), at=_now(), note=note[:_NOTE_CHARACTERS])


def _end(store: MlflowClient, entry: Entry) -> None:
    """Let the registered model repeat the seal, and end the run."""
    newest = f"{entry.run_id} {entry.seal}"
    store.set_registered_model_tag(entry.decision.model, _NEWEST, newest)
    status = "FINISHED" if entry.state in ("done", "refused") else "KILLED"
    store.set_terminated(entry.run_id, status)


def move(
    store: MlflowClient,
    name: str,
    decision: Decision,
    root: Path,
    step: Callable[[str], None] = no_step,
) -> Entry:
    """Carry out a decision: write it, move the alias, close it.

    Args:
        store: The tracking store.
        name: Of the registered model.
        decision: See `write`.
        root: Folder that holds params.yaml.
        step: Called between two writes with the name of what was done: start, intended, champion,
            previous, closed.

    Raises:
        PromotionRefused: When another machine decided meanwhile.
        MlflowException: When the registry does not let this user; the decision is settled first.
    """
    step("start")
    entry = write(store, name, decision, root)
    step("intended")
    obstacle = _obstacle(store, name, entry)
    if obstacle:
        close(store, entry, "overtaken", obstacle)
        raise PromotionRefused(
            f"{obstacle}, so {entry} moved nothing. Look at `equipoise audit` and decide again."
        )
    try:
        store.set_registered_model_alias(name, CHAMPION, entry.decision.to_version)
        step("champion")
        _keep_way_back(store, name, entry)
        step("previous")
        return close(store, entry, "done", step=step)
    except MlflowException as error:
        _settle(store, name, entry, f"the registry said: {first_line(error)}")
        raise


def _obstacle(store: MlflowClient, name: str, entry: Entry) -> str | None:
    """Why a decision that was just written must not be carried out, in words; None when it may.

    Of two that write side by side the later one reads after both writes, so at least one of them
    notices.
    """
    others = [other for other in read(store, name) if other.open and other.run_id != entry.run_id]
    if others:
        return f"{others[-1]} of {others[-1].decision.who} is under way"
    current = by_alias(store, name, CHAMPION)
    number = str(current.version) if current else None
    holds = Content.of(current) if current else None
    if (number, holds) != (entry.decision.from_version, entry.decision.from_content):
        return "the alias moved meanwhile"
    if not entry.is_about(version_of(store, name, entry.decision.to_version)):
        return f"version {entry.decision.to_version} was deleted meanwhile, or holds another result"
    return None


def _keep_way_back(store: MlflowClient, name: str, entry: Entry) -> None:
    before = entry.decision.from_version
    if before and before != entry.decision.to_version:
        store.set_registered_model_alias(name, PREVIOUS, before)


def settle(store: MlflowClient, name: str, say: Callable[[str], None]) -> None:
    """Complete or undo what a killed call left unfinished, and say so; called with the lock held.

    Raises:
        PromotionRefused: When another machine is in the middle of a decision.
    """
    for entry in read(store, name):
        if not entry.open:
            continue
        began = datetime.fromisoformat(entry.decision.at)
        age_seconds = (datetime.now(UTC) - began).total_seconds()
        host = entry.decision.who.rpartition("@")[2]
        if host != socket.gethostname() and age_seconds < STALE_SECONDS:
            raise PromotionRefused(
                f"{entry} of {entry.decision.who} is being carried out since {age_seconds:.0f} s; nothing was done. "
                f"Wait: after {STALE_SECONDS} s it counts as killed, and the next call settles it."
            )
        say(_settle(store, name, entry, "it was killed"))


def _settle(store: MlflowClient, name: str, entry: Entry, why: str) -> str:
    """Complete or undo a decision, and say which.

    The alias says how far it came: at the new version it is completed, else it counts as undone.
    """
    if entry.outcome:
        became = "closed"
        _end(store, entry)
    elif entry.is_about(by_alias(store, name, CHAMPION)):
        became = "completed"
        _keep_way_back(store, name, entry)
        close(store, entry, "done", f"settled: {why}")
    else:
        became = "undone"
        close(store, entry, "undone", f"settled: {why}")
    return f"{entry} was left unfinished; it is now {became}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
