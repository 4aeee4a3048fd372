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
_FILES_AT_A_TIME = 32
#: Of few files fewer at a time, so that every thread has so many turns.
_TURNS = 8
#: Decoded pictures up to this size stay in memory together, so many at a time.
_SMALL_BYTES = 2**19


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

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the usable files, by path."""
        return dict(zip(self.rows["path"], self.rows["sha256"]))


@dataclass(frozen=True)
class _Image:
    """A usable file: its row, by column, its thumbnail, and its depth where it has more than 8 bits."""

    row: dict[str, Any]
    thumbnail: np.ndarray
    depth: Depth | None


@dataclass(frozen=True)
class _Recognised:
    """A file that is to be read: its path inside the raw folder, and what the dataset says of it."""

    path: str
    parsed: Parsed


@dataclass(frozen=True)
class _Opened:
    """A file that has been read and decoded.

    Attributes:
        file: What was known of it before.
        num_bytes: Its size.
        sha256: Of its bytes.
        pixels: Digest of its pixels.
        pages: How many it has.
        picture: As the file holds it.
        levels: As of `Picture.as_levels`.
        sample: Some of its pixels.
        thumbnail: uint8 (SIDE, SIDE).
    """

    file: _Recognised
    num_bytes: int
    sha256: str
    pixels: str
    pages: int
    picture: Picture
    levels: np.ndarray
    sample: images.Sample
    thumbnail: np.ndarray


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
        share = len(paths) // (_TURNS * (os.cpu_count() or 1))
        at_a_time = min(_FILES_AT_A_TIME, max(1, share))
        pieces = list(parallel.batched(paths, at_a_time))
        results = chain.from_iterable(parallel.in_threads(self._examine_all, pieces))
        description = f"reading {self.raw}"
        return list(parallel.progress(results, description, len(paths), "images"))

    def _examine_all(self, paths: Sequence[str]) -> list[_Image | _Waiting | Quarantined]:
        """Read a few files, or say why they cannot be used or have to wait."""
        # Step by step, not file by file: to decode a picture pushes all else out of the processor's
        # cache, and what Python does for a small one takes three times as long when it is called back.
        recognised = [self._recognise(path) for path in paths]
        opened = [
            self._open(file) if isinstance(file, _Recognised) else file for file in recognised
        ]
        return [self._image(file) if isinstance(file, _Opened) else file for file in opened]

    def _recognise(self, path: str) -> _Recognised | Quarantined:
        """Ask the dataset about a file."""
        try:
            path.encode()
        except UnicodeEncodeError:
            readable = os.fsencode(path).decode("utf-8", "backslashreplace")
            return Quarantined(readable, "the file name is not valid UTF-8")
        try:
            return _Recognised(path, self.dataset.parse(PurePosixPath(path)))
        except Unrecognised as error:
            return Quarantined(path, f"not recognised: {error}")
        except (OSError, ValueError) as error:
            return _unreadable(path, error)

    def _open(self, file: _Recognised) -> _Opened | _Image | _Waiting | Quarantined:
        """Read and decode one file; a large picture is not kept, and becomes a row at once."""
        try:
            content = images.read(self.raw, file.path)
            picture = images.open_picture(content, has_window=self.window is not None)
            if picture.depth is not None and self.scale is None:
                few_values = masks.count_few_values_of_deep(picture.values, picture.depth)
                return _Waiting(file.path, picture.depth, is_like_a_mask=few_values > 1)
            levels = self._levels(picture)
        except (OSError, ValueError) as error:
            return _unreadable(file.path, error)
        opened = _Opened(
            file=file,
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            pixels=_digest_of_pixels(levels),
            pages=images.count_pages(content),
            picture=picture,
            levels=levels,
            sample=images.Sample.of(levels),
            thumbnail=duplicates.thumbnail(levels),
        )
        return opened if levels.nbytes <= _SMALL_BYTES else self._image(opened)

    def _levels(self, picture: Picture) -> np.ndarray:
        """As of `Picture.as_levels`; raises a ValueError where nothing says which value is white."""
        depth = picture.depth
        if depth is not None and depth.declared is None and depth.kind in self.unbounded:
            raise ValueError(greylevels.unbounded_text(self.unbounded[depth.kind]))
        return picture.as_levels(self.scale)

    def _image(self, opened: _Opened) -> _Image:
        """The row of a file."""
        parsed = opened.file.parsed
        class_name = self.task.class_of(parsed.class_name)
        height_px, width_px = opened.levels.shape[:2]
        row: dict[str, Any] = {
            "image_id": opened.file.path,
            "sha256": opened.sha256,
            "pixels": opened.pixels,
            "odd": _odd(opened),
            "few_values": _count_few_values(opened),
            "pages": opened.pages,
            "path": opened.file.path,
            "label": self.task.classes.index(class_name),
            "class_name": class_name,
        }
        row.update(parsed.patients)
        row["width_px"] = width_px
        row["height_px"] = height_px
        row["bytes"] = opened.num_bytes
        row["grey_mean"] = round(float(opened.thumbnail.mean()), 4)
        row.update(parsed.columns)
        return _Image(row, opened.thumbnail, opened.picture.depth)


def _unreadable(path: str, error: Exception) -> Quarantined:
    # The full text of an OSError holds the path.
    why = error.strerror if isinstance(error, OSError) else error
    return Quarantined(path, f"unreadable: {why}")


def _odd(opened: _Opened) -> dict[str, int]:
    """What is odd about a picture, each with its number of grey levels where they are few, else 0."""
    picture = opened.picture
    odd = dict.fromkeys([*opened.sample.flags(grey=True), *picture.notes], 0)
    few = _FEW_LEVELS if picture.depth is None else {*_FEW_LEVELS, "blank"}
    for flag in few.intersection(odd):
        odd[flag] = images.levels_left(opened.levels)
    return odd


def _count_few_values(opened: _Opened) -> int:
    """How many grey values a picture has that has as few as a mask, else 0."""
    picture = opened.picture
    if picture.depth is None:
        return masks.few_values_of(opened.sample)
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
