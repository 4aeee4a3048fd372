"""A backbone pass: pictures go through the network once, and come out as shards."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from equipoise.core import parallel
from equipoise.core.config import Augment, Engine
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_path
from equipoise.core.parallel import batched
from equipoise.embed import augment, backbones, cut
from equipoise.embed.embedder import Embedder
from equipoise.embed.shards import FeatureKey, NetworkKey, network_path, save_shard, shard_folder
from equipoise.ingest.originals import read_unchanged

#: Features in a shard, about: what a killed pass loses at most.
SHARD_ROWS = 256

#: Rounding of a stored feature over its spread; an ImageNet MobileNetV2 on chest films has 0.0003.
_BLUR_LIMIT = 0.01
#: Fewer features than these say little about their spread.
_BLUR_ROWS = 32


class Row(NamedTuple):
    """One feature to make: picture, view, and the path of the picture inside the raw folder."""

    sha256: str
    view: int
    path: str


class Decoded(NamedTuple):
    """A resized picture and the numbers of its view; None for the plain image."""

    pixels: np.ndarray
    parameters: np.ndarray | None


@dataclass(frozen=True)
class ShardMaker:
    """What a process needs to make shards: a network, and what goes through it.

    Attributes:
        key: The network.
        raw: Folder of the originals.
        policy: What a view may change; None for plain images.
        batch_size: Images that go through the network at once.
        cache: Folder of what can be made again.
    """

    key: NetworkKey
    raw: Path
    policy: Augment | None
    batch_size: int
    cache: Path

    @property
    def folder(self) -> Path:
        """Folder of the shards."""
        return shard_folder(self.cache, self.key, self.policy)

    @property
    def noun(self) -> str:
        """What goes through the network: images or views."""
        return "views" if self.policy else "images"

    def make(self, pieces: Sequence[Sequence[Row]], embedder: Embedder, fill: bool) -> None:
        """Decode by threads while the backbone computes; a piece becomes a shard once it is whole.

        Args:
            pieces: The rows of each shard.
            embedder: The network.
            fill: Whether a short batch is filled up where there is a GPU.

        Raises:
            ConfigError: When float16 cannot tell the images apart.
            DataError: When an image has changed since ingest.
        """
        rows = [row for piece in pieces for row in piece]
        load = functools.partial(self._load, embedder)
        decoded = parallel.in_threads(load, rows, ahead=3 * self.batch_size)
        description = f"backbone pass over {self.noun}"
        images = parallel.progress(decoded, description, len(rows), self.noun)
        filled_size = self.batch_size if fill and backbones.devices() else 0
        for piece in pieces:
            values = []
            for batch in batched(piece, self.batch_size):
                loaded = list(islice(images, len(batch)))
                values.append(_features(embedder, loaded, filled_size))
            self._save(piece, np.concatenate(values))

    def _load(self, embedder: Embedder, row: Row) -> Decoded:
        content = read_unchanged(self.raw, row.path, row.sha256)
        pixels = embedder.load(content)
        if self.policy is None:
            return Decoded(pixels, parameters=None)
        size_px = self.key.image_size_px
        parameters = augment.view_parameters(row.sha256, row.view, self.policy, size_px)
        return Decoded(pixels, parameters)

    def _save(self, piece: Sequence[Row], values: np.ndarray) -> None:
        if values.dtype == np.float16 and len(values) >= _BLUR_ROWS:
            _refuse_blurred(values, self.key)
        keys = [FeatureKey(row.sha256, row.view) for row in piece]
        save_shard(self.folder, values, keys)


def _features(embedder: Embedder, loaded: list[Decoded], filled_size: int) -> np.ndarray:
    """Features of one batch; a shorter one is filled up with copies of its last image."""
    size = len(loaded)
    copies = [loaded[-1]] * (filled_size - size)
    batch = loaded + copies
    pixels = np.stack([image.pixels for image in batch])
    parameters = [image.parameters for image in batch if image.parameters is not None]
    values = embedder.features(pixels, np.stack(parameters) if parameters else None)
    return values[:size]


def _refuse_blurred(values: np.ndarray, key: NetworkKey) -> None:
    """Refuse float16 where its rounding error is large beside the spread of the features."""
    exact = values.astype(np.float64)
    typical = np.abs(exact).mean(axis=0).astype(np.float16)
    step = np.spacing(typical).astype(np.float64)
    # A dead feature has no spread.
    with np.errstate(divide="ignore", invalid="ignore"):
        # A number rounded to steps is off by step / sqrt(12) on average (root mean square).
        blur = float(np.median(step / np.sqrt(12) / exact.std(axis=0)))
    if blur <= _BLUR_LIMIT:
        return
    what, setting = "features", "embed.dtype"
    if cut.of_pipeline(key.pipeline):
        what, setting = "activations", "finetune.activations"
    raise ConfigError(
        f"float16 cannot hold the {what} of {key.backbone}: its rounding is {blur:.2g} of a feature's "
        f"spread (median over features), at most {_BLUR_LIMIT} is expected. Set {setting} to float32."
    )


# --- here or elsewhere ----------------------------------------------------------------------------


def make_shards(
    maker: ShardMaker,
    rows: Sequence[Row],
    embedder: Embedder,
    engine: Engine,
    shard_rows: int = SHARD_ROWS,
) -> None:
    """Make the shards of some rows.

    They are made in this process, in one process for each GPU where there are several, or by the
    workers of `engine`.

    Args:
        maker: Network and kind of images.
        rows: Features to make.
        embedder: The network, built in this process.
        engine: Where jobs run.
        shard_rows: Features in a shard, about: a shard holds whole batches.
    """
    batches_per_shard = max(1, shard_rows // maker.batch_size)
    pieces = list(batched(rows, batches_per_shard * maker.batch_size))
    # A GPU searches for the best way to compute every new shape, so its last batch is filled up.
    fill = len(rows) > maker.batch_size
    devices = backbones.devices()
    if len(pieces) < 2 or _stays_here(engine, devices):
        maker.make(pieces, embedder, fill)
        return
    # Workers read the network: they may lack its files, and beside Dask's threads drawing weights is
    # not repeatable.
    _save_network(embedder.model, network_path(maker.cache, maker.key))
    jobs: list[tuple[Any, ...]] = []
    if engine.backend == "loky" and devices:
        for number, device in enumerate(devices[: len(pieces)]):
            jobs.append((maker, pieces[number :: len(devices)], fill, device))
        engine = Engine(workers=len(devices))
    else:
        for piece in pieces:
            jobs.append((maker, [piece], fill, None))
    parallel.run_jobs(make_in_worker, jobs, "backbone pass", engine, root=maker.cache)


def _stays_here(engine: Engine, devices: Sequence[str]) -> bool:
    """Whether this process does all the work: it has the only GPU, or it is the only worker."""
    if engine.backend != "loky":
        return False
    if devices:
        return len(devices) == 1
    return engine.workers == 1


def _save_network(network: Any, path: Path) -> None:
    """Write a network for workers."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "network.keras"
        network.save(saved)
        with atomic_path(path) as temporary:
            shutil.copyfile(saved, temporary)


def make_in_worker(
    maker: ShardMaker, pieces: Sequence[Sequence[Row]], fill: bool, device: str | None
) -> None:
    """Make shards in another process, on one GPU where `device` names it."""
    if device is not None:
        # Before TensorFlow is imported in this process.
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    embedder = _worker_embedder(maker.key, maker.cache)
    maker.make(pieces, embedder, fill)


@functools.lru_cache(maxsize=1)
def _worker_embedder(key: NetworkKey, cache: Path) -> Embedder:
    """A worker loads the network once."""
    keras = backbones.load_keras()
    path = network_path(cache, key)
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is damaged. Run `equipoise embed` again.") from error
    if backbones.weights_digest(network) != key.weights_digest:
        raise DataError(f"{path} is damaged. Run `equipoise embed` again.")
    return Embedder(network, key.image_size_px, key.pipeline)
