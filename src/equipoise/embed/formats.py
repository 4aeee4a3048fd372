"""Files of vectors that other programs wrote: read one image at a time, and nothing in them is executed."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.core import images, limits
from equipoise.core.errors import DataError
from equipoise.core.text import first_line, shortened
from equipoise.ingest import tables

#: What arrays and columns with vectors are called, the first that is there is read.
_VECTORS = ("features", "feats", "embeddings", "embedding", "vectors", "vector", "arr_0")
#: What arrays and columns are called that name the image of each row.
_NAMES = (
    "image_id",
    "image_ids",
    "image",
    "images",
    "path",
    "paths",
    "file",
    "filename",
    "slide_id",
    "slide",
    "id",
    "ids",
    "name",
    "names",
    "keys",
)
#: What arrays and columns with the number of the view are called.
_VIEWS = ("view", "views")
#: Arrays beside the vectors of a slide that say where its tiles lie.
_BESIDE = ("coords", "coordinates", "coords_patching", "annots")
#: A column that holds one number of every vector: `0`, `f0`, `feature_12`.
_NUMBERED = re.compile(r"(.*?)(\d+)")

#: What one number of a table takes in memory, at most.
_NUMBER_BYTES = 8
#: Prints a dataset of texts as JSON.
_READ_TEXTS = """
import json, sys
import h5py
with h5py.File(sys.argv[1], "r") as file:
    values = file[sys.argv[2]].asstr("utf-8", errors="replace")[()].ravel().tolist()
