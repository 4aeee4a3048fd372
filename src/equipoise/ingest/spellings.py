"""What people mean by what they typed: words for missing, one id or one class in two spellings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import pandas as pd

from equipoise.core import yaml_text
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.text import counted, examples, first_of, in_words

#: How people and programs write that nothing is known, in lower case.
_SIGNS = "- -- --- – — . .. ... ? ?? ??? / // \\n"
_ABBREVIATIONS = "na n/a n.a. n.a n/k #na <na> nan -nan nat"
_OF_SPREADSHEETS = "#n/a #n/a! #null! #value! #ref! #name? (blank) (empty) [null] (null)"
_WORDS = "none null nil void missing unknown unk unkn. unspecified"
_WORDS_OF_OTHER_LANGUAGES = (
    "unbekannt k.a. fehlt inconnu inconnue desconocido desconocida sconosciuto sconosciuta "
    "desconhecido desconhecida onbekend ok\u00e4nd ukendt ukjent nieznany "
    "\u043d\u0435\u0438\u0437\u0432\u0435\u0441\u0442\u043d\u043e \u672a\u77e5 \u4e0d\u660e bilinmiyor"
)
_PHRASES = (
    "",
    "not available",
    "not known",
    "not applicable",
    "not specified",
    "not provided",
    "no id",
    "no data",
    "missing value",
    "k. a.",
    "keine angabe",
    "nicht bekannt",
    "nicht vorhanden",
    "non renseign\u00e9",
    "sin datos",
    "\u043d\u0435\u0442 \u0434\u0430\u043d\u043d\u044b\u0445",
)
_WITHOUT_BLANKS = " ".join(
    [_SIGNS, _ABBREVIATIONS, _OF_SPREADSHEETS, _WORDS, _WORDS_OF_OTHER_LANGUAGES]
)
_MISSING = frozenset(_PHRASES).union(_WITHOUT_BLANKS.split())
#: Of them, a word that is a class where people grade (none, mild, severe).
_CLASS_NAMES = frozenset({"none"})
#: What stands in place of an id that was taken out; classes may be called so.
_NOBODY = (
    "anonymous anonymized anonymised anonymus anonym anonyme anon deidentified de-identified removed "
    "redacted withheld hidden nobody noname nd n.d. nn n.n. tbd xxx xxxx * ** *** _ leer -1 -1.0 -9 -99 -999 -9999"
)

#: A long number as Excel shows it, which has lost its last digits.
_ROUNDED = re.compile(r"\d([.,]\d+)?E\+?\d+", re.I)
#: What Excel makes of 3-1, and what pandas makes of that.
_MONTHS = "jan|feb|m\u00e4r|mar|mrz|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez"
_DATED = re.compile(
    rf"\d{{1,2}}[-. ]+({_MONTHS})[a-z]*\.?([-. ]+\d{{2,4}})?|.*\d 00:00(:00)?", re.I
)
#: What a spreadsheet shows in place of a number that is wider than its column.
_HASHES = re.compile(r"#{2,}")
#: Greek and Cyrillic letters whose capitals look like Latin ones: people type ids on both keyboards.
_LOOK_ALIKE = str.maketrans(
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7"
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455",
    "abezhikmnoptyxabekmhopctyxijs",
)
_DASHES = "-\u2010\u2011\u2012\u2013\u2014_"


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known, in the languages that tables were seen in.

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
        DataError: When ids differ only by leading zeros, ".0", letter case, blanks or signs, and
            nobody has decided; or when a spreadsheet has rounded them or made dates of them.
    """
    known = without_missing(cells)
    nobody = [name for name in known.unique() if name.casefold() in _NOBODY.split()]
    known = known.where(~known.isin(nobody), "")
    spellings = [spelling for spelling in known.unique() if spelling]
    _refuse_spoiled(spellings, aliases, where)
    _check_aliases(aliases, spellings, where)
    ids = without_missing(known.map(lambda spelling: aliases.get(spelling, spelling)))
    _refuse_twins([name for name in ids.unique() if name], aliases, where)
    return ids


def folded(spelling: str) -> str:
    r"""What is left of an id when leading zeros, ".0", letter case, blanks and signs do not count.

    Digits are those of any script, and letters of other alphabets are the Latin ones they look like. A dash
    between two numbers does count: 1-11 and 11-1 are two people.

    >>> [folded(spelling) for spelling in ("0012", "12.0", "P 012", "p12", "1.05")]
    ['12', '12', 'p12', 'p12', '1.05']
    >>> [folded(spelling) for spelling in ("P-12", "#p_12", "1_11", "11-1")]
    ['p12', 'p12', '1-11', '11-1']
    >>> folded("\N{GREEK CAPITAL LETTER ALPHA}\u0661\u0662")
    'a12'
    """
    plain = re.sub(r"\s+", "", _plain(spelling)).translate(_LOOK_ALIKE)
    plain = "".join(str(unicodedata.decimal(letter, letter)) for letter in plain)
    plain = plain.strip(f"'\"#*.:;,{_DASHES}") or plain
    plain = re.sub(rf"(?<=\d)[{_DASHES}]+(?=\d)", "-", plain)
    plain = re.sub(rf"(?<!\d)[{_DASHES}]+|[{_DASHES}]+(?!\d)", "", plain)
    return _plain_numbers(plain)


