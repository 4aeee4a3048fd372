"""What a block that is trained reads of a study's images, kept on disk: features, one floor lower."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from equipoise.core.config import Augment, Engine
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.parallel import announce
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
        sizes: Numbers of each of them.
        dtype: Of what is kept.
        lower: keras.Model, pixels -> activations (batch, width), flat.
        key: What the activations depend on beside picture and view.
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
        study = inputs.study
        self.inputs = inputs
        self.dtype = np.dtype(study.settings.finetune.activations)
        self.shapes = []
        for tensor in cut.tensors(backbone, numbers):
            _, *shape = tensor.shape
            self.shapes.append(tuple(shape))
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.lower = _lower_part(backbone, numbers, self.dtype)
        self.key = NetworkKey(
            backbone=inputs.backbone,
            weights_digest=backbones.weights_digest(self.lower),
            image_size_px=study.settings.embed.image_size_px,
            pipeline=_pipeline_to(numbers, pipeline, self.dtype),
        )
        table = inputs.manifest.table
        self.digests = table["sha256"].to_numpy()
        self._places: dict[FeatureKey, _Place] = {}
        self._opened: dict[Path, np.ndarray] = {}

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
        wanted = self._unknown(positions, views)
        plain = wanted["view"] == 0
        engine = engine or Engine()
        self._make(self._maker(None), wanted[plain], engine)
        policy = self.inputs.study.settings.augment
        self._make(self._maker(policy), wanted[~plain], engine)

    def _unknown(self, positions: np.ndarray, views: np.ndarray) -> pd.DataFrame:
        """The pictures and views whose place is not known, each once: position, sha256 and view."""
        table = pd.DataFrame()
        table["position"] = positions
        table["sha256"] = self.digests[positions]
        table["view"] = views
        table = table.drop_duplicates(["sha256", "view"])
        is_known = []
        for digest, view in zip(table["sha256"], table["view"]):
            key = FeatureKey(digest, view)
            is_known.append(key in self._places)
        # No image is a table without rows, not one without columns.
        wanted = table[~np.array(is_known, dtype=bool)]
        return wanted.sort_values(["view", "position"], ignore_index=True)

    def _maker(self, policy: Augment | None) -> ShardMaker:
        study = self.inputs.study
        return ShardMaker(
            key=self.key,
            raw=study.raw,
            policy=policy,
            batch_size=min(study.settings.embed.batch_size, _SHARD_ROWS),
            cache=study.cache_path / "activations",
        )

    def _make(self, maker: ShardMaker, rows: pd.DataFrame, engine: Engine) -> None:
        """Note where rows lie, and make those that are not there."""
        if rows.empty:
            return
        before = find_finished(maker.folder, rows)
        self._note(before.parts, rows)
        if before.missing.empty:
            return
        self._say_size(maker, len(before.missing))
        embedder = Embedder(self.lower, self.key.image_size_px, self.key.pipeline)
        make_shards(maker, self._rows(before.missing), embedder, engine, _SHARD_ROWS)
        now = find_finished(maker.folder, before.missing)
        if len(now.missing):
            raise DataError(
                f"{len(now.missing)} activations vanished from {maker.folder} while they were made. Run the "
                f"scenario again."
            )
        self._note(now.parts, rows)

    def _rows(self, missing: pd.DataFrame) -> list[Row]:
        manifest = self.inputs.manifest
        path_of = originals.locate(self.inputs.study, manifest)
        image_ids = manifest.table["image_id"].to_numpy()
        columns = missing[["position", "sha256", "view"]]
        rows = []
        for position, digest, view in columns.itertuples(index=False):
            image_id = image_ids[position]
            row = Row(digest, int(view), path_of[image_id])
            rows.append(row)
        return rows

    def _note(self, parts: Sequence[ShardPart], rows: pd.DataFrame) -> None:
        for part in parts:
            of_shard = rows.loc[part.target, ["sha256", "view"]]
            named = of_shard.itertuples(index=False)
            for (digest, view), row in zip(named, part.source):
                key = FeatureKey(digest, int(view))
                self._places[key] = _Place(part.shard, int(row))

    def _say_size(self, maker: ShardMaker, count: int) -> None:
        """Say what is computed and how much room it takes, before it is; refuse what does not fit."""
        needed = count * sum(self.sizes) * self.dtype.itemsize
        maker.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(maker.cache).free
        shapes = []
        for shape in self.shapes:
            sides = map(str, shape)
            shapes.append("x".join(sides))
        each = " and ".join(shapes)
        backbone = self.key.backbone
        what = f"activations of {count:,} {maker.noun} below the last block of {backbone}"
        size = f"{needed / 1e6:,.1f} MB ({each} numbers each, {self.dtype.name})"
        if needed <= free:
            announce(f"{what}: {size} in {maker.cache}")
            return
        advice = "finetune.unfreeze: all, which keeps none"
        if self.dtype != np.float16:
            advice = f"finetune.activations: float16, which takes half, or {advice}"
        raise ConfigError(
            f"The {what} take {size}, and {maker.cache} has {free / 1e6:,.1f} MB free. Make room, or set "
            f"{advice}."
        )

    # --- reading ----------------------------------------------------------------------------------

    def drawn(self, positions: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the block reads of images or views of them: for each tensor of the cut (num_images, ...)."""
        width = sum(self.sizes)
        rows = np.empty((len(positions), width), self.dtype)
        for index, (position, view) in enumerate(zip(positions, views)):
            key = FeatureKey(self.digests[position], int(view))
            place = self._places[key]
            shard = self._shard(place.shard)
            rows[index] = shard[place.row]
        ends = np.cumsum(self.sizes)
        parts = np.split(rows, ends[:-1], axis=1)
        shaped = []
        for part, shape in zip(parts, self.shapes):
            shaped.append(part.reshape(-1, *shape))
        return tuple(shaped)

    def plain(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """The same of plain images."""
        views = np.zeros(len(positions), dtype=int)
        return self.drawn(positions, views)

    def signature(self) -> list[Any]:
        """Of `plain`, for one trace that serves batches of every length."""
        import tensorflow as tf

        signature = []
        for shape in self.shapes:
            spec = tf.TensorSpec([None, *shape], self.dtype)
            signature.append(spec)
        return signature

    def opened(self, *tensors: Any) -> list[Any]:
        """What a model reads, of `drawn` or `plain` inside TensorFlow."""
        import tensorflow as tf

        return [tf.cast(tensor, tf.float32) for tensor in tensors]

    def _shard(self, path: Path) -> np.ndarray:
        if path not in self._opened:
            self._opened[path] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._opened[path]


def _lower_part(backbone: Any, numbers: tuple[int, ...], dtype: np.dtype) -> Any:
    """The network from pixels to what is kept: it shares its layers with the backbone."""
    import keras

    output = cut.joined(backbone, numbers)
    if output.dtype != dtype.name:
        output = keras.layers.Identity(dtype=dtype.name)(output)
    return keras.Model(backbone.input, output)


def _pipeline_to(numbers: tuple[int, ...], pipeline: str, dtype: np.dtype) -> str:
    """How pixels become activations, in words."""
    # Features may be rounded, which is above the cut.
    unrounded = pipeline.replace(_SUFFIX, "")
    made = unrounded + cut.text_of(numbers)
    if dtype == np.float16:
        made += _SUFFIX
    return made
