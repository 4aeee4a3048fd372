"""DICOM files: their first frame with the transforms that the standard prescribes, and fields of their headers.

pydicom is optional (`equipoise[dicom]`); nothing else imports it.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core import extras, limits
from equipoise.core.greylevels import WHITE_8_BIT, Picture, Range, depth_of
from equipoise.core.text import first_line

SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
EXTRA = "equipoise[dicom]"
INSTALL = extras.install("dicom")
#: What unpacks compressed pixels; pydicom finds them by itself.
_UNPACKERS = ("pylibjpeg", "libjpeg", "openjpeg", "rle")

# What is odd in a header goes to the screen otherwise; what matters is raised as well.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

#: Flags of a DICOM file beside those of its pixels.
FRAMES = "frames"
BURNED_IN = "burned-in"
PRIVATE = "private"
OWN_WINDOW = "own-window"

#: An index of a disk: a DICOM file without a picture.
_INDEX = "DICOMDIR"
_PREAMBLE = 128
_MAGIC = b"DICM"
#: The first tag of files that lack preamble and magic, as old ones do.
_FIRST_TAGS = (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00")
#: The same of files that lack the preamble only: the length of what describes the file.
_FIRST_TAG_OF_META = b"\x02\x00\x00\x00UL\x04\x00"
#: Where files of several frames keep what others have at the top: the transforms, and the side.
_GROUPS = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_IN_GROUPS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "FrameAnatomySequence",
)
#: Objects whose numbers are no picture of a patient, by their modality.
_NO_PICTURES = {"SEG": "a segmentation", "RTDOSE": "doses of radiation"}
#: Bits that tell the size of a container and nothing of what is used of it.
_CONTAINERS = (16, 32)
_GREY = ("MONOCHROME1", "MONOCHROME2")
#: Beyond every window.
_FAR = 1e9


def is_installed() -> bool:
    """Whether pydicom can be imported."""
    return extras.is_installed("pydicom")


def unpacks_all() -> bool:
    """Whether everything of the extra is here, so that to install it changes nothing."""
    return is_installed() and all(map(extras.is_installed, _UNPACKERS))


def readable_suffixes() -> frozenset[str]:
    """Endings of DICOM files; none without pydicom."""
    return SUFFIXES if is_installed() else frozenset()


def is_dicom(content: bytes) -> bool:
    """Whether bytes are those of a DICOM file.

    >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"GIF89a")
    (True, False)
    """
    has_magic = content[_PREAMBLE : _PREAMBLE + len(_MAGIC)] == _MAGIC
    return has_magic or content.startswith((*_FIRST_TAGS, _FIRST_TAG_OF_META))


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM by its ending; without one, or with a number for one, by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if (suffix and not suffix[1:].isdigit()) or path.name == _INDEX:
        return False
    return is_dicom(_beginning(path))


def is_marked_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM behind its preamble, whatever it is called."""
    return _beginning(path)[_PREAMBLE:] == _MAGIC


def _beginning(path: Path) -> bytes:
    """Preamble and magic of a file; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))
    except OSError:
        return b""


def open_dicom(content: bytes, has_window: bool = False) -> Picture:
    """Read the first frame of a DICOM file.

    The modality transform is always applied. The file's own VOI transform (window or table) is applied
    unless the study has a window of its own.

    Args:
        content: The bytes of the file.
        has_window: Whether `ingest.window` says what becomes black and white.

    Raises:
        ValueError: When pydicom is missing, or the file is damaged or holds no picture.
    """
    try:
        header = _read(io.BytesIO(content))
        _lift_groups(header)
        return _picture(header, has_window)
    except ValueError as error:
        raise ValueError(first_line(error)) from error
    except Exception as error:  # pydicom and its plug-ins raise anything on damaged bytes
        raise ValueError(f"the DICOM file cannot be read: {first_line(error)}") from error


def read_fields(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Read fields of a header as text, empty where the header lacks them.

    Args:
        path: A DICOM file.
        names: DICOM keywords, for example PatientID.

    Raises:
        ValueError: When pydicom is missing or the header is damaged.
    """
    try:
        header = _read(path, stop_before_pixels=True, specific_tags=[*names, *_GROUPS])
        _lift_groups(header)
        return {name: _text(header.get(name, None)) for name in names}
    except (ValueError, OSError):
        raise
    except Exception as error:  # as above
        raise ValueError(f"the DICOM header cannot be read: {first_line(error)}") from error


