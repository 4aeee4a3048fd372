"""Images -> a table of decisions by a registered model.

It works in batches: memory never holds all images or all rows.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException

from equipoise.core import images, parallel
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_path
from equipoise.core.greylevels import GreyScale
from equipoise.ingest import tables
from equipoise.registry import models, tracking
from equipoise.service import vectors

SUFFIXES = (".csv", ".parquet")
_BATCH_IMAGES = 32
#: Columns of a list of images, the first that is there is read.
_PATH_COLUMNS = ("path", "image")


class _Type(NamedTuple):
    """A type of a signature, as Arrow and as pandas call it."""

    arrow: pa.DataType
    pandas: str


_TYPES = {
    "string": _Type(pa.string(), "object"),
    "double": _Type(pa.float64(), "float64"),
    "long": _Type(pa.int64(), "Int64"),
}


@dataclass(frozen=True)
class NamedModel:
    """A model as the user named it.

    Attributes:
        address: Where it is loaded from.
        name: Of the registered model; the address itself for a model outside the registry.
        version: Its number; empty outside the registry.
        grey: Whether it expects grey images.
    """

    address: str
    name: str
    version: str
    grey: bool


@dataclass
class Tally:
    """Numbers of images: predicted, flagged (among these), and unreadable."""

    predicted: int = 0
    flagged: int = 0
    unreadable: int = 0

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count some rows of the table."""
        unreadable = sum(1 for row in rows if row["error"])
        self.unreadable += unreadable
        self.predicted += len(rows) - unreadable
        self.flagged += sum(1 for row in rows if row["flags"])


def predict_images(
    uri: str, sources: Sequence[str], out: Path, root: Path, say: Callable[[str], None]
) -> Tally:
    """Predict for images and write one row each, in the order in which they were given.

    The columns are `image, model, version`, what the model answers (`prob_<class>`, `raw_<class>`,
    `decision`, `threshold`), `flags` (odd pictures, see `images.flags`) and `error` (why a file
    could not be read).

    Args:
        uri: A model, for example models:/equipoise-demo@champion; an alias is looked up once.
        sources: Image files, folders, patterns, or CSV files with a column `path` or `image`.
        out: CSV or Parquet, by its suffix; appears when everything is written.
        root: Folder that holds params.yaml.
        say: Called with lines of text.

    Raises:
        ConfigError: For a model that cannot be loaded, another suffix, or nothing to predict.
    """
    require_suffix(out)
    paths = find(sources)
    named = resolve(uri, root)
    model = load(named, root, say)
    made_by = vectors.made_by(model)
    if made_by is not None:
        raise ConfigError(
            f"{uri} takes vectors of {made_by}, not images: name a file of them with --features."
        )
    return write_predictions(model, named, paths, out)


def require_suffix(out: Path) -> None:
    """Refuse a table of another kind."""
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out is {out}; a name ending in .csv or .parquet is expected.")


def load(named: NamedModel, root: Path, say: Callable[[str], None]) -> Any:
    """Load a model that was looked up, and say which."""
    version = f" version {named.version}" if named.version else ""
    say(f"loading {named.name}{version}")
    return models.load(named.address, root)


def write_predictions(model: Any, named: NamedModel, paths: Sequence[str], out: Path) -> Tally:
    """Predict the files with a loaded model and write the table; see `predict_images`."""
    batches = list(parallel.batched(paths, _BATCH_IMAGES))
    tally = Tally()
    with row_writer(model, named, out) as write:
        for batch in parallel.progress(batches, "predicting", len(batches), "batches"):
            rows = predict_rows(model, batch, named.grey)
            write(rows)
            tally.add(rows)
    return tally


@contextmanager
def row_writer(
    model: Any, named: NamedModel, out: Path
) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Yield a function that appends rows; the file appears when the block ends well."""
    types = _column_types(model)
    schema = pa.schema([(name, of_column.arrow) for name, of_column in types.items()])
    pandas_types = {name: of_column.pandas for name, of_column in types.items()}
    with _writer(out, schema) as write:

        def append(rows: Sequence[dict[str, Any]]) -> None:
            table = pd.DataFrame(rows).assign(model=named.name, version=named.version)
            write(table.reindex(columns=schema.names).astype(pandas_types))

        yield append


def _column_types(model: Any) -> dict[str, _Type]:
    """Columns of the table in their order: ours around those of the model's answers."""
    answered = {
        column.name: _TYPES[column.type.name] for column in model.metadata.signature.outputs.inputs
    }
    text = _TYPES["string"]
    before = dict.fromkeys(("image", "model", "version"), text)
    after = dict.fromkeys(("flags", "error"), text)
    return before | answered | after


