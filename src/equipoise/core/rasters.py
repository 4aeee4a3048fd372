"""PNG, TIFF and JPEG 2000 of more than 8 bits a channel, as their files hold them.

Pillow cuts colours to 8 bits, reads only some TIFFs, and inverts WhiteIsZero at 8 bits only. Everything of
8 bits is Pillow's.
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from equipoise.core import limits
from equipoise.core.greylevels import Picture, Range, depth_of

_PNG = b"\x89PNG\r\n\x1a\n"
#: Little and big endian, and the same of BigTIFF.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: The boxed file, and the bare stream.
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_SIZE_MARKER = b"\xff\x4f\xff\x51"

#: Flag of a picture with more channels than are read.
CHANNELS = "channels"

_JPEG = b"\xff\xd8"
_END_OF_JPEG = b"\xff\xd9"
#: Markers of a JPEG behind which its size stands; of lossless ones too.
_FRAMES_OF_JPEG = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_JPEG = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_WHITE_IS_ZERO = 0
_RGB = 2
#: Kinds of extra channels of a TIFF that are transparency.
_TRANSPARENT = (1, 2)
_GREY_OR_RGB = (_WHITE_IS_ZERO, 1, _RGB)
#: Bits that tell the size of a container and nothing of what is used of it.
_CONTAINERS = (8, 16, 32, 64)
_MAX_SAMPLE_TAGS = (281, 341)
_ORIENTATION = 274
_UNSIGNED = 1

#: How pixels are turned upright, by the number of the orientation.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: lambda values: np.swapaxes(values, 0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.swapaxes(np.rot90(values, 2), 0, 1),
    8: np.rot90,
}

# It writes to the screen what it raises as well.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def open_deep(content: bytes) -> Picture | None:
    """Read a picture of more than 8 bits; None for everything else.

    Raises:
        ValueError: When it is damaged, too large, or of a kind that is no grey or RGB picture.
    """
    try:
        if content.startswith(_PNG):
            return _png(content)
        if content.startswith(_TIFF):
            return _tiff(content)
        if content.startswith(_JPEG_2000):
            return _jpeg_2000(content)
    except ValueError:
        raise
    except Exception as error:  # the decoders raise anything on damaged bytes
        raise ValueError(f"the file is damaged: {error}") from error
    return None


# --- PNG ------------------------------------------------------------------------------------------


def _png(content: bytes) -> Picture | None:
    width_px, height_px, bits = struct.unpack_from(">IIB", content, 16)
    if bits <= 8:
        return None
    limits.require_safe_size(width_px, height_px)
    import imagecodecs

    chunks = dict(_chunks(content))
    with limits.turn(width_px, height_px):
        values = _without_alpha(imagecodecs.png_decode(content))
    depth = depth_of(values, _significant(chunks.get(b"sBIT", b""), values))
    exif = Image.Exif()
    exif.load(chunks.get(b"eXIf", b""))
    return Picture(_upright(values, exif.get(_ORIENTATION, 1)), depth)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The name and the content of every chunk."""
    start = len(_PNG)
    while start + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        yield name, content[start + 8 : start + 8 + length]
        start += length + 12


