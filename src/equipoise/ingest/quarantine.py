"""Files that are left out of the manifest, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from equipoise.core.files import atomic_path


class Quarantined(NamedTuple):
    """A file that is left out, by its image id, and why."""

    image_id: str
    reason: str


def path_beside(manifest: Path) -> Path:
    """Where the list of a manifest lies."""
    return manifest.with_suffix(".quarantine.csv")


def reasons(path: Path) -> list[str]:
    """Why the files of a list are left out; none where there is no list."""
    if not path.is_file():
        return []
    return pd.read_csv(path, dtype=str)["reason"].tolist()


def write(path: Path, quarantined: Sequence[Quarantined]) -> None:
    """Write the list, sorted by image id."""
    table = pd.DataFrame(quarantined, columns=list(Quarantined._fields))
    with atomic_path(path) as temporary:
        table.sort_values("image_id").to_csv(temporary, index=False, lineterminator="\n")
