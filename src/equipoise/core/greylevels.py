"""Grey of more than 8 bits: which value is white, for a whole set of images and for the model made from it.

A 16-bit file seldom uses 16 bits: a detector gives 10, 12 or 14, and most files do not say how many. Were white
looked for in each file alone, a dark picture would come out as bright as any other. So white is one value
for all files that do not declare theirs, and it goes with the features and with the served model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

#: White of 8 bits, and of what every picture becomes.
WHITE_8_BIT = 255

#: Rows that are brought to 8 bits at a time: in float64 the largest picture would take 2 GB.
_ROWS = 256
#: From this value on, a 16-bit file uses all of its bits.
_FULL_16_BIT = 2**15
_WINDOW_HINT = (
    "Set ingest.window: [low, high], the values that become black and white, for example [-1000, 400] "
    "for Hounsfield units."
)
_WHITE_TEXT = re.compile(r"/white\[([^,\]]+)\]")
_WINDOW_TEXT = re.compile(r"/window\[([^,\]]+),([^,\]]+)\]")


class Range(NamedTuple):
    """The values that become black and white."""

    low: float
    high: float


@dataclass(frozen=True)
class Depth:
    """How much of its type one picture uses.

    Attributes:
        kind: Of the numbers. Only unsigned ones have a white that their number of bits tells.
        lowest: Least value of the picture.
        highest: Greatest value of the picture.
        declared: Black and white as the file itself says them; None where it does not.
    """

    kind: Literal["unsigned", "signed", "float"]
    lowest: float
    highest: float
    declared: Range | None = None

    @property
    def is_unbounded(self) -> bool:
        """Whether these values alone show that the numbers have no white of their own."""
        if self.declared is not None or self.kind == "unsigned":
            return False
        return self.lowest < 0 or (self.kind == "float" and self.highest > 1)

    @property
    def white(self) -> int:
        """White of the fewest bits that hold the picture, at least 8."""
        return max(WHITE_8_BIT, 2 ** int(self.highest).bit_length() - 1)


@dataclass(frozen=True)
class GreyScale:
    """The one scale of a set of images.

    Attributes:
        white: What becomes 255 in files of unsigned numbers that do not declare it, 0 becomes 0; None where the
            window holds for these too.
        window: What becomes 0 and 255 where numbers have no white of their own; None where there are none such.
    """

    white: float | None
    window: Range | None = None

    @property
    def text(self) -> str:
        """The scale as part of a pipeline, which is a key of features and stands in every model."""
        text = ""
        if self.white is not None:
            text += f"/white[{_number(self.white)}]"
        if self.window is not None:
            text += f"/window[{_number(self.window.low)},{_number(self.window.high)}]"
        return text

    @classmethod
    def of_pipeline(cls, pipeline: str) -> GreyScale | None:
        """The scale that a pipeline names; None where it was made from pictures of 8 bits.

        >>> GreyScale.of_pipeline("pillow/1" + GreyScale(4095).text)
        GreyScale(white=4095.0, window=None)
        """
        white = _WHITE_TEXT.search(pipeline)
        window = _WINDOW_TEXT.search(pipeline)
        if white is None and window is None:
            return None
        return cls(
            white=float(white[1]) if white else None,
            window=Range(float(window[1]), float(window[2])) if window else None,
        )

    def window_for(self, kind: str) -> Range | None:
        """The window, where it holds for numbers of this kind."""
        holds = kind != "unsigned" or self.white is None
        return self.window if holds else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as a manifest keeps it."""
        window = None if self.window is None else list(self.window)
        return {"white": self.white, "window": window}

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> GreyScale:
        """The scale that `as_dict` wrote."""
        window = values["window"]
        return cls(values["white"], None if window is None else Range(*window))


