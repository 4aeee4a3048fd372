"""Predictions in a file or a table -> a table with known columns, whatever wrote it and however it spells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.core.errors import DataError
from equipoise.core.files import read_parquet
from equipoise.core.records import CALIBRATED, RAW
from equipoise.core.text import counted, first_of, in_words
from equipoise.ingest import tables

#: Column -> the names by which it may go, in lower case and with underscores.
_NAMES = {
    "image": ("image", "image_id"),
    "patient": ("patient", "patient_id"),
    "label": ("label",),
    "repeat": ("repeat",),
    "fold": ("fold",),
    "seed": ("seed",),
    "part": ("part",),
    "method": ("method",),
    "threshold": ("threshold",),
}
_NUMBERS = ("threshold",)
#: In our own files, and of no meaning here.
_LEFT_ASIDE = ("overlap",)
#: Our own files are called alike, and their folder names the scenario.
_OUR_STEM = "predictions"
#: So many rows are named in a refusal.
ROWS_NAMED = 3


@dataclass(frozen=True)
class Sheet:
    """The test rows of a file, or of a table in memory.

    Attributes:
        source: What messages call it: the file as it was named, or the method.
        method: What its rows are called where no column tells.
        table: Columns image, patient, label, repeat, fold, seed and method as text, as far as they are there;
            threshold, prob and calibrated (or prob_<class> and calibrated_<class>) as float64. The index is what a
            user counts: the line of a CSV, the row of a Parquet file, from 1 on; the position in a table, from 0 on.
        row_word: "line", "row" or "position", whichever the index is.
        meta: What our own files say of themselves; empty for others.
        remarks: Sentences about what was left aside or had to be guessed.
    """

    source: str
    method: str
    table: pd.DataFrame
    row_word: str
    meta: Mapping[str, Any]
    remarks: tuple[str, ...] = ()

    def probabilities(self, kind: str) -> list[str]:
        """The columns of one kind of probability, in their order."""
        return [name for name in self.table if name == kind or name.startswith(f"{kind}_")]

    def called(self, method: str) -> Sheet:
        """The same rows as those of one method of this name, whatever a column says."""
        table = self.table.drop(columns="method", errors="ignore")
        return replace(self, method=method, table=table)

    def named(self, rows: pd.Index, words: Sequence[str] = ()) -> str:
        """The first few rows as a user finds them, each with a word of its own, and how many more there are."""
        places = [f"{self.row_word} {row}" for row in rows]
        if len(words):
            places = [f"{place} ({word})" for place, word in zip(places, words)]
        return first_of(places, ROWS_NAMED, ", ")

    def refuse(self, is_wrong: pd.Series, what: str, column: str = "") -> None:
        """Raise a DataError that counts and names the rows in which something is wrong; nothing happens without any.

        Args:
            is_wrong: bool, by row.
            what: What is wrong in them.
            column: Whose values are told.
        """
        rows = self.table.index[is_wrong.to_numpy(dtype=bool)]
        if rows.empty:
            return
        words = self.table.loc[rows, column].astype(str).tolist() if column else []
        raise DataError(
            f"{self.source}: {what} ({counted(len(rows), 'row')}): {self.named(rows, words)}."
        )


def read_sheet(path: Path) -> Sheet:
    """Read a CSV or a Parquet file of predictions; of our own files the rows of test.

    Raises:
        DataError: When it is missing or unreadable, has no rows, lacks the label or every probability, names a column
            twice, or holds what is no number where a probability belongs.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path}. Name CSV or Parquet files of predictions.")
    if path.suffix.lower() in (".parquet", ".pq"):
        content = read_parquet(path)
        numbered = content.table.set_axis(range(1, len(content.table) + 1))
        sheet = Sheet(str(path), _method_of(path), numbered, "row", content.meta)
    else:
        table = tables.read_table(path)
        cells = table.cells.set_axis(list(table.header), axis="columns")
        sheet = Sheet(str(path), _method_of(path), cells, "line", {}, tuple(table.remarks))
    return _known(sheet)


def _method_of(path: Path) -> str:
    folder = path.resolve().parent.name
    return folder if path.stem == _OUR_STEM and folder else path.stem