def _without_alpha(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        return values
    channels = values.shape[2]
    return values[..., :3] if channels >= 3 else values[..., 0]


def _significant(significant_bits: bytes, values: np.ndarray) -> Range | None:
    """Black and white by the chunk sBIT; None where it says no less than the 16 bits of the file.

    The standard wants values stretched to 16 bits, many programs leave them as they are: the values tell.
    """
    if not significant_bits:
        return None
    bits = max(significant_bits[:3])
    if not 8 <= bits < 16:
        return None
    white = 2**bits - 1
    unused = 16 - bits
    padding = values & (2**unused - 1)
    is_stretched = bool((padding == 0).all() or (padding == values >> bits).all())
    if values.max() > white or (is_stretched and values.any()):
        return Range(0, 2**16 - 1)
    return Range(0, white)


# --- TIFF -----------------------------------------------------------------------------------------


def _tiff(content: bytes) -> Picture | None:
    import tifffile

    try:
        file = tifffile.TiffFile(io.BytesIO(content))
        page: Any = file.pages[0]
        bits = int(page.bitspersample)
    except Exception:  # Pillow says what is wrong with it
        return None
    sample_format = page.sampleformat or _UNSIGNED
    if bits <= 8 and sample_format == _UNSIGNED:
        return None
    limits.require_safe_size(page.imagewidth, page.imagelength)
    if page.photometric not in _GREY_OR_RGB:
        raise ValueError(f"a TIFF of {bits} bits whose colours are neither grey nor RGB")
    with limits.turn(page.imagewidth, page.imagelength):
        values = _channels(page)
    declared = _declared_white(page, bits) if sample_format == _UNSIGNED else None
    orientation = page.tags.valueof(_ORIENTATION, default=1)
    return Picture(
        values=_upright(values, orientation),
        depth=depth_of(values, declared),
        is_inverted=page.photometric == _WHITE_IS_ZERO,
        notes=(CHANNELS,) if _has_unread_channels(page) else (),
    )


def count_tiff_pages(content: bytes) -> int:
    """How many pages a TIFF has; 1 for what is none or is damaged."""
    if not content.startswith(_TIFF):
        return 1
    import tifffile

    try:
        return len(tifffile.TiffFile(io.BytesIO(content)).pages)
    except Exception:  # the decoder raises anything on damaged bytes
        return 1


def _channels(page: Any) -> np.ndarray:
    """(height_px, width_px), or with a last axis of 3 colours."""
    for offset, length in zip(page.dataoffsets, page.databytecounts):
        if offset + length > page.parent.filehandle.size:
            raise ValueError("the file is cut short")
    values = page.asarray()
    axes = page.axes
    if axes.startswith("S"):
        values = np.moveaxis(values, 0, -1)
    elif axes[0] not in "YS":
        values = values[0]
    if values.ndim == 3 and page.photometric != _RGB:
        values = values[..., 0]
    return _without_alpha(values)


def _has_unread_channels(page: Any) -> bool:
    """Whether a page has channels that are neither grey nor a colour, nor transparency."""
    transparent = sum(int(kind) in _TRANSPARENT for kind in page.extrasamples)
    read = 3 if page.photometric == _RGB else 1
    return int(page.samplesperpixel) - transparent > read


def _declared_white(page: Any, bits: int) -> Range | None:
    """White by the bits of a sample, or by the tags MaxSampleValue and SMaxSampleValue.

    Many programs put the greatest value of the picture into these tags, so only 2^k - 1 is a declaration.
    """
    if bits not in _CONTAINERS:
        return Range(0, 2**bits - 1)
    for tag in _MAX_SAMPLE_TAGS:
        value = page.tags.valueof(tag, default=0)
        white = int(value[0] if isinstance(value, tuple) else value)
        is_all_ones = white & (white + 1) == 0
        if is_all_ones and 2**8 <= white < 2**bits - 1:
            return Range(0, white)
    return None


# --- JPEG of more than 8 bits, or lossless --------------------------------------------------------


def open_unusual_jpeg(content: bytes) -> Picture | None:
    """Read a JPEG that Pillow does not know: of 12 bits, or lossless; None for everything else.

    Raises:
        ValueError: When it is damaged or too large.
    """
    frame = _frame_of_jpeg(content)
    if frame is None:
        return None
    marker, _, bits, height_px, width_px = struct.unpack_from(">BHBHH", content, frame)
    if bits <= 8 and marker not in _LOSSLESS_JPEG:
        return None  # it is damaged
    limits.require_safe_size(width_px, height_px)
    if content.find(_END_OF_JPEG, frame) < 0:  # the decoder would fill up what is missing
        raise ValueError("the file is cut short")
    import imagecodecs

    try:
        with limits.turn(width_px, height_px):
            values = _without_alpha(imagecodecs.jpeg_decode(content))
    except Exception as error:  # the decoders raise anything on damaged bytes
        raise ValueError(f"the file is damaged: {error}") from error
    if bits <= 8:
        return Picture(values)
    return Picture(values, depth_of(values, Range(0, 2**bits - 1)))


def _frame_of_jpeg(content: bytes) -> int | None:
    """Where the marker stands behind which come length, bits of a sample, height and width; None without one."""
    if not content.startswith(_JPEG):
        return None
    start = len(_JPEG)
    while start + 9 <= len(content) and content[start] == 0xFF:
        marker, length = struct.unpack_from(">BH", content, start + 1)
        if marker in _FRAMES_OF_JPEG:
            return start + 1
        start += 2 + length
    return None


# --- JPEG 2000 ------------------------------------------------------------------------------------


def _jpeg_2000(content: bytes) -> Picture | None:
    start = content.find(_SIZE_MARKER)
    if start < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", content, start + 8)
    (sample,) = struct.unpack_from(">B", content, start + 42)
    bits = (sample & 0x7F) + 1
    is_signed = bool(sample & 0x80)
    if bits <= 8 and not is_signed:
        return None
    width_px, height_px = right - left, bottom - top
    limits.require_safe_size(width_px, height_px)
    import imagecodecs

    with limits.turn(width_px, height_px):
        values = _without_alpha(imagecodecs.jpeg2k_decode(content))
    declared = Range(0, 2**bits - 1) if bits not in _CONTAINERS and not is_signed else None
    return Picture(values, depth_of(values, declared))


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    turn = _UPRIGHT.get(orientation)
    return values if turn is None else np.ascontiguousarray(turn(values))
