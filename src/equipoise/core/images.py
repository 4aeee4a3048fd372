"""Image files and bytes -> uint8 RGB arrays.

The same decoder serves ingest, the backbone pass and the service.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from equipoise.core.errors import DataError

# Larger images are refused below: as an error, because a warning filter is shared by all threads.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"})

#: Endings of formats that hold several pages or frames.
_SUFFIXES_WITH_PAGES = (".tif", ".tiff", ".gif", ".webp")

#: What may be odd about a picture, see `flags`.
FLAGS = ("tiny", "blank", "colour")
#: A picture with a shorter side is tiny.
_TINY_PX = 24
#: A picture whose grey levels (0..255) have a smaller standard deviation is blank.
_BLANK_LEVELS = 1.0
#: A picture whose channels differ by more, in levels (0..255) on average, is coloured.
_COLOUR_LEVELS = 8.0
#: Pixels along the shorter side that are looked at for this, about.
_SAMPLES_PX = 64

#: Pictures with more pixels are decoded one at a time: each may take 1.4 GB on the way.
_LARGE_PIXELS = 2**24
_ONE_LARGE_PICTURE = threading.Lock()

#: The parts of a MedMNIST file.
NPZ_PARTS = ("train", "val", "test")


def hidden(name: str) -> bool:
    """Whether a file or folder is no part of the data: `.DS_Store`, `._copy.png`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def files_below(folder: Path) -> Iterator[str]:
    """Relative paths of all files below a folder, in no order; links to folders are followed.

    A link that leads nowhere, and a folder that this user may not read, are given too, as paths
    that are no files.

    Raises:
        DataError: For a link that leads back to a folder above it.
    """
    yield from _files_below(str(folder), "", (os.path.realpath(folder),))


def _files_below(folder: str, relative: str, real_folders: tuple[str, ...]) -> Iterator[str]:
    """Walk one folder.

    Args:
        folder: Where it lies.
        relative: The same from where the walk began, with a slash at its end unless it is empty.
        real_folders: It and the folders above it, with links resolved.
    """
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except PermissionError:
        if not relative:
            raise
        yield relative.rstrip("/")
        return
    for entry in listed:
        if not entry.is_dir():
            yield relative + entry.name
            continue
        real = os.path.join(real_folders[-1], entry.name)
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            _refuse_circle(entry.path, real, real_folders)
        yield from _files_below(entry.path, f"{relative}{entry.name}/", (*real_folders, real))


def _refuse_circle(link: str, real: str, real_folders: tuple[str, ...]) -> None:
    if real in real_folders:
        raise DataError(
            f"The link {link} leads back to {real}, in which it lies: a circle without end. "
            f"Remove the link, or let it point to a folder outside."
        )


class Walk(NamedTuple):
    """The files below a folder.

    Attributes:
        paths: Relative paths of the images, sorted.
        ignored: How many other files there are.
    """

    paths: list[str]
    ignored: int


