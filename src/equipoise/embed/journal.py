"""The journal of passes: what each `embed` made on this machine and how long it took, a line of JSON for each."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from equipoise.core.documents import Part
from equipoise.embed.shards import shards_path


class PassRecord(Part):
    """One run of `embed`.

    Attributes:
        study: Name.
        backbone: Name.
        image_size_px: Width and height of the input.
        passes: Behind the features.
        passes_now: Those that this run made.
        seconds: That they took.
    """

    study: str
    backbone: str
    image_size_px: int
    passes: int | None
    passes_now: int
    seconds: float


def path_of(cache: Path) -> Path:
    """The file, beside the shards."""
    return shards_path(cache) / "passes.jsonl"


def note(cache: Path, record: PassRecord) -> None:
    """Add a line, below one that a kill has cut."""
    path = path_of(cache)
    ends_in_a_line = not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")
    start = "" if ends_in_a_line else "\n"
    with open(path, "a", encoding="utf-8") as journal:
        journal.write(f"{start}{json.dumps(record.as_dict())}\n")


def read(cache: Path) -> list[PassRecord]:
    """All lines, oldest first; none that a kill has cut, or that another version wrote in another way."""
    path = path_of(cache)
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    records = []
    for line in lines:
        try:
            records.append(PassRecord.model_validate_json(line))
        except ValidationError:
            continue
    return records
