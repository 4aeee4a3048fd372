"""Files of predictions, ours or anybody's -> the predictions of methods on the same test rows, or a refusal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.compare.sheets import Sheet, read_sheet
from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.records import CALIBRATED, RAW, Predictions, probability_table
from equipoise.core.text import counted, first_of, in_words

#: What a label may say of two classes that have no names, the negative one first.
_YES_NO = (("0", "1"), ("false", "true"))
_UNNAMED = ("negative", "positive")
#: A row's probabilities may miss the sum of 1 by so much: they were rounded.
_ROUNDING = 0.01
#: Our own files are called alike, and their folder names the scenario.
_OUR_STEM = "predictions"


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
    sheets = _named_sheets([read_sheet(path) for path in paths])
    if len(sheets) < 2:
        raise DataError(
            f"{in_words([str(path) for path in paths])} holds one method, {next(iter(sheets))}, and there is nothing to "
            "compare it with. Name a second file, or give a column method."
        )
    classes = _classes_of(list(sheets.values()), positive)
    methods = []
    for name, sheet in sheets.items():
        methods.append(_method(name, _checked(sheet), classes))
    _require_same_columns(sheets)
    for method in methods[1:]:
        _require_same_rows(methods[0], method)
    has_patients = all("patient" in sheet.table for sheet in sheets.values())
    remarks = [remark for sheet in sheets.values() for remark in sheet.remarks]
    return Foreign(
        methods=tuple(methods),
        units="patients" if has_patients else "images",
        remarks=tuple(dict.fromkeys([*remarks, *classes.remarks])),
    )


# --- names ----------------------------------------------------------------------------------------


def _named_sheets(sheets: Sequence[Sheet]) -> dict[str, Sheet]:
    """Name of each method -> its rows."""
    named: dict[str, Sheet] = {}
    for sheet in sheets:
        for name, own in _methods_in(sheet):
            if name in named:
                raise DataError(
                    f"{named[name].path} and {sheet.path} are both called {name}. Rename a file, or a method in it."
                )
            named[name] = own
    return named


def _methods_in(sheet: Sheet) -> Iterable[tuple[str, Sheet]]:
    """The methods of a file: by its column, or else one of the file's name."""
    if "method" not in sheet.table:
        yield _name_of(sheet.path), sheet
        return
    names = sheet.table["method"]
    sheet.refuse(names == "", "name no method")
    for name in names.unique():
        yield name, replace(sheet, table=sheet.table[names == name])


def _name_of(path: Path) -> str:
    folder = path.resolve().parent.name
    return folder if path.stem == _OUR_STEM and folder else path.stem


# --- classes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Classes:
    """The classes of all methods.

    Attributes:
        names: In the order of the labels.
        positive: Name of the positive class.
        label_of: What stands in the column `label` -> int.
        by_name: Whether there is a column of probabilities for each class.
        remarks: What had to be guessed.
    """

    names: tuple[str, ...]
    positive: str
    label_of: dict[str, int]
    by_name: bool
    remarks: tuple[str, ...] = ()


def _classes_of(sheets: Sequence[Sheet], positive: str | None) -> _Classes:
    """The classes, their order and the positive one, from columns and labels of all files together."""
    for sheet in sheets:
        sheet.refuse(sheet.table["label"] == "", "have no label")
    labels = list(
        dict.fromkeys(label for sheet in sheets for label in sheet.table["label"].unique())
    )
    columns = [sheet.probabilities(RAW) for sheet in sheets]
    for sheet, own in zip(sheets, columns):
        if set(own) != set(columns[0]):
            raise DataError(
                f"{sheets[0].path} and {sheet.path} have different probabilities: {in_words(columns[0])}, and "
                f"{in_words(own)}. Methods are compared on the same classes."
            )
    if len(labels) < 2:
        raise DataError(
            f"All rows of {sheets[0].path} have the label {labels[0]}; at least two classes are needed to compare "
            "anything."
        )
    if len(columns[0]) == 1:
        return _two_classes(columns[0][0], labels, positive)
    return _named_classes(sheets, columns[0], labels, positive)


def _two_classes(column: str, labels: list[str], positive: str | None) -> _Classes:
    """The classes of files with one column of probabilities, that of the positive class."""
    if len(labels) > 2:
        raise DataError(
            f"The column label holds {len(labels)} classes ({first_of(labels, separator=', ')}), and there is one column "
            f"of probabilities, {column}. Give a column prob_<class> for each."
        )
    of_column = column.removeprefix(RAW).removeprefix("_")
    for negative_word, positive_word in _YES_NO:
        if {label.casefold() for label in labels} == {
            negative_word,
            positive_word,
        } and not positive:
            names = (f"not {of_column}", of_column) if of_column else _UNNAMED
            label_of = {label: int(label.casefold() == positive_word) for label in labels}
            return _Classes(names, names[1], label_of, by_name=False)
    positive = positive or of_column
    if not positive:
        raise ConfigError(
            f"The labels are {in_words(labels)}, and prob is the probability of the positive one. Say which that is: "
            f"--positive {labels[-1]}"
        )
    if positive not in labels:
        raise unknown_name("class", positive, labels, " in the column label")
    (negative,) = [label for label in labels if label != positive]
    label_of = {negative: 0, positive: 1}
    return _Classes((negative, positive), positive, label_of, by_name=False)


