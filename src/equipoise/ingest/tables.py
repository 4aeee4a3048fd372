"""Reads a CSV as people have it: any usual delimiter, encoding and spelling of the header.

Every cell stays text, so that no id becomes a number, and nothing is read as missing.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from equipoise.core import images
from equipoise.core.errors import DataError
from equipoise.core.text import counted

#: Endings of the files that hold a table, or a spreadsheet that is refused with what to do.
SUFFIXES = frozenset({".csv", ".tsv", ".xlsx", ".xlsm", ".xls", ".ods", ".numbers"})

_DELIMITERS = (",", ";", "\t", "|")
#: The longer marks first: that of UTF-32 begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: How files begin that are no text: zip (Excel, OpenDocument), Excel of 1997, Parquet.
_NO_TEXT = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"PAR1")
#: Excel writes this line to say which delimiter follows.
_EXCEL_LINE = re.compile(r'\s*"?sep=([,;:|\t])"?[^\r\n]*(\r\n|\r|\n|$)', re.I)
#: `="0012"`, a formula that is a text.
_EXCEL_TEXT = re.compile(r'="([^"]*)"')
#: What `str.strip` leaves although nobody sees it.
_INVISIBLE = "\ufeff\u200b\u2060"


@dataclass(frozen=True)
class Table:
    """A CSV as text.

    Attributes:
        path: The file.
        header: Names of the columns, without blanks around them; a column may lack one.
        cells: Text, one column for each name, by position; without the rows in which nothing
            stands. The index is the line of the file on which a row ends.
        remarks: Sentences about what had to be guessed.
    """

    path: Path
    header: tuple[str, ...]
    cells: pd.DataFrame
    remarks: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether there is a column of this name."""
        return bool(self._positions(name))

    def column(self, name: str) -> pd.Series:
        """The cells of one column, without blanks around them.

        A name that no column has exactly may differ in letter case, blanks, hyphens and underscores.

        Raises:
            DataError: When there is none, or more than one.
        """
        positions = self._positions(name)
        if not positions:
            raise DataError(
                f"{self.path} lacks the column(s) {name}; it has {self.names}.{self._advice()}"
            )
        if len(positions) > 1:
            raise DataError(
                f"{self.path} has {len(positions)} columns that may be {name}: "
                f"{', '.join(self.header[position] for position in positions)}. Rename one."
            )
        return self.cells[positions[0]]

    @property
    def names(self) -> str:
        """The columns that have a name, in words."""
        return ", ".join(name for name in self.header if name)

    def _advice(self) -> str:
        """What to do where the header is one cell: its delimiter was not seen."""
        if len(self.header) > 1:
            return ""
        return (
            " The first line must name the columns; cells are divided by comma, semicolon, tab or "
            "bar, and a row as a whole stands in no quotes."
        )

    def _positions(self, name: str) -> list[int]:
        exact = [position for position, own in enumerate(self.header) if own == name]
        if exact:
            return exact
        wanted = _folded(name)
        return [position for position, own in enumerate(self.header) if _folded(own) == wanted]


def read_table(path: Path) -> Table:
    """Read a CSV whose first row names the columns.

    Delimiters are comma, semicolon, tab and bar. Text is in UTF-8, in UTF-16 or UTF-32, else it is
    taken for Windows-1252, with a remark. Columns without a name, empty rows and empty cells behind
    the last column are left out.

    Raises:
        DataError: When the file is missing, is a spreadsheet or no text, is empty, or has cells
            beyond its columns or a quote that never ends.
    """
    text = _read_text(path)
    rows = _rows(path, text.content)
    _, names = next(rows, (0, []))
    header = tuple(names)
    if not any(header):
        raise DataError(f"{path} is not readable as a CSV: it is empty.")
    lines = []
    cells = []
    repeated = []
    for line, row in rows:
        _refuse_surplus(path, line, row, header)
        if tuple(row) == header:
            repeated.append(line)
            continue
        padded = row + [""] * (len(header) - len(row))
        lines.append(line)
        cells.append(padded[: len(header)])
    frame = pd.DataFrame(cells, index=lines, columns=range(len(header)), dtype=object)
    remarks = text.remarks
    if repeated:
        remarks += (
            f"{path.name} repeats its header on line {repeated[0]}: left out, as {counted(len(repeated), 'such row')}",
        )
    return Table(path, header, frame, remarks)