def sheet_of(method: str, table: pd.DataFrame, meta: Mapping[str, Any] | None = None) -> Sheet:
    """Take predictions that are in memory; of rows with a column `part` those of test.

    Args:
        method: Its name, where no column `method` tells.
        table: In the columns of a file of predictions.
        meta: Classes and positive class, as our own tables bring them.

    Raises:
        DataError: As `read_sheet`.
    """
    numbered = table.set_axis(range(len(table)))
    return _known(Sheet(method, method, numbered, "position", meta or {}))


def _known(sheet: Sheet) -> Sheet:
    """The sheet with its columns under their own names."""
    renamed = {}
    unknown = []
    for position, name in enumerate(sheet.table.columns):
        known = _column(str(name))
        if known is None:
            if name and name not in _LEFT_ASIDE:
                unknown.append(str(name))
            continue
        if known in renamed:
            raise DataError(
                f"{sheet.source} has two columns for {known}. Remove one, or rename it."
            )
        renamed[known] = sheet.table.iloc[:, position]
    remarks = sheet.remarks
    if unknown:
        name = Path(sheet.source).name
        remark = f"{name}: left aside, for judge knows no such column: {in_words(unknown)}"
        remarks = (*remarks, remark)
    table = pd.DataFrame(renamed, index=sheet.table.index)
    sheet = replace(sheet, table=table, remarks=remarks)
    _require_columns(sheet)
    return _of_test(_typed(sheet))


def _column(name: str) -> str | None:
    """What a column is; None where nobody knows. Names of classes keep their spelling."""
    folded = name.strip().casefold().replace(" ", "_").replace("-", "_")
    for known, names in _NAMES.items():
        if folded in names:
            return known
    for kind in (RAW, CALIBRATED):
        if folded == kind:
            return kind
        if folded.startswith(f"{kind}_"):
            return f"{kind}_{name.strip()[len(kind) + 1 :]}"
    return None


def _require_columns(sheet: Sheet) -> None:
    """Raise a DataError where the label or every probability is missing, or there are no rows."""
    lacking = []
    if "label" not in sheet.table:
        lacking.append("label")
    if not sheet.probabilities(RAW):
        lacking.append("prob (or prob_<class> for each class)")
    if lacking:
        raise DataError(
            f"{sheet.source} lacks the column(s) {in_words(lacking)}. "
            "docs/judge.md shows what a file of predictions holds."
        )
    if sheet.table.empty:
        raise DataError(f"{sheet.source} holds no rows.")


def _typed(sheet: Sheet) -> Sheet:
    """The sheet with text and numbers as promised."""
    columns = {}
    for name in sheet.table:
        is_text = name in _NAMES and name not in _NUMBERS
        columns[name] = _text(sheet.table[name]) if is_text else _numbers(sheet, name)
    return replace(sheet, table=pd.DataFrame(columns, index=sheet.table.index))


def _text(values: pd.Series) -> pd.Series:
    """Values as text: whole numbers without a point, what is missing empty."""
    if pd.api.types.is_float_dtype(values):
        filled = values.fillna(0)
        if (filled == filled.round()).all():
            values = values.astype("Int64")
    text = values.astype(object).where(values.notna(), "")
    return text.map(lambda value: str(value).strip())


def _numbers(sheet: Sheet, name: str) -> pd.Series:
    """A column as float64; a cell in which nothing stands is NaN."""
    values = sheet.table[name]
    if pd.api.types.is_numeric_dtype(values):
        return values.astype("float64")
    filled = values.where(values.notna() & (values != ""), "nan")
    is_number = filled.map(_is_number)
    sheet.refuse(~is_number, f"no number in {name}, where 0.5 is written with a point", name)
    # Unlike pandas, Python reads every number to the last bit.
    return filled.map(float).astype("float64")


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _of_test(sheet: Sheet) -> Sheet:
    """Rows of test only, where a column `part` says which are."""
    if "part" not in sheet.table:
        return sheet
    is_test = sheet.table["part"] == "test"
    if not is_test.any():
        raise DataError(f"{sheet.source} has a column part, and no row of it says test.")
    return replace(sheet, table=sheet.table[is_test].drop(columns="part"))
