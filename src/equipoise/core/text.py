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


def shortened(text: str, most: int = 300) -> str:
    """The beginning of a text that somebody else wrote, so that a sentence that quotes it stays one.

    >>> shortened("x" * 20, most=5)
    'xxxxx... (20 characters)'
    """
    if len(text) <= most:
        return text
    return f"{text[:most]}... ({len(text):,} characters)"


def first_of(texts: Sequence[str], most: int = 5, separator: str = "; ") -> str:
    """Join the first few texts and count the rest; very long ones are shortened.

    >>> first_of(["a", "b", "c"], most=2)
    'a; b; and 1 more'
    """
    shown = [shortened(text) for text in texts[:most]]
    more = len(texts) - most
    if more > 0:
        shown.append(f"and {more} more")
    return separator.join(shown)


def examples(values: Sequence[str], most: int = 3) -> str:
    """The first few values in quotes, and how many more there are.

    >>> examples(["0012", "12 "])
    "'0012', '12 '"
    """
    return first_of([repr(value) for value in values], most, separator=", ")


def counted(number: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "patient"), counted(2, "patient")
    ('1 patient', '2 patients')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


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
