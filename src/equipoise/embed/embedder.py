"""Pixels -> features: one traced network that embeds, verifies and serves alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core import images
from equipoise.core.config import Embed
from equipoise.core.greylevels import GreyScale
from equipoise.embed import augment

#: Part of every key: raise it when decoding, resizing or scaling changes, so that no stale feature
#: is used.
PIPELINE = "pillow-rgb8/antialias-bilinear/1"


class Embedder:
    """Pixels -> features, used by `embed`, fine-tuning and the served model alike.

    Attributes:
        model: Keras model from float32 pixels, 0..255 RGB, to features.
        size_px: Width and height of its input.
        draft_px: The side that a JPEG keeps at least when it is decoded; 0 for full scale.
        scale: Which value is white in files of more than 8 bits; None where it was made from none.
        num_features: Width of the features.
        resize_graph: Traced: pixels of any size -> resized pixels.
        plain_graph: Traced: resized images -> features.
        viewed_graph: Traced: resized images and numbers of their views -> features.
    """

    def __init__(self, model: Any, size_px: int, pipeline: str = PIPELINE) -> None:
        import tensorflow as tf

        self.model = model
        self.size_px = size_px
        self.draft_px = draft_px(pipeline, size_px)
        self.scale = GreyScale.of_pipeline(pipeline)
        self.num_features = model.output_shape[-1]

        def resize_to_input(pixels: Any) -> Any:
            return resize(pixels, size_px)

        def embed_plain(batch: Any) -> Any:
            return model(batch, training=False)

        def embed_views(batch: Any, parameters: Any) -> Any:
            views = augment.apply_views(batch, parameters)
            return model(views, training=False)

        # Open dimensions: one trace serves images of every size and batches of every length.
        pixels = tf.TensorSpec([None, None, 3], tf.uint8)
        batch = tf.TensorSpec([None, size_px, size_px, 3], tf.float32)
        parameters = tf.TensorSpec([None, augment.NUM_PARAMETERS], tf.float32)
        self.resize_graph = tf.function(resize_to_input, input_signature=[pixels])
        self.plain_graph = tf.function(embed_plain, input_signature=[batch])
        self.viewed_graph = tf.function(embed_views, input_signature=[batch, parameters])

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """Resize an image; its aspect ratio is not kept.

        Args:
            pixels: uint8 (height, width, 3).

        Returns:
            float32 (size_px, size_px, 3), 0..255.
        """
        if pixels.shape[:2] == (self.size_px, self.size_px):
            return pixels.astype(np.float32)  # what resizing would give, without its millisecond
        return self.resize_graph(pixels).numpy()

    def load(self, source: bytes | Path | np.ndarray) -> np.ndarray:
        """Decode and resize an image.

        Args:
            source: A file, its bytes, or uint8 pixels (height, width, 3).

        Returns:
            float32 (size_px, size_px, 3), 0..255.
        """
        if isinstance(source, np.ndarray):
            return self.resize(source)
        return self.resize(images.decode(source, self.draft_px, self.scale))

    def features(self, batch: np.ndarray, parameters: np.ndarray | None = None) -> np.ndarray:
        """Compute the features of resized images, or of views of them.

        Args:
            batch: float32 (batch, size_px, size_px, 3), 0..255.
            parameters: float32 (batch, 14), the numbers of a view of each; None for the plain
                images.

        Returns:
            (batch, num_features), float32 or float16 as the model stores them.
        """
        if parameters is None:
            return self.plain_graph(batch).numpy()
        return self.viewed_graph(batch, parameters).numpy()


def draft_px(pipeline: str, size_px: int) -> int:
    """The side that a JPEG decoded at a reduced scale keeps at least; 0 for full scale."""
    if "/jpeg-draft" in pipeline:
        return 2 * size_px
    return 0


def resize(pixels: Any, size_px: int) -> Any:
    """Resize an image inside TensorFlow; its aspect ratio is not kept.

    Args:
        pixels: uint8 (height, width, 3).
        size_px: Width and height to give it.

    Returns:
        float32 tensor (size_px, size_px, 3), 0..255.
    """
    import tensorflow as tf

    exact = tf.cast(pixels, tf.float32)
    return tf.image.resize(exact, (size_px, size_px), antialias=True)


def pipeline_of(settings: Embed, scale: GreyScale | None = None) -> str:
    """How pixels become numbers, in words: part of every key, and kept beside every model.

    Args:
        settings: The section `embed`.
        scale: Of the manifest; None where no image has more than 8 bits.

    >>> from types import SimpleNamespace
    >>> pipeline_of(SimpleNamespace(jpeg_draft=True, mixed_precision=None, dtype="float32"))
    'pillow-rgb8/antialias-bilinear/1/jpeg-draft'
    """
    pipeline = PIPELINE
    if settings.jpeg_draft:
        pipeline += "/jpeg-draft"
    if settings.mixed_precision:
        pipeline += f"/mixed-{settings.mixed_precision}"
    if settings.dtype == "float16":
        pipeline += "/stored-float16"
    if scale is not None:
        pipeline += scale.text
    return pipeline
