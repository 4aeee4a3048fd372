"""The nouns that travel between stages: columns, units, checks, atomic writing, digests of their parents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from equipoise.core.errors import DataError
from equipoise.core.files import _read_parquet, digest_of, file_digest, write_table

PARTS = ("train", "val", "test")


_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (pa.types.is_string, pa.types.is_large_string),
    "whole numbers": (pa.types.is_integer,),
    "number": (pa.types.is_floating,),
    "yes or no": (pa.types.is_boolean,),
}


_ROUND = {"repeat": "whole numbers", "fold": "whole numbers"}


@dataclass(frozen=True)
class _Record:
    """A table with required columns and its metadata; `digest` names the exact bytes it was read from."""

    table: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    #: Column -> kind of its values (a key of `_KINDS`); and what the metadata of a file hold.
    COLUMNS: ClassVar[dict[str, str]] = {}
    META: ClassVar[dict[str, type]] = {}

    def __post_init__(self) -> None:
        self._require(self.COLUMNS)

    def _require(self, columns: Iterable[str]) -> None:
        lacking = [name for name in columns if name not in self.table.columns]
        if lacking:
            raise DataError(
                f"{type(self).__name__} lacks the column(s) {', '.join(lacking)}; it has "
                f"{', '.join(map(str, self.table.columns))}. Run the stage that writes it again."
            )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a record.

        Raises:
            DataError: For a file that is missing, damaged, or holds something else.
        """
        table, meta, schema = _read_parquet(path)
        problem = next(cls._problems(table, meta, schema), None)
        if problem:
            raise DataError(f"{path} {problem}. Run the stage that writes it again.")
        return cls(table, meta, file_digest(path))

    @classmethod
    def _problems(
        cls, table: pd.DataFrame, meta: dict[str, Any], schema: pa.Schema
    ) -> Iterator[str]:
        for name, wanted in cls.META.items():
            if not isinstance(meta.get(name), wanted):
                yield f"says {meta.get(name)!r:.80} of {name} in its metadata, {wanted.__name__} is expected"
        classes = meta.get("classes", ["one"])
        if not all(isinstance(name, str) for name in classes) or not 0 < len(set(classes)) == len(
            classes
        ):
            yield f"names the classes {classes!r:.80}, different names are expected"
        if meta.get("positive_class", classes[0]) not in classes:
            yield f"names the positive class {meta['positive_class']!r:.80}, which is none of its classes"
        if "label" in table and not table["label"].isin(range(len(classes))).all():
            yield f"holds labels outside its {len(classes)} classes"
        if "part" in table and not table["part"].isin(PARTS).all():
            yield f"holds parts other than {', '.join(PARTS)}"
        kinds = dict(cls.COLUMNS)
        kinds |= {
            name: "number" for name in schema.names if name.startswith(("prob_", "calibrated_"))
        }
        kinds |= {str(name): "text" for name in meta.get("readings", ())}
        for name, kind in kinds.items():
            if name not in table and name not in cls.COLUMNS:
                yield f"lacks the column {name:.80}, which its metadata name"
            if name in table and not any(test(schema.field(name).type) for test in _KINDS[kind]):
                yield f"holds {schema.field(name).type} in column {name}, {kind} is expected"
            if name in table and kind != "number" and table[name].isna().any():
                yield f"has rows without {name}"

    def write(self, path: Path) -> Self:
        """Write the record atomically and return it with its digest."""
        write_table(path, self.table, self.meta)
        return dataclasses.replace(self, digest=file_digest(path))


