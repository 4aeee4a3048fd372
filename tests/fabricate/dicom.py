"""Draws DICOM files: grey of 12 bits in 16, compressed or not, with whatever header a test asks for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
    generate_uid,
)

BITS = 12
WHITE = 2**BITS - 1

PLAIN = ExplicitVRLittleEndian
JPEG_2000 = JPEG2000Lossless
JPEG_LOSSLESS = JPEGLosslessSV1


def dicom_bytes(
    frames: np.ndarray | Sequence[np.ndarray], syntax: str = PLAIN, **fields: Any
) -> bytes:
    """A DICOM file of one frame or several.

    Args:
        frames: uint16 or int16 (height_px, width_px), one or a list of them.
        syntax: How the pixels are packed.
        fields: Further elements by their keywords; None leaves one out.
    """
    frames = [frames] if isinstance(frames, np.ndarray) else list(frames)
    header = Dataset()
    header.SOPClassUID = SecondaryCaptureImageStorage
    header.SOPInstanceUID = generate_uid()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.Rows, header.Columns = frames[0].shape
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = 16
    header.BitsStored = BITS
    header.HighBit = BITS - 1
    header.PixelRepresentation = int(frames[0].dtype.kind == "i")
    if len(frames) > 1:
        header.NumberOfFrames = len(frames)
    for name, value in fields.items():
        if value is not None:
            setattr(header, name, value)
    header.PixelData = _packed(frames, syntax)
    if syntax != PLAIN:
        header["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def with_private_tag(content: bytes) -> bytes:
    """The same file with an element that only its maker knows."""
    import pydicom

    header = pydicom.dcmread(io.BytesIO(content))
    block = header.private_block(0x0019, "A MAKER", create=True)
    block.add_new(0x10, "LO", "Jane Doe")
    buffer = io.BytesIO()
    header.save_as(buffer)
    return buffer.getvalue()


def _packed(frames: Sequence[np.ndarray], syntax: str) -> bytes:
    if syntax == PLAIN:
        return b"".join(frame.tobytes() for frame in frames)
    if syntax == JPEG_2000:
        coded = [
            imagecodecs.jpeg2k_encode(
                frame, level=0, reversible=True, bitspersample=BITS, codecformat="J2K"
            )
            for frame in frames
        ]
    else:
        coded = [imagecodecs.ljpeg_encode(frame, bitspersample=BITS) for frame in frames]
    return encapsulate(coded)
