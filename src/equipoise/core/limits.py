"""How many pixels are read, and how many at a time; when a file claims more than it can hold."""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager

from PIL import Image

from equipoise.core.errors import DataError

#: Pictures with more pixels are decoded one at a time: each may take 1.4 GB on the way.
_LARGE_PIXELS = 2**24
_ONE_LARGE_PICTURE = threading.Lock()
#: Arrays up to this size are read whatever their file says; larger ones only where it can hold them.
_ALWAYS_BYTES = 2**27
#: Features that are mostly zero are packed to a tenth or a twentieth; zeros alone to a thousandth.
_PACKED_TIMES = 200


def require_safe_size(width_px: int, height_px: int) -> None:
    """Raise a ValueError for more pixels than Pillow's safe limit."""
    if width_px * height_px > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{width_px} x {height_px} pixels are more than {Image.MAX_IMAGE_PIXELS:,}: could be a "
            "decompression bomb"
        )


def turn(width_px: int, height_px: int) -> AbstractContextManager[object]:
    """Wait for the turn of a picture of this size; small ones never wait."""
    is_large = width_px * height_px > _LARGE_PIXELS
    return _ONE_LARGE_PICTURE if is_large else contextlib.nullcontext()


def require_held(claimed_bytes: int, held_bytes: int, name: str) -> None:
    """Refuse an array that would take far more memory than its file has bytes for it.

    Args:
        claimed_bytes: What the array takes in memory, as its file says.
        held_bytes: What the file holds of it, packed.
        name: Of the array.

    Raises:
        DataError: When it could be a decompression bomb.
    """
    if claimed_bytes <= max(_ALWAYS_BYTES, _PACKED_TIMES * held_bytes):
        return
    raise DataError(
        f"'{name}' claims {claimed_bytes:,} bytes, and the file holds {held_bytes:,} of them: could be a "
        f"decompression bomb"
    )