def walk(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> Walk:
    """Find the images below a folder.

    Args:
        folder: Where to look; hidden files and folders are ignored, linked folders are followed.
        suffixes: Endings of the files that hold images, in lower case.

    Raises:
        DataError: For a link that leads back to a folder above it.
    """
    paths: list[str] = []
    ignored = 0
    for path in files_below(folder):
        is_hidden = any(map(hidden, path.split("/")))
        if is_hidden or not holds_images(folder, path, suffixes):
            ignored += 1
        else:
            paths += pictures_in(folder, path)
    return Walk(sorted(paths), ignored)


def holds_images(folder: Path, path: str, suffixes: frozenset[str] = SUFFIXES) -> bool:
    """Whether a path below a folder is a file with one of the endings."""
    ending = os.path.splitext(path)[1].lower()
    return ending in suffixes and os.path.isfile(os.path.join(folder, path))


def pictures_in(folder: Path, path: str) -> list[str]:
    """Paths of the pictures in a file: its own, or for a MedMNIST file `NAME.npz/train/00017`, ..."""
    if path.lower().endswith(".npz"):
        return _npz_members(Path(folder, path), path)
    return [path]


def read(folder: Path, path: str) -> bytes:
    """Read the bytes of one image.

    Args:
        folder: The folder that was given to `walk`.
        path: One of the paths that it returned.

    Returns:
        The bytes of the file; a picture inside a .npz file becomes an uncompressed bitmap.
    """
    file, in_npz, member = path.partition(".npz/")
    if not in_npz:
        with open(os.path.join(folder, path), "rb") as handle:
            return handle.read()
    part, index = member.split("/")
    pictures = npz_arrays(folder / f"{file}.npz")[f"{part}_images"]
    buffer = io.BytesIO()
    Image.fromarray(pictures[int(index)]).save(buffer, "bmp")
    return buffer.getvalue()


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a MedMNIST file, `{train,val,test}_{images,labels}`.

    The last two files stay in memory.

    Raises:
        DataError: When it is not such a file.
    """
    return _npz_arrays(path.resolve(), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _npz_arrays(path: Path, changed_ns: int) -> dict[str, np.ndarray]:
    """Read a file; `changed_ns` only makes a changed file another key of the cache."""
    expected = [f"{part}_{content}" for part in NPZ_PARTS for content in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in expected}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path.name} is not a MedMNIST file with {', '.join(expected)}: {error}"
        ) from error
    for part in NPZ_PARTS:
        if len(arrays[f"{part}_images"]) != len(arrays[f"{part}_labels"]):
            raise DataError(f"{path.name} holds another number of {part} labels than images")
    return arrays


def _npz_members(path: Path, name: str) -> list[str]:
    """Paths of the pictures inside a MedMNIST file that is itself called `name`."""
    arrays = npz_arrays(path)
    members = []
    for part in NPZ_PARTS:
        num_pictures = len(arrays[f"{part}_images"])
        members += [f"{name}/{part}/{index:05d}" for index in range(num_pictures)]
    return members


def flags(pixels: np.ndarray, grey: bool) -> list[str]:
    """Say what is odd about a decoded picture.

    `ingest` counts by these rules, and `predict` marks rows by them.

    Args:
        pixels: uint8 (height_px, width_px, 3).
        grey: Whether a grey picture is expected, so that colours are odd.

    Returns:
        Some of `FLAGS`.

    >>> flags(np.zeros((8, 64, 3), dtype=np.uint8), grey=True)
    ['tiny', 'blank']
    """
    shorter_side = min(pixels.shape[:2])
    step = max(1, shorter_side // _SAMPLES_PX)  # every step-th pixel is enough to tell
    sample = pixels[::step, ::step]
    # In bytes and by channel: floats of three interleaved channels take many times as long.
    channels = sample.transpose(2, 0, 1).copy()
    odd = []
    if shorter_side < _TINY_PX:
        odd.append("tiny")
    if all(channel.std() < _BLANK_LEVELS for channel in channels):
        odd.append("blank")
    red, green, blue = channels
    if grey and _levels_apart(red, green) + _levels_apart(green, blue) > _COLOUR_LEVELS:
        odd.append("colour")
    return odd


def _levels_apart(one: np.ndarray, other: np.ndarray) -> float:
    """How far two channels lie apart, in levels (0..255) on average."""
    apart = np.maximum(one, other) - np.minimum(one, other)
    return float(apart.mean())


def decode(source: Path | bytes, draft_px: int = 0) -> np.ndarray:
    """Decode an image completely.

    Args:
        source: Path of a file, or the bytes of one.
        draft_px: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest at which both sides
            still have this length; 0 for its full size.

    Returns:
        uint8 (height_px, width_px, 3), RGB. It is turned upright by its EXIF orientation. Grey is
        repeated three times; 16-bit grey is divided by 256, and float grey within 0..1 is
        multiplied by 255. Transparency is dropped.

    Raises:
        ValueError: When it is not an image, is cut short, is empty or is larger than Pillow's safe
            limit.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _decoded(image, draft_px)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        message = re.sub(r" <_io.BytesIO object at \w+>", "", str(error))
        raise ValueError(message) from error


def _decoded(image: Image.Image, draft_px: int) -> np.ndarray:
    num_pixels = image.width * image.height
    if num_pixels > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {Image.MAX_IMAGE_PIXELS:,}: could be a "
            "decompression bomb"
        )
    if draft_px:
        image.draft(None, (draft_px, draft_px))
    is_large = image.width * image.height > _LARGE_PIXELS  # at the size that the draft has left
    turn = _ONE_LARGE_PICTURE if is_large else contextlib.nullcontext()
    with turn:
        ImageOps.exif_transpose(image, in_place=True)  # a copy would take the memory twice
        if image.mode.startswith(("I", "F")):
            return _from_deep_grey(np.asarray(image), image.mode)
        if image.mode == "RGB":
            return np.asarray(image)
        return np.asarray(image.convert("RGB"))


