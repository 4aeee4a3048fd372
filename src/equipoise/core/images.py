"""Image files and bytes -> uint8 RGB arrays.

The same decoder serves ingest, the backbone pass and the service.
"""

from __future__ import annotations

import functools
import io
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from equipoise.core import dicom, limits, rasters
from equipoise.core.errors import DataError
from equipoise.core.greylevels import GreyScale, Picture, Range, depth_of

# Larger images are refused below: as an error, because a warning filter is shared by all threads.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Odd metadata and palettes that are read all the same; what cannot be read is raised.
warnings.filterwarnings("ignore", module="PIL")

_JPEGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
_PICTURES = _JPEGS | frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"})
_DEEP_PICTURES = frozenset({".jp2", ".j2k", ".j2c", ".jpx", ".pgm", ".ppm", ".pnm"})
#: Endings of the files that hold images.
SUFFIXES = _PICTURES | _DEEP_PICTURES | dicom.readable_suffixes()

#: How files of formats begin that hold several pages or frames.
_WITH_PAGES = (b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: What stands near the beginning of a PNG that moves, and of a JPEG with others behind it.
_FRAMES_OF_PNG = b"acTL"
_PAGES_OF_JPEG = b"MPF\0"
_BEGINNING_BYTES = 2**16

#: What downloads and disks leave in place of a picture, by how it begins.
_NO_PICTURES = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: `git lfs pull` brings it",
    b"/annex/objects/": "a pointer of git-annex, not the file itself: `git annex get` brings it",
    b"<!doctype html": "a web page, perhaps of an error or a login: download it again",
    b"<html": "a web page, perhaps of an error or a login: download it again",
    b"<?xml": "an XML document",
    b"<svg": "a drawing (SVG): save it as PNG",
    b"%pdf": "a PDF document: save its picture as PNG",
    b"pk\x03\x04": "a zip archive: unpack it",
    b"\x1f\x8b": "a packed file (gzip): unpack it",
}
#: The same where it stands behind four bytes of a length.
_BOXES = {
    b"ftyphei": "a HEIC picture, which is not read: save it as JPEG or PNG",
    b"ftypmif1": "a HEIC picture, which is not read: save it as JPEG or PNG",
    b"ftypmp4": "a film",
    b"ftypisom": "a film",
}

#: What may be odd about a picture, see `flags`.
FLAGS = ("tiny", "blank", "colour")
#: Further flags, which `ingest` names only where they occur.
RARE_FLAGS = (
    "dark",
    "flat",
    dicom.FRAMES,
    dicom.BURNED_IN,
    dicom.PRIVATE,
    dicom.OWN_WINDOW,
    rasters.CHANNELS,
)
#: A picture is dark when 99 of 100 pixels are below this level (0..255): an eighth of what there is.
_DARK_LEVEL = 32
#: A picture is flat when 98 of 100 pixels lie within so many levels.
_FLAT_LEVELS = 16

_WHITE_16_BIT = 65535
#: A picture with a shorter side is tiny.
_TINY_PX = 24
#: A picture whose grey levels (0..255) have a smaller standard deviation is blank.
_BLANK_LEVELS = 1.0
#: A picture whose channels differ by more, in levels (0..255) on average, is coloured.
_COLOUR_LEVELS = 8.0
#: Rows whose levels are counted at a time.
_ROWS = 256
#: Pixels along the shorter side that are looked at for this, about.
_SAMPLES_PX = 64
#: Every level of a pixel and its square, (256, 2): real numbers multiply sooner, and these stay exact.
_POWERS = np.arange(256.0)[:, None] ** [1, 2]

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
        DataError: For a link that leads back to a folder above it, or when the folder itself may not be read.
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
    except PermissionError as error:
        if not relative:
            raise DataError(
                f"The folder {folder} may not be read by this user. Give the right to read it and to look inside."
            ) from error
        yield relative.rstrip("/")
        return
    for entry in listed:
        if not is_folder(entry):
            yield relative + entry.name
            continue
        real = os.path.join(real_folders[-1], entry.name)
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            _refuse_circle(entry.path, real, real_folders)
        yield from _files_below(entry.path, f"{relative}{entry.name}/", (*real_folders, real))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or leads to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


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
    """Whether a path below a folder is a file with images, see `is_image_file`."""
    return is_image_file(os.path.join(folder, path), suffixes)


