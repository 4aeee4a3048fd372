"""Files of predictions, ours or anybody's -> the predictions of methods on the same test rows, or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.core.errors import DataError
from equipoise.core.records import CALIBRATED, RAW, Predictions, probability_table
from equipoise.core.text import counted, first_of, shortened
from equipoise.judge.classes import Classes, classes_of
from equipoise.judge.sheets import ROWS_NAMED, Sheet, read_sheet

#: A row's probabilities may miss the sum of 1 by so much: they were rounded.
_ROUNDING = 0.01


@dataclass(frozen=True, eq=False)
class Method:
    """What one method predicted on test.

    Attributes:
        name: Of the method.
        predictions: One row per image, repeat, fold and seed.
        has_locked: Whether it brings calibrated probabilities and, of two classes, a threshold of its own.
    """

    name: str
    predictions: Predictions
    has_locked: bool


@dataclass(frozen=True)
class Foreign:
    """Methods that were tested on the same rows.

    Attributes:
        methods: In the order of the files.
        units: patients, or images where no patient is named.
        remarks: Sentences about what was left aside or had to be guessed.
    """

    methods: tuple[Method, ...]
    units: str
    remarks: tuple[str, ...]


def read_methods(paths: Sequence[Path], positive: str | None = None) -> Foreign:
    """Read the predictions of at least two methods and check that they are of the same test rows.

    Args:
        paths: A file for each method, or files with a column `method`.
        positive: The positive class; needed where nothing else tells.

    Raises:
        DataError: For a file that cannot be used, and for methods that were tested on other rows; it names the rows.
        ConfigError: Where the positive class is unknown, or cannot be told.
    """
    return methods_of([read_sheet(path) for path in paths], positive)


def methods_of(read: Sequence[Sheet], positive: str | None = None) -> Foreign:
    """The methods of files or tables that were read; the errors are those of `read_methods`.

    Args:
        read: A sheet for each method, or sheets with a column `method`.
        positive: The positive class; needed where nothing else tells.
    """
    sheets = {name: _checked(sheet) for name, sheet in _named_sheets(read).items()}
    if len(sheets) < 2:
        raise DataError(
            f"There is one method, {next(iter(sheets))}, and nothing to compare it with. Name a second file, or give "
            "a column method."
        )
    classes = classes_of(list(sheets.values()), positive)
    methods = [_method(name, sheet, classes) for name, sheet in sheets.items()]
    _require_same_columns(sheets)
    for method in methods[1:]:
        _require_same_rows(methods[0], method)
    remarks = [remark for sheet in sheets.values() for remark in sheet.remarks]
    return Foreign(
        methods=tuple(methods),
        units="patients" if _names_patients(sheets) else "images",
        remarks=tuple(dict.fromkeys([*remarks, *classes.remarks])),
    )


def _names_patients(sheets: dict[str, Sheet]) -> bool:
    """Whether patients are known; our own files repeat the image where they are not."""
    table = next(iter(sheets.values())).table
    if "patient" not in table:
        return False
    return "image" not in table or bool((table["patient"] != table["image"]).any())


# --- names ----------------------------------------------------------------------------------------


def _named_sheets(sheets: Sequence[Sheet]) -> dict[str, Sheet]:
    """Name of each method -> its rows."""
    named: dict[str, Sheet] = {}
    for sheet in sheets:
        for name, own in _methods_in(sheet):
            if name in named:
                raise DataError(
                    f"{named[name].source} and {sheet.source} are both called {name}. Rename a file, or a method in it."
                )
            named[name] = own
    return named


def _methods_in(sheet: Sheet) -> Iterable[tuple[str, Sheet]]:
    """The methods of a file: by its column, or else one of the file's name."""
    if "method" not in sheet.table:
        yield sheet.method, sheet
        return
    names = sheet.table["method"]
    sheet.refuse(names == "", "no method is named")
    for name in names.unique():
        yield name, replace(sheet, table=sheet.table[names == name])


# --- one method -----------------------------------------------------------------------------------


