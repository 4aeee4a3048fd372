"""How many pixels are read, and how many at a time."""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager

from PIL import Image

#: Pictures with more pixels are decoded one at a time: each may take 1.4 GB on the way.
_LARGE_PIXELS = 2**24
_ONE_LARGE_PICTURE = threading.Lock()


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