def value_type(name: str) -> str:
    """DICOM's code for what a field holds, for example PN for the name of a person; empty where there is no such field.

    Args:
        name: A DICOM keyword.
    """
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(name)
    return "" if tag is None else dictionary_VR(tag)


def _text(value: Any) -> str:
    """The value of a field, several values as DICOM itself writes them."""
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(str(one).strip() for one in value)
    return str(value).strip()


def _read(source: Any, **options: Any) -> Any:
    if not is_installed():
        raise ValueError(f"DICOM files need pydicom. Install it: {INSTALL}")
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    header = pydicom.dcmread(source, force=True, **options)
    if "TransferSyntaxUID" not in header.file_meta:  # as in files without preamble
        is_implicit, _ = header.original_encoding
        packed = (
            pydicom.uid.ImplicitVRLittleEndian
            if is_implicit
            else pydicom.uid.ExplicitVRLittleEndian
        )
        header.file_meta.TransferSyntaxUID = packed
    return header


def _lift_groups(header: Any) -> None:
    """Copy to the top of a header what its functional groups say of the first frame.

    Enhanced files keep slope, intercept and window there, for all frames or for each.
    """
    for name in _GROUPS:
        groups = header.get(name, None)
        if not groups:
            continue
        for inner in _IN_GROUPS:
            for element in next(iter(groups[0].get(inner, None) or []), []):
                header[element.tag] = element


def _picture(header: Any, has_window: bool) -> Picture:
    if "PixelData" not in header and "FloatPixelData" not in header:
        raise ValueError(_why_no_picture(header))
    if not header.get("Rows", None) or not header.get("Columns", None):
        raise ValueError(
            "the header of the DICOM file does not say how large its picture is (Rows, Columns)"
        )
    modality = header.get("Modality", None)
    if modality in _NO_PICTURES:
        raise ValueError(f"the DICOM file ({modality}) holds {_NO_PICTURES[modality]}, no picture")
    limits.require_safe_size(int(header.Columns), int(header.Rows))
    with limits.turn(int(header.Columns), int(header.Rows)):
        values = _first_frame(header)
    notes = tuple(_notes(header))
    if header.PhotometricInterpretation in _GREY:
        return _grey(header, values, has_window, notes)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        values = apply_color_lut(values, header)
        return _coloured(values, 8 * values.itemsize, notes)
    return _coloured(values, int(header.BitsStored), notes)


def _why_no_picture(header: Any) -> str:
    """Pydicom gives no element of a file that is cut within compressed pixels, of others those before the cut."""
    if not len(header) or "Rows" in header:
        return "the picture of the DICOM file is missing or not complete, as in a file that is cut short"
    kind = header.get("Modality", None) or "of no modality"
    return f"the DICOM file ({kind}) holds no picture"


def _first_frame(header: Any) -> np.ndarray:
    """(height_px, width_px), or with a last axis of red, green and blue."""
    from pydicom.pixels import pixel_array

    unused_bits = _unused_bits(header)
    if unused_bits:
        header.BitsStored += unused_bits
    try:
        values = pixel_array(header, index=0)
    except RuntimeError as error:
        name = header.file_meta.TransferSyntaxUID.name
        if "missing dependencies" not in str(error):
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"its pixels are compressed ({name}) and cannot be unpacked: {reason}. Save them uncompressed"
            ) from error
        advice = f"Install what reads them: {INSTALL}"
        if unpacks_all():
            advice = "Nothing here reads that; save them uncompressed or as JPEG 2000"
        raise ValueError(f"its pixels are compressed ({name}). {advice}") from error
    if not unused_bits:
        return values
    header.BitsStored -= unused_bits
    return values >> unused_bits


