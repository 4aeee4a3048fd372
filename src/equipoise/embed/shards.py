"""The one pass, in pieces that survive a kill and are assembled into the store."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core import images, parallel
from equipoise.core.config import Augment, Engine
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_path, digest_of, file_digest, read_json, write_json
from equipoise.embed import augment, backbones
from equipoise.embed.embedder import Embedder

SHARDS = Path("data/cache/features")


_SHARD_ROWS = 256


#: Rounding of a stored feature over its spread; an ImageNet MobileNetV2 on chest films has 0.0003.
_BLUR_LIMIT = 0.01


def _find(
    folder: Path, rows: pd.DataFrame, parts: list[tuple[Path, np.ndarray, np.ndarray]]
) -> pd.DataFrame:
    """Add to `parts` (shard, rows in it, rows of the matrix) what whole shards hold; return the rows they lack.

    A shard is its features and an index, both named after the digest of their content: two processes never write
    different things to one name, and what does not match its name does not exist.
    """
    place = {key: index for index, key in zip(rows.index, zip(rows["sha256"], rows["view"]))}
    for path in sorted(folder.glob("*.json")):
        try:
            index = read_json(path)
        except DataError:
            continue
        if digest_of(index)[:24] != path.stem:
            continue
        keys = list(map(tuple, index["rows"]))
        held = [(source, place[key]) for source, key in enumerate(keys) if key in place]
        shard = folder / f"{index['sha256'][:24]}.npy"
        if held and shard.is_file() and file_digest(shard) == index["sha256"]:
            source, to = np.array(held).T
            parts.append((shard, source, to))
            for at in source:
                del place[keys[at]]
    return rows.loc[list(place.values())]


def _assemble(
    target: Path,
    parts: list[tuple[Path, np.ndarray, np.ndarray]],
    shape: tuple[int, int],
    name: str,
) -> str:
    """Copy shard by shard into one file, so that memory holds one shard at most; the digest of the file."""
    bad = 0
    with atomic_path(target) as path:
        dtype = np.load(parts[0][0], mmap_mode="r", allow_pickle=False).dtype
        matrix = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
        for shard, source, to in parts:
            values = np.load(shard, mmap_mode="r", allow_pickle=False)[source]
            bad += int((~np.isfinite(values)).any(axis=1).sum())
            matrix[to] = values
        if bad:
            raise DataError(
                f"{bad} of {shape[0]} features of {name} are not finite numbers. Check its weights file."
            )
        matrix.flush()
        del matrix  # Windows moves no file that is mapped
        return file_digest(path)


#: (sha256, view, path) of one feature to make.
_Row = tuple[str, int, str]


def _embed(work: _Pass, rows: list[_Row], embedder: Embedder, engine: Engine) -> None:
    """Make shards of rows: here, in one process for each GPU where there are several, or by the workers of `engine`."""
    size = max(1, _SHARD_ROWS // work.batch_size) * work.batch_size
    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    devices, here = backbones.devices(), engine.backend == "loky"
    # A GPU searches for the best way to compute every new shape, so its last batch is filled up.
    fill = len(rows) > work.batch_size
    if len(pieces) < 2 or (here and (len(devices) == 1 or (not devices and engine.workers == 1))):
        work.embed(pieces, embedder, fill)
        return
    jobs: list[tuple[Any, ...]] = [(work, [piece], fill, None) for piece in pieces]
    if here and devices:
        jobs = [
            (work, pieces[number :: len(devices)], fill, device)
            for number, device in enumerate(devices)
        ]
        jobs, engine = [job for job in jobs if job[1]], Engine(workers=len(devices))
    # Workers read the weights: they may lack the file, and beside Dask's threads drawing them is not repeatable.
    with atomic_path(_weights_path(work.weights_digest)) as path, open(path, "wb") as handle:
        np.savez(handle, *embedder.model.get_weights())
    parallel.run_jobs(_in_worker, jobs, "backbone pass", engine)


def _in_worker(work: _Pass, pieces: list[list[_Row]], fill: bool, device: str | None) -> None:
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before TensorFlow is imported in this process
    work.embed(
        pieces, _embedder(work.backbone, work.weights_digest, work.size_px, work.pipeline), fill
    )


def _weights_path(digest: str) -> Path:
    return SHARDS / f"{digest[:24]}.npz"


@functools.lru_cache(maxsize=1)
def _embedder(backbone: str, weights_digest: str, size_px: int, pipeline: str) -> Embedder:
    """A worker builds the backbone once."""
    model = backbones.build(backbone, "random", size_px, pipeline)
    with np.load(_weights_path(weights_digest), allow_pickle=False) as weights:
        model.set_weights([weights[name] for name in weights.files])
    if backbones.weights_digest(model) != weights_digest:
        raise DataError(f"{_weights_path(weights_digest)} is damaged. Run `equipoise embed` again.")
    return Embedder(model, size_px, pipeline)


@dataclass(frozen=True)
class _Pass:
    """What a process needs to make shards."""

    backbone: str
    weights_digest: str
    size_px: int
    pipeline: str
    raw: Path
    policy: Augment | None
    batch_size: int
    folder: Path

    def embed(self, pieces: list[list[_Row]], embedder: Embedder, fill: bool) -> None:
        """Decode by threads while the backbone computes; each piece becomes a shard as soon as it is whole."""
        rows, name = (
            [row for piece in pieces for row in piece],
            "views" if self.policy else "images",
        )
        decoded = parallel.in_threads(
            lambda row: self._load(row, embedder), rows, ahead=3 * self.batch_size
        )
        shown = parallel.progress(decoded, f"backbone pass over {name}", len(rows), name)
        padded = self.batch_size if fill and backbones.devices() else 0
        for piece in pieces:
            batches = [
                min(self.batch_size, len(piece) - at)
                for at in range(0, len(piece), self.batch_size)
            ]
            values = np.concatenate(
                [self._features(shown, size, padded, embedder) for size in batches]
            )
            if values.dtype == np.float16 and len(values) >= 32:
                _refuse_blurred(values, self.backbone)
            self._save(values, [[digest, int(view)] for digest, view, _ in piece])

    def _load(self, row: _Row, embedder: Embedder) -> tuple[np.ndarray, np.ndarray | None]:
        digest, view, path = row
        content = images.read(self.raw, path)
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError(
                f"{self.raw / path} is not the file that ingest read. Run `equipoise ingest` again."
            )
        numbers = (
            augment.view_parameters(digest, view, self.policy, self.size_px)
            if self.policy
            else None
        )
        return embedder.load(content), numbers

    def _features(
        self, decoded: Iterator[Any], size: int, padded: int, embedder: Embedder
    ) -> np.ndarray:
        items = list(itertools.islice(decoded, size))
        items += items[-1:] * (padded - size)
        pixels = np.stack([pixels for pixels, _ in items])
        return embedder.features(
            pixels, np.stack([numbers for _, numbers in items]) if self.policy else None
        )[:size]

    def _save(self, values: np.ndarray, rows: list[list[Any]]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        index = {"sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(), "rows": rows}
        with atomic_path(self.folder / f"{index['sha256'][:24]}.npy") as path:
            path.write_bytes(buffer.getbuffer())
        # The index is written last: without it the shard does not exist.
        write_json(self.folder / f"{digest_of(index)[:24]}.json", index)


def _refuse_blurred(values: np.ndarray, name: str) -> None:
    exact = values.astype(np.float64)
    step = np.spacing(np.abs(exact).mean(axis=0).astype(np.float16)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        blur = float(np.median(step / np.sqrt(12) / exact.std(axis=0)))
    if blur > _BLUR_LIMIT:
        raise ConfigError(
            f"float16 cannot hold the features of {name}: its rounding is {blur:.2g} of a feature's spread (median "
            f"over features), at most {_BLUR_LIMIT} is expected. Set embed.dtype to float32."
        )
