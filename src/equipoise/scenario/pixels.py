"""Resized pixels of a study's images, kept on disk for fine-tuning."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from equipoise.core import images, parallel
from equipoise.core.errors import DataError
from equipoise.core.files import atomic_path, digest_of
from equipoise.embed import augment
from equipoise.embed.embedder import PIPELINE, Embedder
from equipoise.ingest import originals
from equipoise.scenario.matrix import Inputs

_DECODED = Path("data/cache/decoded")


class Pixels:
    """Images at the backbone's size by position in the manifest, decoded once for all scenarios and seeds.

    Each picture is one .npy named by the digest of its file, written whole: a killed run goes on, several at a time do
    no harm, and another study shares it. Kept as uint8 where that loses nothing (the picture has that size already),
    else as float32, because the served model sees unrounded pixels.
    """

    def __init__(self, inputs: Inputs, embedder: Embedder) -> None:
        self.raw, self.policy = inputs.study.raw, inputs.study.settings.augment
        self.digests = inputs.manifest.table["sha256"].to_numpy()
        places = originals.locate(inputs.study, inputs.manifest)
        self.paths = [places[name] for name in inputs.manifest.table["image_id"]]
        self.embedder, self.size_px = embedder, embedder.size_px
        self.folder = _DECODED / digest_of([self.size_px, PIPELINE, embedder.draft_px])[:24]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """float32 (num_images, size_px, size_px, 3), 0..255."""
        batch = np.empty((len(positions), self.size_px, self.size_px, 3), dtype=np.float32)
        for index, position in enumerate(positions):
            batch[index] = self._read(position)
        return batch

    def fill(self, positions: np.ndarray) -> None:
        """Decode what is not there yet."""
        missing = [position for position in positions if not self._file(position).is_file()]
        shown = parallel.progress(
            parallel.in_threads(self._decode, missing), "decoding", len(missing), "images"
        )
        for _ in shown:
            pass

    def parameters(self, positions: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Numbers of the views, float32 (num_images, NUM_PARAMETERS)."""
        drawn = zip(self.digests[positions], map(int, views))
        return np.stack([augment.view_parameters(*one, self.policy, self.size_px) for one in drawn])

    def _file(self, position: int) -> Path:
        return self.folder / f"{self.digests[position]}.npy"

    def _read(self, position: int) -> np.ndarray:
        try:
            return np.load(self._file(position), allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or cut short by a full disk
            return self._decode(position)

    def _decode(self, position: int) -> np.ndarray:
        path = self.paths[position]
        content = images.read(self.raw, path)
        if hashlib.sha256(content).hexdigest() != self.digests[position]:
            raise DataError(
                f"{self.raw / path} is not the file that ingest read. Run `equipoise ingest` again."
            )
        pixels = self.embedder.load(content)
        rounded = pixels.astype(np.uint8)
        with atomic_path(self._file(position)) as temporary, open(temporary, "wb") as handle:
            np.save(handle, rounded if (rounded == pixels).all() else pixels, allow_pickle=False)
        return pixels
