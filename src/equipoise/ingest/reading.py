"""Reads every file of a raw folder once: decodes it whole, hashes it, and asks the dataset whose it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core import images, parallel
from equipoise.core.errors import DataError
from equipoise.ingest import duplicates, masks
from equipoise.ingest.datasets.base import Dataset, Parsed, Task, Unrecognised
from equipoise.ingest.quarantine import Quarantined

#: Columns that serve the comparison of images and are not written to the manifest: a digest of the
#: pixels, what is odd about the picture, how many grey values it has where they are as few as in a
#: mask, and how many pages its file has.
INTERNAL_COLUMNS = ("pixels", "odd", "few_values", "pages")

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
    """

    rows: pd.DataFrame
    thumbnails: np.ndarray
    quarantined: list[Quarantined]


@dataclass(frozen=True)
class _Image:
    """A usable file: its row, by column, and its thumbnail."""

    row: dict[str, Any]
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Reader:
    """Reads the files of one raw folder.

    Attributes:
        raw: Folder of the originals.
        name: Name of the dataset.
        dataset: Says who the patient of a file is, and which class it shows.
        task: Turns the dataset's finest classes into those of the study.
    """

    raw: Path
    name: str
    dataset: Dataset
    task: Task

    def read(self, paths: Sequence[str]) -> ReadFiles:
        """Read files, in threads; the rows are in the order of the paths.

        Raises:
            DataError: When none of them can be used.
        """
        rows = []
        thumbnails = []
        quarantined = []
        pieces = list(parallel.batched(paths, _FILES_AT_A_TIME))
        results = chain.from_iterable(parallel.in_threads(self._examine_all, pieces))
        description = f"reading {self.raw}"
        for result in parallel.progress(results, description, len(paths), "images"):
            if isinstance(result, Quarantined):
                quarantined.append(result)
            else:
                rows.append(result.row)
                thumbnails.append(result.thumbnail)
        if not rows:
            raise DataError(
                f"None of the {len(paths)} image files in {self.raw} can be used for "
                f"'{self.name}'. First reason: {quarantined[0].reason}"
            )
        return ReadFiles(pd.DataFrame(rows), np.stack(thumbnails), quarantined)

    def _examine_all(self, paths: Sequence[str]) -> list[_Image | Quarantined]:
        return [self._examine(path) for path in paths]

    def _examine(self, path: str) -> _Image | Quarantined:
        """Read one file, or say why it cannot be used."""
        try:
            path.encode()
        except UnicodeEncodeError:
            readable = os.fsencode(path).decode("utf-8", "backslashreplace")
            return Quarantined(readable, "the file name is not valid UTF-8")
        try:
            parsed = self.dataset.parse(PurePosixPath(path))
            content = images.read(self.raw, path)
            pixels = images.decode(content)
        except Unrecognised as error:
            return Quarantined(path, f"not recognised: {error}")
        except OSError as error:  # its full text holds the path
            return Quarantined(path, f"unreadable: {error.strerror}")
        except ValueError as error:
            return Quarantined(path, f"unreadable: {error}")
        return self._image(path, parsed, content, pixels)

    def _image(self, path: str, parsed: Parsed, content: bytes, pixels: np.ndarray) -> _Image:
        thumbnail = duplicates.thumbnail(pixels)
        class_name = self.task.class_of(parsed.class_name)
        row: dict[str, Any] = {
            "image_id": path,
            "sha256": hashlib.sha256(content).hexdigest(),
            "pixels": _digest_of_pixels(pixels),
            "odd": images.flags(pixels, grey=True),
            "few_values": masks.count_few_values(pixels),
            "pages": images.count_pages(content, path),
            "path": path,
            "label": self.task.classes.index(class_name),
            "class_name": class_name,
        }
        row.update(parsed.patients)
        row["width_px"] = pixels.shape[1]
        row["height_px"] = pixels.shape[0]
        row["bytes"] = len(content)
        row["grey_mean"] = round(float(thumbnail.mean()), 4)
        row.update(parsed.columns)
        return _Image(row, thumbnail)


def _digest_of_pixels(pixels: np.ndarray) -> str:
    """SHA-256 of a decoded picture, the same for every file that holds these pixels."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    return digest.hexdigest()
