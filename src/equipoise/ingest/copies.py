"""What follows from copies: which images show one picture, whose patients are one, and which images stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from equipoise.core.errors import ConfigError, DataError
from equipoise.ingest import duplicates
from equipoise.ingest.quarantine import Quarantined

#: A group of near copies with more pictures than this, and with a larger share of a study's, is none.
_GROUP_SIZE = 10
_GROUP_SHARE = 0.05


class Kept(NamedTuple):
    """The rows that stay, and the images that do not."""

    rows: pd.DataFrame
    quarantined: list[Quarantined]


class Pictures(NamedTuple):
    """Which picture each image shows.

    Attributes:
        of_row: object (num_images,): the smallest digest among the images that show the same.
        alike: Pictures that look alike in groups too large to be copies, and were not joined.
    """

    of_row: np.ndarray
    alike: int


def join_near_copies(digests: pd.Series, thumbnails: np.ndarray) -> Pictures:
    """Name the picture that each image shows.

    Exact copies have the same pixels whatever the file; near copies are found by `duplicates`. Near
    copies of near copies show the same picture, too. But a group that holds more of the study than
    copies would is taken apart: what its members share is an outline, or the way they were made.

    Args:
        digests: Digest of the pixels of each image.
        thumbnails: uint8 (num_images, SIDE, SIDE).
    """
    distinct, first_row, distinct_of_row = np.unique(
        digests.to_numpy(), return_index=True, return_inverse=True
    )
    # A graph with a node for each distinct picture and an edge for each pair of near copies.
    one, other = duplicates.near_pairs(thumbnails[first_row]).T
    group = _connected(one, other, len(distinct))
    group_sizes = np.bincount(group)
    size = group_sizes[group]
    too_large = max(_GROUP_SIZE, _GROUP_SHARE * len(distinct))
    is_alike = size > too_large
    itself = np.arange(len(distinct))
    picture = np.where(is_alike, itself, _smallest_of_group(group))
    return Pictures(
        of_row=distinct[picture][distinct_of_row],
        alike=int(is_alike.sum()),
    )


def join_patients_who_share(picture_of_row: np.ndarray, patient_of_row: pd.Series) -> np.ndarray:
    """Make one patient of all who share a picture: a picture shows one person.

    Args:
        picture_of_row: Name of the picture of each image.
        patient_of_row: Patient of each image under one reading.

    Returns:
        object (num_images,): the smallest patient id among those who are one.
    """
    picture, pictures = pd.factorize(picture_of_row)
    patient, patients = pd.factorize(patient_of_row, sort=True)
    # A graph with an edge from patient to picture for each image: the nodes are numbered so that
    # the patients come first and the pictures after them.
    num_nodes = len(patients) + len(pictures)
    group = _connected(patient, len(patients) + picture, num_nodes)
    group_of_patient = group[: len(patients)]
    smallest = _smallest_of_group(group_of_patient)
    return np.asarray(patients)[smallest][patient]


def leave_out_conflicts(rows: pd.DataFrame, trusted: Sequence[str]) -> Kept:
    """Quarantine the pictures that are filed under two classes.

    Args:
        rows: One row per image, with `picture`.
        trusted: Images whose label the user vouches for; they stay.

    Raises:
        ConfigError: When `trusted` names an image that is not there.
        DataError: When `trusted` holds the same pixels under two classes.
    """
    _check_trusted(rows, trusted)
    is_trusted = rows["image_id"].isin(trusted)
    classes_of_picture = rows.groupby("picture")["label"].transform("nunique")
    is_conflict = (classes_of_picture > 1) & ~is_trusted
    quarantined = []
    for picture in rows.loc[is_conflict, "picture"].unique():
        same_picture = rows[rows["picture"] == picture]
        for image_id in same_picture.loc[is_conflict, "image_id"]:
            reason = _conflict_of(image_id, same_picture)
            quarantined.append(Quarantined(image_id, reason))
    return Kept(_without(rows, is_conflict), quarantined)


def leave_out_copies(rows: pd.DataFrame, rule: str) -> Kept:
    """Quarantine all but the first image of each picture.

    A copy on the other published side stays, so that official results are those of the published
    sides.

    Args:
        rows: One row per image, with `picture`, sorted by image id.
        rule: `ingest.duplicates`: drop (exact copies), drop_near (near ones, too) or keep.
    """
    if rule == "keep":
        return Kept(rows, [])
    sides = [column for column in rows if str(column).startswith("official_split")]
    content = "picture" if rule == "drop_near" else "pixels"
    copies = rows.groupby([content, *sides])
    original = copies["image_id"].transform("first")
    pixels_of_original = copies["pixels"].transform("first")
    is_exact = rows["pixels"] == pixels_of_original
    is_copy = rows["image_id"] != original
    quarantined = []
    for row in rows.index[is_copy]:
        kind = "exact" if is_exact[row] else "near"
        reason = f"{kind} duplicate of {original[row]}"
        image_id = rows.at[row, "image_id"]
        quarantined.append(Quarantined(image_id, reason))
    return Kept(_without(rows, is_copy), quarantined)


def _without(rows: pd.DataFrame, is_left_out: pd.Series) -> pd.DataFrame:
    kept = rows[~is_left_out]
    return kept.reset_index(drop=True)


def _connected(start: np.ndarray, end: np.ndarray, num_nodes: int) -> np.ndarray:
    """The group of each node of a graph with edges from `start` to `end`, int (num_nodes,)."""
    edges = np.ones(len(start), dtype=np.int8)
    size = (num_nodes, num_nodes)
    graph = coo_array((edges, (start, end)), shape=size)
    _, group = connected_components(graph, directed=False)
    return group


def _smallest_of_group(group: np.ndarray) -> np.ndarray:
    """For each member the smallest number of a member of its group.

    >>> _smallest_of_group(np.array([7, 5, 7, 5])).tolist()
    [0, 1, 0, 1]
    """
    members = pd.Series(np.arange(len(group)))
    return members.groupby(group).transform("min").to_numpy()


def _check_trusted(rows: pd.DataFrame, trusted: Sequence[str]) -> None:
    unknown = sorted(set(trusted) - set(rows["image_id"]))
    if unknown:
        raise ConfigError(
            f"ingest.trusted names {unknown[0]!r}, which is no usable image of this study."
        )
    trusted_rows = rows[rows["image_id"].isin(trusted)]
    for _, same_pixels in trusted_rows.groupby("pixels"):
        if same_pixels["class_name"].nunique() > 1:
            names = ", ".join(same_pixels["image_id"])
            raise DataError(
                f"ingest.trusted vouches for {names}, the same pixels under two classes. Trust one."
            )


def _conflict_of(image_id: str, same_picture: pd.DataFrame) -> str:
    """Why an image is left out, given all rows of its picture."""
    is_own = same_picture["image_id"] == image_id
    own_pixels = same_picture.loc[is_own, "pixels"].iloc[0]
    others = same_picture[~is_own]
    has_same_pixels = others["pixels"] == own_pixels
    likeness = "same" if has_same_pixels.any() else "nearly the same"
    class_names = sorted(same_picture["class_name"].unique())
    classes = " and ".join(class_names)
    return (
        f"label conflict: {likeness} picture as {others['image_id'].iloc[0]}, "
        f"filed under {classes}; decide with ingest.trusted"
    )
