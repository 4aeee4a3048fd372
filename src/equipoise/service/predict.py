"""Images -> a table of decisions by a registered model, in batches: neither images nor rows are all held in memory."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.core import images, parallel
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_path
from equipoise.service import audit, evidence, tracking

_BATCH = 32
#: Arrow's and pandas' types for those of a signature.
_TYPES = {
    "string": (pa.string(), "object"),
    "double": (pa.float64(), "float64"),
    "long": (pa.int64(), "Int64"),
}


def run(uri: str, sources: Sequence[str], out: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Predict for images and write one row each, in the order in which they were given.

    The columns are `image, model, version`, what the model answers (`prob_<class>`, `raw_<class>`, `decision`,
    `threshold`), `flags` (odd pictures, see `images.flags`) and `error` (why a file could not be read).

    Args:
        uri: A model, for example models:/equipoise-demo@champion; an alias is looked up once.
        sources: Image files, folders, patterns, or CSV files with a column `path` or `image`.
        out: CSV or Parquet, by its suffix; appears when everything is written.
        say: Called with lines of text.

    Returns:
        Number of images predicted, flagged (among these) and unreadable.

    Raises:
        ConfigError: For a model that cannot be loaded, another suffix, or nothing to predict.
    """
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"--out is {out}; a name ending in .csv or .parquet is expected.")
    paths = find(sources)
    name, version, grey = _resolve(uri)
    say(f"loading {name}{f' version {version}' if version else ''}")
    model = evidence.load(f"models:/{name}/{version}" if version else uri)
    columns = {"image": "string", "model": "string", "version": "string"}
    columns |= {column.name: column.type.name for column in model.metadata.signature.outputs.inputs}
    columns |= {"flags": "string", "error": "string"}
    schema = pa.schema([(name, _TYPES[kind][0]) for name, kind in columns.items()])
    types = {name: _TYPES[kind][1] for name, kind in columns.items()}
    done = {"predicted": 0, "flagged": 0, "unreadable": 0}
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with _writer(out, schema) as write:
        for batch in parallel.progress(batches, "predicting", len(batches), "batches"):
            rows = _rows(model, batch, grey)
            table = (
                pd.DataFrame(rows).assign(model=name, version=version).reindex(columns=schema.names)
            )
            write(table.astype(types))
            failed = sum(1 for row in rows if row["error"])
            done["unreadable"] += failed
            done["predicted"] += len(rows) - failed
            done["flagged"] += sum(1 for row in rows if row["flags"])
    return done


def find(sources: Sequence[str]) -> list[str]:
    """Paths of the images that files, folders, patterns and CSV files name.

    A folder gives its image files, sorted; a path in a CSV is relative to the folder of the CSV.

    Raises:
        ConfigError: When there is no image.
        DataError: For a CSV without the column `path` or `image`.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found += [str(path / name) for name in images.walk(path)[0]]
        elif path.suffix.lower() == ".csv":
            found += _listed(path)
        elif not path.exists() and glob.has_magic(source):
            found += [
                name for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()
            ]
        else:
            found.append(source)
    if not found:
        raise ConfigError(f"There is no image in {', '.join(sources)}.")
    return found


def _listed(path: Path) -> list[str]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors
        raise DataError(f"{path} cannot be read as CSV: {error}.") from error
    column = next((name for name in ("path", "image") if name in table), None)
    if column is None:
        raise DataError(f"{path} has no column `path` or `image` (it has: {', '.join(table)}).")
    return [str(path.parent / name) for name in table[column] if name]


def _resolve(uri: str) -> tuple[str, str, bool]:
    """Name and version of a registered model ("" for another address), and whether it expects grey images."""
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not found:
        return uri, "", False
    store = tracking.client()
    name, alias, number = found.groups()
    version = audit.by_alias(store, name, alias) if alias else audit.version_of(store, name, number)
    if version is None:
        raise ConfigError(
            f"There is no {uri} at {tracking.address()}. `equipoise register` makes versions."
        )
    return name, str(version.version), version.tags.get("equipoise.grey") == "True"


def _rows(model: Any, paths: Sequence[str], grey: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    data: dict[int, bytes] = {}
    for place, path in enumerate(paths):
        row = {"image": path, "flags": "", "error": ""}
        try:
            content = Path(path).read_bytes()
            row["flags"] = " ".join(images.flags(images.decode(content), grey))
            data[place] = content
        except OSError as error:
            row["error"] = error.strerror or str(error)
        except ValueError as error:
            row["error"] = str(error)
        rows.append(row)
    if data:
        table = model.predict(pd.DataFrame({"image": list(data.values())}))
        for place, answer in zip(data, table.to_dict("records")):
            rows[place] |= answer
    return rows


@contextmanager
def _writer(out: Path, schema: pa.Schema) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that appends a table; the file appears when the block ends well."""
    with atomic_path(out) as temporary:
        if out.suffix.lower() == ".parquet":
            with pq.ParquetWriter(temporary, schema) as parquet:
                yield lambda table: parquet.write_table(
                    pa.Table.from_pandas(table, schema, preserve_index=False)
                )
        else:
            pd.DataFrame(columns=schema.names).to_csv(temporary, index=False, lineterminator="\n")
            yield lambda table: table.to_csv(
                temporary, mode="a", header=False, index=False, lineterminator="\n"
            )
