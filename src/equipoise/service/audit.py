"""The log of decisions about a champion, kept in MLflow: a run per decision, each naming the ones it follows.

A decision is written before it is carried out and closed afterwards, so that a kill in between leaves a trace which the
next call completes or undoes. It is one tag, plain JSON, and so one write. Its seal is a digest of what was decided and
what came of it; whoever follows it repeats the seal, and the registered model repeats the newest one. This shows edits
and gaps; it does not stop someone who may write everything.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from equipoise.core.errors import DataError, PromotionRefused
from equipoise.core.files import digest_of
from equipoise.service import tracking

CHALLENGER = "challenger"


def model_name(study: str) -> str:
    """Name of a study's registered model."""
    return f"equipoise-{study}"


EXPERIMENT = "equipoise-registry"


CHAMPION, PREVIOUS = "champion", "previous-champion"


#: A decision of another machine that stands open for longer than this was killed there.
STALE_SECONDS = 120


_DECISION, _OUTCOME, _SEAL, _NEWEST = (
    f"equipoise.{name}" for name in ("decision", "outcome", "seal", "last_decision")
)


_ABSENT = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
)  # the second: a model without this alias


_MOVES = ("promote", "rollback")


@dataclass(frozen=True)
class Entry:
    """One decision as the log holds it.

    Attributes:
        run_id: Of its run.
        status: Of its run, in MLflow's words; DELETED when it can still be restored.
        decision: number, kind, from, to, who, at, reason, forced, gates, digests, follows.
        outcome: state (done, refused, undone, overtaken), by, at, note; None while it is unfinished.
        seal: Digest of the two, as written in the run.
    """

    run_id: str
    status: str
    decision: dict[str, Any]
    outcome: dict[str, Any] | None
    seal: str

    @property
    def state(self) -> str:
        """What came of it."""
        return self.outcome["state"] if self.outcome else "unfinished"

    @property
    def seals(self) -> tuple[str, str]:
        """The seal it had before it was closed, and the one that its content gives now."""
        return digest_of([self.decision, None]), digest_of([self.decision, self.outcome])

    @property
    def open(self) -> bool:
        """Whether a killed call left something of it undone; an edited or deleted decision is left as it is."""
        running = self.outcome is None or self.status == "RUNNING"
        return running and self.status != "DELETED" and self.seal == self.seals[1]

    @property
    def moved(self) -> bool:
        """Whether it moved the champion."""
        return self.decision.get("kind") in _MOVES and self.state == "done"

    def __str__(self) -> str:
        text = f"decision {self.decision.get('number')} ({self.decision.get('kind')}, run {self.run_id[:8]})"
        return text + (", deleted" if self.status == "DELETED" else "")


def who() -> str:
    """user@host; the user is the one who signs in to the tracking server where that is given."""
    try:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _look(lookup: Callable[..., Any], *words: str) -> Any:
    try:
        return lookup(*words)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


