"""Image files and bytes -> uint8 RGB arrays. One decoder: what ingest verifies is what is embedded and served."""

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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from equipoise.core.errors import DataError

# Larger images are refused below: as an error, because a warning filter is shared by all threads.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"})
#: Shorter sides, spreads and differences between channels (grey levels of 255) outside of which a picture is odd.
FLAGS = ("tiny", "blank", "colour")
_TINY_PX, _BLANK_LEVELS, _COLOUR_LEVELS = 24, 1.0, 8.0
#: Larger ones are decoded one at a time: each may take 1.4 GB on the way.
_LARGE_PX, _LARGE = 2**24, threading.Lock()
NPZ_PARTS = ("train", "val", "test")


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the data: `.DS_Store`, `._copy.png`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def walk(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> tuple[list[str], int]:
    """Relative paths of the images below a folder, sorted, and how many other files there are.

    The pictures of a MedMNIST file are found as `NAME.npz/train/00017`.
    """
    found, ignored = [], 0
    for place, folders, names in os.walk(folder):
        kept = sorted(name for name in folders if not hidden(name))
        ignored += sum(
            len(files)
            for name in set(folders) - set(kept)
            for *_, files in os.walk(Path(place, name))
        )
        folders[:] = kept
        for name in names:
            path = Path(place, name)
            if hidden(name) or path.suffix.lower() not in suffixes or not path.is_file():
                ignored += 1
            elif path.suffix.lower() == ".npz":
                found += _members(path, path.relative_to(folder).as_posix())
            else:
                found.append(path.relative_to(folder).as_posix())
    return sorted(found), ignored


def read(folder: Path, path: str) -> bytes:
    """Bytes of one image of `walk`; a picture inside a .npz file as an uncompressed bitmap."""
    file, dot, member = path.partition(".npz/")
    if not dot:
        with open(os.path.join(folder, path), "rb") as handle:
            return handle.read()
    part, index = member.split("/")
    buffer = io.BytesIO()
    Image.fromarray(npz_arrays(folder / f"{file}.npz")[f"{part}_images"][int(index)]).save(
        buffer, "bmp"
    )
    return buffer.getvalue()


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a MedMNIST file, kept in memory: `{train,val,test}_{images,labels}`.

    Raises:
        DataError: When it is not such a file.
    """
    return _npz_arrays(path.resolve(), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _npz_arrays(path: Path, changed_ns: int) -> dict[str, np.ndarray]:
    wanted = [f"{part}_{kind}" for part in NPZ_PARTS for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in wanted}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path.name} is not a MedMNIST file with {', '.join(wanted)}: {error}"
        ) from error
    for part in NPZ_PARTS:
        if len(arrays[f"{part}_images"]) != len(arrays[f"{part}_labels"]):
            raise DataError(f"{path.name} holds another number of {part} labels than images")
    return arrays


def _members(path: Path, name: str) -> list[str]:
    arrays = npz_arrays(path)
    return [
        f"{name}/{part}/{index:05d}"
        for part in NPZ_PARTS
        for index in range(len(arrays[f"{part}_images"]))
    ]


def flags(pixels: np.ndarray, grey: bool) -> list[str]:
    """What is odd about a decoded picture; the same rules count at `ingest` and mark rows at `predict`.

    Args:
        pixels: uint8 (height_px, width_px, 3).
        grey: Whether grey is expected, so that colours are odd.

    >>> flags(np.zeros((8, 64, 3), dtype=np.uint8), grey=True)
    ['tiny', 'blank']
    """
    step = max(1, min(pixels.shape[:2]) // 128)  # enough pixels to tell
    some = pixels[::step, ::step].astype(np.float32)
    odd = ["tiny"] if min(pixels.shape[:2]) < _TINY_PX else []
    odd += ["blank"] if some.std(axis=(0, 1)).max() < _BLANK_LEVELS else []
    return odd + (
        ["colour"] if grey and np.abs(np.diff(some)).sum(axis=2).mean() > _COLOUR_LEVELS else []
    )


def decode(source: Path | bytes, draft_px: int = 0) -> np.ndarray:
    """Decode an image completely.

    Args:
        source: Path of a file, or the bytes of one.
        draft_px: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as small as both sides stay this long; 0 for never.

    Returns:
        uint8 (height_px, width_px, 3), RGB, upright by its EXIF orientation; grey is repeated three times, 16-bit
        grey is divided by 256, float grey within 0..1 times 255, transparency is dropped.

    Raises:
        ValueError: When it is not an image, is cut short, is empty or is larger than Pillow's safe limit.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                size = f"{image.width} x {image.height}"
                raise ValueError(
                    f"{size} pixels are more than {Image.MAX_IMAGE_PIXELS:,}: could be a decompression bomb"
                )
            if draft_px:
                image.draft(None, (draft_px, draft_px))
            with _LARGE if image.width * image.height > _LARGE_PX else contextlib.nullcontext():
                ImageOps.exif_transpose(
                    image, in_place=True
                )  # a copy would double what a large picture takes
                if image.mode.startswith(("I", "F")):
                    return _from_deep_grey(np.asarray(image), image.mode)
                return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            re.sub(r" <_io.BytesIO object at \w+>", "", str(error))
        ) from error  # an address says nothing


def as_rgb(values: np.ndarray | list[Any]) -> np.ndarray:
    """Pixels given as an array or as nested lists -> uint8 (height_px, width_px, 3); grey is repeated three times.

    >>> as_rgb([[0, 255]]).shape
    (1, 2, 3)

    Raises:
        ValueError: For anything but whole numbers 0..255 of shape (height, width) or (height, width, 3).
    """
    wanted = "whole numbers 0..255 of shape (height, width) or (height, width, 3) are expected"
    try:
        pixels = np.asarray(values)
    except ValueError as error:  # lists of unlike lengths
        raise ValueError(f"the rows of the pixels differ in length; {wanted}") from error
    shaped = pixels.size and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))
    if not shaped or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"the pixels have shape {pixels.shape} and type {pixels.dtype}; {wanted}")
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    return np.ascontiguousarray(rgb, dtype=np.uint8)


def _from_deep_grey(pixels: np.ndarray, mode: str) -> np.ndarray:
    if mode == "F" and not np.isfinite(pixels).all():
        raise ValueError("the image holds values that are not numbers")
    # PNG and TIFF keep 16-bit grey as 0..65535 whatever the mode is called; values within 0..255 are 8-bit. Fractions
    # occur only in float images, and there they are shares of white.
    top = pixels.max(initial=0)
    scale = 256.0 if top > 255 else 1 / 255 if mode == "F" and 0 < top <= 1 else 1.0
    grey = np.empty(pixels.shape, dtype=np.uint8)
    for start in range(0, len(pixels), 256):  # in float64 the largest picture would take 2 GB
        block = slice(start, start + 256)
        grey[block] = np.clip(pixels[block].astype(np.float64) / scale, 0, 255)
    return np.repeat(grey[..., None], 3, axis=-1)
