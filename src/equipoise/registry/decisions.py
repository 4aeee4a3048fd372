"""What a decision about a champion is, what came of it, and by which seal an edit of either shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from pydantic import ConfigDict, Field

from equipoise.core.documents import Part
from equipoise.core.files import digest_of
from equipoise.registry import runs

#: Kinds of decisions that move the champion.
_MOVES = ("promote", "rollback")


class GateRecord(Part):
    """The verdict of one gate, as a decision keeps it; see `gates.Verdict`."""

    model_config = ConfigDict(extra="allow")

    code: str
    verdict: str
    number: int | float | None
    bound: str
    detail: str
    forceable: bool
    name: str


class Content(Part):
    """What a version holds: a number alone is given again after a model was deleted or restored.

    Attributes:
        result_digest: Of the result; empty for a version that does not say.
        run_id: Of the run that the version was made from.
    """

    model_config = ConfigDict(extra="allow")

    result_digest: str = ""
    run_id: str = ""

    @classmethod
    def of(cls, version: ModelVersion) -> Content:
        """What the registry says that a version holds."""
        digest = version.tags.get(runs.DIGEST, "")
        return cls(result_digest=digest, run_id=version.run_id or "")

    def __str__(self) -> str:
        digest = self.result_digest[:8] or "without a digest"
        return f"result {digest} of run {self.run_id[:8] or 'unknown'}"


class Decision(Part):
    """What was decided: the fields are the keys of the JSON, in their order.

    Attributes:
        number: Counts the decisions about a model, from 1.
        model: Name of the registered model.
        kind: promote, rollback or refuse.
        from_version: Number of the champion before; None where there was none. Its key is "from".
        to_version: Number of the version that was decided about. Its key is "to".
        from_content: What the champion before held; None where there was none.
        to_content: What the version held; None in decisions from before it was kept.
        reason: As the user gave it.
        forced: Whether gates had failed.
        gates: The verdicts; a rollback asks no gate.
        digests: Of the result, its test rows and split, and the git commit.
        bounds: The section `promote` of the settings.
        who: user@host.
        at: Time in UTC.
        follows: Run id and seal of every decision that stood at the end of the log.
    """

    # Keys of a later version stay, because the seal is of all of them.
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    number: int = 0
    model: str = ""
    kind: str = "unknown"
    from_version: str | None = Field(
        default=None, validation_alias="from", serialization_alias="from"
    )
    to_version: str | None = Field(default=None, validation_alias="to", serialization_alias="to")
    from_content: Content | None = None
    to_content: Content | None = None
    reason: str | None = None
    forced: bool = False
    gates: list[GateRecord] = Field(default_factory=list)
    digests: dict[str, str] = Field(default_factory=dict)
    bounds: dict[str, Any] = Field(default_factory=dict)
    who: str = ""
    at: str = ""
    follows: list[list[str]] = Field(default_factory=list)


class Outcome(Part):
    """What came of a decision: done, refused, undone or overtaken; by whom, when, and a note."""

    state: str = "unknown"
    by: str = ""
    at: str = ""
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """One decision as the log holds it.

    Attributes:
        run_id: Of its run.
        status: Of its run, in MLflow's words; DELETED when it can still be restored.
        decision: What was decided. Somebody may have edited it, so its types are not certain.
        outcome: What came of it; None while it is unfinished.
        seal: As written in the run.
        computed_seal: The seal that the content of the run gives now; another one than `seal` after
            an edit.
        open_seal: The seal that the decision had before it was closed.
    """

    run_id: str
    status: str
    decision: Decision
    outcome: Outcome | None
    seal: str
    computed_seal: str
    open_seal: str

    @property
    def state(self) -> str:
        """What came of it."""
        return self.outcome.state if self.outcome else "unfinished"

    @property
    def edited(self) -> bool:
        """Whether its content no longer gives its seal."""
        return self.seal != self.computed_seal

    @property
    def deleted(self) -> bool:
        """Whether its run is deleted; MLflow can still restore it."""
        return self.status == "DELETED"

    @property
    def open(self) -> bool:
        """Whether a killed call left something of it undone.

        An edited or deleted decision is left as it is.
        """
        unfinished = self.outcome is None or self.status == "RUNNING"
        return unfinished and not self.deleted and not self.edited

    @property
    def moved(self) -> bool:
        """Whether it moved the champion."""
        return self.decision.kind in _MOVES and self.state == "done"

    def is_about(self, version: ModelVersion | None) -> bool:
        """Whether a version is the one that was decided about: its number and what it holds.

        A decision from before contents were kept names the digest of the result only.
        """
        decision = self.decision
        if version is None or str(version.version) != decision.to_version:
            return False
        holds = Content.of(version)
        if isinstance(decision.to_content, Content):
            return holds == decision.to_content
        return holds.result_digest == decision.digests.get("result_digest", "")

    def __str__(self) -> str:
        name = f"decision {self.decision.number} ({self.decision.kind}, run {self.run_id[:8]})"
        return f"{name}, deleted" if self.deleted else name


def seal_of(decision: Any, outcome: Any) -> str:
    """Digest of what was decided and of what came of it, both plain data; None while nothing came of it."""
    return digest_of([decision, outcome])
