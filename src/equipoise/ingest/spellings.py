"""What people mean by what they typed: words for missing, one id or one class in two spellings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import pandas as pd

from equipoise.core.errors import ConfigError, DataError
from equipoise.core.text import counted, examples, first_of

#: How people and programs write that nothing is known, in lower case.
_SIGNS = "- -- --- — – . ? ?? ??? /"
_ABBREVIATIONS = "na n/a n.a. n.a n/k #na <na> nan -nan nat"
_OF_SPREADSHEETS = "#n/a #n/a! #null! #value! #ref! #name?"
_WORDS = "none null nil void missing unknown unk unkn. unspecified"
_PHRASES = (
    "",
    "not available",
    "not known",
    "not applicable",
    "not specified",
    "no id",
    "no data",
)
_WITHOUT_BLANKS = " ".join([_SIGNS, _ABBREVIATIONS, _OF_SPREADSHEETS, _WORDS])
_MISSING = frozenset(_PHRASES).union(_WITHOUT_BLANKS.split())
#: Of them, a word that is a class where people grade (none, mild, severe).
_CLASS_NAMES = frozenset({"none"})

#: A long number as Excel shows it, which has lost its last digits.
_ROUNDED = re.compile(r"\d([.,]\d+)?E\+?\d+", re.I)


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known.

    >>> [is_missing(text) for text in ("", "N/A", "Unknown", "p1")]
    [True, True, True, False]
    """
    return text.strip().casefold() in _MISSING


def without_missing(cells: pd.Series, keep: frozenset[str] = frozenset()) -> pd.Series:
    """The cells of a column, empty where they say that nothing is known.

    Args:
        cells: Text.
        keep: Words, in lower case, that mean something in this column.
    """
    known = {}
    for cell in cells.unique():
        is_word = cell.casefold() in keep
        known[cell] = cell if is_word or not is_missing(cell) else ""
    return cells.map(known)


# --- ids ------------------------------------------------------------------------------------------


def patient_ids(cells: pd.Series, aliases: Mapping[str, str], where: str) -> pd.Series:
    """The ids of a column, each person under one, empty where none is known.

    Args:
        cells: Ids as they were typed.
        aliases: Spelling -> the right id, or "" where it means that none is known. An id that is
            another person's in spite of its spelling is mapped to itself.
        where: The column and its file, for messages.

    Raises:
        ConfigError: When an alias names no id, or leads to a spelling that has an alias itself.
        DataError: When ids differ only by leading zeros, ".0", letter case or blanks, and nobody
            has decided; or when a spreadsheet has rounded them.
    """
    known = without_missing(cells)
    spellings = [spelling for spelling in known.unique() if spelling]
    _refuse_rounded(spellings, where)
    _check_aliases(aliases, spellings, where)
    ids = without_missing(known.map(lambda spelling: aliases.get(spelling, spelling)))
    _refuse_twins([name for name in ids.unique() if name], aliases, where)
    return ids


def folded(spelling: str) -> str:
    """What is left of an id when leading zeros, ".0", letter case and blanks do not count.

    >>> [folded(spelling) for spelling in ("0012", "12.0", "P 012", "p12", "1.05")]
    ['12', '12', 'p12', 'p12', '1.05']
    """
    plain = unicodedata.normalize("NFKC", spelling).casefold()
    plain = re.sub(r"\s+", "", plain)
    plain = re.sub(r"(?<=\d)[.,]0+$", "", plain)
    return re.sub(r"(?<![\d.,])0+(?=\d)", "", plain)


def _refuse_rounded(spellings: Sequence[str], where: str) -> None:
    rounded = [spelling for spelling in spellings if _ROUNDED.fullmatch(spelling)]
    if rounded:
        raise DataError(
            f"{where} holds {counted(len(rounded), 'id')} that a spreadsheet has rounded: "
            f"{examples(rounded)}. Several patients may have become one. Export the table again, with the "
            f"ids as text."
        )


def _check_aliases(aliases: Mapping[str, str], spellings: Sequence[str], where: str) -> None:
    known = set(spellings)
    for spelling, right in aliases.items():
        if spelling not in known:
            raise ConfigError(
                f"ingest.aliases names {spelling!r}, which is no id of {where}. Found are: {examples(spellings)}."
            )
        if aliases.get(right, right) != right:
            raise ConfigError(
                f"ingest.aliases leads from {spelling!r} to {right!r}, and from there to {aliases[right]!r}. "
                f"Map each spelling to the right id."
            )


def _refuse_twins(ids: Sequence[str], aliases: Mapping[str, str], where: str) -> None:
    """Refuse ids that probably mean one patient, who would be on both sides of a split."""
    spellings_of: dict[str, list[str]] = {}
    for name in ids:
        spellings_of.setdefault(folded(name), []).append(name)
    twins = []
    for spellings in spellings_of.values():
        decided = [name for name in spellings if aliases.get(name) == name]
        if len(spellings) > 1 and len(decided) < len(spellings):
            twins.append(sorted(spellings))
    if not twins:
        return
    shown = [" and ".join(map(repr, spellings)) for spellings in sorted(twins)]
    first = sorted(twins)[0]
    patients = "patient is" if len(twins) == 1 else "patients are"
    raise DataError(
        f"In {where}, {len(twins)} {patients} written in several ways: {first_of(shown)}. Ids that differ only by "
        f"leading zeros, '.0', letter case or blanks would put one person on both sides of a split. "
        f"Correct the table, or decide in params.yaml: ingest.aliases: {{{first[1]!r}: {first[0]!r}}}; an "
        f"id that is another person's is mapped to itself."
    )


# --- class names ----------------------------------------------------------------------------------


def class_names(cells: pd.Series) -> pd.Series:
    """The classes of a column, empty where none is known ("none" is a class).

    Names that differ only by letter case, blanks, leading zeros or ".0" become the commonest of
    them.
    """
    known = without_missing(cells, keep=_CLASS_NAMES)
    counts = known.value_counts().to_dict()
    commonest: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        commonest.setdefault(folded(name), name)
    return known.map(lambda name: commonest[folded(name)])


def joined_names(cells: pd.Series) -> str:
    """Which spellings `class_names` joins, in words; empty where there are none."""
    pairs = pd.DataFrame({"written": cells, "name": class_names(cells)})
    other = pairs[(pairs["written"] != pairs["name"]) & (pairs["name"] != "")]
    counts = other.value_counts(["written", "name"]).sort_index()
    joined = []
    for (written, name), count in counts.items():
        joined.append(f"{written!r} is {name!r} ({counted(count, 'row')})")
    return first_of(joined)
