"""How often a test part was looked at: one line per result, only ever added to, on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

JOURNAL = Path("data/cache/openings.jsonl")


def note(test_digest: str, result_digest: str) -> None:
    """Add a line for a result that is about to be written."""
    JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"test": test_digest, "result": result_digest}) + "\n"
    # One unbuffered write at the end of the file: lines of processes that run at once cannot mix.
    with open(JOURNAL, "ab", buffering=0) as journal:
        journal.write(line.encode())


def count(test_digest: str, compared: set[str]) -> int:
    """By how many different results a test part has been opened here, those with the digests `compared` included."""
    known = set(compared)
    for line in JOURNAL.read_text(encoding="utf-8").splitlines() if JOURNAL.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # half a line that a kill left
            continue
        if entry["test"] == test_digest:
            known.add(entry["result"])
    return len(known)


def sentence(comparison: Mapping[str, Any]) -> str:
    """`count` of the test part of a comparison, in words."""
    compared = {
        row["result_digest"] for rows in comparison["rows"].values() for row in rows.values()
    }
    opened = count(comparison["test_digest"], compared)
    results = f"{opened} result" + ("s" if opened > 1 else "")
    return (
        f"This test part has been opened by {results}, {len(compared)} of them in this comparison."
    )
