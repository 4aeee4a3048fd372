"""Files: written whole or not at all, read back or refused with a sentence, named by digests."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.core.errors import DataError

#: The key of our metadata among a Parquet file's own.
_META = b"equipoise"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file is moved there when the block ends normally.

    A file is therefore whole or not there at all. When the block raises, an older file stays as it
    was.

    Raises:
        DataError: When the disk is full or this user may not write there.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.absolute())
        owner = f".{_machine()}-{os.getpid()}~"
        handle, name = tempfile.mkstemp(suffix=owner, prefix=f".{path.name}.", dir=path.parent)
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


@contextmanager
def atomic_folder(folder: Path, doing: str = "making") -> Iterator[Path]:
    """Yield an empty folder beside `folder`; it takes that place when the block ends normally.

    The temporary folder always has the same name, so that the next run finds and removes what a
    killed one left.

    Args:
        folder: The folder to make; an older one of this name is replaced.
        doing: A word for the name of the temporary folder, for example unpacking.
    """
    folder = Path(folder)
    scratch = folder.with_name(f".{folder.name}.{doing}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_arrays(path: Path, *arrays: np.ndarray, **named: np.ndarray) -> None:
    """Write arrays as one .npz file, whole or not at all.

    Arrays without a name are called arr_0, arr_1 and so on.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, *arrays, allow_pickle=False, **named)


@functools.cache
def _machine() -> str:
    """Eight hexadecimal digits that stand for this machine in the names of temporary files."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove the half-written files that killed processes of this machine left in a folder.

    A process looks into each folder once.
    """
    if os.name != "posix":
        return
    for path in folder.glob(f".*.{_machine()}-*~"):
        process_id = path.name.rpartition("-")[2].removesuffix("~")
        try:
            os.kill(int(process_id), 0)  # signal 0 only asks whether the process is there
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except ValueError:  # the name is not one of ours
            continue
        except PermissionError:  # the process is there and belongs to another user
            continue


def write_json(path: Path, value: Any) -> None:
    """Write JSON, the same bytes for the same value; numbers that are not finite become null."""
    text = json_text(value)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def json_text(value: Any) -> str:
    """Return the JSON that `write_json` writes, without the end of the last line."""
    return json.dumps(_jsonable(value), indent=2, allow_nan=False)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: When the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable as JSON ({error}). Run the stage that writes it again."
        ) from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of plain data, taken of its JSON with sorted keys.

    >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    True
    """
    text = json.dumps(_jsonable(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ParquetContent(NamedTuple):
    """What a Parquet file of ours holds: the table, our metadata, and the kinds of the columns."""

    table: pd.DataFrame
    meta: dict[str, Any]
    schema: pa.Schema


def write_table(path: Path, table: pd.DataFrame, meta: dict[str, Any]) -> None:
    """Write a Parquet file; the metadata are plain data and stand inside the file."""
    meta_text = json.dumps(_jsonable(meta), sort_keys=True)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({_META: meta_text.encode()})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary)


def read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read the table and the metadata that `write_table` wrote.

    Raises:
        DataError: When the file is missing or damaged.
    """
    content = read_parquet(path)
    return content.table, content.meta


def read_parquet(path: Path) -> ParquetContent:
    """Read what `write_table` wrote, with the kinds of the columns.

    Raises:
        DataError: When the file is missing or damaged.
    """
    try:
        arrow = pq.ParquetFile(path).read()  # unlike pq.read_table, it refuses a folder
        arrow.validate(full=True)  # else pandas meets bytes that are no text only much later
        meta = json.loads((arrow.schema.metadata or {}).get(_META, b"{}"))
        names = arrow.schema.names
        if len(set(names)) < len(names):
            raise ValueError("a column stands there twice")
        if not isinstance(meta, dict):
            raise ValueError("its metadata are not a mapping")
        return ParquetContent(arrow.to_pandas(), meta, arrow.schema)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable as Parquet ({error}). Run the stage that writes it again."
        ) from error


def _missing(path: Path) -> DataError:
    return DataError(
        f"There is no {path}. Run `dvc repro`, or the stage that writes it (docs/architecture.md)."
    )


def _jsonable(value: Any) -> Any:
    """Turn NumPy's numbers and arrays, paths and tuples into what JSON knows."""
    # Most of what is told are names and counts.
    if type(value) in (str, int):
        return value
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        is_plain = value.dtype.kind in "iu"
        return value.tolist() if is_plain else _jsonable(value.tolist())
    if isinstance(value, np.generic):
        return _jsonable(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.as_posix()
    return value
