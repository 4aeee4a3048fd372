"""The one pass: decode -> one traced resize + scaling + backbone (the same that serves) -> feature store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise import augment, backbones, images, ingest, parallel
from equipoise.config import Augment, Study
from equipoise.errors import DataError
from equipoise.records import (
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

#: Part of every key: raise it when decoding, resizing or scaling changes, so that no stale feature is used.
PIPELINE = "pillow-rgb8/antialias-bilinear/1"
_SHARDS = Path("data/cache/features")
_SHARD_ROWS = 256


@dataclass(frozen=True)
class FeatureStore:
    """Features by (sha256, view), memory-mapped.

    Attributes:
        matrix: float32 (num_rows, num_features), read-only.
        row_of: (sha256, view) -> row of the matrix.
        meta: Backbone, weights digest, size, number of passes.
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

    def __init__(self, model: Any, size_px: int) -> None:
        import tensorflow as tf

        self.model, self.size_px = model, size_px
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

    def features(self, batch: np.ndarray, parameters: np.ndarray | None = None) -> np.ndarray:
        """Features float32 (batch, num_features) of resized images, of views of them when parameters are given."""
        return (self._plain(batch) if parameters is None else self._viewed(batch, parameters)).numpy()


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


def run(study: Study, backbone: str) -> dict[str, Any]:
    """Embed every distinct picture and view of a study that the shards lack, and assemble the feature folder.

    Shards lie outside DVC's outputs and are keyed by content, so a killed run goes on where it was, a new split needs
    no pass, and new images cost only themselves.
    """
    settings = study.settings.embed
    manifest = Manifest.read(study.manifest_path)
    wanted = wanted_rows(manifest, settings.views, settings.views_of)
    wanted["path"] = wanted["image_id"].map(ingest.locate(study, manifest))
    model = backbones.build(backbone, settings.weights_for(backbone), settings.image_size_px)
    key = {
        "backbone": backbone,
        "weights_digest": backbones.weights_digest(model),
        "image_size_px": settings.image_size_px,
        "pipeline": PIPELINE,
    }
    embedder = Embedder(model, settings.image_size_px)
    blocks, computed = [], 0
    for augmented, rows in wanted.groupby(wanted["view"] > 0, sort=True):
        policy = study.settings.augment
        store = _Shards(_SHARDS / digest_of({**key, "augment": policy.model_dump() if augmented else None})[:24])
        values, fresh = store.fill(rows, embedder, study.raw, policy if augmented else None, settings.batch_size)
        blocks.append(values)
        computed += fresh
    matrix = np.concatenate(blocks)
    bad = int((~np.isfinite(matrix)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(matrix)} features of {backbone} are not finite numbers. Check its weights file."
        )
    folder = study.features_path(backbone)
    with atomic_path(folder / "features.npy") as path, open(path, "wb") as handle:
        np.save(handle, matrix, allow_pickle=False)
    write_table(folder / "index.parquet", wanted[["sha256", "view"]], {})
    meta = {
        **key,
        "study": study.name,
        "weights": "file"
        if settings.weights_for(backbone) not in ("imagenet", "random")
        else settings.weights_for(backbone),
        "manifest": manifest.digest,
        "settings": study.settings.sections("embed", "augment"),
        "passes": len(wanted),
        "num_features": int(matrix.shape[1]),
        "digest": digest_of([file_digest(folder / "features.npy"), file_digest(folder / "index.parquet")]),
    }
    write_json(folder / "meta.json", meta)
    return {**meta, "passes_now": computed, "folder": str(folder)}


class _Shards:
    """Features on disk in pieces of a few hundred rows: each is written whole, and believed only by its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def fill(
        self, wanted: pd.DataFrame, embedder: Embedder, raw: Path, policy: Augment | None, batch_size: int
    ) -> tuple[np.ndarray, int]:
        """Features in the order of `wanted`, and how many of them had to be computed."""
        keys = list(zip(wanted["sha256"], wanted["view"]))
        matrix = np.empty((len(keys), embedder.num_features), dtype=np.float32)
        place = {key: index for index, key in enumerate(keys)}
        have = np.zeros(len(keys), dtype=bool)
        for index_path in sorted(self.folder.glob("*.json")):
            self._load(index_path, place, matrix, have)
        missing = np.flatnonzero(~have)
        jobs = [wanted.iloc[index] for index in missing]
        name = "views" if policy else "images"
        decoded = parallel.in_threads(lambda row: self._decode(row, embedder, raw, policy), jobs, ahead=3 * batch_size)
        shown = parallel.progress(decoded, f"backbone pass over {name}", len(jobs), name)
        pending: list[int] = []
        batch: list[tuple[np.ndarray, np.ndarray]] = []
        for index, item in zip(missing, shown):
            batch.append(item)
            pending.append(int(index))
            last = len(pending) == _SHARD_ROWS or index == missing[-1]
            if len(batch) == batch_size or last:
                pixels = np.stack([image for image, _ in batch])
                parameters = np.stack([numbers for _, numbers in batch]) if policy else None
                matrix[pending[-len(batch) :]] = embedder.features(pixels, parameters)
                batch = []
            if last:
                self._save(matrix[pending], [keys[index] for index in pending])
                pending = []
        return matrix, len(missing)

    @staticmethod
    def _decode(row: Any, embedder: Embedder, raw: Path, policy: Augment | None) -> tuple[np.ndarray, np.ndarray]:
        data = images.read(raw, row["path"])
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise DataError(f"{raw / row['path']} is not the file that ingest read. Run `equipoise ingest` again.")
        numbers = augment.view_parameters(row["sha256"], row["view"], policy, embedder.size_px) if policy else None
        return embedder.resize(images.decode(data)), numbers  # type: ignore[return-value]

    def _save(self, values: np.ndarray, keys: list[tuple[str, int]]) -> None:
        rows = [[digest, int(view)] for digest, view in keys]
        name = digest_of(rows)[:24]
        with atomic_path(self.folder / f"{name}.npy") as path, open(path, "wb") as handle:
            np.save(handle, values, allow_pickle=False)
        # The index is written last: without it the piece does not exist.
        write_json(self.folder / f"{name}.json", {"sha256": file_digest(self.folder / f"{name}.npy"), "rows": rows})

    @staticmethod
    def _load(index_path: Path, place: dict[tuple[str, int], int], matrix: np.ndarray, have: np.ndarray) -> None:
        piece = index_path.with_suffix(".npy")
        index = read_json(index_path)
        if not piece.is_file() or file_digest(piece) != index["sha256"]:
            index_path.unlink()
            return
        chosen = [(place[key], row) for row, key in enumerate(map(tuple, index["rows"])) if key in place]
        if chosen:
            values = np.load(piece, allow_pickle=False)
            to, source = np.array(chosen).T
            matrix[to] = values[source]
            have[to] = True
