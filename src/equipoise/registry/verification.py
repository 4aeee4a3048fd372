"""Whether the log of decisions is whole and the champion stands where it left it; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from equipoise.registry.audit import (
    CHAMPION,
    by_alias,
    newest_move,
    previous,
    read,
    repeated_by_model,
    version_of,
)
from equipoise.registry.decisions import Content, Entry


def verify(store: MlflowClient, name: str) -> list[str]:
    """What is wrong with the log, or between the log and the alias; nothing is changed.

    Returns:
        A sentence per finding: gaps, edits, decisions left unfinished, an alias moved or lost
        behind the log's back.
    """
    entries = read(store, name)
    known = {entry.run_id: entry for entry in entries}
    sentences: list[str] = []
    for entry in entries:
        sentences += _problems_of(entry)
        sentences += _broken_links(entry, known)
    sentences += _wrong_end(store, name, known)
    return sentences + misplaced(store, name, entries)


def _problems_of(entry: Entry) -> Iterator[str]:
    """What one decision says of itself."""
    if entry.edited:
        yield f"{entry} was edited: its content does not give its seal."
    if entry.deleted:
        yield f"{entry} leaves a gap: `mlflow runs restore --run-id {entry.run_id}`."
    if entry.open or entry.outcome is None:
        yield f"{entry} is unfinished; the next promote or rollback settles it."


def _broken_links(entry: Entry, known: dict[str, Entry]) -> Iterator[str]:
    """Decisions that one follows and that are gone, or have another seal than they had then."""
    for run_id, seal in entry.decision.follows:
        before = known.get(run_id)
        if before is None:
            yield f"{entry} follows run {run_id[:8]}, which is missing: a gap."
        elif seal not in (before.seal, before.open_seal):
            yield f"{before} was edited after {entry} had followed it."


def _wrong_end(store: MlflowClient, name: str, known: dict[str, Entry]) -> Iterator[str]:
    """Whether the registered model names another newest decision than the log holds."""
    newest = repeated_by_model(store, name)
    if newest is None:
        return
    if not newest.run_id:
        closed = [entry for entry in known.values() if entry.outcome]
        if closed:
            yield (
                f"The model names no newest decision, and the log holds {len(closed)}: it was deleted and registered "
                f"anew, or its tag was removed. The next decision names itself."
            )
    elif newest.run_id not in known:
        yield f"The model names run {newest.run_id[:8]} as its newest decision, which is missing: a gap."
    elif known[newest.run_id].seal != newest.seal:
        yield f"{known[newest.run_id]} was edited after it had been closed."


def misplaced(store: MlflowClient, name: str, entries: Sequence[Entry]) -> list[str]:
    """A sentence when the alias does not stand where the log left it; nothing when it does."""
    current = by_alias(store, name, CHAMPION)
    newest = newest_move(entries)
    if current is None and newest is None:
        return []
    under_way = [entry for entry in entries if entry.state == "unfinished"]
    for entry in [newest, *under_way]:
        if entry is not None and entry.is_about(current):
            return []
    return [
        f"The alias {CHAMPION} of {name} {_place(current)}, {_place_left(store, name, newest)}: it was moved or lost "
        f"behind the log's back. Next: {_way_back(store, name, entries)}."
    ]


def _place(version: ModelVersion | None) -> str:
    """Where an alias stands, in words."""
    if version is None:
        return "is gone"
    return f"points at version {version.version}"


def _place_left(store: MlflowClient, name: str, newest: Entry | None) -> str:
    """Where the log left the alias, in words, and what has become of that version."""
    if newest is None:
        return "the log knows of no champion"
    number = newest.decision.to_version
    left = f"the log left it at version {number}"
    version = version_of(store, name, number)
    if version is None:
        return f"{left}, which is deleted"
    if newest.is_about(version):
        return left
    made = newest.decision.to_content or "another result"
    return (
        f"{left}, which held {made} and is deleted: its number now holds {Content.of(version)} (the model was deleted "
        f"and registered anew, or this is another store)"
    )


def _way_back(store: MlflowClient, name: str, entries: Sequence[Entry]) -> str:
    """The command that can be given next."""
    study = name.removeprefix("equipoise-")
    target = previous(store, name, entries)
    if target is not None:
        return (
            f"`equipoise rollback --study {study} --reason TEXT` returns to version {target.version}, the newest "
            f"champion of the log that still exists"
        )
    return (
        f"no champion of the log exists any more; `equipoise promote --study {study} --force --reason TEXT` makes the "
        f"challenger champion, once you have read its other gates"
    )