def by_alias(store: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version an alias points to, or None."""
    return _look(store.get_model_version_by_alias, name, alias)


def version_of(store: MlflowClient, name: str, version: str) -> ModelVersion | None:
    """A version by its number, or None."""
    return _look(store.get_model_version, name, version)


def pointed_at(store: MlflowClient, name: str, alias: str = CHAMPION) -> str | None:
    """Number of the version an alias points to, or None."""
    found = by_alias(store, name, alias)
    return str(found.version) if found else None


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold this machine's lock on a model; the system frees it when a process dies.

    Raises:
        PromotionRefused: When another process holds it.
    """
    address = mlflow.get_registry_uri()
    if address.startswith("sqlite:///"):
        address = str(Path(address.removeprefix("sqlite:///")).resolve())
    path = Path(tempfile.gettempdir()) / f"equipoise-{digest_of([address, name])[:16]}.lock"
    try:
        lock = FileLock(path, timeout=0, mode=0o666).acquire()
    except Timeout as error:
        raise PromotionRefused(
            f"Another decision about {name} is being made on this machine; nothing was done. Wait for it and look at "
            f"`equipoise audit`."
        ) from error
    with lock:
        yield


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
    found: list[Entry] = []
    token = None
    while token != "":
        clause = f"tags.`equipoise.model` = '{name}'"
        page = store.search_runs(
            [experiment.experiment_id], clause, ViewType.ALL, 500, page_token=token
        )
        found += [_entry(run) for run in page]
        token = page.token or ""
    return sorted(
        found,
        key=lambda entry: (
            entry.decision.get("number", 0),
            entry.decision.get("at", ""),
            entry.run_id,
        ),
    )


def _entry(run: Any) -> Entry:
    tags = run.data.tags

    def parsed(name: str) -> dict[str, Any] | None:
        try:
            value = json.loads(tags.get(name, "null"))
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    status = "DELETED" if run.info.lifecycle_stage == "deleted" else run.info.status
    return Entry(
        run.info.run_id, status, parsed(_DECISION) or {}, parsed(_OUTCOME), tags.get(_SEAL, "")
    )


def champion(entries: list[Entry]) -> str | None:
    """The champion as the log left it."""
    return next((entry.decision["to"] for entry in reversed(entries) if entry.moved), None)


def write(
    store: MlflowClient, name: str, decision: Mapping[str, Any], state: str | None = None
) -> Entry:
    """Write a decision after all that stand at the end of the log; with a state it is closed at once."""
    entries = read(store, name)
    followed = {run_id for entry in entries for run_id, _ in entry.decision.get("follows", [])}
    ends = [entry for entry in entries if entry.run_id not in followed]
    number = 1 + max((entry.decision.get("number", 0) for entry in entries), default=0)
    whole = {"number": number, "model": name, **decision, "who": who(), "at": _now()}
    whole["follows"] = [[entry.run_id, entry.seal] for entry in ends]
    if (length := len(json.dumps(whole))) > 7500:  # MLflow cuts a tag at 8,000 characters
        raise DataError(
            f"The decision takes {length} characters, a tag holds 8,000. Give a shorter reason."
        )
    outcome = _outcome(state) if state else None
    entry = Entry("", "RUNNING", whole, outcome, digest_of([whole, outcome]))
    tags = {"equipoise.model": name, _DECISION: json.dumps(whole), _SEAL: entry.seal}
    tags |= {_OUTCOME: json.dumps(outcome)} if outcome else {}
    label = f"{name}: {whole['kind']} {whole['from']} -> {whole['to']}"
    run = store.create_run(tracking.experiment_id(store, EXPERIMENT), run_name=label, tags=tags)
    entry = replace(entry, run_id=run.info.run_id)
    if outcome:
        _end(store, entry)
    return entry


def close(store: MlflowClient, entry: Entry, state: str, note: str = "") -> Entry:
    """Write what came of a decision."""
    outcome = _outcome(state, note)
    closed = replace(entry, outcome=outcome, seal=digest_of([entry.decision, outcome]))
    store.log_batch(
        entry.run_id, tags=[RunTag(_OUTCOME, json.dumps(outcome)), RunTag(_SEAL, closed.seal)]
    )
    _step("closed")
    _end(store, closed)
    return closed


def _outcome(state: str, note: str = "") -> dict[str, Any]:
    return {"state": state, "by": who(), "at": _now(), "note": note[:500]}


def _end(store: MlflowClient, entry: Entry) -> None:
    store.set_registered_model_tag(entry.decision["model"], _NEWEST, f"{entry.run_id} {entry.seal}")
    store.set_terminated(
        entry.run_id, "FINISHED" if entry.state in ("done", "refused") else "KILLED"
    )


def move(store: MlflowClient, name: str, decision: Mapping[str, Any]) -> Entry:
    """Carry out a decision: write it, move the alias, close it.

    Raises:
        PromotionRefused: When another machine decided meanwhile.
        MlflowException: When the registry does not let this user; the decision is settled first.
    """
    _step("start")
    entry = write(store, name, decision)
    _step("intended")
    # Of two that write side by side the later one reads after both writes, so at least one of them notices.
    others = [other for other in read(store, name) if other.open and other.run_id != entry.run_id]
    if others or pointed_at(store, name) != entry.decision["from"]:
        why = (
            f"{others[-1]} of {others[-1].decision['who']} is under way"
            if others
            else "the alias moved meanwhile"
        )
        close(store, entry, "overtaken", why)
        raise PromotionRefused(
            f"{why}, so {entry} moved nothing. Look at `equipoise audit` and decide again."
        )
    try:
        store.set_registered_model_alias(name, CHAMPION, entry.decision["to"])
        _step("champion")
        _keep_way_back(store, name, entry)
        _step("previous")
        return close(store, entry, "done")
    except MlflowException as error:
        _settle(store, name, entry, f"the registry said: {str(error).splitlines()[0]}")
        raise


def _keep_way_back(store: MlflowClient, name: str, entry: Entry) -> None:
    if entry.decision["from"] and entry.decision["from"] != entry.decision["to"]:
        store.set_registered_model_alias(name, PREVIOUS, entry.decision["from"])


def settle(store: MlflowClient, name: str, say: Callable[[str], None]) -> None:
    """Complete or undo what a killed call left unfinished, and say so; called with the lock held.

    Raises:
        PromotionRefused: When another machine is in the middle of a decision.
    """
    for entry in read(store, name):
        if not entry.open:
            continue
        age = (datetime.now(UTC) - datetime.fromisoformat(entry.decision["at"])).total_seconds()
        host = entry.decision["who"].rpartition("@")[2]
        if host != socket.gethostname() and age < STALE_SECONDS:
            raise PromotionRefused(
                f"{entry} of {entry.decision['who']} is being carried out since {age:.0f} s; nothing was done. Wait: "
                f"after {STALE_SECONDS} s it counts as killed, and the next call settles it."
            )
        say(_settle(store, name, entry, "it was killed"))


def _settle(store: MlflowClient, name: str, entry: Entry, why: str) -> str:
    """The alias says how far it came: at the new version the decision is completed, else it counts as undone."""
    if entry.outcome:
        became = "closed"
        _end(store, entry)
    elif pointed_at(store, name) == entry.decision["to"]:
        became = "completed"
        _keep_way_back(store, name, entry)
        close(store, entry, "done", f"settled: {why}")
    else:
        became = "undone"
        close(store, entry, "undone", f"settled: {why}")
    return f"{entry} was left unfinished; it is now {became}"


def previous(store: MlflowClient, name: str, entries: list[Entry]) -> ModelVersion | None:
    """The version to go back to: the newest champion of the log that is not it now and still exists."""
    current = pointed_at(store, name)
    for entry in reversed([entry for entry in entries if entry.moved]):
        for number in (entry.decision["to"], entry.decision["from"]):
            found = version_of(store, name, number) if number and number != current else None
            if found:
                return found
    return by_alias(store, name, PREVIOUS)  # of a registry from before there was a log


def verify(store: MlflowClient, name: str) -> list[str]:
    """What is wrong with the log, or between the log and the alias; nothing is changed.

    Returns:
        A sentence per finding: gaps, edits, decisions left unfinished, an alias moved or lost behind the log's back.
    """
    entries = read(store, name)
    known = {entry.run_id: entry for entry in entries}
    found = []
    for entry in entries:
        if entry.seal != entry.seals[1]:
            found.append(f"{entry} was edited: its content does not give its seal.")
        if entry.status == "DELETED":
            found.append(f"{entry} leaves a gap: `mlflow runs restore --run-id {entry.run_id}`.")
        if entry.open or entry.outcome is None:
            found.append(f"{entry} is unfinished; the next promote or rollback settles it.")
        for run_id, seal in entry.decision.get("follows", []):
            if run_id not in known:
                found.append(f"{entry} follows run {run_id[:8]}, which is missing: a gap.")
            elif seal not in (known[run_id].seal, known[run_id].seals[0]):
                found.append(f"{known[run_id]} was edited after {entry} had followed it.")
    model = _look(store.get_registered_model, name)
    run_id, _, seal = (model.tags.get(_NEWEST, "") if model else "").partition(" ")
    if run_id and run_id not in known:
        found.append(
            f"The model names run {run_id[:8]} as its newest decision, which is missing: a gap."
        )
    elif run_id and known[run_id].seal != seal:
        found.append(f"{known[run_id]} was edited after it had been closed.")
    return found + misplaced(store, name, entries)


def misplaced(store: MlflowClient, name: str, entries: list[Entry]) -> list[str]:
    """Whether the alias stands where the log left it, and its version is still there."""
    expected, actual = champion(entries), pointed_at(store, name)
    if actual in (
        expected,
        *(entry.decision.get("to") for entry in entries if entry.state == "unfinished"),
    ):
        return []
    where = f"points at version {actual}" if actual else "is gone"
    study = name.removeprefix("equipoise-")
    left = f"the log left it at version {expected}" if expected else "the log knows of no champion"
    left += ", which is deleted" if expected and version_of(store, name, expected) is None else ""
    return [
        f"The alias {CHAMPION} of {name} {where}, {left}: it was moved or lost behind the log's back. Next: `equipoise "
        f"rollback --study {study} --reason TEXT` returns to the newest champion of the log that still exists."
    ]


def history_text(name: str, entries: list[Entry]) -> str:
    """The decisions as lines of text, oldest first."""
    lines = [f"{name}: {len(entries)} decisions in the experiment {EXPERIMENT}"]
    for entry in entries:
        decision, outcome = entry.decision, entry.outcome or {}
        way = f"{decision.get('from') or '-'} -> {decision.get('to')}"
        forced = " (forced)" if decision.get("forced") else ""
        lines.append(
            f"{decision.get('number', '?'):>4}  {decision.get('at')}  {decision.get('kind'):<8}  {way:<8}  "
            f"{entry.state}{forced}  {decision.get('who')}  run {entry.run_id[:8]}"
        )
        failed = [gate for gate in decision.get("gates", []) if gate["verdict"] == "failed"]
        lines += [
            f"        {gate['code']} {gate['name']}: {gate['detail'] or gate['number']}"
            for gate in failed
        ]
        lines += [f"        reason: {decision['reason']}"] if decision.get("reason") else []
        lines += [f"        {outcome['note']} ({outcome['by']})"] if outcome.get("note") else []
    return "\n".join(lines)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _step(name: str) -> None:
    """Between two writes; tests put a kill here."""