# --- which images, which model --------------------------------------------------------------------


def find(sources: Sequence[str]) -> list[str]:
    """Paths of the images that files, folders, patterns and CSV files name.

    A folder gives its image files, sorted; a path in a CSV is relative to the folder of the CSV.

    Raises:
        ConfigError: When there is no image.
        DataError: For a CSV without the column `path` or `image`.
    """
    paths: list[str] = []
    for source in sources:
        paths += _paths_of(source)
    if not paths:
        raise ConfigError(f"There is no image in {', '.join(sources)}.")
    return paths


def _paths_of(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        names, _ = images.walk(path)
        return [str(path / name) for name in names]
    if path.suffix.lower() in tables.SUFFIXES:
        return _listed(path)
    if not path.exists() and glob.has_magic(source):
        names = sorted(glob.glob(source, recursive=True))
        return [name for name in names if Path(name).is_file()]
    return [source]


def _listed(path: Path) -> list[str]:
    """Paths that a CSV file lists."""
    table = tables.read_table(path)
    for column in _PATH_COLUMNS:
        if table.has(column):
            return [str(path.parent / name) for name in table.column(column) if name]
    raise DataError(f"{path} has no column `path` or `image` (it has: {table.names}).")


def resolve(uri: str, root: Path) -> NamedModel:
    """Look up a registered model once, so that every row is of the same version.

    Raises:
        ConfigError: When the registry has no such version.
    """
    registered = models.registered(uri)
    if registered is None:
        return NamedModel(uri, uri, "", grey=False)
    version = registered.version(tracking.client(root))
    if version is None:
        raise ConfigError(
            f"There is no {uri} at {tracking.address(root)}. `equipoise register` makes versions."
        )
    number = str(version.version)
    grey = version.tags.get("equipoise.grey") == "True"
    return NamedModel(f"models:/{registered.name}/{number}", registered.name, number, grey)


# --- rows -----------------------------------------------------------------------------------------


def predict_rows(model: Any, paths: Sequence[str], grey: bool) -> list[dict[str, Any]]:
    """Rows of the table, one per file; a file that cannot be read has an error and no answer.

    Args:
        model: A loaded model.
        paths: Image files.
        grey: Whether grey images are expected, so that colours are a flag.
    """
    rows: list[dict[str, Any]] = []
    contents: dict[int, bytes] = {}
    scale = _scale_of(model)
    has_window = scale is not None and scale.window is not None
    for index, path in enumerate(paths):
        row = {"image": path, "flags": "", "error": ""}
        rows.append(row)
        try:
            content = Path(path).read_bytes()
            picture = images.open_picture(content, has_window=has_window)
            pixels = picture.as_rgb(scale)
        except OSError as error:
            row["error"] = error.strerror or str(error)
        except ValueError as error:
            row["error"] = str(error)
        else:
            row["flags"] = " ".join([*images.flags(pixels, grey), *picture.notes])
            contents[index] = content
    if contents:
        answers = model.predict(pd.DataFrame({"image": list(contents.values())}))
        for index, answer in zip(contents, answers.to_dict("records")):
            rows[index].update(answer)
    return rows


def _scale_of(model: Any) -> GreyScale | None:
    """The scale that a model was made with; None for a model of 8-bit pictures, or of others."""
    try:
        return model.unwrap_python_model().predictor.embedder.scale
    except (AttributeError, MlflowException):
        return None


@contextmanager
def _writer(out: Path, schema: pa.Schema) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that appends a table; the file appears when the block ends well."""
    with atomic_path(out) as temporary:
        if out.suffix.lower() == ".parquet":
            with pq.ParquetWriter(temporary, schema) as parquet:

                def append_parquet(table: pd.DataFrame) -> None:
                    rows = pa.Table.from_pandas(table, schema, preserve_index=False)
                    parquet.write_table(rows)

                yield append_parquet
        else:
            header = pd.DataFrame(columns=schema.names)
            header.to_csv(temporary, index=False, lineterminator="\n")

            def append_csv(table: pd.DataFrame) -> None:
                table.to_csv(temporary, mode="a", header=False, index=False, lineterminator="\n")

            yield append_csv
