"""Resized pixels of a study's images, kept on disk for fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core import parallel
from equipoise.core.files import atomic_path, digest_of
from equipoise.embed import augment
from equipoise.embed.embedder import PIPELINE, Embedder
from equipoise.ingest import originals
from equipoise.scenario.matrix import Inputs


class Pixels:
    """Images at the backbone's size, by position in the manifest; decoded once for all scenarios and seeds.

    Each picture is one .npy named by the digest of its file and written whole. So a killed run goes on
    where it stopped, several runs at a time do no harm, and studies share their pictures. A picture
    that has the size already is kept as uint8, which loses nothing. Others are kept as float32, because
    the served model sees unrounded pixels.
    """

    def __init__(self, inputs: Inputs, embedder: Embedder) -> None:
        study = inputs.study
        self.raw = study.raw
        self.policy = study.settings.augment
        self.embedder = embedder
        self.size_px = embedder.size_px
        table = inputs.manifest.table
        self.digests = table["sha256"].to_numpy()
        path_of = originals.locate(study, inputs.manifest)
        image_ids = table["image_id"]
        self.paths = [path_of[image_id] for image_id in image_ids]
        made_by = [self.size_px, PIPELINE, embedder.draft_px]
        if embedder.scale is not None:
            made_by.append(embedder.scale.text)
        key = digest_of(made_by)[:24]
        self.folder = study.cache_path / "decoded" / key

    def __call__(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 (num_images, size_px, size_px, 3), 0..255."""
        shape = (len(positions), self.size_px, self.size_px, 3)
        batch = np.empty(shape, dtype=np.float32)
        for index, position in enumerate(positions):
            pixels = self._read(position)
            batch[index] = pixels
        return batch

    def fill(self, positions: np.ndarray, views: np.ndarray | None = None) -> None:
        """Decode what is not there yet.

        Args:
            positions: int (num_wanted,), images as positions in the manifest.
            views: Not read: views are made where they are used.
        """
        missing = []
        for position in np.unique(positions):
            file = self._file(position)
            if not file.is_file():
                missing.append(position)
        decoded = parallel.in_threads(self._decode, missing)
        total = len(missing)
        shown = parallel.progress(decoded, "decoding", total, "images")
        for _ in shown:
            pass

    def drawn(self, positions: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
        """Pixels of images, and the numbers that make views of them."""
        return self(positions), self.parameters(positions, views)

    def plain(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Pixels of plain images."""
        return (self(positions),)

    def signature(self) -> list[Any]:
        """Of `plain`, for one trace that serves batches of every length."""
        import tensorflow as tf

        return [tf.TensorSpec([None, self.size_px, self.size_px, 3], tf.float32)]

    def opened(self, pixels: Any, parameters: Any = None) -> Any:
        """What a model reads, of `drawn` or `plain` inside TensorFlow."""
        if parameters is None:
            return pixels
        return augment.apply_views(pixels, parameters)

    def parameters(self, positions: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Numbers that make the views, float32 (num_images, NUM_PARAMETERS)."""
        drawn = []
        for position, view in zip(positions, views):
            digest = self.digests[position]
            numbers = augment.view_parameters(digest, int(view), self.policy, self.size_px)
            drawn.append(numbers)
        return np.stack(drawn)

    def _file(self, position: int) -> Path:
        digest = self.digests[position]
        return self.folder / f"{digest}.npy"

    def _read(self, position: int) -> np.ndarray:
        file = self._file(position)
        try:
            return np.load(file, allow_pickle=False)
        except Exception:  # not there, or damaged, which may raise anything: make it again
            return self._decode(position)

    def _decode(self, position: int) -> np.ndarray:
        path = self.paths[position]
        digest = self.digests[position]
        content = originals.read_unchanged(self.raw, path, digest)
        pixels = self.embedder.load(content)
        rounded = pixels.astype(np.uint8)
        loses_nothing = (rounded == pixels).all()
        kept = rounded if loses_nothing else pixels
        file = self._file(position)
        with atomic_path(file) as temporary, open(temporary, "wb") as handle:
            np.save(handle, kept, allow_pickle=False)
        return pixels