def _named_classes(
    sheets: Sequence[Sheet], columns: Sequence[str], labels: list[str], positive: str | None
) -> _Classes:
    """The classes of files with a column of probabilities for each."""
    names = tuple(column.removeprefix(f"{RAW}_") for column in columns)
    remarks = []
    label_of = {name: position for position, name in enumerate(names)}
    positions = {str(position): position for position in range(len(names))}
    if not set(labels) <= set(names):
        if not set(labels) <= set(positions):
            _refuse_labels(sheets, {*names, *positions}, names)
        label_of = positions
    if label_of is positions and sheets[0].meta.get("classes") != list(names):
        said = [f"{position} {name}" for position, name in enumerate(names)]
        remarks.append(f"Labels are numbers, read in the order of the columns: {in_words(said)}")
    if positive and positive not in names:
        raise unknown_name("class", positive, names, " among the columns of probabilities")
    own = sheets[0].meta.get("positive_class")
    if not positive:
        positive = own if own in names else names[-1]
        if len(names) == 2 and own not in names:
            remarks.append(f"{positive} is taken for the positive class; --positive names another")
    return _Classes(names, positive, label_of, by_name=True, remarks=tuple(remarks))


def _refuse_labels(sheets: Sequence[Sheet], known: Collection[str], names: Sequence[str]) -> None:
    for sheet in sheets:
        is_unknown = ~sheet.table["label"].isin(known)
        sheet.refuse(is_unknown, f"have a label that is none of {in_words(names)}", "label")
    raise DataError(
        f"The labels of some rows are names ({in_words(names)}) and of others numbers. Write all of them alike."
    )


# --- one method -----------------------------------------------------------------------------------


def _checked(sheet: Sheet) -> Sheet:
    """The sheet, unless its own rows cannot be used."""
    table = sheet.table
    kinds = [*sheet.probabilities(RAW), *sheet.probabilities(CALIBRATED)]
    for name in kinds:
        sheet.refuse(table[name].isna(), f"have no number in {name}")
        is_outside = (table[name] < 0) | (table[name] > 1)
        sheet.refuse(is_outside, f"have a probability outside 0..1 in {name}", name)
    for name in ("image", "patient", "repeat", "fold", "seed"):
        if name in table:
            sheet.refuse(table[name] == "", f"say nothing in {name}")
    _refuse_repeated_rows(sheet)
    _refuse_patients_in_two_folds(sheet)
    _refuse_repeats_of_nobody(sheet)
    return sheet


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
    sheet.refuse(is_repeated, f"predict an image once more {where}", "image")


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
        f"are of {who}s tested in another fold of the same repeat too, which is a leak: the folds of a repeat test each "
        f"{who} once, or else a model was trained on those it is tested on (independent splits are numbered in repeat)",
        who,
    )


def _refuse_repeats_of_nobody(sheet: Sheet) -> None:
    """Without ids nobody knows which rows of two repeats are the same image."""
    if "image" in sheet.table or "patient" in sheet.table:
        return
    for name in _present(sheet, "repeat", "seed"):
        if sheet.table[name].nunique() > 1:
            raise DataError(
                f"{sheet.path} has several values of {name}, and no column image or patient tells which rows are of the "
                "same one; every row would count as somebody else. Add one."
            )


def _method(name: str, sheet: Sheet, classes: _Classes) -> Method:
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


def _matrix(sheet: Sheet, kind: str, classes: _Classes) -> np.ndarray:
    """Probabilities (n, C) in the order of the classes."""
    if classes.by_name:
        return sheet.table[[f"{kind}_{name}" for name in classes.names]].to_numpy()
    of_positive = sheet.table[sheet.probabilities(kind)[0]].to_numpy()
    return np.column_stack([1 - of_positive, of_positive])


def _has_locked(sheet: Sheet, classes: _Classes) -> bool:
    """Whether a method brings what decisions at a locked threshold need."""
    raw = sheet.probabilities(RAW)
    wanted = {f"{CALIBRATED}{name.removeprefix(RAW)}" for name in raw}
    if set(sheet.probabilities(CALIBRATED)) != wanted:
        return False
    if len(classes.names) > 2:
        return True
    if "threshold" not in sheet.table:
        return False
    sheet.refuse(sheet.table["threshold"].isna(), "have no threshold")
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
                    f"{has} has a column {column} and {lacks} has none, so nobody knows whether they were tested on the "
                    "same rows. Give it to all, or to none."
                )


def _require_same_rows(first: Method, other: Method) -> None:
    """Raise a DataError unless both were tested on the same images, of the same patients and labels, in the same folds."""
    keys = ["repeat", "fold", "image_id"]
    columns = [*keys, "patient_id", "label"]
    rows = first.predictions.table[columns].drop_duplicates(keys)
    other_rows = other.predictions.table[columns].drop_duplicates(keys)
    both = rows.merge(other_rows, on=keys, how="outer", suffixes=("", "_other"), indicator="found")
    for side, has, lacks in (("left_only", first, other), ("right_only", other, first)):
        missing = both[both["found"] == side]
        if len(missing):
            raise DataError(
                f"{has.name} has {counted(len(missing), 'row')} that {lacks.name} lacks: {_places(missing)}. Methods are "
                "compared on the same test rows."
            )
    for column, word in (("label", "labels"), ("patient_id", "patients")):
        differ = both[both[column] != both[f"{column}_other"]]
        if len(differ):
            values = differ[[column, f"{column}_other"]].iloc[0]
            if column == "label":
                values = [first.predictions.classes[int(value)] for value in values]
            one, two = values
            raise DataError(
                f"{first.name} and {other.name} disagree on the {word} of {counted(len(differ), 'row')}: "
                f"{_places(differ)}; of the first one they say {one} and {two}."
            )


def _places(rows: pd.DataFrame) -> str:
    """The first few rows by image, with repeat and fold."""
    places = []
    for repeat, fold, image in rows[["repeat", "fold", "image_id"]].itertuples(index=False):
        places.append(f"{image} (repeat {repeat}, fold {fold})")
    return first_of(places, 3, ", ")