def _checked(sheet: Sheet) -> Sheet:
    """The sheet, unless its own rows cannot be used."""
    table = sheet.table
    kinds = [*sheet.probabilities(RAW), *sheet.probabilities(CALIBRATED)]
    for name in kinds:
        sheet.refuse(table[name].isna(), f"no number in {name}")
        is_outside = (table[name] < 0) | (table[name] > 1)
        sheet.refuse(is_outside, f"a probability outside 0..1 in {name}", name)
    for name in ("image", "patient", "repeat", "fold", "seed"):
        if name in table:
            sheet.refuse(table[name] == "", f"nothing stands in {name}")
    _refuse_repeated_rows(sheet)
    _refuse_patients_in_two_folds(sheet)
    _refuse_repeats_of_nobody(sheet)
    return _with_remark_on_sums(sheet)


def _with_remark_on_sums(sheet: Sheet) -> Sheet:
    """The sheet, which says in how many rows the probabilities of all classes do not add up."""
    columns = sheet.probabilities(RAW)
    sums = sheet.table[columns].sum(axis="columns")
    is_off = (sums - 1).abs() > _ROUNDING
    if len(columns) == 1 or not is_off.any():
        return sheet
    rows = sheet.table.index[is_off]
    remark = (
        f"{Path(sheet.source).name}: the probabilities of {counted(len(rows), 'row')} do not sum to 1 "
        f"({sheet.named(rows)}); they are taken as they are"
    )
    return replace(sheet, remarks=(*sheet.remarks, remark))


def _present(sheet: Sheet, *names: str) -> list[str]:
    return [name for name in names if name in sheet.table]


def _refuse_repeated_rows(sheet: Sheet) -> None:
    if "image" not in sheet.table:
        return
    keys = _present(sheet, "repeat", "fold", "seed", "image")
    is_repeated = sheet.table.duplicated(keys)
    where = (
        "in the same fold"
        if "fold" in keys
        else "without a column fold or repeat to tell them apart"
    )
    sheet.refuse(is_repeated, f"an image is predicted once more {where}", "image")


def _refuse_patients_in_two_folds(sheet: Sheet) -> None:
    """Who is tested in one fold is trained on in all the others of a repeat."""
    who = "patient" if "patient" in sheet.table else "image"
    if who not in sheet.table or "fold" not in sheet.table:
        return
    of_repeat = _present(sheet, "repeat")
    first_fold = sheet.table.groupby([*of_repeat, who])["fold"].transform("first")
    is_in_two = sheet.table["fold"] != first_fold
    sheet.refuse(
        is_in_two,
        f"a leak: a {who} tested in another fold of the same repeat too, whom a model was trained on that it is tested "
        f"on. The folds of a repeat test each {who} once; independent splits are numbered in repeat",
        who,
    )


def _refuse_repeats_of_nobody(sheet: Sheet) -> None:
    """Without ids nobody knows which rows of two repeats are the same image."""
    if "image" in sheet.table or "patient" in sheet.table:
        return
    for name in _present(sheet, "repeat", "seed"):
        if sheet.table[name].nunique() > 1:
            raise DataError(
                f"{sheet.source} has several values of {name}, and no column image or patient tells which rows are of "
                "the same one; every row would count as somebody else. Add one."
            )


def _method(name: str, sheet: Sheet, classes: Classes) -> Method:
    table = sheet.table
    image = table.get("image", _places_in_run(sheet))
    raw = _matrix(sheet, RAW, classes)
    has_locked = _has_locked(sheet, classes)
    calibrated = _matrix(sheet, CALIBRATED, classes) if has_locked else raw
    of_two = len(classes.names) == 2
    rows = pd.DataFrame(
        {
            "image_id": image.to_numpy(dtype=object),
            "patient_id": table.get("patient", image).to_numpy(dtype=object),
            "part": "test",
            "repeat": _numbered(table.get("repeat"), len(table)),
            "fold": _numbered(table.get("fold"), len(table)),
            "seed": _numbered(table.get("seed"), len(table)),
            "label": table["label"].map(classes.label_of).to_numpy(),
            "overlap": False,
            "threshold": table["threshold"].to_numpy() if of_two and has_locked else 0.5,
        }
    )
    columns = [
        rows,
        probability_table(RAW, raw, classes.names),
        probability_table(CALIBRATED, calibrated, classes.names),
    ]
    meta = {"classes": list(classes.names), "positive_class": classes.positive}
    return Method(name, Predictions(pd.concat(columns, axis="columns"), meta), has_locked)


def _places_in_run(sheet: Sheet) -> pd.Series:
    """What stands for images where no file names them: the place of a row in its repeat and seed."""
    run_of_row = pd.Series(0, sheet.table.index).astype(str)
    for name in _present(sheet, "repeat", "seed"):
        run_of_row = run_of_row + "/" + sheet.table[name]
    place = run_of_row.groupby(run_of_row).cumcount() + 1
    return "row " + place.astype(str)


