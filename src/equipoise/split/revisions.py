"""The split of another git revision, read through DVC, against the one that is here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.core.config import Study
from equipoise.core.errors import DataError
from equipoise.core.records import Splits


def moved_patients(study: Study, revision: str) -> dict[str, Any]:
    """Say which patients stand in another part than in a revision.

    A patient is one of the present split; where the grouping was another then, its images may have stood in several
    parts.

    Args:
        study: Whose `data/splits/<study>.parquet`.
        revision: Anything git knows: a commit, a branch, HEAD~1, the name of a `dvc exp`.

    Returns:
        revision; images: in both, only now, only then; patients: in both; group_by: then and now; moved: one row per
        round and patient with part before and after and number of images.

    Raises:
        DataError: When the revision or its split cannot be had.
    """
    now, then = Splits.read(study.splits_path), _read(study, revision)
    keys = ["repeat", "fold", "image_id"]
    both = now.table.merge(then.table[[*keys, "part"]], on=keys, suffixes=("", "_before"))
    if both.empty and len(now.table):
        raise DataError(
            f"The split of '{revision}' and the present one share no image or no round, so nothing can be compared."
        )
    parts = both.groupby(["repeat", "fold", "patient_id"]).agg(
        before=("part_before", _joined), after=("part", _joined), images=("image_id", "size")
    )
    moved = parts[parts["before"] != parts["after"]].reset_index()
    here, there = set(now.table["image_id"]), set(then.table["image_id"])
    return {
        "revision": revision,
        "group_by": {"before": then.meta.get("group_by"), "after": now.meta.get("group_by")},
        "images": {"both": len(here & there), "new": len(here - there), "gone": len(there - here)},
        "patients": int(both["patient_id"].nunique()),
        "moved_patients": int(moved["patient_id"].nunique()),
        "moved": moved.to_dict("records"),
    }


def _joined(parts: pd.Series) -> str:
    return "+".join(sorted(parts.unique()))


def _read(study: Study, revision: str) -> Splits:
    import dvc.api
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        content = dvc.api.read(study.splits_path.as_posix(), rev=revision, mode="rb")
    except (DvcException, SCMError, OSError) as error:
        raise DataError(
            f"{study.splits_path} of '{revision}' cannot be had: {error}. Is the revision right, and its data in the "
            f"cache (`dvc fetch --all-commits`)?"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "splits.parquet"
        path.write_bytes(content)
        return Splits.read(path)