def is_image_file(path: str | Path, suffixes: frozenset[str] = SUFFIXES) -> bool:
    """Whether a file has one of the endings, or is DICOM without an ending, as scanners write it."""
    # `Path.is_file` raises where a folder may be listed, and its files may not be looked at.
    if not os.path.isfile(path):
        return False
    ending = os.path.splitext(path)[1].lower()
    return ending in suffixes or (".dcm" in suffixes and dicom.is_dicom_file(Path(path)))


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
    if not in_npz or os.path.isdir(os.path.join(folder, f"{file}.npz")):
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


@dataclass(frozen=True)
class Sample:
    """Some pixels of a picture, evenly spread: enough to tell what is odd about it.

    Attributes:
        channels: uint8 (3, rows, columns), red, green, blue; (1, rows, columns) where they are the same.
        shorter_side_px: Of the picture.
    """

    channels: np.ndarray
    shorter_side_px: int

    @classmethod
    def of(cls, pixels: np.ndarray) -> Sample:
        """Take about 64 rows and columns of a picture.

        Args:
            pixels: uint8 (height_px, width_px, 3), or (height_px, width_px) of a grey one.
        """
        shorter_side = min(pixels.shape[:2])
        step = max(1, shorter_side // _SAMPLES_PX)
        sampled = np.atleast_3d(pixels[::step, ::step])
        # By channel and in bytes: three interleaved channels take many times as long to count.
        channels = sampled.transpose(2, 0, 1).copy()
        if (channels[1:] == channels[:-1]).all():
            channels = channels[:1]
        return cls(channels, shorter_side)

    @functools.cached_property
    def pixels_at(self) -> np.ndarray:
        """Integers (3, 256) or (1, 256): how many of these pixels have each level, by channel."""
        counts = [np.bincount(channel.ravel(), minlength=256) for channel in self.channels]
        return np.stack(counts)

    def flags(self, grey: bool) -> list[str]:
        """Say what is odd about the picture, see `flags`."""
        odd = []
        if self.shorter_side_px < _TINY_PX:
            odd.append("tiny")
        if self._is_blank():
            odd.append("blank")
        else:
            odd += self._few_levels()
        if grey and self._levels_between_channels() > _COLOUR_LEVELS:
            odd.append("colour")
        return odd

    def _is_blank(self) -> bool:
        """Whether the levels of no channel are spread."""
        moments = self.pixels_at @ _POWERS / self.channels[0].size
        mean, mean_of_squares = moments.T
        variance = mean_of_squares - mean**2
        return bool((variance < _BLANK_LEVELS**2).all())

    def _few_levels(self) -> list[str]:
        """Whether the levels of the pixels are all low or all alike."""
        share_up_to = self.pixels_at.sum(axis=0).cumsum() / self.channels.size
        low, high = np.searchsorted(share_up_to, [0.01, 0.99])
        if high < _DARK_LEVEL:
            return ["dark"]
        return ["flat"] if high - low < _FLAT_LEVELS else []

    def _levels_between_channels(self) -> float:
        """How far the neighbouring channels lie apart, in levels (0..255) on average."""
        if len(self.channels) == 1:
            return 0.0
        one, other = self.channels[:-1], self.channels[1:]
        apart = np.maximum(one, other) - np.minimum(one, other)
        return float(apart.sum() / self.channels[0].size)


def flags(pixels: np.ndarray, grey: bool) -> list[str]:
    """Say what is odd about a decoded picture.

    `ingest` counts by these rules, and `predict` marks rows by them.

    Args:
        pixels: uint8 (height_px, width_px, 3).
        grey: Whether a grey picture is expected, so that colours are odd.

    Returns:
        Some of `FLAGS` and `RARE_FLAGS`.

    >>> flags(np.zeros((8, 64, 3), dtype=np.uint8), grey=True)
    ['tiny', 'blank']
    """
    return Sample.of(pixels).flags(grey)


def levels_left(pixels: np.ndarray) -> int:
    """How many different levels a decoded picture has, of 256; grey or in colour, as of `Sample.of`."""
    pixels_at = np.zeros(256, dtype=int)
    for start in range(0, len(pixels), _ROWS):  # counting takes eight bytes for each
        rows = pixels[start : start + _ROWS]
        pixels_at += np.bincount(rows.ravel(), minlength=256)
    return int(np.count_nonzero(pixels_at))


def decode(source: Path | bytes, draft_px: int = 0, scale: GreyScale | None = None) -> np.ndarray:
    """Decode an image completely.

    Args:
        source: Path of a file, or the bytes of one.
        draft_px: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest at which both sides
            still have this length; 0 for its full size.
        scale: Which value is white in files of more than 8 bits that do not say it.

    Returns:
        uint8 (height_px, width_px, 3), RGB. It is turned upright by its EXIF orientation. Grey is
        repeated three times. Transparency is dropped.

    Raises:
        ValueError: When it is not an image, is cut short, is empty, is larger than Pillow's safe
            limit, or has more than 8 bits and nothing says which value is white.
    """
    has_window = scale is not None and scale.window is not None
    return open_picture(source, draft_px, has_window).as_rgb(scale)


def open_picture(source: Path | bytes, draft_px: int = 0, has_window: bool = False) -> Picture:
    """Decode an image completely, and leave those of more than 8 bits as their files hold them.

    Args:
        source: As of `decode`.
        draft_px: As of `decode`.
        has_window: Whether the study says what becomes black and white; then a DICOM file's own
            window is not asked.

    Raises:
        ValueError: As `decode` does.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ValueError("the file is empty")
    if dicom.is_dicom(data):
        return dicom.open_dicom(data, has_window)
    deep = rasters.open_deep(data)
    if deep is not None:
        return deep
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _decoded(image, draft_px)
    except UnidentifiedImageError as error:
        unusual = rasters.open_unusual_jpeg(data)
        if unusual is None:
            raise ValueError(what_else(data) or "cannot identify image file") from error
        return unusual
    except ValueError:
        raise
    except Exception as error:  # the decoders raise anything on damaged bytes
        message = re.sub(r" <_io.BytesIO object at \w+>", "", str(error))
        raise ValueError(message or type(error).__name__) from error


def what_else(data: bytes) -> str:
    """What a file is in place of a picture or a table, and what to do; empty where that is not known.

    >>> what_else(b"version https://git-lfs.github.com/spec/v1")
    'it is a pointer of Git LFS, not the file itself: `git lfs pull` brings it'
    """
    beginning = data[:100].lstrip().lower()
    for first_bytes, what in _NO_PICTURES.items():
        if beginning.startswith(first_bytes):
            return f"it is {what}"
    for first_bytes, what in _BOXES.items():
        if data.startswith(first_bytes, 4):
            return f"it is {what}"
    if data and not data.strip(b"\0"):
        return "it holds nothing but zeros, as after a copy that was cut off"
    return ""


def _decoded(image: Image.Image, draft_px: int) -> Picture:
    limits.require_safe_size(image.width, image.height)
    if draft_px:
        image.draft(None, (draft_px, draft_px))
    white = _white_of_pgm(image)
    with limits.turn(image.width, image.height):  # at the size that the draft has left
        ImageOps.exif_transpose(image, in_place=True)  # a copy would take the memory twice
        if image.mode.startswith(("I", "F")):
            return _deep(image, white)
        if image.mode in ("L", "RGB"):
            return Picture(np.asarray(image))
        return Picture(np.asarray(image.convert("RGB")))


def _deep(image: Image.Image, white: int | None) -> Picture:
    """Numbers of more than 8 bits out of PGM and the like; `white` as the file declares it."""
    values = np.asarray(image)
    if image.format == "PPM":
        values = values.astype(np.uint32)  # Pillow calls them signed
    if white is None:
        return Picture(values, depth_of(values))
    stored = np.rint(values * (white / _WHITE_16_BIT)).astype(np.uint32)
    return Picture(stored, depth_of(stored, Range(0, white)))


def _white_of_pgm(image: Image.Image) -> int | None:
    """The greatest value that a PGM declares, which Pillow stretches to 16 bits while it loads."""
    if image.format != "PPM" or not image.tile or not image.tile[0].codec_name.startswith("ppm"):
        return None
    white = image.tile[0].args[-1]
    return white if isinstance(white, int) and white < _WHITE_16_BIT else None


def count_pages(data: bytes) -> int:
    """How many pages (or frames) an image file has, of which `decode` gives the first.

    Args:
        data: The bytes of the file.

    Returns:
        1 also for what cannot be read.
    """
    if not _may_have_pages(data) or dicom.is_dicom(data):  # some DICOM files begin like a TIFF
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # the decoders raise anything on damaged pages
        return rasters.count_tiff_pages(data)


def _may_have_pages(data: bytes) -> bool:
    if data.startswith(b"\x89PNG"):
        return data.find(_FRAMES_OF_PNG, 0, _BEGINNING_BYTES) > 0
    if data.startswith(b"\xff\xd8"):
        return data.find(_PAGES_OF_JPEG, 0, _BEGINNING_BYTES) > 0
    return data.startswith(_WITH_PAGES)


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