@dataclass(frozen=True)
class Picture:
    """A picture as its file holds it.

    Attributes:
        values: (height_px, width_px) or (height_px, width_px, 3).
        depth: How deep it is; None for 8 bits, which need no scale.
        is_inverted: Whether the highest value is black.
        notes: What else is worth a look, some of `images.RARE_FLAGS`.
    """

    values: np.ndarray
    depth: Depth | None = None
    is_inverted: bool = False
    notes: tuple[str, ...] = field(default=())

    def as_rgb(self, scale: GreyScale | None) -> np.ndarray:
        """uint8 (height_px, width_px, 3); otherwise as `as_levels`."""
        return repeated(self.as_levels(scale))

    def as_levels(self, scale: GreyScale | None) -> np.ndarray:
        """uint8 (height_px, width_px) of a grey file, (height_px, width_px, 3) of one in colour.

        Args:
            scale: Of the set that it belongs to; None where there is none.

        Raises:
            ValueError: When nothing says which value is white.
        """
        levels = self.values
        if self.depth is not None:
            levels = _levels(self.values, range_of(self.depth, scale))
        if self.is_inverted:
            levels = WHITE_8_BIT - levels
        return levels


def repeated(levels: np.ndarray) -> np.ndarray:
    """Grey three times, uint8 (height_px, width_px, 3); a picture in colour as it is."""
    if levels.ndim == 3:
        return levels
    rgb = np.empty((*levels.shape, 3), dtype=levels.dtype)
    for channel in range(3):  # np.repeat takes longer
        rgb[..., channel] = levels
    return rgb


def depth_of(values: np.ndarray, declared: Range | None = None) -> Depth:
    """Measure a picture.

    Raises:
        ValueError: When it holds values that are not finite, or are no real numbers.
    """
    kinds: dict[str, Literal["unsigned", "signed", "float"]] = {
        "u": "unsigned",
        "i": "signed",
        "f": "float",
    }
    kind = kinds.get(values.dtype.kind)
    if kind is None:
        raise ValueError(f"the image holds {values.dtype} numbers, which are no grey levels")
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("the image holds values that are not numbers")
    return Depth(kind, lowest, highest, declared)


def range_of(depth: Depth, scale: GreyScale | None) -> Range:
    """Black and white of one picture.

    Raises:
        ValueError: When nothing says which value is white.
    """
    window = scale.window_for(depth.kind) if scale is not None else None
    if window is not None:
        return window
    if depth.declared is not None:
        return depth.declared
    if depth.is_unbounded:
        raise ValueError(unbounded_text(depth))
    if depth.kind == "float":
        return Range(0, 1)
    if scale is not None and scale.white is not None:
        _require_within(depth, scale.white)
        return Range(0, scale.white)
    if depth.highest >= _FULL_16_BIT:
        return Range(0, depth.white)
    raise ValueError(
        f"it holds values up to {_shown(depth.highest)} in more than 8 bits, and nothing says which value is white: "
        f"this model or study was made from other files. Send 8 bits, or files that declare their depth "
        f"(DICOM BitsStored, PNG sBIT)"
    )


def _require_within(depth: Depth, white: float) -> None:
    if depth.highest > white:
        raise ValueError(
            f"it holds values up to {_shown(depth.highest)}, and white is {_shown(white)} in the files that this "
            f"model or study was made from: it was made on another scale"
        )


def unbounded_text(depth: Depth) -> str:
    """Why values that have no white of their own are refused."""
    return (
        f"it holds {depth.kind} values from {_shown(depth.lowest)} to {_shown(depth.highest)}, which have no white "
        f"of their own. {_WINDOW_HINT}"
    )


def _levels(values: np.ndarray, bounds: Range) -> np.ndarray:
    """Bring values to 0..255: uint8 of the same shape.

    Raises:
        ValueError: When black and white are one value, as a header with an absurd window says it.
    """
    if not bounds.high > bounds.low:
        raise ValueError(f"its header makes {_shown(bounds.low)} both black and white")
    levels = np.empty(values.shape, dtype=np.uint8)
    factor = WHITE_8_BIT / (bounds.high - bounds.low)
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        scaled = (values[rows].astype(np.float64) - bounds.low) * factor
        levels[rows] = np.rint(np.clip(scaled, 0, WHITE_8_BIT))
    return levels


# --- a whole set ----------------------------------------------------------------------------------


