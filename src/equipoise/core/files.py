"""Files: written atomically, read back or refused with a sentence, and named by digests of their content."""

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
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.core.errors import DataError

_META = b"equipoise"


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


@contextmanager
def atomic_folder(folder: Path, doing: str = "making") -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place when the block ends well.

    The name is always the same, so that the next run finds and removes what a killed one left.

    Args:
        folder: What to make; what stood there is replaced.
        doing: A word for the name of the folder meanwhile, for example unpacking.
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
    """Write arrays as one .npz file, whole or not at all; without names they are arr_0, arr_1, ..."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, *arrays, allow_pickle=False, **named)


@functools.cache
def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written in a folder, once per process."""
    for left in folder.glob(f".*.{_machine()}-*~") if os.name == "posix" else ():
        try:
            os.kill(
                int(left.name.rpartition("-")[2][:-1]), 0
            )  # signal 0 only asks whether the process is there
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, PermissionError):  # no name of ours, or another user's process
            continue


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is the same bytes for the same value (NaN becomes null)."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is a DataError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable as JSON ({error}). Run the stage that writes it again."
        ) from error


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
    arrow = arrow.replace_schema_metadata(
        {_META: json.dumps(_jsonable(meta), sort_keys=True).encode()}
    )
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary)


def read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read what `write_table` wrote."""
    table, meta, _ = _read_parquet(path)
    return table, meta


def _read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any], pa.Schema]:
    try:
        arrow = pq.ParquetFile(path).read()  # read_table would take a folder
        arrow.validate(
            full=True
        )  # damaged bytes may be no text, which pandas would find much later
        names, meta = (
            arrow.schema.names,
            json.loads((arrow.schema.metadata or {}).get(_META, b"{}")),
        )
        if len(set(names)) < len(names) or not isinstance(meta, dict):
            raise ValueError("a column twice, or metadata that are no mapping")
        return arrow.to_pandas(), meta, arrow.schema
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