@dataclass(frozen=True)
class Manifest(_Record):
    """One row per usable image.

    `image_id` is unique and stable (the path inside the raw folder, or its keyed hash), `sha256` is of the file's bytes
    and keys the features, `picture` names what the file shows (exact and near copies share it), `path` is empty where
    ids are hashed, `label` is the index into `classes`, `patient_id` the dataset's first reading of who the patient is.
    """

    COLUMNS: ClassVar = {
        **dict.fromkeys(
            ("image_id", "sha256", "picture", "path", "class_name", "patient_id"), "text"
        ),
        **dict.fromkeys(("label", "width_px", "height_px", "bytes"), "whole numbers"),
        "grey_mean": "number",
    }
    META: ClassVar = {
        "study": str,
        "dataset": str,
        "classes": list,
        "positive_class": str,
        "readings": list,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table["image_id"].duplicated().any():
            twice = self.table.loc[self.table["image_id"].duplicated(), "image_id"].iloc[0]
            raise DataError(
                f"The manifest names image '{twice}' more than once. Run `equipoise ingest` again."
            )
        if self.table[["patient_id", "picture"]].isna().any(axis=None):
            raise DataError(
                "The manifest holds images without patient_id or picture. Run `equipoise ingest` again."
            )
        if not self.table["label"].between(0, len(self.meta["classes"]) - 1).all():
            raise DataError(
                f"The manifest holds labels outside its {len(self.meta['classes'])} classes. Run `equipoise ingest`."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""
        return tuple(self.meta["classes"])

    @property
    def positive_class(self) -> str:
        """The class that sensitivity speaks of: the disease."""
        return self.meta["positive_class"]

    def counts(self) -> np.ndarray:
        """Images per class, int (num_classes,)."""
        return np.bincount(self.table["label"], minlength=len(self.classes))


def minority_labels(counts: np.ndarray) -> list[int]:
    """Labels of the minority: every class below the largest one (for two classes: the smaller).

    >>> minority_labels(np.array([1349, 3883]))
    [0]
    >>> minority_labels(np.array([5, 5]))
    []
    """
    counts = np.asarray(counts)
    return [int(label) for label in np.flatnonzero(counts < counts.max())]


@dataclass(frozen=True)
class Splits(_Record):
    """One row per image, repeat and fold: `part` is train, val or test; `patient_id` is the group kept whole."""

    COLUMNS: ClassVar = {**dict.fromkeys(("image_id", "patient_id", "part"), "text"), **_ROUND}
    META: ClassVar = {"study": str, "manifest": str, "group_by": str, "settings": dict}

    @property
    def folds(self) -> int:
        """Folds in a repeat: 1 for a holdout, more for k-fold and for several published splits."""
        return int(self.table["fold"].nunique())

    def rounds(self) -> list[tuple[int, int]]:
        """The (repeat, fold) pairs, in order."""
        pairs = self.table[["repeat", "fold"]].drop_duplicates().sort_values(["repeat", "fold"])
        return [(int(repeat), int(fold)) for repeat, fold in pairs.itertuples(index=False)]

    def round(self, repeat: int, fold: int) -> pd.DataFrame:
        """Rows of one (repeat, fold), in the order of the manifest."""
        table = self.table
        return table[(table["repeat"] == repeat) & (table["fold"] == fold)].reset_index(drop=True)


#: Beginnings of the columns with probabilities: as the model gives them, and through the calibrator.
RAW, CALIBRATED = "prob", "calibrated"


def probability_columns(kind: str, classes: Sequence[str]) -> list[str]:
    """Names of the columns that hold one probability per class; `kind` is `RAW` or `CALIBRATED`.

    >>> probability_columns(RAW, ["clear", "opacity"])
    ['prob_clear', 'prob_opacity']
    """
    return [f"{kind}_{name}" for name in classes]


def probability_table(kind: str, values: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Probabilities (num_rows, num_classes) as columns of a table, named by `probability_columns`."""
    return pd.DataFrame(values, columns=probability_columns(kind, classes))


@dataclass(frozen=True)
class Predictions(_Record):
    """One row per image of val and test, repeat, fold and seed.

    `prob_<class>` are raw, `calibrated_<class>` pass through the calibrator, `threshold` is the operating point that
    val locked on the calibrated probability of the positive class (null for more than two classes), `overlap` marks
    test rows whose patient or picture is also on the train side (official splits only).
    """

    COLUMNS: ClassVar = {
        **dict.fromkeys(("image_id", "patient_id", "part"), "text"),
        **_ROUND,
        **dict.fromkeys(("seed", "label"), "whole numbers"),
        **{"overlap": "yes or no", "threshold": "number"},
    }
    META: ClassVar = {"classes": list, "positive_class": str}

    def __post_init__(self) -> None:
        for kind in (RAW, CALIBRATED):
            self._require((*self.COLUMNS, *probability_columns(kind, self.meta["classes"])))
        for kind in (RAW, CALIBRATED):
            values = self.probabilities(kind)
            if (
                not np.isfinite(values).all()
                or values.min(initial=0) < 0
                or values.max(initial=1) > 1
            ):
                raise DataError(
                    f"Predictions hold {kind}_... that are not numbers within 0..1. Run `equipoise scenario` again."
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return tuple(self.meta["classes"])

    @property
    def positive_label(self) -> int:
        """Index of the positive class."""
        return self.classes.index(self.meta["positive_class"])

    def probabilities(self, kind: str) -> np.ndarray:
        """float64 (num_rows, num_classes); `kind` is "prob" (raw) or "calibrated"."""
        return self.table[probability_columns(kind, self.meta["classes"])].to_numpy(
            dtype=np.float64
        )

    def part(self, name: str) -> Predictions:
        """Only the rows of one part."""
        return dataclasses.replace(
            self, table=self.table[self.table["part"] == name].reset_index(drop=True)
        )

    def test_digest(self) -> str:
        """Digest of what was tested: images, patients, labels and rounds, whatever the model said."""
        columns = ["image_id", "patient_id", "repeat", "fold", "label"]
        rows = self.part("test").table[columns].drop_duplicates().sort_values(columns)
        return digest_of(
            [list(self.classes), self.meta["positive_class"], rows.to_numpy(dtype=object).tolist()]
        )


def class_table(
    labels: np.ndarray, patients: Sequence[str] | pd.Series, classes: Sequence[str]
) -> dict[str, Any]:
    """Images, patients and share per class, as printed and kept by `ingest` and `split`."""
    counts = np.bincount(labels, minlength=len(classes))
    people = pd.DataFrame(
        {"label": np.asarray(labels), "patient": np.asarray(patients)}
    ).drop_duplicates()
    shown = np.bincount(people["label"], minlength=len(classes))
    return {
        name: {
            "images": int(images),
            "patients": int(number),
            "image_share": round(float(images / max(len(labels), 1)), 4),
        }
        for name, images, number in zip(classes, counts, shown)
    }


def imbalance_ratio(counts: np.ndarray) -> float | None:
    """Images of the largest class for each of the smallest; None where a class has none.

    >>> imbalance_ratio(np.array([100, 400]))
    4.0
    """
    return None if not min(counts) else round(float(max(counts) / min(counts)), 4)