def shared_scale(depths: Sequence[Depth], window: Range | None = None) -> GreyScale:
    """The scale of a set: white is the smallest 2^k - 1 that holds every picture of unsigned numbers.

    A depth that a file declares counts as used. A window is for the other numbers, and where there are none
    such, it is for all.
    """
    is_measured = [depth.kind != "unsigned" for depth in depths]
    if window is not None and (all(is_measured) or not any(is_measured)):
        return GreyScale(white=None, window=window)
    whites = [WHITE_8_BIT]
    for depth in depths:
        if window is not None and depth.kind != "unsigned":
            continue
        if depth.declared is not None:
            if depth.declared.low == 0:
                whites.append(int(depth.declared.high))
        elif depth.kind != "float" and depth.lowest >= 0:
            whites.append(depth.white)
    return GreyScale(max(whites), window)


def unbounded(depths: Sequence[Depth]) -> dict[str, Depth]:
    """The kinds of numbers that a set needs a window for, each with the range of the set.

    One picture with values below 0 shows that the others of its kind have no white either.
    """
    ranges: dict[str, Depth] = {}
    for kind in ("signed", "float"):
        same = [depth for depth in depths if depth.kind == kind and depth.declared is None]
        if any(depth.is_unbounded for depth in same):
            lowest = min(depth.lowest for depth in same)
            highest = max(depth.highest for depth in same)
            ranges[kind] = Depth(same[0].kind, lowest, highest)
    return ranges


def scale_text(scale: GreyScale, depths: Sequence[Depth]) -> list[str]:
    """What `ingest` says of the files of more than 8 bits, in one line or a few.

    >>> scale_text(GreyScale(4095), [Depth("unsigned", 3, 4000)])
    ['4,096 grey levels in 1 file of more than 8 bits: scaled by 4,095']
    """
    lines = []
    rest = list(depths)
    if scale.window is not None:
        rest = [depth for depth in depths if scale.window_for(depth.kind) is None]
        low, high = _shown(scale.window.low), _shown(scale.window.high)
        files = _files(len(depths) - len(rest))
        lines.append(f"{files}: {low} becomes black and {high} white (ingest.window)")
    declared = [depth.declared for depth in rest if depth.declared is not None]
    own = Counter(bounds for bounds in declared if bounds != (0, scale.white))
    shares = sum(depth.kind == "float" and depth.declared is None for depth in rest)
    if shares:
        lines.append(f"{_files(shares)} with shares of white: 0 becomes black and 1 white")
    common = len(rest) - own.total() - shares
    if common and scale.white is not None:
        levels = f"{int(scale.white) + 1:,} grey levels"
        lines.append(f"{levels} in {_files(common)}: scaled by {_shown(scale.white)}")
    if own:
        ranges = [
            f"{_shown(bounds.low)} to {_shown(bounds.high)} in {own[bounds]:,}"
            for bounds in sorted(own)
        ]
        lines.append(f"scaled by what each file declares: {', '.join(ranges)}")
    shared = [depth for depth in rest if depth.declared is None and depth.kind != "float"]
    bits = Counter(depth.white.bit_length() for depth in shared)
    if len(bits) > 1:
        used = [f"{number} in {count:,}" for number, count in sorted(bits.items())]
        lines.append(
            f"bits used: {', '.join(used)}; one white for all of these. Where they are of different depth, "
            f"make them studies of their own; where a few hold stray values, ingest.window: [0, white] sets it"
        )
    return lines


def _files(number: int) -> str:
    return f"{number:,} file{'' if number == 1 else 's'} of more than 8 bits"


def _number(value: float) -> str:
    """A number that `float` reads back.

    >>> _number(4095.0), _number(-0.5)
    ('4095', '-0.5')
    """
    return str(int(value)) if value == int(value) else repr(float(value))


def _shown(value: float) -> str:
    """A number as people write it.

    >>> _shown(4095.0), _shown(998.26), _shown(1.00001)
    ('4,095', '998.3', '1.00001')
    """
    if value == int(value):
        return f"{int(value):,}"
    short = f"{value:,.4g}"
    return short if "." in short or "e" in short else repr(float(value))
