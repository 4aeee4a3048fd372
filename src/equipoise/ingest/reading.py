"""Reads every file of a raw folder once: decodes it whole, hashes it, and asks the dataset whose it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from equipoise.core import greylevels, images, parallel
from equipoise.core.errors import DataError
from equipoise.core.greylevels import Depth, GreyScale, Picture, Range, repeated
from equipoise.ingest import duplicates, masks
from equipoise.ingest.datasets.base import Dataset, Parsed, Task, Unrecognised
from equipoise.ingest.quarantine import Quarantined

#: Columns that serve the comparison of images and are not written to the manifest: a digest of the
#: pixels, what is odd about the picture (with the number of its grey levels where they are few), how
#: many grey values it has where they are as few as in a mask, and how many pages its file has.
INTERNAL_COLUMNS = ("pixels", "odd", "few_values", "pages")

#: Flags of pictures whose levels are counted.
_FEW_LEVELS = {"dark", "flat"}

#: Small images are read faster than threads can be handed over: a few at a time.
_FILES_AT_A_TIME = 16


@dataclass(frozen=True)
class ReadFiles:
    """What the files of a raw folder hold.

    Attributes:
        rows: One row per usable image: the manifest's columns but for `picture` and `patient_id`,
            every reading of the patient, and `INTERNAL_COLUMNS`.
        thumbnails: uint8 (num_rows, SIDE, SIDE), in the order of the rows.
        quarantined: The files that cannot be used.
        scale: Which value is white in files of more than 8 bits; None where there is no such file.
        depths: Of these files.
    """

    rows: pd.DataFrame
    thumbnails: np.ndarray
    quarantined: list[Quarantined]
    scale: GreyScale | None
    depths: list[Depth]


@dataclass(frozen=True)
class _Image:
    """A usable file: its row, by column, its thumbnail, and its depth where it has more than 8 bits."""

    row: dict[str, Any]
    thumbnail: np.ndarray
    depth: Depth | None


@dataclass(frozen=True)
class _Waiting:
    """A file of more than 8 bits, to be read again once the scale of all of them is known.

    Attributes:
        path: Inside the raw folder.
        depth: How much of its type it uses.
        is_like_a_mask: Whether it has two or three values.
    """

    path: str
    depth: Depth
    is_like_a_mask: bool


@dataclass(frozen=True)
class Reader:
    """Reads the files of one raw folder.

    Attributes:
        raw: Folder of the originals.
        name: Name of the dataset.
        dataset: Says who the patient of a file is, and which class it shows.
        task: Turns the dataset's finest classes into those of the study.
        window: The setting `ingest.window`.
        scale: Which value is white in files of more than 8 bits; None until it is known.
        unbounded: Kinds of numbers that need `ingest.window`, with the range that the files have.
    """

    raw: Path
    name: str
    dataset: Dataset
    task: Task
    window: Range | None = None
    scale: GreyScale | None = None
    unbounded: Mapping[str, Depth] = field(default_factory=dict)

    @threadpool_limits.wrap(limits=1, user_api="blas")  # the threads are those that read
    def read(self, paths: Sequence[str]) -> ReadFiles:
        """Read files, in threads; the rows are in the order of the paths.

        Raises:
            DataError: When none of them can be used.
        """
        results = self._examine_paths(paths)
        waiting = [result for result in results if isinstance(result, _Waiting)]
        scale = None
        if waiting:
            depths = _depths_of_pictures(waiting)
            unbounded = {} if self.window else greylevels.unbounded(depths)
            bounded = [depth for depth in depths if depth.declared or depth.kind not in unbounded]
            scale = greylevels.shared_scale(bounded, self.window)
            reader = replace(self, scale=scale, unbounded=unbounded)
            again = iter(reader._examine_paths([result.path for result in waiting]))
            results = [next(again) if isinstance(item, _Waiting) else item for item in results]
        usable = [result for result in results if isinstance(result, _Image)]
        quarantined = [result for result in results if isinstance(result, Quarantined)]
        if not usable:
            raise DataError(
                f"None of the {len(paths)} image files in {self.raw} can be used for "
                f"'{self.name}'. First reason: {quarantined[0].reason}"
            )
        depths = [image.depth for image in usable if image.depth is not None]
        return ReadFiles(
            rows=pd.DataFrame([image.row for image in usable]),
            thumbnails=np.stack([image.thumbnail for image in usable]),
            quarantined=quarantined,
            scale=scale if depths else None,
            depths=depths,
        )

    def _examine_paths(self, paths: Sequence[str]) -> list[_Image | _Waiting | Quarantined]:
        """Read files in threads; the results are in the order of the paths."""
        pieces = list(parallel.batched(paths, _FILES_AT_A_TIME))
        results = chain.from_iterable(parallel.in_threads(self._examine_all, pieces))
        description = f"reading {self.raw}"
        return list(parallel.progress(results, description, len(paths), "images"))

    def _examine_all(self, paths: Sequence[str]) -> list[_Image | _Waiting | Quarantined]:
        return [self._examine(path) for path in paths]

    def _examine(self, path: str) -> _Image | _Waiting | Quarantined:
        """Read one file, or say why it cannot be used or has to wait."""
        try:
            path.encode()
        except UnicodeEncodeError:
            readable = os.fsencode(path).decode("utf-8", "backslashreplace")
            return Quarantined(readable, "the file name is not valid UTF-8")
        try:
            parsed = self.dataset.parse(PurePosixPath(path))
            content = images.read(self.raw, path)
            picture = images.open_picture(content, has_window=self.window is not None)
            if picture.depth is not None and self.scale is None:
                few_values = masks.count_few_values_of_deep(picture.values, picture.depth)
                return _Waiting(path, picture.depth, is_like_a_mask=few_values > 1)
            return self._image(path, parsed, content, picture)
        except Unrecognised as error:
            return Quarantined(path, f"not recognised: {error}")
        except OSError as error:  # its full text holds the path
            return Quarantined(path, f"unreadable: {error.strerror}")
        except ValueError as error:
            return Quarantined(path, f"unreadable: {error}")

    def _levels(self, picture: Picture) -> np.ndarray:
        """As of `Picture.as_levels`; raises a ValueError where nothing says which value is white."""
        depth = picture.depth
        if depth is not None and depth.declared is None and depth.kind in self.unbounded:
            raise ValueError(greylevels.unbounded_text(self.unbounded[depth.kind]))
        return picture.as_levels(self.scale)

    def _image(self, path: str, parsed: Parsed, content: bytes, picture: Picture) -> _Image:
        levels = self._levels(picture)
        sample = images.Sample.of(levels)
        thumbnail = duplicates.thumbnail(levels)
        class_name = self.task.class_of(parsed.class_name)
        row: dict[str, Any] = {
            "image_id": path,
            "sha256": hashlib.sha256(content).hexdigest(),
            "pixels": _digest_of_pixels(levels),
            "odd": _odd(picture, levels, sample),
            "few_values": _count_few_values(picture, sample),
            "pages": images.count_pages(content),
            "path": path,
            "label": self.task.classes.index(class_name),
            "class_name": class_name,
        }
        row.update(parsed.patients)
        row["width_px"] = levels.shape[1]
        row["height_px"] = levels.shape[0]
        row["bytes"] = len(content)
        row["grey_mean"] = round(float(thumbnail.mean()), 4)
        row.update(parsed.columns)
        return _Image(row, thumbnail, picture.depth)


def _odd(picture: Picture, levels: np.ndarray, sample: images.Sample) -> dict[str, int]:
    """What is odd about a picture, each with its number of grey levels where they are few, else 0."""
    odd = dict.fromkeys([*sample.flags(grey=True), *picture.notes], 0)
    few = _FEW_LEVELS if picture.depth is None else {*_FEW_LEVELS, "blank"}
    for flag in few.intersection(odd):
        odd[flag] = images.levels_left(levels)
    return odd


def _count_few_values(picture: Picture, sample: images.Sample) -> int:
    """How many grey values a picture has that has as few as a mask, else 0."""
    if picture.depth is None:
        return masks.few_values_of(sample)
    return masks.count_few_values_of_deep(picture.values, picture.depth)


def _depths_of_pictures(waiting: Sequence[_Waiting]) -> list[Depth]:
    """The depths that count for the scale: masks among pictures (0 and 65,535, say) do not."""
    depths = [file.depth for file in waiting if not file.is_like_a_mask]
    return depths or [file.depth for file in waiting]


def _digest_of_pixels(levels: np.ndarray) -> str:
    """SHA-256 of a decoded picture as RGB, the same for every file that holds these pixels."""
    pixels = repeated(levels)
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    return digest.hexdigest()