print(json.dumps(values))
"""
_TEXTS_SECONDS = 60
#: Before this version a file could run code in spite of `weights_only` (CVE-2025-32434).
_SAFE_TORCH = (2, 6)

#: Name -> array, read when it is asked for.
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Given:
    """What a file gives for one image, or for one view of it.

    Attributes:
        name: What the file calls the image.
        view: 0 for the image itself, 1 and more for augmented views.
        rows: (num_rows, num_features), one vector, or one for each tile.
    """

    name: str
    view: int
    rows: np.ndarray


def files_of(path: Path) -> list[Path]:
    """The files that a path means: itself and the CSV beside a `.npy`, or those of a folder, sorted.

    Raises:
        DataError: When there is none, or none of a format that can be read.
    """
    if path.is_dir():
        names = sorted(images.files_below(path))
        files = [path / name for name in names if _holds_vectors(name)]
    elif path.is_file():
        _opener(path)
        files = [path]
    else:
        raise DataError(f"There is no {path}. Put the vectors there, or correct embed.features.")
    if not files:
        raise DataError(f"{path} holds no file of vectors. Expected are {_expected()}.")
    lists = [_list_beside(file) for file in files]
    return files + [beside for beside in lists if beside is not None]


def _holds_vectors(name: str) -> bool:
    """Whether a file of a folder is read, by its relative path."""
    is_hidden = any(map(images.hidden, name.split("/")))
    return not is_hidden and Path(name).suffix.lower() in SUFFIXES


def read(path: Path) -> Iterator[Given]:
    """Read the vectors of a file, or of every file of a folder.

    A file that says the image of each row gives these images. A file of named arrays gives an image
    for each of them. Any other file is of one image or slide, and named like it.

    Raises:
        DataError: For a file that is missing or damaged, or holds something else.
    """
    for file in files_of(path):
        if file.suffix.lower() not in _OPENERS:  # the CSV beside a .npy, read with it
            continue
        own_name = file.stem
        if path.is_dir():
            own_name = file.relative_to(path).with_suffix("").as_posix()
        yield from _read_file(file, own_name)


def _read_file(file: Path, own_name: str) -> Iterator[Given]:
    try:
        with _opener(file)(file) as arrays:
            yield from _images(arrays, own_name)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except ModuleNotFoundError as error:
        raise DataError(
            f"{file} needs the package {error.name}, which is not installed. Install it, or write "
            f"the vectors as .npz, .parquet, .h5 or .safetensors."
        ) from error
    except Exception as error:  # whatever a damaged file makes a library raise
        raise DataError(
            f"{file} cannot be read as {file.suffix.lower()}: {first_line(error)}. Write it again."
        ) from error


# --- what the arrays of a file mean ---------------------------------------------------------------


def _images(arrays: Arrays, own_name: str) -> Iterator[Given]:
    vectors = _first_of(arrays, _VECTORS)
    if vectors is None:
        yield from _named_arrays(arrays)
        return
    names = _first_of(arrays, _NAMES)
    if names is None:
        yield Given(own_name, 0, _as_rows(arrays[vectors], vectors))
        return
    views = _first_of(arrays, _VIEWS)
    yield from _rows_of_images(
        _as_matrix(arrays[vectors], vectors),
        _as_texts(arrays[names]),
        None if views is None else _as_view_numbers(arrays[views]),
    )


def _named_arrays(arrays: Arrays) -> Iterator[Given]:
    """An image for each array; of a group, the vectors in it."""
    holds_vectors = False
    for name in arrays:
        image, _, last = name.rpartition("/")
        if last in _BESIDE:
            continue
        holds_vectors = True
        is_group = bool(image) and last in _VECTORS
        yield Given(image if is_group else name, 0, _as_rows(arrays[name], name))
    if not holds_vectors:
        raise DataError(f"it holds no vectors; an array called {_VECTORS[0]} is expected")


def _rows_of_images(
    matrix: np.ndarray | Sequence[Any], names: np.ndarray, views: np.ndarray | None
) -> Iterator[Given]:
    """Put together the rows of each image and view, in the order of their first rows."""
    if views is None:
        views = np.zeros(len(names), dtype=int)
    lengths = {"vectors": len(matrix), "names": len(names), "views": len(views)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} {what}" for what, count in lengths.items())
        raise DataError(f"it holds {told}; as many of each are expected")
    keys = pd.DataFrame({"name": names, "view": views})
    for (name, view), rows in keys.groupby(["name", "view"], sort=False).indices.items():
        yield Given(str(name), int(view), _as_rows(matrix[rows], str(name)))


def _first_of(arrays: Arrays, names: Sequence[str]) -> str | None:
    """The name, as it is written, of the first of some arrays that is there."""
    written = {name.casefold(): name for name in arrays}
    return next((written[name] for name in names if name in written), None)


def _as_rows(value: Any, name: str) -> np.ndarray:
    """One vector, or one in each row, as (num_rows, num_features)."""
    array = np.asarray(value)
    if array.dtype == object:  # lists of a Parquet column
        array = np.stack([np.asarray(vector) for vector in array])
    if array.ndim == 1:
        array = array[None]
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    return _as_matrix(array, name)


def _as_matrix(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    is_list = array.dtype == object and array.ndim == 1
    is_number = array.dtype.kind in "fiu" or array.dtype.name == "bfloat16"
    if is_list or (is_number and array.ndim == 2):
        return array
    raise DataError(
        f"'{name}' holds {array.dtype} of shape {array.shape}; a vector of numbers, or a row for "
        f"each, is expected"
    )


def _as_texts(value: Any) -> np.ndarray:
    """Names of images, object (num_rows,)."""
    items = np.asarray(value).ravel().tolist()
    texts = [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in items]
    return np.array(texts, dtype=object)


def _as_view_numbers(value: Any) -> np.ndarray:
    numbers = np.asarray(value).ravel().astype(float)
    wrong = ~np.isfinite(numbers) | (numbers < 0) | (numbers != np.round(numbers))
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum())} views are no whole number from 0 (the first: {numbers[wrong][0]})"
        )
    return numbers.astype(int)


# --- formats --------------------------------------------------------------------------------------


@contextmanager
def _open_npz(file: Path) -> Iterator[Arrays]:
    with np.load(file, allow_pickle=False) as arrays:
        for member in arrays.zip.infolist():
            limits.require_held(member.file_size, member.compress_size, member.filename)
        yield arrays


@contextmanager
def _open_npy(file: Path) -> Iterator[Arrays]:
    """A matrix, with the names and views of its rows in the CSV beside it, where there is one."""
    arrays: dict[str, Any] = {_VECTORS[0]: np.load(file, mmap_mode="r", allow_pickle=False)}
    beside = _list_beside(file)
    if beside is not None:
        table = tables.read_table(beside)
        named = [name for name in _NAMES if table.has(name)]
        if not named:
            raise DataError(
                f"{beside.name} has no column {', '.join(_NAMES[:4])} (it has: {table.names})"
            )
        for name in (named[0], *_VIEWS):
            if table.has(name):
                arrays[name] = table.column(name).to_numpy()
    yield arrays


def _list_beside(file: Path) -> Path | None:
    """The CSV that names the rows of a `.npy` file."""
    beside = file.with_suffix(".csv")
    return beside if file.suffix.lower() == ".npy" and beside.is_file() else None


@contextmanager
def _open_parquet(file: Path) -> Iterator[Arrays]:
    """A row for each vector, as a list in one column or as a number in each of many."""
    opened = pq.ParquetFile(file)
    limits.require_held(_unpacked_bytes(opened.metadata), file.stat().st_size, "the table")
    table = opened.read()
    columns = dict.fromkeys(table.schema.names)
    names = _first_of(columns, _NAMES)
    if names is None:
        raise DataError(f"it has no column {', '.join(_NAMES[:4])} (it has: {_some(columns)})")
    arrays = {names: table[names].to_numpy()}
    views = _first_of(columns, _VIEWS)
    if views is not None:
        arrays[views] = table[views].to_numpy()
    vectors = _first_of(columns, _VECTORS)
    if vectors is not None:
        arrays[vectors] = table[vectors].to_numpy()
    else:
        arrays[_VECTORS[0]] = _numbered_columns(table, beside=(names, views))
    yield arrays


def _unpacked_bytes(metadata: pq.FileMetaData) -> int:
    """What a table takes in memory, about: a value that is repeated is kept once, and read as often as it stands."""
    return metadata.num_rows * metadata.num_columns * _NUMBER_BYTES


def _numbered_columns(table: pa.Table, beside: Sequence[str | None]) -> np.ndarray:
    """The columns `f0`, `f1` ... in the order of their numbers; labels and the like are no features."""
    numbers_of: dict[str, dict[int, str]] = {}
    for name in table.schema.names:
        match = _NUMBERED.fullmatch(name)
        if match is not None and name not in beside:
            prefix, number = match.groups()
            numbers_of.setdefault(prefix, {})[int(number)] = name
    if len(numbers_of) != 1:
        kinds = ", ".join(f"'{prefix}0'" for prefix in numbers_of) or "none"
        raise DataError(
            f"the columns of its vectors cannot be told (numbered columns like: {kinds}); one column "
            f"`{_VECTORS[0]}` of lists, or columns f0, f1 ... are expected"
        )
    [column_of] = numbers_of.values()
    columns = [table[column_of[number]].to_numpy() for number in sorted(column_of)]
    return np.stack(columns, axis=1)


@contextmanager
def _open_hdf5(file: Path) -> Iterator[Arrays]:
    import h5py

    with h5py.File(file, "r") as opened:
        datasets: dict[str, Any] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                _require_inside(item, name, file.stat().st_size)
                datasets[name] = item

        opened.visititems(note)  # follows no link into another file
        for name, dataset in datasets.items():
            if dataset.dtype == object:
                datasets[name] = _texts_of(file, name)
        yield datasets


def _texts_of(file: Path, name: str) -> np.ndarray:
    """Texts of any length, read in a process of its own.

    A damaged heap of such texts sends the HDF5 library round in circles, in which no signal reaches it, or makes it
    take gigabytes.
    """
    command = [sys.executable, "-c", _READ_TEXTS, str(file), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TEXTS_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"'{name}' cannot be read within {_TEXTS_SECONDS} s: it is damaged"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it is damaged"]
        raise DataError(f"'{name}' cannot be read: {shortened(said[-1])}")
    return np.array(json.loads(done.stdout), dtype=object)


def _require_inside(dataset: Any, name: str, file_bytes: int) -> None:
    """Refuse numbers that lie in other files, whatever is there, and more of them than the file can hold."""
    if dataset.external or dataset.is_virtual:
        raise DataError(
            f"'{name}' lies in other files, which are not opened; write it into this one"
        )
    held_bytes = min(dataset.id.get_storage_size(), file_bytes)  # a damaged file names any size
    limits.require_held(dataset.nbytes, held_bytes, name)


@contextmanager
def _open_torch(file: Path) -> Iterator[Arrays]:
    torch = importlib.import_module("torch")
    version = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if version < _SAFE_TORCH:
        raise DataError(
            f"torch {torch.__version__} can be made to run what a file holds; "
            f"{_SAFE_TORCH[0]}.{_SAFE_TORCH[1]} or later is expected"
        )
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        content = {_VECTORS[0]: content}
    yield {str(name): _from_torch(value) for name, value in content.items()}


def _from_torch(value: Any) -> Any:
    """A tensor as an array; bfloat16, which NumPy lacks, as float32."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach()
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Arrays]:
    """Named tensors; the names of rows, which are no tensor, are JSON in the metadata."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    names = _first_of(metadata, _NAMES)
    if names is not None:
        arrays[names] = json.loads(metadata[names])
    yield arrays


_OPENERS: dict[str, Callable[[Path], AbstractContextManager[Arrays]]] = {
    ".npz": _open_npz,
    ".npy": _open_npy,
    ".parquet": _open_parquet,
    ".h5": _open_hdf5,
    ".hdf5": _open_hdf5,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".safetensors": _open_safetensors,
}

#: Endings of the files that can be read.
SUFFIXES = frozenset(_OPENERS)


def _opener(file: Path) -> Callable[[Path], AbstractContextManager[Arrays]]:
    opener = _OPENERS.get(file.suffix.lower())
    if opener is None:
        raise DataError(f"{file} is of no format of vectors. Expected are {_expected()}.")
    return opener


def _expected() -> str:
    return f"files ending in {', '.join(_OPENERS)}, or a folder of them"


def _some(names: Mapping[str, Any]) -> str:
    shown = list(names)[:6]
    more = ", ..." if len(names) > len(shown) else ""
    return ", ".join(shown) + more