def count_pages(data: bytes, name: str) -> int:
    """How many pages (or frames) an image file has, of which `decode` gives the first.

    Args:
        data: The bytes of the file.
        name: Its name: only formats with pages are looked at.

    Returns:
        1 also for what Pillow cannot read.
    """
    if not name.lower().endswith(_SUFFIXES_WITH_PAGES):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, ValueError):
        return 1


def as_rgb(values: np.ndarray | list[Any]) -> np.ndarray:
    """Check pixels given as an array or as nested lists, and repeat grey three times.

    Returns:
        uint8 (height_px, width_px, 3).

    Raises:
        ValueError: For anything but whole numbers 0..255 of shape (height, width) or
            (height, width, 3).

    >>> as_rgb([[0, 255]]).shape
    (1, 2, 3)
    """
    expected = "whole numbers 0..255 of shape (height, width) or (height, width, 3) are expected"
    try:
        pixels = np.asarray(values)
    except ValueError as error:  # NumPy makes no array of rows that differ in length
        raise ValueError(f"the rows of the pixels differ in length; {expected}") from error
    is_grey = pixels.ndim == 2
    is_rgb = pixels.ndim == 3 and pixels.shape[2] == 3
    has_pixels = pixels.size > 0 and (is_grey or is_rgb)
    is_whole = pixels.dtype.kind in "iu"
    if not has_pixels or not is_whole or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(
            f"the pixels have shape {pixels.shape} and type {pixels.dtype}; {expected}"
        )
    rgb = pixels if is_rgb else np.repeat(pixels[..., None], 3, axis=-1)
    return np.ascontiguousarray(rgb, dtype=np.uint8)


def _from_deep_grey(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Bring grey of more than 8 bits to uint8 (height_px, width_px, 3)."""
    if mode == "F" and not np.isfinite(pixels).all():
        raise ValueError("the image holds values that are not numbers")
    scale = _scale_of_deep_grey(pixels.max(initial=0), is_float=mode == "F")
    grey = np.empty(pixels.shape, dtype=np.uint8)
    for start in range(0, len(pixels), 256):  # in float64 the largest picture would take 2 GB
        rows = slice(start, start + 256)
        grey[rows] = np.clip(pixels[rows].astype(np.float64) / scale, 0, 255)
    return np.repeat(grey[..., None], 3, axis=-1)


def _scale_of_deep_grey(highest: float, is_float: bool) -> float:
    """What to divide grey values by to bring them to 0..255.

    PNG and TIFF keep 16-bit grey as 0..65535 whatever Pillow calls the mode; values within 0..255
    are 8-bit. Fractions occur only in float images, and there they are shares of white.
    """
    if highest > 255:
        return 256.0
    if is_float and 0 < highest <= 1:
        return 1 / 255
    return 1.0
