"""The split of another git revision, read through DVC, against the one that is here."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from equipoise.core.config import Study
from equipoise.core.errors import DataError
from equipoise.core.records import Splits

#: Moves that are printed; the page lists them all.
_MOST_PRINTED = 20


class GroupBy(NamedTuple):
    """What counted as one patient, in the other revision and now."""

    before: str | None
    after: str | None


class ImageCounts(NamedTuple):
    """Images in both splits, only in the present one, and only in the other one."""

    both: int
    new: int
    gone: int


@dataclass(frozen=True)
class Move:
    """A patient that stands in another part of one round.

    Attributes:
        repeat: Of the round.
        fold: Of the round.
        patient_id: The patient, as the present split groups them.
        before: Part in the other revision; several are joined by +.
        after: Part now.
        images: How many images of the patient are in both splits.
    """

    repeat: int
    fold: int
    patient_id: str
    before: str
    after: str
    images: int


@dataclass(frozen=True)
class MovedPatients:
    """Which patients stand in another part than in a revision.

    Attributes:
        revision: As the user named it.
        group_by: What counted as one patient.
        images: How many images both splits share.
        patients: Patients with an image in both splits.
        moved_patients: How many of them moved in any round.
        moved: One entry per round and moved patient.
    """

    revision: str
    group_by: GroupBy
    images: ImageCounts
    patients: int
    moved_patients: int
    moved: list[Move]


def moved_patients(study: Study, revision: str) -> MovedPatients:
    """Find the patients that stand in another part than in a revision.

    A patient is one of the present split. Where patients were grouped differently then, the images
    of one may have stood in several parts.

    Args:
        study: Whose `data/splits/<study>.parquet`.
        revision: Anything git knows: a commit, a branch, HEAD~1, the name of a `dvc exp`.

    Raises:
        DataError: When the revision or its split cannot be had, or the two splits have nothing in
            common.
    """
    now = Splits.read(study.splits_path)
    then = _read_revision(study, revision)
    shared = now.table.merge(
        then.table[["repeat", "fold", "image_id", "part"]],
        on=["repeat", "fold", "image_id"],
        suffixes=("", "_before"),
    )
    if shared.empty and len(now.table):
        raise DataError(
            f"The split of '{revision}' and the present one share no image or no round, so nothing can "
            f"be compared."
        )
    moved = _moves(shared)
    return MovedPatients(
        revision=revision,
        group_by=GroupBy(before=then.meta.get("group_by"), after=now.meta.get("group_by")),
        images=_image_counts(now, then),
        patients=int(shared["patient_id"].nunique()),
        moved_patients=len({move.patient_id for move in moved}),
        moved=moved,
    )


def moved_text(moved: MovedPatients) -> str:
    """Say which patients moved, in lines; of many moves only the first."""
    lines = [
        f"{moved.moved_patients} of {moved.patients} patients moved since {moved.revision}; "
        f"{moved.images.both} images in both, {moved.images.new} new, {moved.images.gone} gone"
    ]
    for move in moved.moved[:_MOST_PRINTED]:
        lines.append(
            f"  {move.patient_id}: {move.before} -> {move.after} ({move.images} images, "
            f"repeat {move.repeat}, fold {move.fold})"
        )
    more = len(moved.moved) - _MOST_PRINTED
    if more > 0:
        lines.append(f"  and {more} more on the page")
    return "\n".join(lines)


def _moves(shared: pd.DataFrame) -> list[Move]:
    """Compare the parts of every patient in every round.

    Args:
        shared: Rows in both splits, with `part` and `part_before`.
    """
    by_patient = shared.groupby(["repeat", "fold", "patient_id"])
    parts = by_patient.agg(
        before=("part_before", _joined),
        after=("part", _joined),
        images=("image_id", "size"),
    )
    moved = parts[parts["before"] != parts["after"]].reset_index()
    return [Move(**row) for row in moved.to_dict("records")]


def _joined(parts: pd.Series) -> str:
    return "+".join(sorted(parts.unique()))


def _image_counts(now: Splits, then: Splits) -> ImageCounts:
    here = set(now.table["image_id"])
    there = set(then.table["image_id"])
    return ImageCounts(both=len(here & there), new=len(here - there), gone=len(there - here))


def _read_revision(study: Study, revision: str) -> Splits:
    import dvc.api
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    path = study.splits_path.relative_to(study.root)
    try:
        content = dvc.api.read(path.as_posix(), repo=str(study.root), rev=revision, mode="rb")
    except (DvcException, SCMError, OSError) as error:
        raise DataError(
            f"{path} of '{revision}' cannot be had: {error}. Is the revision right, and its data in the "
            f"cache (`dvc fetch --all-commits`)?"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "splits.parquet"
        copy.write_bytes(content)
        return Splits.read(copy)
