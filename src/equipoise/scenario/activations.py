"""What a block that is trained reads of a study's images, kept on disk: features, one floor lower."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from equipoise.core.config import Engine
from equipoise.core.errors import ConfigError, DataError
from equipoise.embed import backbones, cut
from equipoise.embed.embedder import Embedder
from equipoise.embed.passes import Row, ShardMaker, make_shards
from equipoise.embed.shards import FeatureKey, NetworkKey, ShardPart, find_finished
from equipoise.ingest import originals
from equipoise.scenario.matrix import Inputs

#: Rows of a shard, about. A row is a hundred times as long as one of features.
_SHARD_ROWS = 64

_SUFFIX = "/stored-float16"


class _Place(NamedTuple):
    """Where the activations of one picture or view lie: the shard, and the row in it."""

    shard: Path
    row: int


class Activations:
    """Activations of images and views at a cut, by position in the manifest; computed once for all scenarios and seeds.

    They lie in shards, as features do before they are assembled: keyed by picture, view, the weights
    below the cut, size and cut. So a killed run goes on where it stopped, and studies share them.

    Attributes:
        shapes: Of each tensor that flows through the cut, without the batch.
        dtype: Of what is kept.
    """

    def __init__(
        self, inputs: Inputs, backbone: Any, numbers: tuple[int, ...], pipeline: str
    ) -> None:
        """Look for nothing yet; see `fill`.

        Args:
            inputs: Images and settings.
            backbone: keras.Model, pixels -> features, with the weights of the embedding.
            numbers: The cut, see `embed.cut`.
            pipeline: How pixels become features, in the precision that the backbone has.
        """
        import keras

        study = inputs.study
        embed = study.settings.embed
        self.dtype = np.dtype(study.settings.finetune.activations)
        self.shapes = [tuple(tensor.shape[1:]) for tensor in cut.tensors(backbone, numbers)]
        self._pipeline = _pipeline_to(numbers, pipeline, self.dtype)
        output = cut.joined(backbone, numbers)
        if output.dtype != self.dtype:
            output = keras.layers.Identity(dtype=self.dtype.name)(output)
        self._lower = keras.Model(backbone.input, output)
        self._key = NetworkKey(
            backbone=inputs.backbone,
            weights_digest=backbones.weights_digest(self._lower),
            image_size_px=embed.image_size_px,
            pipeline=self._pipeline,
        )
        self._inputs = inputs
        self._digests = inputs.manifest.table["sha256"].to_numpy()
        self._places: dict[FeatureKey, _Place] = {}
        self._opened: dict[Path, np.ndarray] = {}

    @property
    def width(self) -> int:
        """Numbers of one picture."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def fill(self, positions: np.ndarray, views: np.ndarray, engine: Engine | None = None) -> None:
        """Compute what is not there yet.

        Args:
            positions: int (num_wanted,), images as positions in the manifest.
            views: int (num_wanted,), view of each, 0 for the plain image.
            engine: Where it is computed; this process, or its GPUs, when left out.

        Raises:
            ConfigError: When the disk has not enough room.
            DataError: When an image has changed since ingest.
        """
        wanted = self._wanted(positions, views)
        plain = wanted["view"] == 0
        study = self._inputs.study
        for rows, policy in ((wanted[plain], None), (wanted[~plain], study.settings.augment)):
            if rows.empty:
                continue
            maker = ShardMaker(
                key=self._key,
                raw=study.raw,
                policy=policy,
                batch_size=min(study.settings.embed.batch_size, _SHARD_ROWS),
                cache=study.cache_path / "activations",
            )
            self._make(maker, rows, engine or Engine())

    def _wanted(self, positions: np.ndarray, views: np.ndarray) -> pd.DataFrame:
        """The pictures and views whose place is not known, each once: position, sha256 and view."""
        table = pd.DataFrame({"position": positions, "view": views})
        table["sha256"] = self._digests[positions]
        table = table.drop_duplicates(["sha256", "view"])
        keys = zip(table["sha256"], table["view"])
        unknown = [FeatureKey(*key) not in self._places for key in keys]
        return table[unknown].sort_values(["view", "position"], ignore_index=True)

    def _make(self, maker: ShardMaker, rows: pd.DataFrame, engine: Engine) -> None:
        before = find_finished(maker.folder, rows)
        self._note(before.parts, rows)
        if before.missing.empty:
            return
        self._say_size(maker, len(before.missing))
        embedder = Embedder(self._lower, maker.key.image_size_px, self._pipeline)
        make_shards(maker, self._rows(before.missing), embedder, engine, _SHARD_ROWS)
        now = find_finished(maker.folder, before.missing)
        if len(now.missing):
            raise DataError(
                f"{len(now.missing)} activations vanished from {maker.folder} while they were made. Run the "
                f"scenario again."
            )
        self._note(now.parts, rows)

    def _rows(self, missing: pd.DataFrame) -> list[Row]:
        manifest = self._inputs.manifest
        path_of = originals.locate(self._inputs.study, manifest)
        image_ids = manifest.table["image_id"].to_numpy()
        columns = missing[["position", "sha256", "view"]]
        rows = []
        for position, digest, view in columns.itertuples(index=False):
            path = path_of[image_ids[position]]
            rows.append(Row(digest, int(view), path))
        return rows

    def _note(self, parts: Sequence[ShardPart], rows: pd.DataFrame) -> None:
        for part in parts:
            digests = rows["sha256"].loc[part.target]
            views = rows["view"].loc[part.target]
            for digest, view, row in zip(digests, views, part.source):
                self._places[FeatureKey(digest, int(view))] = _Place(part.shard, int(row))

    def _say_size(self, maker: ShardMaker, count: int) -> None:
        """Say what is computed and how much room it takes, before it is; refuse what does not fit."""
        needed = count * self.width * self.dtype.itemsize
        maker.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(maker.cache).free
        shapes = " and ".join("x".join(map(str, shape)) for shape in self.shapes)
        what = f"activations of {count:,} {maker.noun} below the last block of {maker.key.backbone}"
        size = f"{needed / 1e6:,.1f} MB ({shapes} numbers each, {self.dtype.name})"
        if needed > free:
            advice = "finetune.unfreeze: all, which keeps none"
            if self.dtype.itemsize > 2:
                advice = f"finetune.activations: float16, which takes half, or {advice}"
            raise ConfigError(
                f"The {what} take {size}, and {maker.cache} has {free / 1e6:,.1f} MB free. Make room, or set "
                f"{advice}."
            )
        print(f"{what}: {size} in {maker.cache}", file=sys.stderr)

    # --- reading ----------------------------------------------------------------------------------

    def drawn(self, positions: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the block reads of images or views of them: for each tensor of the cut (num_images, ...)."""
        rows = np.empty((len(positions), self.width), self.dtype)
        for index, key in enumerate(zip(self._digests[positions], views)):
            place = self._places[FeatureKey(key[0], int(key[1]))]
            rows[index] = self._shard(place.shard)[place.row]
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        parts = np.split(rows, ends[:-1], axis=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes))

    def plain(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """The same of plain images."""
        return self.drawn(positions, np.zeros(len(positions), dtype=int))

    def signature(self) -> list[Any]:
        """Of `plain`, for one trace that serves batches of every length."""
        import tensorflow as tf

        return [tf.TensorSpec([None, *shape], self.dtype) for shape in self.shapes]

    def opened(self, *tensors: Any) -> list[Any]:
        """What a model reads, of `drawn` or `plain` inside TensorFlow."""
        import tensorflow as tf

        return [tf.cast(tensor, tf.float32) for tensor in tensors]

    def _shard(self, path: Path) -> np.ndarray:
        if path not in self._opened:
            self._opened[path] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._opened[path]


def _pipeline_to(numbers: tuple[int, ...], pipeline: str, dtype: np.dtype) -> str:
    """How pixels become activations, in words."""
    # Features may be rounded, which is above the cut.
    made = pipeline.replace(_SUFFIX, "") + cut.text_of(numbers)
    if dtype == np.float16:
        made += _SUFFIX
    return made
