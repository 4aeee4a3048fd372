"""Labels and columns of probabilities -> the classes, their order, and which one is positive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.records import RAW
from equipoise.core.text import first_of, in_words
from equipoise.judge.sheets import Sheet

#: What labels may be of two classes that have no names, and what these are called then.
YES_NO = ({"0", "1"}, {"false", "true"})
YES = ("1", "true")
UNNAMED = ("negative", "positive")


@dataclass(frozen=True)
class Classes:
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


def classes_of(sheets: Sequence[Sheet], positive: str | None) -> Classes:
    """The classes, their order and the positive one, from columns and labels of all files together.

    Raises:
        DataError: When a label is missing or no class, or fewer than two classes are there.
        ConfigError: When the positive class does not exist, or cannot be told.
    """
    for sheet in sheets:
        sheet.refuse(sheet.table["label"] == "", "no label")
    every = pd.concat([sheet.table["label"] for sheet in sheets])
    labels = every.unique().tolist()
    columns = [sheet.probabilities(RAW) for sheet in sheets]
    for sheet, own in zip(sheets, columns):
        if set(own) != set(columns[0]):
            raise DataError(
                f"{sheets[0].source} and {sheet.source} have different probabilities: {in_words(columns[0])}, and "
                f"{in_words(own)}. Methods are compared on the same classes."
            )
    if len(labels) < 2:
        raise DataError(
            f"All rows of {sheets[0].source} have the label {labels[0]}; at least two classes are needed to compare "
            "anything."
        )
    if len(columns[0]) == 1:
        return _two_classes(columns[0][0], labels, positive)
    classes = _named_classes(sheets, columns[0], labels, positive)
    _require_every_class(classes, labels)
    return classes


def _require_every_class(classes: Classes, labels: list[str]) -> None:
    """Raise a DataError where nobody is of a class."""
    seen = {classes.label_of[label] for label in labels}
    absent = [name for position, name in enumerate(classes.names) if position not in seen]
    if absent:
        raise DataError(
            f"No row has the label {in_words(absent)}, for which there are probabilities; nothing can be said of a "
            "class that was not tested. Leave its column out, and make the others sum to 1."
        )


def _two_classes(column: str, labels: list[str], positive: str | None) -> Classes:
    """The classes of files with one column of probabilities, that of the positive class."""
    if len(labels) > 2:
        raise DataError(
            f"The column label holds {len(labels)} classes ({first_of(labels, separator=', ')}), and there is one "
            f"column of probabilities, {column}. Give a column prob_<class> for each."
        )
    of_column = column.removeprefix(RAW).removeprefix("_")
    if not positive and {label.casefold() for label in labels} in YES_NO:
        names = (f"not {of_column}", of_column) if of_column else UNNAMED
        label_of = {label: int(label.casefold() in YES) for label in labels}
        return Classes(names, names[1], label_of, by_name=False)
    positive = positive or of_column
    if not positive:
        raise ConfigError(
            f"The labels are {in_words(labels)}, and prob is the probability of the positive one. Say which that is: "
            f"--positive {labels[-1]} (in Python positive={labels[-1]!r})"
        )
    if positive not in labels:
        raise unknown_name("class", positive, labels, " in the column label")
    (negative,) = [label for label in labels if label != positive]
    label_of = {negative: 0, positive: 1}
    return Classes((negative, positive), positive, label_of, by_name=False)


def _named_classes(
    sheets: Sequence[Sheet], columns: Sequence[str], labels: list[str], positive: str | None
) -> Classes:
    """The classes of files with a column of probabilities for each."""
    names = tuple(column.removeprefix(f"{RAW}_") for column in columns)
    remarks = []
    if positive and positive not in names:
        raise unknown_name("class", positive, names, " among the columns of probabilities")
    meta = sheets[0].meta
    if not positive:
        positive = meta.get("positive_class", names[-1])
        if len(names) == 2 and "positive_class" not in meta:
            remarks.append(f"{positive} is taken for the positive class; --positive names another")
    if set(labels) <= set(names):
        if len(names) == 2:
            # Resamples draw one class after the other, so the order of the columns must not matter.
            names = tuple(sorted(names, key=lambda name: name == positive))
        label_of = {name: position for position, name in enumerate(names)}
    else:
        label_of = {str(position): position for position in range(len(names))}
        _require_numbers(sheets, labels, names)
        if "classes" not in meta:
            said = [f"{position} {name}" for position, name in enumerate(names)]
            remarks.append(
                f"Labels are numbers, read in the order of the columns: {in_words(said)}"
            )
    return Classes(names, positive, label_of, by_name=True, remarks=tuple(remarks))


def _require_numbers(sheets: Sequence[Sheet], labels: list[str], names: Sequence[str]) -> None:
    """Raise a DataError unless all labels are positions of classes."""
    numbers = {str(position) for position in range(len(names))}
    if set(labels) <= numbers:
        return
    for sheet in sheets:
        is_unknown = ~sheet.table["label"].isin([*names, *numbers])
        sheet.refuse(is_unknown, f"a label that is none of {in_words(names)}", "label")
    raise DataError(
        f"The labels of some rows are names ({in_words(names)}) and of others numbers. Write all of them alike."
    )
