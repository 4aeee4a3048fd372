"""Text that several rooms print: lists in words, first lines of errors."""

from __future__ import annotations

from collections.abc import Sequence


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class when it has no text."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
