"""Pictures that are masks of other pictures, told by what they show.

A mask has two or three grey values and lies beside the picture it belongs to, under the same name.
Its name or its folder often says so (`leftovers.py`); this is for those whose name does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from equipoise.core.greylevels import Depth, GreyScale, Picture, Range
from equipoise.core.images import Sample
from equipoise.ingest import leftovers

REASON = "looks like a mask: at most three grey values, beside an image of its name; ingest.keep takes it"

#: A mask has at most so many grey values.
_VALUES_MAX = 3
#: Rows and columns of a picture of more than 8 bits that are looked at, about.
_SAMPLE_PX = 64
#: A JPEG blurs the values of a mask: at least this share of its pixels lies near the commonest ones.
_NEAR_FRACTION = 0.95
#: Where the stretches of values that are near each other begin: each but the first and last has 16 levels.
_STRETCHES = np.array([0, *range(8, 256, 16)])
#: The values of a mask are more stretches apart.
_APART = 2


def count_few_values(pixels: np.ndarray) -> int:
    """How many grey values a picture has that has as few as a mask: 1 to 3; 0 for any other.

    Args:
        pixels: uint8 (height_px, width_px, 3).

    >>> count_few_values(np.full((8, 8, 3), 7, dtype=np.uint8))
    1
    >>> count_few_values(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    0
    """
    return few_values_of(Sample.of(pixels))


def few_values_of(sample: Sample) -> int:
    """The same, of some pixels of the picture."""
    count_of_value = sample.pixels_at.sum(axis=0)
    num_values = int(np.count_nonzero(count_of_value))
    if num_values <= _VALUES_MAX:
        return num_values
    near = np.add.reduceat(count_of_value, _STRETCHES)
    share = near / near.sum()
    fullest = np.argsort(share)[-_VALUES_MAX:]
    if share[fullest].sum() < _NEAR_FRACTION:
        return 0
    commonest = np.sort(fullest[share[fullest] > 1 - _NEAR_FRACTION])
    are_apart = np.all(np.diff(commonest) > _APART)
    are_nearly_all = share[commonest].sum() >= _NEAR_FRACTION
    return len(commonest) if are_apart and are_nearly_all else 0


def count_few_values_of_deep(values: np.ndarray, depth: Depth) -> int:
    """The same of numbers of more than 8 bits, between their own least and greatest value.

    One white for a whole study may leave a dark film two or three levels: that makes no mask of it.

    Args:
        values: (height_px, width_px) or (height_px, width_px, 3).
        depth: Their range.

    >>> dark = np.arange(64, dtype=np.uint16).reshape(8, 8)
    >>> count_few_values_of_deep(dark, Depth("unsigned", 0, 63))
    0
    """
    if depth.lowest == depth.highest:
        return 1
    own_range = GreyScale(white=None, window=Range(depth.lowest, depth.highest))
    step = max(1, min(values.shape[:2]) // _SAMPLE_PX)
    picture = Picture(values[::step, ::step], depth)
    return count_few_values(picture.as_rgb(own_range))


def find(rows: pd.DataFrame, keep: Sequence[str]) -> np.ndarray:
    """Find the masks among pictures.

    Args:
        rows: Columns `path` and `few_values`, as of `count_few_values`.
        keep: Patterns of `ingest.keep`: what fits is none.

    Returns:
        Boolean (num_rows,).
    """
    has_few = (rows["few_values"] > 0).to_numpy()
    if not has_few.any():
        return has_few
    pictures = _Pictures.of(rows.loc[~has_few, "path"].tolist())
    suspects = rows[has_few].set_index("path")["few_values"].to_dict()
    masks = _masks_among(suspects, pictures)
    kept = {path for path in masks if leftovers.fits_one(path, keep)}
    return rows["path"].isin(masks - kept).to_numpy()


@dataclass(frozen=True)
class _Pictures:
    """Names of the pictures that are no masks, without endings, by where masks of them may lie.

    Attributes:
        in_folder: Folder -> names of the pictures in it.
        at_place: Place, as of `_places_beside` -> names of the pictures beside it.
    """

    in_folder: Mapping[str, set[str]]
    at_place: Mapping[str, set[str]]

    @classmethod
    def of(cls, paths: Sequence[str]) -> _Pictures:
        """Sort the names of pictures by where masks of them may lie."""
        in_folder: dict[str, set[str]] = {}
        for path in paths:
            names = in_folder.setdefault(_folder_of(path), set())
            names.add(PurePosixPath(path).stem)
        at_place: dict[str, set[str]] = {}
        for folder, names in in_folder.items():
            folder_below = f"{folder}/" if folder else ""
            for place in [folder_below, *_places_beside(folder)]:
                at_place.setdefault(place, set()).update(names)
        return cls(in_folder, at_place)

    def beside(self, folder: str) -> set[str]:
        """Names in the folders beside one, and in the one above it."""
        names: set[str] = set()
        for place in _places_beside(folder):
            names |= self.at_place.get(place, set())
        return names


def _places_beside(folder: str) -> list[str]:
    """A folder with each of its parts left open in turn: what folders beside each other share.

    >>> _places_beside("benign/roi")
    ['/roi', 'benign/']
    """
    parts = folder.split("/") if folder else []
    places = []
    for position in range(len(parts)):
        place = list(parts)
        place[position] = ""
        places.append("/".join(place))
    return places


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _masks_among(values_of_path: Mapping[str, int], pictures: _Pictures) -> set[str]:
    """Which pictures of few values are masks of others.

    A name may say it, and beside its picture two values are enough. In a folder of its own all of
    the folder have to be masks: that one picture of `patient1/` is blank is no reason to call it a
    mask of `patient2/`. A mask of nothing is blank, and is told by those around it.
    """
    masks = set()
    by_folder: dict[str, list[str]] = {}
    for path, num_values in values_of_path.items():
        folder = _folder_of(path)
        by_folder.setdefault(folder, []).append(path)
        names = pictures.in_folder.get(folder, set())
        is_beside = num_values > 1 and _belongs_to(path, names)
        if is_beside or leftovers.named_like_a_mask(path):
            masks.add(path)
    for folder, paths in by_folder.items():
        if folder in pictures.in_folder:
            continue
        names = pictures.beside(folder)
        show_something = any(values_of_path[path] > 1 for path in paths)
        if show_something and all(_belongs_to(path, names) for path in paths):
            masks.update(paths)
    return masks


def remarks(rows: pd.DataFrame) -> list[str]:
    """What to say of pictures with the values of a mask that stay."""
    count = int((rows["few_values"] > 1).sum())
    if not count:
        return []
    return [
        f"pictures of two or three grey values that stay, because no picture of their names lies "
        f"beside them: {count}; ingest.skip leaves masks out"
    ]


def _belongs_to(path: str, names: set[str]) -> bool:
    return leftovers.belongs_to(PurePosixPath(path).stem, names)
