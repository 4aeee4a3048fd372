"""The nouns that travel between stages: columns, units, checks, atomic writing, digests of their parents."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.core.errors import DataError

PARTS = ("train", "val", "test")
_META = b"equipoise"


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and move it there when the block ends well: no half-written file.

    Raises:
        DataError: When the disk is full or does not let this user write; a file that was there stays as it was.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.absolute())
        mine = f".{_machine()}-{os.getpid()}~"
        handle, name = tempfile.mkstemp(mine, f".{path.name}.", path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. Nothing half-written was left; free space or "
            "permissions, then run the same command again: finished work is kept."
        ) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written in a folder, once per process."""
    for left in folder.glob(f".*.{_machine()}-*~") if os.name == "posix" else ():
        try:
            os.kill(int(left.name.rpartition("-")[2][:-1]), 0)  # signal 0 only asks whether the process is there
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, PermissionError):  # no name of ours, or another user's process
            continue


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is the same bytes for the same value (NaN becomes null)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is a DataError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not readable as JSON ({error}). Run the stage that writes it again.") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of plain data, through its canonical JSON.

    >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(_jsonable(value), sort_keys=True).encode()).hexdigest()


def write_table(path: Path, table: pd.DataFrame, meta: dict[str, Any]) -> None:
    """Write a Parquet file with plain metadata inside."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({_META: json.dumps(_jsonable(meta), sort_keys=True).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary)


def read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read what `write_table` wrote."""
    table, meta, _ = _read_parquet(path)
    return table, meta


def _read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any], pa.Schema]:
    try:
        arrow = pq.ParquetFile(path).read()  # read_table would take a folder
        arrow.validate(full=True)  # damaged bytes may be no text, which pandas would find much later
        names, meta = arrow.schema.names, json.loads((arrow.schema.metadata or {}).get(_META, b"{}"))
        if len(set(names)) < len(names) or not isinstance(meta, dict):
            raise ValueError("a column twice, or metadata that are no mapping")
        return arrow.to_pandas(), meta, arrow.schema
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not readable as Parquet ({error}). Run the stage that writes it again.") from error


def _missing(path: Path) -> DataError:
    return DataError(f"There is no {path}. Run `dvc repro`, or the stage that writes it (docs/architecture.md).")


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, np.generic):
        return _jsonable(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.as_posix()
    return value


_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (pa.types.is_string, pa.types.is_large_string),
    "whole numbers": (pa.types.is_integer,),
    "number": (pa.types.is_floating,),
    "yes or no": (pa.types.is_boolean,),
}
_ROUND = {"repeat": "whole numbers", "fold": "whole numbers"}


# --- tables ----------------------------------------------------------------------------------------------------------


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
    def _problems(cls, table: pd.DataFrame, meta: dict[str, Any], schema: pa.Schema) -> Iterator[str]:
        for name, wanted in cls.META.items():
            if not isinstance(meta.get(name), wanted):
                yield f"says {meta.get(name)!r:.80} of {name} in its metadata, {wanted.__name__} is expected"
        classes = meta.get("classes", ["one"])
        if not all(isinstance(name, str) for name in classes) or not 0 < len(set(classes)) == len(classes):
            yield f"names the classes {classes!r:.80}, different names are expected"
        if meta.get("positive_class", classes[0]) not in classes:
            yield f"names the positive class {meta['positive_class']!r:.80}, which is none of its classes"
        if "label" in table and not table["label"].isin(range(len(classes))).all():
            yield f"holds labels outside its {len(classes)} classes"
        if "part" in table and not table["part"].isin(PARTS).all():
            yield f"holds parts other than {', '.join(PARTS)}"
        kinds = dict(cls.COLUMNS)
        kinds |= {name: "number" for name in schema.names if name.startswith(("prob_", "calibrated_"))}
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
        **dict.fromkeys(("image_id", "sha256", "picture", "path", "class_name", "patient_id"), "text"),
        **dict.fromkeys(("label", "width_px", "height_px", "bytes"), "whole numbers"),
        "grey_mean": "number",
    }
    META: ClassVar = {"study": str, "dataset": str, "classes": list, "positive_class": str, "readings": list}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table["image_id"].duplicated().any():
            twice = self.table.loc[self.table["image_id"].duplicated(), "image_id"].iloc[0]
            raise DataError(f"The manifest names image '{twice}' more than once. Run `equipoise ingest` again.")
        if self.table[["patient_id", "picture"]].isna().any(axis=None):
            raise DataError("The manifest holds images without patient_id or picture. Run `equipoise ingest` again.")
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