def _folded(name: str) -> str:
    """A name of a column as it is compared where no column has it exactly.

    >>> _folded("Patient ID") == _folded("patient_id")
    True
    """
    seen = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_-]+", "_", seen.casefold())


# --- from bytes to text ---------------------------------------------------------------------------


class _Text(NamedTuple):
    """The content of a file, and what had to be guessed."""

    content: str
    remarks: tuple[str, ...] = ()


def _read_text(path: Path) -> _Text:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.suffix.lower() in SUFFIXES - {".csv", ".tsv"} or content.startswith(_NO_TEXT):
        raise DataError(
            f"{path} is not a CSV but a spreadsheet or another binary file. Save it as a CSV (in Excel: Save As, "
            f"CSV UTF-8) and name that file. Make the columns of ids text before: Excel drops leading zeros."
        )
    what = images.what_else(content)
    if what:
        raise DataError(f"{path} is not readable as a CSV: {what}.")
    text = _decoded(path, content)
    if "\0" in text.content:
        raise DataError(f"{path} is not readable as a CSV: it holds NUL characters.")
    # A Mac writes é as two characters; names of files and classes are compared as one.
    return _Text(unicodedata.normalize("NFC", text.content), text.remarks)


def _decoded(path: Path, content: bytes) -> _Text:
    encoding = _encoding(content)
    try:
        return _Text(content.decode(encoding))
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(f"{path} is not readable as a CSV in {encoding}: {error}.") from error
        return _western(path, content, error.start)


def _encoding(content: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return encoding
    # Latin letters in UTF-16: every other byte is 0.
    beginning = content[:1000]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        other_bytes = beginning[first::2]
        if other_bytes.count(0) > len(other_bytes) / 2:
            return encoding
    return "utf-8"


def _western(path: Path, content: bytes, position: int) -> _Text:
    """Read the text as Excel writes it in the west; the remark shows a word, for the user to judge."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    before = text[:position]
    line = len(before.splitlines()) or 1
    word = re.split(r"[,;|\s]", before)[-1] + re.split(r"[,;|\s]", text[position:])[0]
    remark = (
        f"{path.name} is not in UTF-8 and was read as Windows-1252: line {line} says {word!r}. Where "
        f"that is wrong, save it as UTF-8"
    )
    return _Text(text, (remark,))


# --- from text to rows ----------------------------------------------------------------------------


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows in which something stands, each with the line on which it ends; blanks are stripped."""
    skipped = 0
    excel_line = _EXCEL_LINE.match(text)
    if excel_line:
        delimiter = excel_line[1]
        text = text[excel_line.end() :]
        skipped = 1
    else:
        delimiter = _delimiter(text)
    # Strict: a quote that never ends would swallow the rest of the file.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        for row in reader:
            cells = [_plain_cell(cell) for cell in row]
            if any(cells):
                yield reader.line_num + skipped, cells
    except csv.Error as error:
        raise DataError(
            f"{path} is not readable as a CSV: line {reader.line_num + skipped}: {error}. A quote that "
            f"belongs to a cell is written twice, and the cell stands in quotes."
        ) from error


def _plain_cell(cell: str) -> str:
    """A cell without blanks around it, and without the formula by which Excel is made to keep zeros.

    >>> _plain_cell(' ="0012"')
    '0012'
    """
    plain = cell.strip().strip(_INVISIBLE)
    formula = _EXCEL_TEXT.fullmatch(plain)
    return formula[1].strip() if formula else plain


def _delimiter(text: str) -> str:
    """The delimiter that divides the first row into most cells; a comma where none divides it.

    `csv.Sniffer` looks at values too: for a single column of paths it answers "p", or raises.
    """
    cells_by_delimiter = {}
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter)
        try:
            first_row = next(reader, [])
        except csv.Error:
            first_row = []
        cells_by_delimiter[delimiter] = len(first_row)
    return max(cells_by_delimiter, key=lambda delimiter: cells_by_delimiter[delimiter])


def _refuse_surplus(path: Path, line: int, row: Sequence[str], header: Sequence[str]) -> None:
    if not any(row[len(header) :]):
        return
    raise DataError(
        f"{path}, line {line} has {len(row)} cells, the header names {len(header)} columns "
        f"({', '.join(header)}). A cell that holds the delimiter stands in quotes; every column needs a name."
    )
