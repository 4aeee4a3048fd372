"""Names in any script: which fonts draw a text, and what stands for the characters that no font here has."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

#: Comes with matplotlib and has a box for every character: in SVG, where the reader's own fonts draw
#: the letters, it only measures them.
LAST_RESORT = "Last Resort High-Efficiency"
#: Fonts of matplotlib that put signs of mathematics in the places of letters.
_NOT_LETTERS = ("cm", "STIXNonUni", "STIXSize", "Last Resort")
_USUAL = "DejaVu Sans"
#: Categories of characters that are not seen: marks of direction, joiners, controls.
_UNSEEN = ("Cc", "Cf")


class Lettering(NamedTuple):
    """A text as it can be drawn, and the families of fonts that have its letters, the usual one first."""

    text: str
    families: list[str]


def lettering(text: str, fonts: Iterable[Any] | None = None) -> Lettering:
    """Find fonts for a text that is drawn as pixels.

    A character that no font has becomes its number, and a line below says so.

    Args:
        text: May have several lines.
        fonts: Entries of matplotlib's list of fonts; left out: those of this machine.

    >>> lettering("opacity")
    Lettering(text='opacity', families=['DejaVu Sans'])
    """
    from matplotlib.font_manager import findfont, fontManager

    families = [_USUAL]
    missing = set(text) - {"\n"} - _characters(findfont(_USUAL))
    for font in fontManager.ttflist if fonts is None else fonts:
        if not missing:
            break
        lent = missing & _characters(font.fname)
        if lent and not font.name.startswith(_NOT_LETTERS):
            families.append(font.name)
            missing -= lent
    return Lettering(_without(text, sorted(missing)), families)


@functools.lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[str]:
    """The characters that a font has; none where its file cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


def _without(text: str, missing: Sequence[str]) -> str:
    """The text with numbers in place of the missing characters."""
    is_seen = [unicodedata.category(character) not in _UNSEEN for character in missing]
    numbers = {}
    for character, seen in zip(missing, is_seen):
        numbers[ord(character)] = f"<U+{ord(character):04X}>" if seen else ""
    shown = text.translate(numbers)
    if any(is_seen):
        shown += "\n<U+...>: a character that no font of this machine has"
    return shown