@dataclass(frozen=True)
class TrainRows:
    """What a strategy sees: the train images of one round and nothing else.

    Attributes:
        labels: int (num_images,), index into the classes.
        num_classes: C; `labels` may lack a class.
        views: Augmented views available for each minority image.
        seed: Seed of every draw.
        patients: (num_images,), patient of each image.
        make_features: Gives the standardised features of these images alone, float32 (num_images, num_features).
    """

    labels: np.ndarray
    num_classes: int
    views: int
    seed: int
    patients: np.ndarray | None = None
    make_features: Callable[[], np.ndarray] | None = None
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def counts(self) -> np.ndarray:
        """Images per class, int (num_classes,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def once(self, name: str, make: Callable[[np.ndarray], Any]) -> Any:
        """What `make` makes of the features, made once: neighbours cost more than the trials that share them."""
        if self.make_features is None:
            raise DataError("These train rows came without features. Take them from TrainMatrix.train_rows.")
        if name not in self._made:
            self._made[name] = make(self.make_features())
        return self._made[name]


@dataclass(frozen=True)
class Plan:
    r"""The rows to train on, one per draw.

    Attributes:
        row: int (num_draws,), index into the train rows.
        view: int (num_draws,), 0 for the plain image, 1..K for an augmented view of it.
        partner: int (num_draws,), the train row a draw is mixed with; itself where nothing is mixed.
        mix: float (num_draws,), $\lambda$ in 0..1: the features are $x + \lambda (x_{partner} - x)$; 0 is the image.
        weight: float (num_draws,), > 0, what the draw counts beside the weight of its class.
    """

    row: np.ndarray
    view: np.ndarray
    partner: np.ndarray
    mix: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(
        cls,
        row: npt.ArrayLike,
        view: np.ndarray | int = 0,
        partner: np.ndarray | None = None,
        mix: np.ndarray | float = 0.0,
        weight: np.ndarray | float = 1.0,
    ) -> Plan:
        """A plan of plain images, unmixed and of weight 1, unless it is said otherwise."""
        row = np.asarray(row, dtype=np.int64)
        rest = ((view, np.int64), (row if partner is None else partner, np.int64), (mix, float), (weight, float))
        return cls(row, *(np.broadcast_to(np.asarray(value, dtype=kind), row.shape).copy() for value, kind in rest))

    def within(self, inside: np.ndarray) -> Plan:
        """The same draws, counted in the rows that `inside` was taken from: int (num_rows of this plan,)."""
        return dataclasses.replace(self, row=inside[self.row], partner=inside[self.partner])

    def counts(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Draws per class after the plan, int (num_classes,)."""
        return np.bincount(labels[self.row], minlength=num_classes)


@dataclass(frozen=True)
class Objective:
    r"""What the head minimises, a few numbers per class.

    $L = \sum_i w_{y_i} (1-p_{y_i})^\gamma (-\log p_{y_i}) / \sum_i w_{y_i} + l_2 \lVert W \rVert^2 / 2$ with
    $p = \mathrm{softmax}(z + \mathrm{offset})$; scores are made from plain $z$.

    Attributes:
        weights: float (num_classes,), > 0, any scale (the mean is weighted).
        focusing: $\gamma \ge 0$.
        offsets: float (num_classes,), added to the logits while training.
    """

    weights: np.ndarray
    focusing: float
    offsets: np.ndarray

    @classmethod
    def neutral(cls, num_classes: int) -> Objective:
        """Plain cross-entropy: the ordinary member, so that nobody writes an `if`."""
        return cls(np.ones(num_classes), 0.0, np.zeros(num_classes))

    def replace(self, **changes: Any) -> Objective:
        """A copy with some numbers changed."""
        return dataclasses.replace(self, **changes)


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
        kinds = [f"{kind}_{name}" for kind in ("prob", "calibrated") for name in self.meta["classes"]]
        self._require((*self.COLUMNS, *kinds))
        for kind in ("prob", "calibrated"):
            values = self.probabilities(kind)
            if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=1) > 1:
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
        return self.table[[f"{kind}_{name}" for name in self.meta["classes"]]].to_numpy(dtype=np.float64)

    def part(self, name: str) -> Predictions:
        """Only the rows of one part."""
        return dataclasses.replace(self, table=self.table[self.table["part"] == name].reset_index(drop=True))

    def test_digest(self) -> str:
        """Digest of what was tested: images, patients, labels and rounds, whatever the model said."""
        columns = ["image_id", "patient_id", "repeat", "fold", "label"]
        rows = self.part("test").table[columns].drop_duplicates().sort_values(columns)
        return digest_of([list(self.classes), self.meta["positive_class"], rows.to_numpy(dtype=object).tolist()])


def class_table(labels: np.ndarray, patients: Sequence[str] | pd.Series, classes: Sequence[str]) -> dict[str, Any]:
    """Images, patients and share per class, as printed and kept by `ingest` and `split`."""
    counts = np.bincount(labels, minlength=len(classes))
    people = pd.DataFrame({"label": np.asarray(labels), "patient": np.asarray(patients)}).drop_duplicates()
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
