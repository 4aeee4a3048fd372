"""Pixels -> features: one traced network that embeds, verifies and serves alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core import images
from equipoise.core.config import Embed
from equipoise.embed import augment

#: Part of every key: raise it when decoding, resizing or scaling changes, so that no stale feature is used.
PIPELINE = "pillow-rgb8/antialias-bilinear/1"


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
            lambda x, p: model(augment.apply_views(x, p), training=False),
            input_signature=[batch, views],
        )

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) -> float32 (size_px, size_px, 3), 0..255; the aspect ratio is not kept."""
        return self._resize(pixels).numpy()

    def load(self, source: bytes | Path | np.ndarray) -> np.ndarray:
        """Decode and resize a file, its bytes or uint8 pixels: float32 (size_px, size_px, 3), 0..255."""
        return self.resize(
            source if isinstance(source, np.ndarray) else images.decode(source, self.draft_px)
        )

    def features(self, batch: np.ndarray, parameters: np.ndarray | None = None) -> np.ndarray:
        """Features (batch, num_features) of resized images, of views of them when parameters are given."""
        return (
            self._plain(batch) if parameters is None else self._viewed(batch, parameters)
        ).numpy()


def draft_px(pipeline: str, size_px: int) -> int:
    """The side that a JPEG decoded at a reduced scale keeps at least; 0 where the pipeline decodes at full scale."""
    return 2 * size_px if "/jpeg-draft" in pipeline else 0


def resize(pixels: Any, size_px: int) -> Any:
    """uint8 (height, width, 3) -> float32 (size_px, size_px, 3), 0..255, inside TensorFlow; aspect is not kept."""
    import tensorflow as tf

    return tf.image.resize(tf.cast(pixels, tf.float32), (size_px, size_px), antialias=True)


def pipeline_of(settings: Embed) -> str:
    """How pixels become numbers, in words: part of every key, and kept beside every model.

    >>> from types import SimpleNamespace
    >>> pipeline_of(SimpleNamespace(jpeg_draft=True, mixed_precision=None, dtype="float32"))
    'pillow-rgb8/antialias-bilinear/1/jpeg-draft'
    """
    draft = "/jpeg-draft" if settings.jpeg_draft else ""
    mixed = f"/mixed-{settings.mixed_precision}" if settings.mixed_precision else ""
    return PIPELINE + draft + mixed + ("/stored-float16" if settings.dtype == "float16" else "")
