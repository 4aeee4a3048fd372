"""The one pass: decode -> one traced resize + scaling + backbone (the same that serves) -> feature store."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core import images, parallel
from equipoise.core.config import Augment, Embed, Engine, Study
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import (
    Manifest,
    atomic_path,
    digest_of,
    file_digest,
    minority_labels,
    read_json,
    read_table,
    write_json,
    write_table,
)
from equipoise.embed import augment, backbones
from equipoise.ingest import stage as ingest

#: Part of every key: raise it when decoding, resizing or scaling changes, so that no stale feature is used.
PIPELINE = "pillow-rgb8/antialias-bilinear/1"
SHARDS = Path("data/cache/features")
_SHARD_ROWS = 256
#: Rounding of a stored feature over its spread; an ImageNet MobileNetV2 on chest films has 0.0003.
_BLUR_LIMIT = 0.01


@dataclass(frozen=True)
class FeatureStore:
    """Features by (sha256, view), memory-mapped.

    Attributes:
        matrix: float32 or float16 (num_rows, num_features), read-only.
        row_of: (sha256, view) -> row of the matrix.
        meta: Backbone, weights digest, size, pipeline, number of passes.
        digest: Digest of the whole store.
    """

    matrix: np.ndarray
    row_of: dict[tuple[str, int], int]
    meta: dict[str, Any]
    digest: str

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Open what `run` wrote; the matrix stays on disk."""
        meta = read_json(folder / "meta.json")
        index, _ = read_table(folder / "index.parquet")
        matrix = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        if len(matrix) != len(index):
            raise DataError(
                f"{folder} is damaged: {len(matrix)} features for {len(index)} rows. Run `equipoise embed`."
            )
        return cls(matrix, dict(zip(zip(index["sha256"], index["view"]), range(len(index)))), meta, meta["digest"])

    def rows(self, sha256: Sequence[str], views: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of the matrix, int (num_images,).

        Raises:
            DataError: When a picture or a view was never embedded.
        """
        try:
            return np.array([self.row_of[key] for key in zip(sha256, map(int, views))], dtype=np.int64)
        except KeyError as error:
            digest, view = error.args[0]
            raise DataError(
                f"No feature of picture {digest[:12]}..., view {view} ({self.meta['backbone']}). "
                f"Run `equipoise embed` again; augmented views are made as embed.views and embed.views_of say."
            ) from error


class Embedder:
    """Pixels -> features in two traced functions, used by `embed`, fine-tuning and the served model alike."""

    def __init__(self, model: Any, size_px: int, pipeline: str = PIPELINE) -> None:
        import tensorflow as tf

        self.model, self.size_px = model, size_px
        self.draft_px = draft_px(pipeline, size_px)
        self.num_features = model.output_shape[-1]
        pixels = tf.TensorSpec([None, None, 3], tf.uint8)
        batch = tf.TensorSpec([None, size_px, size_px, 3], tf.float32)
        views = tf.TensorSpec([None, augment.NUM_PARAMETERS], tf.float32)
        self._resize = tf.function(lambda x: resize(x, size_px), input_signature=[pixels])
        self._plain = tf.function(lambda x: model(x, training=False), input_signature=[batch])
        self._viewed = tf.function(
            lambda x, p: model(augment.apply_views(x, p), training=False), input_signature=[batch, views]
        )

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) -> float32 (size_px, size_px, 3), 0..255; the aspect ratio is not kept."""
        return self._resize(pixels).numpy()

    def load(self, source: bytes | Path | np.ndarray) -> np.ndarray:
        """Decode and resize a file, its bytes or uint8 pixels: float32 (size_px, size_px, 3), 0..255."""
        return self.resize(source if isinstance(source, np.ndarray) else images.decode(source, self.draft_px))

    def features(self, batch: np.ndarray, parameters: np.ndarray | None = None) -> np.ndarray:
        """Features (batch, num_features) of resized images, of views of them when parameters are given."""
        return (self._plain(batch) if parameters is None else self._viewed(batch, parameters)).numpy()


def draft_px(pipeline: str, size_px: int) -> int:
    """The side that a JPEG decoded at a reduced scale keeps at least; 0 where the pipeline decodes at full scale."""
    return 2 * size_px if "/jpeg-draft" in pipeline else 0


def resize(pixels: Any, size_px: int) -> Any:
    """uint8 (height, width, 3) -> float32 (size_px, size_px, 3), 0..255, inside TensorFlow; aspect is not kept."""
    import tensorflow as tf

    return tf.image.resize(tf.cast(pixels, tf.float32), (size_px, size_px), antialias=True)


def wanted_rows(manifest: Manifest, views: int, views_of: str) -> pd.DataFrame:
    """The distinct (sha256, view) to embed, with one image of each: plain ones first, then view by view."""
    plain = manifest.table.drop_duplicates("sha256")[["sha256", "image_id", "label"]]
    chosen = plain if views_of == "all" else plain[plain["label"].isin(minority_labels(manifest.counts()))]
    frames = [plain.assign(view=0), *(chosen.assign(view=view) for view in range(1, views + 1))]
    return pd.concat(frames, ignore_index=True)[["sha256", "view", "image_id"]]


def pipeline_of(settings: Embed) -> str:
    """How pixels become numbers, in words: part of every key, and kept beside every model.

    >>> from types import SimpleNamespace
    >>> pipeline_of(SimpleNamespace(jpeg_draft=True, mixed_precision=None, dtype="float32"))
    'pillow-rgb8/antialias-bilinear/1/jpeg-draft'
    """
    draft = "/jpeg-draft" if settings.jpeg_draft else ""
    mixed = f"/mixed-{settings.mixed_precision}" if settings.mixed_precision else ""
    return PIPELINE + draft + mixed + ("/stored-float16" if settings.dtype == "float16" else "")


def run(study: Study, backbone: str) -> dict[str, Any]:
    """Embed every distinct picture and view of a study that the shards lack, and assemble the feature folder.

    Shards lie outside DVC's outputs and are keyed by content, so a killed run goes on where it was, a new split needs
    no pass, and new images cost only themselves. `meta.json` counts the passes behind the features; how many this run
    made stands in the last line of `passes.jsonl` beside the shards, so that a resumed run leaves the same outputs.

    Returns:
        The contents of meta.json, with `passes_now` and `folder`.

    Raises:
        ConfigError: When float16 cannot tell the images apart.
        DataError: When an image has changed since ingest, or a feature is not a finite number.
    """
    manifest, wanted, key, embedder, works = _prepare(study, backbone)
    weights = study.settings.embed.weights_for(backbone)
    parts: list[tuple[Path, np.ndarray, np.ndarray]] = []
    passes = {"images": 0, "views": 0}
    computed, start = 0, time.monotonic()
    for work, rows in works:
        folder = work.folder
        missing = _find(folder, rows, parts)
        todo = [tuple(row) for row in missing[["sha256", "view", "path"]].itertuples(index=False)]
        _embed(work, todo, embedder, study.engine)
        left = _find(folder, missing, parts) if len(missing) else missing
        if len(left):
            raise DataError(f"{len(left)} features vanished from {folder} while they were made. Run embed again.")
        computed += len(missing)
        passes["views" if work.policy else "images"] = len(rows)
    seconds = round(time.monotonic() - start, 3)
    folder = study.features_path(backbone)
    digest = _assemble(folder / "features.npy", parts, (len(wanted), embedder.num_features), backbone)
    write_table(folder / "index.parquet", wanted[["sha256", "view"]], {})
    meta = {
        **key,
        "study": study.name,
        "weights": weights if weights in ("imagenet", "random") else "file",
        "manifest": manifest.digest,
        "settings": study.settings.sections("embed", "augment"),
        "passes": len(wanted),
        "passes_of": passes,
        "num_features": embedder.num_features,
        "digest": digest_of([digest, file_digest(folder / "index.parquet")]),
    }
    write_json(folder / "meta.json", meta)
    with open(SHARDS / "passes.jsonl", "a", encoding="utf-8") as journal:
        line = {"study": study.name, "backbone": backbone, "image_size_px": embedder.size_px, "passes": len(wanted)}
        journal.write(json.dumps({**line, "passes_now": computed, "seconds": seconds}) + "\n")
    return {**meta, "passes_now": computed, "folder": str(folder)}


def passes_left(study: Study, backbone: str) -> int:
    """Passes that `run` would make now. Builds the backbone: features are kept under the digest of its weights."""
    return sum(len(_find(work.folder, rows, [])) for work, rows in _prepare(study, backbone)[-1])


def _prepare(
    study: Study, backbone: str
) -> tuple[Manifest, pd.DataFrame, dict[str, Any], Embedder, list[tuple[_Pass, pd.DataFrame]]]:
    settings = study.settings.embed
    manifest = Manifest.read(study.manifest_path)
    wanted = wanted_rows(manifest, settings.views, settings.views_of)
    wanted["path"] = wanted["image_id"].map(ingest.locate(study, manifest))
    weights, pipeline = settings.weights_for(backbone), pipeline_of(settings)
    model = backbones.build(backbone, weights, settings.image_size_px, pipeline)
    key: dict[str, Any] = {
        "backbone": backbone,
        "weights_digest": backbones.weights_digest(model),
        "image_size_px": settings.image_size_px,
        "pipeline": pipeline,
    }
    works = []
    for augmented, rows in wanted.groupby(wanted["view"] > 0, sort=True):
        policy = study.settings.augment if augmented else None
        folder = SHARDS / digest_of({**key, "augment": policy.model_dump() if policy else None})[:24]
        model_of = (backbone, key["weights_digest"], settings.image_size_px, pipeline)
        works.append((_Pass(*model_of, study.raw, policy, settings.batch_size, folder), rows))
    return manifest, wanted, key, Embedder(model, settings.image_size_px, pipeline), works


def _find(folder: Path, rows: pd.DataFrame, parts: list[tuple[Path, np.ndarray, np.ndarray]]) -> pd.DataFrame:
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


def _assemble(target: Path, parts: list[tuple[Path, np.ndarray, np.ndarray]], shape: tuple[int, int], name: str) -> str:
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
            raise DataError(f"{bad} of {shape[0]} features of {name} are not finite numbers. Check its weights file.")
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
        jobs = [(work, pieces[number :: len(devices)], fill, device) for number, device in enumerate(devices)]
        jobs, engine = [job for job in jobs if job[1]], Engine(workers=len(devices))
    # Workers read the weights: they may lack the file, and beside Dask's threads drawing them is not repeatable.
    with atomic_path(_weights_path(work.weights_digest)) as path, open(path, "wb") as handle:
        np.savez(handle, *embedder.model.get_weights())
    parallel.run_jobs(_in_worker, jobs, "backbone pass", engine)


def _in_worker(work: _Pass, pieces: list[list[_Row]], fill: bool, device: str | None) -> None:
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before TensorFlow is imported in this process
    work.embed(pieces, _embedder(work.backbone, work.weights_digest, work.size_px, work.pipeline), fill)


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
        rows, name = [row for piece in pieces for row in piece], "views" if self.policy else "images"
        decoded = parallel.in_threads(lambda row: self._load(row, embedder), rows, ahead=3 * self.batch_size)
        shown = parallel.progress(decoded, f"backbone pass over {name}", len(rows), name)
        padded = self.batch_size if fill and backbones.devices() else 0
        for piece in pieces:
            batches = [min(self.batch_size, len(piece) - at) for at in range(0, len(piece), self.batch_size)]
            values = np.concatenate([self._features(shown, size, padded, embedder) for size in batches])
            if values.dtype == np.float16 and len(values) >= 32:
                _refuse_blurred(values, self.backbone)
            self._save(values, [[digest, int(view)] for digest, view, _ in piece])

    def _load(self, row: _Row, embedder: Embedder) -> tuple[np.ndarray, np.ndarray | None]:
        digest, view, path = row
        content = images.read(self.raw, path)
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError(f"{self.raw / path} is not the file that ingest read. Run `equipoise ingest` again.")
        numbers = augment.view_parameters(digest, view, self.policy, self.size_px) if self.policy else None
        return embedder.load(content), numbers

    def _features(self, decoded: Iterator[Any], size: int, padded: int, embedder: Embedder) -> np.ndarray:
        items = list(itertools.islice(decoded, size))
        items += items[-1:] * (padded - size)
        pixels = np.stack([pixels for pixels, _ in items])
        return embedder.features(pixels, np.stack([numbers for _, numbers in items]) if self.policy else None)[:size]

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