def _matrix(sheet: Sheet, kind: str, classes: Classes) -> np.ndarray:
    """Probabilities (n, C) in the order of the classes."""
    if classes.by_name:
        return sheet.table[[f"{kind}_{name}" for name in classes.names]].to_numpy()
    of_positive = sheet.table[sheet.probabilities(kind)[0]].to_numpy()
    return np.column_stack([1 - of_positive, of_positive])


def _has_locked(sheet: Sheet, classes: Classes) -> bool:
    """Whether a method brings what decisions at a locked threshold need."""
    raw = sheet.probabilities(RAW)
    wanted = {f"{CALIBRATED}{name.removeprefix(RAW)}" for name in raw}
    if set(sheet.probabilities(CALIBRATED)) != wanted:
        return False
    if len(classes.names) > 2:
        return True
    if "threshold" not in sheet.table:
        return False
    sheet.refuse(sheet.table["threshold"].isna(), "no threshold")
    return True


def _numbered(values: pd.Series | None, rows: int) -> np.ndarray:
    """Repeats, folds or seeds: whole numbers where they are such, else numbered in the order of their names."""
    if values is None:
        return np.zeros(rows, dtype=np.int64)
    names = sorted(values.unique())
    if all(name.isdecimal() for name in names):
        return values.map(int).to_numpy(dtype=np.int64)
    number_of = {name: number for number, name in enumerate(names)}
    return values.map(number_of).to_numpy(dtype=np.int64)


# --- several methods ------------------------------------------------------------------------------


def _require_same_columns(sheets: dict[str, Sheet]) -> None:
    """Raise a DataError where some files name images, patients, repeats or folds and others do not."""
    (first_name, first), *others = sheets.items()
    for name, sheet in others:
        for column in ("image", "patient", "repeat", "fold"):
            if (column in first.table) != (column in sheet.table):
                has, lacks = (first_name, name) if column in first.table else (name, first_name)
                raise DataError(
                    f"{has} has a column {column} and {lacks} has none, so nobody knows whether they were tested on "
                    "the same rows. Give it to all, or to none."
                )


def _require_same_rows(first: Method, other: Method) -> None:
    """Raise a DataError unless both were tested on the same images, patients and labels, in the same folds."""
    keys = ["repeat", "fold", "image_id"]
    columns = [*keys, "patient_id", "label"]
    rows = first.predictions.table[columns].drop_duplicates(keys)
    other_rows = other.predictions.table[columns].drop_duplicates(keys)
    both = rows.merge(other_rows, on=keys, how="outer", suffixes=("", "_other"), indicator="found")
    _refuse_missing(both, "left_only", first.name, other.name)
    _refuse_missing(both, "right_only", other.name, first.name)
    classes = first.predictions.classes
    both["label"] = both["label"].map(classes.__getitem__)
    both["label_other"] = both["label_other"].map(classes.__getitem__)
    _refuse_differing(both, "label", first.name, other.name)
    _refuse_differing(both, "patient_id", first.name, other.name)


def _refuse_missing(both: pd.DataFrame, found: str, has: str, lacks: str) -> None:
    missing = both[both["found"] == found]
    if missing.empty:
        return
    raise DataError(
        f"{has} has {counted(len(missing), 'row')} that {lacks} lacks: {_places(missing)}. Methods are compared on "
        "the same test rows."
    )


def _refuse_differing(both: pd.DataFrame, column: str, first: str, other: str) -> None:
    differing = both[both[column] != both[f"{column}_other"]]
    if differing.empty:
        return
    says, other_says = (
        shortened(str(differing[name].iloc[0])) for name in (column, f"{column}_other")
    )
    what = column.removesuffix("_id")
    raise DataError(
        f"{first} and {other} disagree in {what} on {counted(len(differing), 'row')}: {_places(differing)}; on the "
        f"first one they say {says} and {other_says}."
    )


def _places(rows: pd.DataFrame) -> str:
    """The first few rows by image, with repeat and fold."""
    places = []
    for repeat, fold, image in rows[["repeat", "fold", "image_id"]].itertuples(index=False):
        places.append(f"{image} (repeat {repeat}, fold {fold})")
    return first_of(places, ROWS_NAMED, ", ")