def class_key(name: str) -> str:
    """What two names of a class share that differ only in letter case, blanks, dashes, zeros or accents' form.

    >>> class_key("Viral_Pneumonia ") == class_key("viral  pneumonia")
    True
    >>> class_key("01"), class_key("-1")
    ('1', '-1')
    """
    plain = re.sub(r"\s+", " ", _plain(name)).strip()
    plain = re.sub(rf"(?<=[^\W_])[{_DASHES}\s]+(?=[^\W_])", " ", plain)
    return _plain_numbers(plain)


def _plain(text: str) -> str:
    """A text in lower case and one form, without what nobody sees and without the dots of a Turkish I."""
    composed = unicodedata.normalize("NFKC", text)
    seen = "".join(letter for letter in composed if unicodedata.category(letter) != "Cf")
    lower = seen.casefold().replace("i\u0307", "i").replace("\u0131", "i")
    return unicodedata.normalize("NFKC", lower)


def _plain_numbers(text: str) -> str:
    """A text whose numbers lack leading zeros, and .0 at its end."""
    text = re.sub(r"(?<=\d)[.,]0+$", "", text)
    return re.sub(r"(?<![\d.,])0+(?=\d)", "", text)


def _refuse_spoiled(spellings: Sequence[str], aliases: Mapping[str, str], where: str) -> None:
    """Refuse ids that a spreadsheet has changed; one that is mapped to itself is meant as it is."""
    told = {
        "rounded": _ROUNDED,
        "turned into dates": _DATED,
        "replaced by #, as its column was too narrow": _HASHES,
    }
    for what, pattern in told.items():
        spoiled = [
            spelling
            for spelling in spellings
            if pattern.fullmatch(spelling) and aliases.get(spelling) != spelling
        ]
        if spoiled:
            raise DataError(
                f"{where} holds {counted(len(spoiled), 'id')} that a spreadsheet has {what}: "
                f"{examples(spoiled)}. Several patients may have become one. Export the table again, with the "
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
    right, other, *_ = map(yaml_text.written, sorted(twins)[0])
    patients = "patient is" if len(twins) == 1 else "patients are"
    raise DataError(
        f"In {where}, {len(twins)} {patients} written in several ways: {first_of(shown)}. Ids that differ only by "
        f"leading zeros, '.0', letter case, blanks, signs or the alphabet would put one person on both sides of a "
        f"split. Correct the table, or decide in params.yaml: ingest.aliases: {{{other}: {right}}}; an id "
        f"that is another person's is mapped to itself."
    )


# --- class names ----------------------------------------------------------------------------------


def remarks_on_alike(classes: Sequence[str]) -> list[str]:
    """Ask whether classes are one whose names differ in a blank, a dash, an accent or the alphabet.

    >>> remarks_on_alike(["NonTumor", "Non-Tumor", "HER2+", "HER2-"])[0][:51]
    'the classes Non-Tumor and NonTumor may be one: wher'
    """
    names_of_key: dict[str, list[str]] = {}
    for name in sorted(classes):
        names_of_key.setdefault(_loose_key(name), []).append(name)
    alike = [in_words(names) for names in names_of_key.values() if len(names) > 1]
    if not alike:
        return []
    return [f"the classes {first_of(alike)} may be one: where they are, give them one name"]


def _loose_key(name: str) -> str:
    """A name without accents, and without what stands between a letter and a letter or digit."""
    decomposed = unicodedata.normalize("NFKD", class_key(name).translate(_LOOK_ALIKE))
    letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    between = rf"[{_DASHES}\s]+"
    letters = re.sub(rf"(?<=[^\W\d_]){between}(?=[^\W_])", "", letters)
    return re.sub(rf"(?<=\d){between}(?=[^\W\d_])", "", letters)


def class_names(cells: pd.Series) -> pd.Series:
    """The classes of a column, empty where none is known ("none" is a class).

    Names with the same `class_key` become the commonest of them.
    """
    known = without_missing(cells, keep=_CLASS_NAMES)
    counts = known.value_counts().to_dict()
    commonest: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        commonest.setdefault(class_key(name), name)
    return known.map(lambda name: commonest[class_key(name)])


def joined_names(cells: pd.Series) -> str:
    """Which spellings `class_names` joins, in words; empty where there are none."""
    pairs = pd.DataFrame({"written": cells, "name": class_names(cells)})
    other = pairs[(pairs["written"] != pairs["name"]) & (pairs["name"] != "")]
    counts = other.value_counts(["written", "name"]).sort_index()
    joined = []
    for (written, name), count in counts.items():
        joined.append(f"{written!r} is {name!r} ({counted(count, 'row')})")
    return first_of(joined)
