"""The log of decisions as people and programs read it: a line for each, oldest first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlflow.tracking import MlflowClient

from equipoise.core.documents import Document, Part
from equipoise.core.shown import Table
from equipoise.registry import audit, verification
from equipoise.registry.audit import EXPERIMENT
from equipoise.registry.decisions import Decision, Outcome


class LoggedDecision(Part):
    """A decision with what came of it and whether its run still holds what was sealed."""

    run_id: str
    state: str
    edited: bool
    deleted: bool
    decision: Decision
    outcome: Outcome | None


class ModelLog(Part):
    """The log of one registered model.

    Attributes:
        decisions: Oldest first.
        verified: Whether findings were looked for.
        findings: What `verify` says of it.
    """

    model: str
    verified: bool
    findings: list[str]
    decisions: list[LoggedDecision]


class AuditReport(Document):
    """What `audit --json` prints."""

    models: list[ModelLog]


def log_of(store: MlflowClient, name: str, verifies: bool) -> ModelLog:
    """The log of a registered model, with what is wrong with it where that is asked for."""
    decisions = [
        LoggedDecision(
            run_id=entry.run_id,
            state=entry.state,
            edited=entry.edited,
            deleted=entry.deleted,
            decision=entry.decision,
            outcome=entry.outcome,
        )
        for entry in audit.read(store, name)
    ]
    findings = verification.verify(store, name) if verifies else []
    return ModelLog(model=name, verified=verifies, findings=findings, decisions=decisions)


def whole_text(log: ModelLog) -> str:
    """What was found in a log, or that nothing was."""
    told = "\n  ".join(log.findings) or "the log is whole"
    return f"{log.model}: {told}"


def history_text(log: ModelLog) -> str:
    """The decisions as lines of text, oldest first; below each one its failed gates and reason."""
    entries = log.decisions
    lines = [f"{log.model}: {len(entries)} decisions in the experiment {EXPERIMENT}"]
    table = Table([_columns(entry) for entry in entries], right=[0])
    for entry, line in zip(entries, str(table).splitlines()):
        lines.append(line)
        lines += [f"        {remark}" for remark in _remarks(entry)]
    return "\n".join(lines)


def _columns(entry: LoggedDecision) -> list[str]:
    decision = entry.decision
    forced = " (forced)" if decision.forced else ""
    return [
        f"  {decision.number or '?'}",
        _to_the_second(str(decision.at)),
        str(decision.kind),
        f"{decision.from_version or '-'} -> {decision.to_version}",
        f"{entry.state}{forced}",
        str(decision.who),
        f"run {entry.run_id[:8]}",
    ]


def _to_the_second(time: str) -> str:
    """A time without its thousandths, which tell a reader nothing."""
    return re.sub(r"\.\d+Z$", "Z", time)


def _remarks(entry: LoggedDecision) -> Iterator[str]:
    for gate in entry.decision.gates:
        if gate.verdict == "failed":
            yield f"{gate.code} {gate.name}: {gate.detail or gate.number}"
    if entry.decision.reason:
        yield f"reason: {entry.decision.reason}"
    if entry.outcome and entry.outcome.note:
        yield f"{entry.outcome.note} ({entry.outcome.by})"
