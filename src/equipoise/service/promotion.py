"""Move the alias champion forward through the gates, or back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from equipoise.core.config import Study
from equipoise.core.errors import ConfigError, PromotionRefused
from equipoise.service import audit, gates, tracking
from equipoise.service.audit import CHALLENGER, CHAMPION, by_alias, model_name
from equipoise.service.evidence import load
from equipoise.service.register import _digests


def promote(
    study: Study,
    version: str | None = None,
    force: bool = False,
    reason: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Hold the challenger, or a version, against every gate; `champion` moves when all pass.

    Args:
        study: For its name, the bounds of `promote` and the raw images.
        version: Instead of the challenger.
        force: Move although gates failed; the decision is recorded as forced.
        reason: Recorded; needed to force.
        say: Called with the table of gates, and with what was settled of a killed call.

    Raises:
        PromotionRefused: With every reason, when a gate fails; recorded, and nothing is moved.
    """
    if force and not (reason or "").strip():
        raise ConfigError(
            "--force goes with --reason TEXT: who reads the log later must learn why."
        )
    store, name = tracking.client(), model_name(study.name)
    with audit.locked(name):
        target = (
            audit.version_of(store, name, version) if version else by_alias(store, name, CHALLENGER)
        )
        if target is None:
            asked = f"version {version}" if version else f"alias {CHALLENGER}"
            raise PromotionRefused(
                f"{name} has no {asked}. Run `equipoise register --study {study.name}` first."
            )
        audit.settle(store, name, say)
        current, number = by_alias(store, name, CHAMPION), str(target.version)
        before = str(current.version) if current else None
        if before == number and not audit.misplaced(store, name, audit.read(store, name)):
            return {"name": name, "champion": number, "previous": None, "moved": False}
        found = gates.judge(study, store, name, target, current)
        say(gates.table_text(found))
        failed = [gate for gate in found if gate.verdict == "failed"]
        forced = force and bool(failed)
        refused = bool(failed) and not (force and all(gate.forceable for gate in failed))
        decision = {
            **{"kind": "refuse" if refused else "promote", "from": before, "to": number},
            **{"reason": reason, "forced": forced, "gates": [gate.as_dict() for gate in found]},
            **{"digests": _digests(target), "bounds": study.settings.promote.model_dump()},
        }
        if refused:
            entry = audit.write(store, name, decision, "refused")
            raise PromotionRefused(
                f"version {number} of {name} does not become champion: {'; '.join(map(str, failed))}. "
                f"Nothing was moved; the refusal is decision {entry.decision['number']} of the log."
            )
        return _moved(audit.move(store, name, decision))


def rollback(study: Study, reason: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Return `champion` to the version before, by the log, after that one has loaded.

    Raises:
        PromotionRefused: Without a previous champion, or when it does not load.
    """
    if not reason.strip():
        raise ConfigError("A rollback needs --reason TEXT: who reads the log later must learn why.")
    store, name = tracking.client(), model_name(study.name)
    with audit.locked(name):
        audit.settle(store, name, say)
        target, before = (
            audit.previous(store, name, audit.read(store, name)),
            audit.pointed_at(store, name),
        )
        if target is None:
            raise PromotionRefused(f"{name} has no previous champion to return to.")
        number = str(target.version)
        decision = {
            "from": before,
            "to": number,
            "reason": reason,
            "forced": False,
            "digests": _digests(target),
        }
        try:
            load(f"models:/{name}/{number}")
        except Exception as error:
            audit.write(store, name, {"kind": "refuse", **decision}, "refused")
            raise PromotionRefused(f"Version {number} of {name} does not load: {error}") from error
        return _moved(audit.move(store, name, {"kind": "rollback", **decision}))


def _moved(entry: audit.Entry) -> dict[str, Any]:
    decision = entry.decision
    done = {
        "name": decision["model"],
        "champion": decision["to"],
        "previous": decision["from"],
        "moved": True,
    }
    return {**done, "forced": decision["forced"], "decision": decision["number"]}