def _unused_bits(header: Any) -> int:
    """How many bits below the values are unused: in old files values end at the highest bit (HighBit).

    pydicom takes it for granted that they begin at the lowest. What is compressed says it itself.
    """
    if header.file_meta.TransferSyntaxUID.is_compressed or "HighBit" not in header:
        return 0
    unused_bits = int(header.HighBit) + 1 - int(header.BitsStored)
    fits = int(header.HighBit) < int(header.BitsAllocated)
    return unused_bits if fits and unused_bits > 0 else 0


def _notes(header: Any) -> list[str]:
    """What else is worth a look: several frames, text in the picture, tags that nobody but the maker knows."""
    notes = []
    if int(header.get("NumberOfFrames", None) or 1) > 1:
        notes.append(FRAMES)
    if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        notes.append(BURNED_IN)
    if any(element.tag.is_private and not element.tag.is_private_creator for element in header):
        notes.append(PRIVATE)
    return notes


def _coloured(values: np.ndarray, bits: int, notes: tuple[str, ...]) -> Picture:
    if bits <= 8:
        return Picture(values.astype(np.uint8), notes=notes)
    return Picture(values, depth_of(values, Range(0, 2**bits - 1)), notes=notes)


def _grey(header: Any, stored: np.ndarray, has_window: bool, notes: tuple[str, ...]) -> Picture:
    is_inverted = header.PhotometricInterpretation == "MONOCHROME1"
    stored = _without_padding(header, stored, is_inverted)
    values = _with_modality(header, stored)
    declared = None
    if values is stored and stored.dtype.kind == "u":
        declared = _declared_white(header, stored)
    if not has_window and _has_display_transform(header):
        if values.min() < 0:
            notes = (*notes, OWN_WINDOW)
        values, declared = _as_displayed(header, values)
    if declared is not None and declared.low == 0 and declared.high <= WHITE_8_BIT:
        levels = np.rint(values * (WHITE_8_BIT / declared.high)).astype(np.uint8)
        return Picture(levels, is_inverted=is_inverted, notes=notes)
    return Picture(values, depth_of(values, declared), is_inverted, notes)


def _without_padding(header: Any, stored: np.ndarray, is_inverted: bool) -> np.ndarray:
    """Make the frame around a picture black where its value is above all of the picture.

    It is no grey level (PixelPaddingValue): it would be the brightest of all, and tell of bits that nothing uses.
    """
    padding = header.get("PixelPaddingValue", None)
    if padding is None or stored.max() != padding:
        return stored
    is_picture = stored != padding
    if not is_picture.any():
        return stored
    picture = stored[is_picture]
    return np.where(is_picture, stored, picture.max() if is_inverted else picture.min())


def _with_modality(header: Any, stored: np.ndarray) -> np.ndarray:
    """Values in the unit of the modality, for example Hounsfield; the same array where it is the stored one."""
    from pydicom.pixels import apply_modality_lut

    slope = float(header.get("RescaleSlope", None) or 1)
    intercept = float(header.get("RescaleIntercept", None) or 0)
    is_same = slope == 1 and intercept == 0
    if is_same and not header.get("ModalityLUTSequence", None):
        return stored
    return apply_modality_lut(stored, header)


def _declared_white(header: Any, stored: np.ndarray) -> Range | None:
    """Black and white by BitsStored; None where it says no more than the size of the container."""
    bits = int(header.BitsStored)
    if bits in _CONTAINERS or stored.max() >= 2**bits:
        return None
    return Range(0, 2**bits - 1)


def _has_display_transform(header: Any) -> bool:
    if header.get("VOILUTSequence", None):
        return True
    widths = header.get("WindowWidth", None)
    centres = header.get("WindowCenter", None)
    if widths in (None, "") or centres in (None, ""):
        return False
    first = widths[0] if isinstance(widths, Sequence) else widths
    return float(first) >= 1  # some scanners write 0 for no window


def _as_displayed(header: Any, values: np.ndarray) -> tuple[np.ndarray, Range]:
    """Values through the file's own window or table, and what black and white are among them."""
    from pydicom.pixels import apply_voi, apply_windowing

    if header.get("VOILUTSequence", None):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(values.astype(np.int64), header), Range(0, 2**bits - 1)
    with np.errstate(over="ignore"):
        low, high = apply_windowing(np.array([-_FAR, _FAR]), header)
        return apply_windowing(values, header), Range(float(low), float(high))
