"""The tables that travel between stages: their columns, and the checks of a file that holds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from equipoise.core.documents import ClassCount
from equipoise.core.errors import DataError
from equipoise.core.files import (
    ParquetContent,
    digest_of,
    file_digest,
    read_parquet,
    write_table,
)
from equipoise.core.greylevels import GreyScale

PARTS = ("train", "val", "test")


#: First word of the columns with probabilities as the model gives them.
RAW = "prob"
#: First word of the columns with probabilities after the calibrator.
CALIBRATED = "calibrated"


def probability_columns(kind: str, classes: Sequence[str]) -> list[str]:
    """Return the names of the columns that hold one probability per class.

    Args:
        kind: `RAW` or `CALIBRATED`.
        classes: Class names, in the order of the labels.

    >>> probability_columns(RAW, ["clear", "opacity"])
    ['prob_clear', 'prob_opacity']
    """
    return [f"{kind}_{name}" for name in classes]


def probability_table(kind: str, values: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Return probabilities (num_rows, num_classes) as a table with these columns."""
    return pd.DataFrame(values, columns=probability_columns(kind, classes))


@dataclass(frozen=True)
class Record:
    """A table with required columns, and metadata about it.

    Attributes:
        table: The rows.
        meta: Plain data about the table as a whole.
        digest: SHA-256 of the file that the record was read from or written to; empty while it is
            in no file.
        SCHEMA: The required columns and the kinds of their values. A file may hold any of Arrow's
            integers, floating-point numbers and strings for them.
        COLUMNS: Names of the required columns.
        META: The keys that the metadata of a file must hold, with the types of their values.
    """

    table: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    SCHEMA: ClassVar[pa.Schema] = pa.schema([])
    COLUMNS: ClassVar[tuple[str, ...]] = ()
    META: ClassVar[dict[str, type]] = {}

    def __post_init__(self) -> None:
        self._require(self.COLUMNS)

    def _require(self, columns: Iterable[str]) -> None:
        """Raise a DataError that names the columns which the table lacks."""
        lacking = [name for name in columns if name not in self.table.columns]
        if not lacking:
            return
        present = ", ".join(str(name) for name in self.table.columns)
        raise DataError(
            f"{type(self).__name__} lacks the column(s) {', '.join(lacking)}; it has {present}. "
            "Run the stage that writes it again."
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a record.

        Raises:
            DataError: For a file that is missing, damaged, or holds something else.
        """
        content = read_parquet(path)
        problem = first_problem(cls, content)
        if problem is not None:
            raise DataError(f"{path} {problem}. Run the stage that writes it again.")
        return cls(content.table, content.meta, file_digest(path))

    def write(self, path: Path) -> Self:
        """Write the record whole or not at all, and return it with its digest."""
        write_table(path, self.table, self.meta)
        return dataclasses.replace(self, digest=file_digest(path))


# --- the checks of a file -------------------------------------------------------------------------


def first_problem(record: type[Record], content: ParquetContent) -> str | None:
    """Say in words what is wrong with a file that should hold a record; None when nothing is.

    The checks run in the order of `CHECKS` and stop at the first problem, so that a check may rely
    on those before it.
    """
    for check in CHECKS:
        problem = check(record, content)
        if problem is not None:
            return problem
    return None


def _metadata_have_their_types(record: type[Record], content: ParquetContent) -> str | None:
    for name, expected in record.META.items():
        value = content.meta.get(name)
        if not isinstance(value, expected):
            return f"says {value!r:.80} of {name} in its metadata, {expected.__name__} is expected"
    return None


def _class_names_differ(record: type[Record], content: ParquetContent) -> str | None:
    if "classes" not in record.META:
        return None
    classes = content.meta["classes"]
    all_text = all(isinstance(name, str) for name in classes)
    if not classes or not all_text or len(set(classes)) < len(classes):
        return f"names the classes {classes!r:.80}, different names are expected"
    return None


def _positive_class_is_a_class(record: type[Record], content: ParquetContent) -> str | None:
    if "positive_class" not in record.META:
        return None
    positive_class = content.meta["positive_class"]
    if positive_class not in content.meta["classes"]:
        return f"names the positive class {positive_class!r:.80}, which is none of its classes"
    return None


def _labels_are_positions_of_classes(record: type[Record], content: ParquetContent) -> str | None:
    if "classes" not in record.META or "label" not in content.table:
        return None
    num_classes = len(content.meta["classes"])
    if not content.table["label"].isin(range(num_classes)).all():
        return f"holds labels outside its {num_classes} classes"
    return None


def _parts_are_known(record: type[Record], content: ParquetContent) -> str | None:
    if "part" not in content.table:
        return None
    if not content.table["part"].isin(PARTS).all():
        return f"holds parts other than {', '.join(PARTS)}"
    return None


def _promised_columns_are_there(record: type[Record], content: ParquetContent) -> str | None:
    for name in _readings(content):
        if name not in content.table:
            return f"lacks the column {name:.80}, which its metadata name"
    return None


def _columns_have_their_kinds(record: type[Record], content: ParquetContent) -> str | None:
    for name, expected in _kinds_of_columns(record, content).items():
        actual_type = content.schema.field(name).type
        if _kind(actual_type) != expected:
            return f"holds {actual_type} in column {name}, {expected} is expected"
    return None


def _no_value_is_missing(record: type[Record], content: ParquetContent) -> str | None:
    for name, kind in _kinds_of_columns(record, content).items():
        if kind != _NUMBER and content.table[name].isna().any():
            return f"has rows without {name}"
    return None


CHECKS = (
    _metadata_have_their_types,
    _class_names_differ,
    _positive_class_is_a_class,
    _labels_are_positions_of_classes,
    _parts_are_known,
    _promised_columns_are_there,
    _columns_have_their_kinds,
    _no_value_is_missing,
)


_TEXT = "text"
#: The only kind whose values may be missing: a threshold or a grey level that does not exist.
_NUMBER = "number"


def _kind(data_type: pa.DataType) -> str:
    """The kind of a column's values in words; Arrow's own word for a kind that no record has."""
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return _TEXT
    if pa.types.is_integer(data_type):
        return "whole numbers"
    if pa.types.is_floating(data_type):
        return _NUMBER
    if pa.types.is_boolean(data_type):
        return "yes or no"
    return str(data_type)


def _readings(content: ParquetContent) -> list[str]:
    """Names of the columns that hold readings of who the patient is; only a manifest has some."""
    return [str(name) for name in content.meta.get("readings", ())]


def _kinds_of_columns(record: type[Record], content: ParquetContent) -> dict[str, str]:
    """Column -> expected kind, for those columns of a file whose kind is fixed."""
    kinds = {column.name: _kind(column.type) for column in record.SCHEMA}
    for name in content.schema.names:
        if name.startswith((f"{RAW}_", f"{CALIBRATED}_")):
            kinds[name] = _NUMBER
    for name in _readings(content):
        kinds[name] = _TEXT
    return {name: kind for name, kind in kinds.items() if name in content.table}


# --- the records ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest(Record):
    """One row per usable image.

    Columns:
        image_id: Unique and stable: the path inside the raw folder, or a keyed hash of it.
        sha256: Of the file's bytes; features are found by it.
        picture: Names what the file shows; exact and near copies have the same.
        path: Where the file lies inside the raw folder; empty where ids are hashed.
        label: Position of the class in `classes`.
        patient_id: Who the patient is, by the dataset's first reading.
    """

    SCHEMA: ClassVar = pa.schema(
        [
            ("image_id", pa.string()),
            ("sha256", pa.string()),
            ("picture", pa.string()),
            ("path", pa.string()),
            ("class_name", pa.string()),
            ("patient_id", pa.string()),
            ("label", pa.int64()),
            ("width_px", pa.int64()),
            ("height_px", pa.int64()),
            ("bytes", pa.int64()),
            ("grey_mean", pa.float64()),
        ]
    )
    COLUMNS: ClassVar = tuple(SCHEMA.names)
    META: ClassVar = {
        "study": str,
        "dataset": str,
        "classes": list,
        "positive_class": str,
        "readings": list,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        repeated = self.table["image_id"].duplicated()
        if repeated.any():
            image_id = self.table.loc[repeated, "image_id"].iloc[0]
            raise DataError(
                f"The manifest names image '{image_id}' more than once. Run `equipoise ingest` again."
            )
        if self.table[["patient_id", "picture"]].isna().any(axis=None):
            raise DataError(
                "The manifest holds images without patient_id or picture. Run `equipoise ingest` again."
            )
        num_classes = len(self.meta["classes"])
        if not self.table["label"].between(0, num_classes - 1).all():
            raise DataError(
                f"The manifest holds labels outside its {num_classes} classes. Run `equipoise ingest`."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them."""
        return tuple(self.meta["classes"])

    @property
    def positive_class(self) -> str:
        """The class that sensitivity speaks of: the disease."""
        return self.meta["positive_class"]

    @property
    def grey_scale(self) -> GreyScale | None:
        """Which value is white in files of more than 8 bits; None where there is no such file."""
        scale = self.meta.get("grey_scale")
        return GreyScale.of_dict(scale) if scale else None

    def counts(self) -> np.ndarray:
        """Images per class, int (num_classes,)."""
        return np.bincount(self.table["label"], minlength=len(self.classes))


class Round(NamedTuple):
    """One division of the images: a repeat, and a fold in it."""

    repeat: int
    fold: int


@dataclass(frozen=True)
class Splits(Record):
    """One row per image, repeat and fold.

    Columns:
        part: train, val or test; k-fold has no val.
        patient_id: The group whose images are in one part together.
    """

    SCHEMA: ClassVar = pa.schema(
        [
            ("image_id", pa.string()),
            ("patient_id", pa.string()),
            ("part", pa.string()),
            ("repeat", pa.int64()),
            ("fold", pa.int64()),
        ]
    )
    COLUMNS: ClassVar = tuple(SCHEMA.names)
    META: ClassVar = {"study": str, "manifest": str, "group_by": str, "settings": dict}

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of every round; k-fold has no val, because train itself calibrates there."""
        scheme = self.meta["settings"]["split"]["scheme"]
        if scheme == "kfold":
            return ("train", "test")
        return PARTS

    @property
    def folds(self) -> int:
        """Folds in a repeat: 1 for a holdout, more for k-fold and for several published splits."""
        return int(self.table["fold"].nunique())

    def rounds(self) -> list[Round]:
        """The rounds, in the order of repeats and of folds within a repeat."""
        pairs = self.table[["repeat", "fold"]].drop_duplicates().sort_values(["repeat", "fold"])
        return [Round(int(repeat), int(fold)) for repeat, fold in pairs.itertuples(index=False)]

    def round(self, repeat: int, fold: int) -> pd.DataFrame:
        """Rows of one round, in the order of the manifest."""
        in_repeat = self.table["repeat"] == repeat
        in_fold = self.table["fold"] == fold
        return self.table[in_repeat & in_fold].reset_index(drop=True)


@dataclass(frozen=True)
class Predictions(Record):
    """One row per image of val and test, repeat, fold and seed; k-fold has no val.

    Columns:
        prob_<class>: Probability of the class as the model gives it.
        calibrated_<class>: Probability of the class after the calibrator.
        threshold: Operating point that val locked (k-fold: the inner out-of-fold scores of train), on
            the calibrated probability of the positive class; null for more than two classes.
        overlap: Whether the patient or the picture of a test row is also on the train side; only
            official splits have such rows.
    """

    SCHEMA: ClassVar = pa.schema(
        [
            ("image_id", pa.string()),
            ("patient_id", pa.string()),
            ("part", pa.string()),
            ("repeat", pa.int64()),
            ("fold", pa.int64()),
            ("seed", pa.int64()),
            ("label", pa.int64()),
            ("overlap", pa.bool_()),
            ("threshold", pa.float64()),
        ]
    )
    COLUMNS: ClassVar = tuple(SCHEMA.names)
    META: ClassVar = {"classes": list, "positive_class": str}

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in (RAW, CALIBRATED):
            self._require(probability_columns(kind, self.meta["classes"]))
        for kind in (RAW, CALIBRATED):
            self._require_probabilities(kind)

    def _require_probabilities(self, kind: str) -> None:
        """Raise a DataError unless all probabilities of a kind are numbers within 0..1."""
        values = self.probabilities(kind)
        finite = np.isfinite(values).all()
        inside = values.min(initial=0) >= 0 and values.max(initial=1) <= 1
        if not finite or not inside:
            raise DataError(
                f"Predictions hold {kind}_... that are not numbers within 0..1. Run `equipoise scenario` again."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return tuple(self.meta["classes"])

    @property
    def positive_label(self) -> int:
        """Position of the positive class."""
        return self.classes.index(self.meta["positive_class"])

    def probabilities(self, kind: str) -> np.ndarray:
        """Return float64 (num_rows, num_classes); the kind is `RAW` or `CALIBRATED`."""
        columns = probability_columns(kind, self.meta["classes"])
        return self.table[columns].to_numpy(dtype=np.float64)

    def part(self, name: str) -> Predictions:
        """Return the rows of one part only."""
        rows = self.table[self.table["part"] == name].reset_index(drop=True)
        return dataclasses.replace(self, table=rows)

    def test_digest(self) -> str:
        """Return a digest of what was tested, whatever the model said.

        It is made of the test images, their patients, labels and rounds, and the classes.
        """
        columns = ["image_id", "patient_id", "repeat", "fold", "label"]
        rows = self.part("test").table[columns].drop_duplicates().sort_values(columns)
        row_values = rows.to_numpy(dtype=object).tolist()
        return digest_of([list(self.classes), self.meta["positive_class"], row_values])


# --- counts of classes ----------------------------------------------------------------------------


def minority_labels(counts: np.ndarray) -> list[int]:
    """Return the labels of the minority, which is every class below the largest one.

    Args:
        counts: Images per class, int (num_classes,).

    >>> minority_labels(np.array([1349, 3883]))
    [0]
    >>> minority_labels(np.array([5, 5]))
    []
    """
    counts = np.asarray(counts)
    return [int(label) for label in np.flatnonzero(counts < counts.max())]


def class_table(
    labels: np.ndarray, patients: Sequence[str] | pd.Series, classes: Sequence[str]
) -> dict[str, ClassCount]:
    """Count images and patients per class, as `ingest` and `split` print and keep it.

    Args:
        labels: One label per image.
        patients: The patient of each image.
        classes: Class names, in the order of the labels.

    Returns:
        Class name -> its numbers.
    """
    images = np.bincount(labels, minlength=len(classes))
    pairs = pd.DataFrame({"label": np.asarray(labels), "patient": np.asarray(patients)})
    patients_per_class = np.bincount(pairs.drop_duplicates()["label"], minlength=len(classes))
    all_images = max(len(labels), 1)
    counts = {}
    for name, images_of_class, patients_of_class in zip(classes, images, patients_per_class):
        counts[name] = ClassCount(
            images=int(images_of_class),
            patients=int(patients_of_class),
            image_share=round(float(images_of_class / all_images), 4),
        )
    return counts


def imbalance_ratio(counts: np.ndarray) -> float | None:
    """Return how many images the largest class has for each image of the smallest.

    It does not exist (None) where a class has no image.

    >>> imbalance_ratio(np.array([100, 400]))
    4.0
    """
    smallest = min(counts)
    if not smallest:
        return None
    return round(float(max(counts) / smallest), 4)
