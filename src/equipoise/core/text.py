"""Text that several rooms print: aligned tables, lists in words, first lines of errors."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def in_words(names: Sequence[str]) -> str:
    """Join names as in a sentence.

    >>> in_words(["vgg16", "densenet201", "mobilenetv2"])
    'vgg16, densenet201 and mobilenetv2'
    >>> in_words(["vgg16"])
    'vgg16'
    """
    if len(names) < 2:
        return "".join(names)
    *first, last = names
    return f"{', '.join(first)} and {last}"


def aligned(
    rows: Sequence[Sequence[str]],
    header: Sequence[str] = (),
    right: Collection[int] = (),
) -> str:
    """Write a table as lines of text, with the cells of a column below each other.

    Args:
        rows: Cells of each row; every row has the same number of cells.
        header: Names of the columns, written as the first line; left out when empty.
        right: Positions of the columns that are aligned at their right end, as numbers are.

    Returns:
        One line for each row, without spaces at its end.

    >>> rows = [["vgg16", "9"], ["densenet201", "10"]]
    >>> print(aligned(rows, header=["backbone", "trials"], right=[1]))
    backbone     trials
    vgg16             9
    densenet201      10
    """
    lines = [header, *rows] if header else list(rows)
    columns = zip(*lines)
    widths = [max(len(cell) for cell in column) for column in columns]
    return "\n".join(_line(cells, widths, right) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    padded = []
    for position, (cell, width) in enumerate(zip(cells, widths)):
        if position in right:
            padded.append(cell.rjust(width))
        else:
            padded.append(cell.ljust(width))
    return "  ".join(padded).rstrip()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class when it has no text."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
