"""Arrays that cost more to make than to read, kept on disk under a digest of all they are made of.

A rotation of features is the same for every scenario and seed of a round, and so is a final fit
where two remedies, or two seeds, draw the same rows. The folder is a cache: it is bounded, a
damaged file is made again, and it may be deleted at any time. What is read back equals what was
made to the last bit, so a result does not depend on what was there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from equipoise.core import environment
from equipoise.core.errors import DataError
from equipoise.core.files import write_arrays
from equipoise.scenario.heads.rows import Features, Rows, blocks

#: Bytes that a folder may hold; beyond, what was not read for the longest time goes. Rotated rows
#: of 26 rounds of 1,569 films in 1,920 features, with and without views, are 0.9 GB.
_MOST_BYTES = 2**30

#: Name of the array that says what the others hold.
_CONTENT = "content"

#: Packages, beside our own code, that rounding depends on.
_PACKAGES = ("numpy", "scipy")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kept:
    """A folder of arrays.

    Attributes:
        folder: Made if needed.
        most_bytes: What it may hold.
    """

    folder: Path
    most_bytes: int = _MOST_BYTES

    def arrays(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """Read the arrays of a key, or make and keep them.

        Args:
            key: Digest of everything that they are made of.
            make: Makes them.
        """
        path = self.folder / f"{key}.npz"
        arrays = _read(path)
        if arrays is not None:
            # The time of the last use decides what is dropped first.
            with contextlib.suppress(OSError):
                path.touch()
            return arrays
        made = make()
        # Without room for a cache the next run takes longer, and that is all.
        with contextlib.suppress(DataError):
            content = np.array(_digest_of_arrays(made))
            write_arrays(path, **made, **{_CONTENT: content})
            self._drop_oldest(path)
        return made

    def _drop_oldest(self, newest: Path) -> None:
        """Delete what was not used for the longest time until the folder is small enough."""
        # Another process may delete the same file first, or hold it open where that forbids it.
        with contextlib.suppress(OSError):
            files = [path for path in self.folder.glob("*.npz") if path != newest]
            files.sort(key=lambda path: path.stat().st_mtime)
            held = newest.stat().st_size + sum(path.stat().st_size for path in files)
            for path in files:
                if held <= self.most_bytes:
                    break
                held -= path.stat().st_size
                path.unlink()


def _read(path: Path) -> Arrays | None:
    """What `Kept.arrays` kept; None when it is not there or not what was written."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        content = str(arrays.pop(_CONTENT))
    except Exception:  # a damaged file may raise anything, and all of it means: make it again
        return None
    return arrays if content == _digest_of_arrays(arrays) else None


def _digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        _add(digest, name, arrays[name])
    return digest.hexdigest()


def key_of(what: str, features: Features, **settings: Any) -> str:
    """Digest of rows, of settings, and of the code and the machine that computes with them.

    Args:
        what: Names what is made of them.
        features: (num_rows, num_features); of rows that are standardised when they are read, the
            raw ones count and the standardiser.
        settings: Arrays, numbers and texts.
    """
    digest = hashlib.sha256()
    _add(digest, what, np.array(list(features.shape)))
    if isinstance(features, Rows) and features.standardiser is not None:
        standardiser = features.standardiser
        _add(digest, "kept", standardiser.kept)
        _add(digest, "mean", standardiser.mean)
        _add(digest, "scale", standardiser.scale)
        _add(digest, "dtype", np.array(np.dtype(features.dtype).str))
        features = Rows(features.matrix, features.chosen, features.matrix.dtype)
    for rows in blocks(len(features)):
        _add(digest, "rows", features[rows])
    for name in sorted(settings):
        _add(digest, name, np.asarray(settings[name]))
    digest.update(json.dumps(_made_by(), sort_keys=True).encode())
    return digest.hexdigest()


def _add(digest: Any, name: str, array: np.ndarray) -> None:
    """Add an array with its name, kind and shape."""
    header = [name, array.dtype.str, list(array.shape)]
    digest.update(json.dumps(header).encode())
    digest.update(array.tobytes())


@functools.cache
def _made_by() -> dict[str, Any]:
    """Other code, packages or kernels may round differently."""
    kernels = {item.get("architecture", "") for item in threadpool_info()}
    return {
        "code": environment.code_digest("scenario/heads"),
        "packages": environment.versions_of(*_PACKAGES),
        "kernels": sorted(kernels),
    }
