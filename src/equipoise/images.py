"""Image files and bytes -> uint8 RGB arrays. One decoder: what ingest verifies is what is embedded and served."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Larger images are refused below: as an error, because a warning filter is shared by all threads.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"})


def decode(source: Path | bytes) -> np.ndarray:
    """Decode an image completely.

    Args:
        source: Path of a file, or the bytes of one.

    Returns:
        uint8 (height_px, width_px, 3), RGB, upright by its EXIF orientation; grey is repeated three times, 16-bit
        grey is divided by 256, transparency is dropped.

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
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                return _from_deep_grey(np.asarray(upright), upright.mode)
            return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error).replace("<_io.BytesIO object", "<bytes")) from error


def _from_deep_grey(pixels: np.ndarray, mode: str) -> np.ndarray:
    if mode == "F" and not np.isfinite(pixels).all():
        raise ValueError("the image holds values that are not numbers")
    # PNG and TIFF keep 16-bit grey as 0..65535 whatever the mode is called; values within 0..255 are 8-bit.
    scale = 256.0 if pixels.max(initial=0) > 255 else 1.0
    grey = np.clip(pixels.astype(np.float64) / scale, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
