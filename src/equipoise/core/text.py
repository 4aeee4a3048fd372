"""Small pieces of text that several rooms print: aligned tables, lists in words, first lines of errors."""

from __future__ import annotations

from collections.abc import Sequence


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of text with cells below each other.

    >>> aligned([["a", "b"], ["long", "c"]])
    'a     b\\nlong  c'
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]
