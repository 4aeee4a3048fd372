"""Labels, patients and features as people hand them over -> arrays and records, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.files import digest_of
from equipoise.core.records import Manifest
from equipoise.core.text import counted, first_of, in_words
from equipoise.judge.classes import UNNAMED, YES, YES_NO

#: What rows come from where there is no dataset.
NOWHERE = "arrays"
#: What says who the patient is where the arrays do.
READING = "patient"
#: So many rows are named in a refusal.
_ROWS_NAMED = 3


@dataclass(frozen=True, eq=False)
class Labels:
    """The class of each row.

    Attributes:
        codes: int (num_rows,), positions in `classes`.
        classes: Names, the positive one of two last; 0 and 1, or truth values, are negative and positive.
        positive: The positive class.
    """

    codes: np.ndarray
    classes: tuple[str, ...]
    positive: str

    @classmethod
    def of(cls, values: npt.ArrayLike, positive: Any = None, must_tell: bool = True) -> Labels:
        """Read labels of any kind: names, numbers, truth values.

        Args:
            values: (num_rows,).
            positive: The positive class; 1 or True where the labels are 0 and 1 or truth values,
                else it has to be given for two classes.
            must_tell: Whether anything depends on it; else the last of two classes will do.

        Raises:
            DataError: For missing labels, and for a single class.
            ConfigError: When the positive class does not exist, or cannot be told.
        """
        names = _names(values, "label")
        if positive is None and {name.casefold() for name in names} in YES_NO:
            names = [UNNAMED[name.casefold() in YES] for name in names]
            positive = UNNAMED[True]
        classes = _ordered(names)
        if len(classes) < 2:
            raise DataError(
                f"All {counted(len(names), 'label')} are {', '.join(classes) or 'missing'}; at least two classes are "
                "needed to tell them apart."
            )
        positive_name = _positive(classes, positive, must_tell)
        if len(classes) == 2:
            classes.sort(key=lambda name: name == positive_name)
        position_of = {name: position for position, name in enumerate(classes)}
        codes = np.array([position_of[name] for name in names], dtype=np.int64)
        return cls(codes, tuple(classes), positive_name)

    def __len__(self) -> int:
        return len(self.codes)


def _names(values: npt.ArrayLike, what: str) -> list[str]:
    """Values as text, whole numbers without a point.

    Raises:
        DataError: When some are missing, or the values are no list.
    """
    series = pd.Series(_column(values, what))
    require_rows(series.notna().to_numpy(), f"no {what}")
    if pd.api.types.is_float_dtype(series) and (series == series.round()).all():
        series = series.astype("int64")
    return [str(value).strip() for value in series]


def _column(values: npt.ArrayLike, what: str) -> np.ndarray:
    """One value a row; a column of a table loses its index."""
    column = values.to_numpy() if isinstance(values, pd.Series | pd.Index) else np.asarray(values)
    if column.ndim != 1:
        raise DataError(
            f"The {what}s have the shape {column.shape}; one {what} a row is expected, shape (rows,)."
        )
    return column


def require_rows(is_right: np.ndarray, what: str) -> None:
    """Raise a DataError that counts and names the rows in which something is wrong.

    Args:
        is_right: bool (num_rows,).
        what: What is wrong with the others.
    """
    wrong = np.flatnonzero(~is_right)
    if not len(wrong):
        return
    places = first_of([str(row) for row in wrong], _ROWS_NAMED, ", ")
    raise DataError(
        f"{counted(len(wrong), 'row')}, counted from 0, with {what}: {places}. Leave these rows out, or fill them."
    )


def _ordered(names: Sequence[str]) -> list[str]:
    """Each name once: numbers by their value, anything else by the alphabet."""
    different = set(names)
    if all(name.removeprefix("-").isdecimal() for name in different):
        return sorted(different, key=lambda name: (int(name), name))
    return sorted(different)


def _positive(classes: Sequence[str], positive: Any, must_tell: bool) -> str:
    if positive is not None:
        name = str(positive)
        if name not in classes:
            raise unknown_name("class", name, classes, " among the labels")
        return name
    if len(classes) == 2 and must_tell:
        raise ConfigError(
            f"The labels are {in_words(list(classes))}. Say which of them is the disease: positive={classes[-1]!r}."
        )
    return classes[-1]


def patients_of(values: npt.ArrayLike | None, num_rows: int) -> np.ndarray | None:
    """Who each row is of, text (num_rows,); None where nobody knows.

    Raises:
        DataError: For missing ids, and for another number of them.
    """
    if values is None:
        return None
    names = _names(values, "patient")
    require_as_many(len(names), num_rows, "patients")
    return np.array(names, dtype=object)


def require_as_many(number: int, num_rows: int, what: str) -> None:
    """Raise a DataError unless there are as many of something as there are labels."""
    if number != num_rows:
        raise DataError(
            f"There are {number} {what} and {num_rows} labels; one for each row is expected."
        )


def features_of(values: Any, num_rows: int, what: str = "features") -> np.ndarray:
    """Features as the engine takes them, float32 or float16 (num_rows, num_features).

    Raises:
        DataError: For another shape, for what is no number, and for numbers that are not finite.
    """
    try:
        table = np.asarray(values)
        if table.dtype != np.float16:
            with np.errstate(over="ignore"):  # told below, with the rows
                table = table.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The {what} are no table of numbers ({error}). Give an array of shape (rows, features)."
        ) from error
    if table.ndim != 2 or not table.shape[1]:
        raise DataError(
            f"The {what} have the shape {table.shape}; (rows, features) is expected, a row for each label."
        )
    require_as_many(len(table), num_rows, f"rows of {what}")
    require_rows(
        np.isfinite(table).all(axis=1),
        f"numbers that are not finite, or too large for float32, in the {what}",
    )
    return np.ascontiguousarray(table)


def manifest_of(
    labels: Labels, patients: np.ndarray | None, image_ids: npt.ArrayLike | None
) -> Manifest:
    """The rows as the stages know them.

    Args:
        labels: Of the rows.
        patients: (num_rows,); None makes every row a patient of its own.
        image_ids: A name for each row; the number of the row when left out.

    Raises:
        DataError: For a name that stands there twice, or another number of them.
    """
    names = _image_names(image_ids, len(labels))
    table = pd.DataFrame(
        {
            "image_id": names,
            "sha256": names,
            "picture": names,
            "path": names,
            "class_name": [labels.classes[code] for code in labels.codes],
            "patient_id": names if patients is None else patients,
            "label": labels.codes,
            "width_px": 0,
            "height_px": 0,
            "bytes": 0,
            "grey_mean": np.nan,
        }
    )
    meta = {
        "study": NOWHERE,
        "dataset": NOWHERE,
        "classes": list(labels.classes),
        "positive_class": labels.positive,
        "readings": [READING],
    }
    digest = digest_of([meta, table[["image_id", "patient_id", "label"]].to_numpy().tolist()])
    return Manifest(table.assign(**{READING: table["patient_id"]}), meta, digest)


def _image_names(image_ids: npt.ArrayLike | None, num_rows: int) -> list[str]:
    if image_ids is None:
        return [f"row {row}" for row in range(num_rows)]
    names = _names(image_ids, "image")
    require_as_many(len(names), num_rows, "images")
    repeated = pd.Series(names).duplicated()
    if repeated.any():
        row = int(repeated.idxmax())
        raise DataError(
            f"The image {names[row]!r} stands in {int((pd.Series(names) == names[row]).sum())} rows, the second one is "
            f"row {row}; every image needs a name of its own."
        )
    return names
