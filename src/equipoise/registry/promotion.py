"""Move the alias champion forward through the gates, or back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from equipoise.core.config import Study
from equipoise.core.documents import Document
from equipoise.core.errors import ConfigError, PromotionRefused
from equipoise.registry import audit, gates, models, tracking, verification
from equipoise.registry.audit import CHALLENGER, CHAMPION, model_name
from equipoise.registry.decisions import Content, Decision, Entry, GateRecord

#: Tags of a version that a decision repeats, without their first word.
_DIGESTS = ("result_digest", "git_commit", "digest.splits", "digest.test")


@dataclass(frozen=True)
class Championship:
    """Who is champion after a call.

    Attributes:
        model: Name of the registered model.
        champion: Number of its version.
        previous: Number of the champion before; None where there was none, or where nothing moved.
        moved: Whether the alias moved.
        forced: Whether it moved although gates had failed.
        decision: Number of the decision in the log; None where nothing moved.
    """

    model: str
    champion: str
    previous: str | None = None
    moved: bool = False
    forced: bool = False
    decision: int | None = None


def moved_text(championship: Championship) -> str:
    """One line about who is champion now, and who was before."""
    model, champion = championship.model, championship.champion
    if not championship.moved:
        return f"version {champion} of {model} is the champion already; nothing moved"
    before = "there was no champion"
    if championship.previous:
        before = f"version {championship.previous} is kept for rollback"
    decision = f"decision {championship.decision}"
    if championship.forced:
        decision += ", forced"
    return f"champion of {model} is now version {champion}; {before} ({decision})"


class PromotionReport(Document):
    """What `promote --json` prints.

    Attributes:
        model: Name of the registered model.
        moved: Whether the alias champion moved.
        champion: Number of its version now; None after a refusal.
        previous: See `Championship`, and so are the next two.
        refused: Why nothing moved; empty where it was not refused.
        gates: The verdicts; none where the version is champion already.
    """

    model: str
    moved: bool
    champion: str | None
    previous: str | None
    forced: bool
    decision: int | None
    refused: str
    gates: list[GateRecord]


def report(
    model: str, heard: Sequence[object], done: Championship | None = None, refused: str = ""
) -> PromotionReport:
    """What came of a promotion.

    Args:
        model: Name of the registered model.
        heard: What `promote` said on the way.
        done: What it returned; None after a refusal.
        refused: The sentence of the refusal.
    """
    judged = [said for said in heard if isinstance(said, gates.Judged)]
    records = [verdict.as_record() for table in judged for verdict in table.verdicts]
    return PromotionReport(
        model=model,
        moved=done.moved if done else False,
        champion=done.champion if done else None,
        previous=done.previous if done else None,
        forced=done.forced if done else False,
        decision=done.decision if done else None,
        refused=refused,
        gates=records,
    )


def promote(
    study: Study,
    version: str | None = None,
    force: bool = False,
    reason: str | None = None,
    say: Callable[[object], None] = print,
    step: Callable[[str], None] = audit.no_step,
) -> Championship:
    """Hold the challenger, or a version, against every gate; `champion` moves when all pass.

    Args:
        study: For its name, the bounds of `promote` and the raw images.
        version: Instead of the challenger.
        force: Move although gates failed; the decision is recorded as forced.
        reason: Recorded; needed to force.
        say: Called with the table of gates, and with what was settled of a killed call.
        step: See `audit.move`.

    Raises:
        PromotionRefused: With every reason, when a gate fails; recorded, and nothing is moved.
    """
    if force and not (reason or "").strip():
        raise ConfigError(
            "--force goes with --reason TEXT: who reads the log later must learn why."
        )
    store = tracking.client(study.root)
    name = model_name(study.name)
    with audit.locked(name):
        target = _target(store, study, version)
        audit.settle(store, name, say)
        current = audit.by_alias(store, name, CHAMPION)
        number = str(target.version)
        is_champion = current is not None and str(current.version) == number
        if is_champion and not verification.misplaced(store, name, audit.read(store, name)):
            return Championship(name, number)
        verdicts = gates.judge(study, store, name, target, current)
        say(gates.Judged(verdicts))
        failed = [verdict for verdict in verdicts if verdict.failed]
        is_allowed = not failed or (force and all(verdict.forceable for verdict in failed))
        decision = Decision(
            kind="promote" if is_allowed else "refuse",
            reason=reason,
            forced=force and bool(failed),
            gates=[verdict.as_record() for verdict in verdicts],
            bounds=study.settings.promote.model_dump(),
            **_from_to(current, target),
        )
        if not is_allowed:
            _refuse(store, name, decision, study.root, failed)
        return _moved(audit.move(store, name, decision, study.root, step))


def _refuse(
    store: MlflowClient, name: str, decision: Decision, root: Path, failed: Sequence[gates.Verdict]
) -> NoReturn:
    """Write into the log that a version is not moved, and say why."""
    entry = audit.write(store, name, decision, root, "refused")
    reasons = "; ".join(str(verdict) for verdict in failed)
    raise PromotionRefused(
        f"version {decision.to_version} of {name} does not become champion: {reasons}. "
        f"Nothing was moved; the refusal is decision {entry.decision.number} of the log."
    )


def _target(store: MlflowClient, study: Study, version: str | None) -> ModelVersion:
    """The version that is to become champion: the one with this number, or the challenger."""
    name = model_name(study.name)
    if version:
        asked = f"version {version}"
        target = audit.version_of(store, name, version)
    else:
        asked = f"alias {CHALLENGER}"
        target = audit.by_alias(store, name, CHALLENGER)
    if target is None:
        raise PromotionRefused(
            f"{name} has no {asked}. Run `equipoise register --study {study.name}` first."
        )
    return target


def rollback(
    study: Study,
    reason: str,
    say: Callable[[str], None] = print,
    step: Callable[[str], None] = audit.no_step,
) -> Championship:
    """Return `champion` to the version before, by the log, after that one has loaded.

    Args:
        study: For its name.
        reason: Recorded.
        say: Called with what was settled of a killed call.
        step: See `audit.move`.

    Raises:
        PromotionRefused: Without a previous champion, or when it does not load.
    """
    if not reason.strip():
        raise ConfigError("A rollback needs --reason TEXT: who reads the log later must learn why.")
    store = tracking.client(study.root)
    name = model_name(study.name)
    with audit.locked(name):
        audit.settle(store, name, say)
        target = audit.previous(store, name, audit.read(store, name))
        if target is None:
            raise PromotionRefused(
                f"{name} has no previous champion to return to: no other version that a decision made champion exists. "
                f"`equipoise promote --study {study.name}` holds a version against the gates."
            )
        number = str(target.version)
        current = audit.by_alias(store, name, CHAMPION)
        decision = Decision(
            kind="rollback", reason=reason, forced=False, **_from_to(current, target)
        )
        try:
            models.load(f"models:/{name}/{number}", study.root)
        except Exception as error:
            refusal = decision.model_copy(update={"kind": "refuse"})
            audit.write(store, name, refusal, study.root, "refused")
            raise PromotionRefused(
                f"Version {number} of {name} does not load, and nothing was moved: {error} Restore its files, or "
                f"`equipoise promote --study {study.name} --version NUMBER` holds another version against the gates."
            ) from error
        return _moved(audit.move(store, name, decision, study.root, step))


def _from_to(current: ModelVersion | None, target: ModelVersion) -> dict[str, Any]:
    """What every decision says of the champion before and of the version that it is about."""
    return {
        "from_version": str(current.version) if current else None,
        "to_version": str(target.version),
        "from_content": Content.of(current) if current else None,
        "to_content": Content.of(target),
        "digests": _digests(target),
    }


def _digests(version: ModelVersion) -> dict[str, str]:
    """What a version was made from, by its tags."""
    digests = {name: version.tags.get(f"equipoise.{name}") for name in _DIGESTS}
    return {name: digest for name, digest in digests.items() if digest is not None}


def _moved(entry: Entry) -> Championship:
    decision = entry.decision
    return Championship(
        model=decision.model,
        champion=str(decision.to_version),
        previous=decision.from_version,
        moved=True,
        forced=decision.forced,
        decision=decision.number,
    )
