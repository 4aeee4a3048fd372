"""Shards: pieces of finished features that survive a kill and are assembled into the store.

A shard is two files: the features, and an index of the (sha256, view) they belong to. Both are
named after the digest of their content, so two processes never write different things to one name,
and a file that does not match its name does not exist.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from equipoise.core.config import Augment
from equipoise.core.errors import DataError
from equipoise.core.files import atomic_path, digest_of, file_digest, read_json, write_json

#: Digits of a digest in the name of a file or folder.
_NAME_DIGITS = 24


@dataclass(frozen=True)
class NetworkKey:
    """What features depend on beside the picture and its view.

    Attributes:
        backbone: Its name in `run.backbones`.
        weights_digest: Digest of every weight.
        image_size_px: Width and height of the input.
        pipeline: How pixels become numbers, as `pipeline_of` says it.
    """

    backbone: str
    weights_digest: str
    image_size_px: int
    pipeline: str


class FeatureKey(NamedTuple):
    """One feature: of which picture and which view (0 for the plain image)."""

    sha256: str
    view: int


class ShardPart(NamedTuple):
    """Rows of one shard that the matrix of a study needs.

    Attributes:
        shard: The file with the features.
        source: Rows in the shard, int (num_rows,).
        target: Rows in the matrix, int (num_rows,).
    """

    shard: Path
    source: np.ndarray
    target: np.ndarray


class Finished(NamedTuple):
    """What whole shards hold of some wanted rows, and the rows they lack."""

    parts: list[ShardPart]
    missing: pd.DataFrame


def shards_path(cache: Path) -> Path:
    """Folder of all shards, and of what lies beside them."""
    return cache / "features"


def network_path(cache: Path, key: NetworkKey) -> Path:
    """Where a network lies for workers."""
    return shards_path(cache) / f"{digest_of(asdict(key))[:_NAME_DIGITS]}.keras"


def shard_folder(cache: Path, key: NetworkKey, policy: Augment | None) -> Path:
    """Folder of the shards of one network, for plain images or for views under a policy."""
    named = asdict(key)
    named["augment"] = policy.model_dump() if policy else None
    return shards_path(cache) / digest_of(named)[:_NAME_DIGITS]


# --- finding --------------------------------------------------------------------------------------


def find_finished(folder: Path, wanted: pd.DataFrame) -> Finished:
    """Look for finished shards that hold wanted features.

    Args:
        folder: Of the shards.
        wanted: Columns `sha256` and `view`; the table's index is the row of the matrix.
    """
    keys = zip(wanted["sha256"], wanted["view"])
    target_of = {FeatureKey(*key): target for key, target in zip(keys, wanted.index)}
    parts = []
    for path in sorted(folder.glob("*.json")):
        index = _read_index(path)
        if index is None:
            continue
        held = [(source, key) for source, key in enumerate(index.keys) if key in target_of]
        shard = folder / _features_name(index.sha256)
        if not held or not _is_whole(shard, index.sha256):
            continue
        source = np.array([row for row, _ in held])
        target = np.array([target_of.pop(key) for _, key in held])
        parts.append(ShardPart(shard, source, target))
    missing = wanted.loc[list(target_of.values())]
    return Finished(parts, missing)


class _Index(NamedTuple):
    """Digest of a shard's features, and the key of each of its rows."""

    sha256: str
    keys: list[FeatureKey]


def _read_index(path: Path) -> _Index | None:
    """Read an index; None when it is damaged."""
    try:
        index = read_json(path)
    except DataError:
        return None
    if digest_of(index)[:_NAME_DIGITS] != path.stem:
        return None
    return _Index(index["sha256"], [FeatureKey(*key) for key in index["rows"]])


def _features_name(sha256: str) -> str:
    return f"{sha256[:_NAME_DIGITS]}.npy"


def _is_whole(shard: Path, sha256: str) -> bool:
    return shard.is_file() and file_digest(shard) == sha256


# --- writing --------------------------------------------------------------------------------------


def save_shard(folder: Path, values: np.ndarray, keys: Sequence[FeatureKey]) -> None:
    """Write a shard: its features and then its index.

    Args:
        folder: Of the shards.
        values: (num_rows, num_features), float32 or float16.
        keys: Of each row.
    """
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    content = buffer.getbuffer()
    sha256 = hashlib.sha256(content).hexdigest()
    with atomic_path(folder / _features_name(sha256)) as path:
        path.write_bytes(content)
    # The index is written last: without it the shard does not exist.
    index = {"sha256": sha256, "rows": [[key.sha256, int(key.view)] for key in keys]}
    name = digest_of(index)[:_NAME_DIGITS]
    write_json(folder / f"{name}.json", index)


def assemble(
    target: Path, parts: Sequence[ShardPart], shape: tuple[int, int], backbone: str
) -> str:
    """Copy shard by shard into one file, so that memory holds one shard at most.

    Args:
        target: The file to write.
        parts: What goes where; together they fill the matrix.
        shape: Of the matrix: num_rows, num_features.
        backbone: Its name, for the message.

    Returns:
        The digest of the file.

    Raises:
        DataError: When a feature is not a finite number.
    """
    not_finite = 0
    with atomic_path(target) as path:
        matrix = np.lib.format.open_memmap(path, "w+", dtype=_open(parts[0]).dtype, shape=shape)
        for part in parts:
            values = _open(part)[part.source]
            finite = np.isfinite(values).all(axis=1)
            not_finite += int((~finite).sum())
            matrix[part.target] = values
        if not_finite:
            raise DataError(
                f"{not_finite} of {shape[0]} features of {backbone} are not finite numbers. Check its "
                f"weights file."
            )
        matrix.flush()
        # Windows moves no file that is mapped.
        del matrix
        return file_digest(path)


def _open(part: ShardPart) -> np.ndarray:
    return np.load(part.shard, mmap_mode="r", allow_pickle=False)
