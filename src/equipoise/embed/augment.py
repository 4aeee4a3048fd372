"""One definition of each augmented view, for features and for fine-tuning.

A view is a few numbers drawn from the image's content, the view's number and the seed, so the same view of the same
picture is the same everywhere. Drawing needs numpy only; applying runs inside TensorFlow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from equipoise.core.config import Augment

#: Numbers per view: six of the affine map output -> input (pixels), brightness offset (0..255), contrast factor, and
#: for haematoxylin, eosin, DAB the relative changes of the stain and the offsets (optical density, base 10).
NUM_PARAMETERS = 14
IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 1, *[0] * 6], dtype=np.float32)
#: Optical density of red, green, blue per unit of haematoxylin, eosin, DAB (Ruifrok & Johnston 2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def view_parameters(sha256: str, view: int, policy: Augment, size_px: int) -> np.ndarray:
    """Draw one view.

    Args:
        sha256: Hexadecimal digest of the image file.
        view: 0 for the plain image (the identity), 1..K for augmented ones.
        policy: What a view may change.
        size_px: Width and height of the resized image.

    Returns:
        float32 (14,): see `NUM_PARAMETERS`.

    >>> bool((view_parameters("ab" * 32, 0, None, 64) == IDENTITY).all())
    True
    """
    if view == 0:
        return IDENTITY
    rng = np.random.default_rng([policy.seed, view, int(sha256[:15], 16)])
    angle = np.deg2rad(rng.uniform(-1, 1) * policy.rotation_degrees)
    turns = int(rng.integers(4))
    zoom = 1 + rng.uniform(-1, 1) * policy.zoom_fraction
    shift = rng.uniform(-1, 1, 2) * policy.shift_fraction * size_px
    mirror = np.where(rng.random(2) < 0.5, -1.0, 1.0)
    brightness = rng.uniform(-1, 1) * policy.brightness_fraction * 255
    contrast = 1 + rng.uniform(-1, 1) * policy.contrast_fraction
    stain = (
        rng.uniform(-1, 1, 6) * policy.stain_fraction
    )  # drawn last: the others stay as they were without it
    angle += (turns if policy.quarter_turns else 0) * np.pi / 2
    flip = np.where([policy.horizontal_flip, policy.vertical_flip], mirror, 1.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag(flip) / zoom
    centre = np.full(2, (size_px - 1) / 2)
    offset = centre - matrix @ centre + shift
    affine = [matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1]]
    return np.array([*affine, brightness, contrast, *stain], dtype=np.float32)


def apply_views(images: Any, parameters: Any) -> Any:
    """Apply views to a batch inside TensorFlow.

    Args:
        images: float32 (batch, height, width, 3), 0..255.
        parameters: float32 (batch, 14) of `view_parameters`.

    Returns:
        float32 tensor of the same shape, 0..255; what comes from outside the picture mirrors its edge.
    """
    import tensorflow as tf

    transforms = tf.concat([parameters[:, :6], tf.zeros_like(parameters[:, :2])], axis=1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    stain = parameters[:, 8:]
    moved = tf.cond(tf.reduce_any(stain != 0), lambda: jitter_stains(moved, stain), lambda: moved)
    brightness, contrast = (
        parameters[:, 6][:, None, None, None],
        parameters[:, 7][:, None, None, None],
    )
    mean = tf.reduce_mean(moved, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value((moved - mean) * contrast + mean + brightness, 0.0, 255.0)


def jitter_stains(images: Any, changes: Any) -> Any:
    r"""Change the amounts of haematoxylin, eosin and DAB (Tellez et al. 2018, https://doi.org/10.1109/TMI.2018.2820199).

    $s = -\log_{10}(x / 255)\,M^{-1}$ becomes $s (1 + a) + b$ with $M$ = `STAINS`. Zeros leave every
    pixel exactly as it is.

    Args:
        images: float32 (batch, height, width, 3), 0..255.
        changes: float32 (batch, 6): three relative changes a, three offsets b.

    Returns:
        float32 tensor of the same shape, from 0; values above 255 are left to the caller.
    """
    import tensorflow as tf

    density = -tf.math.log(tf.maximum(images / 255.0, 1e-6)) / np.log(10.0)
    stains = tf.tensordot(density, np.linalg.inv(STAINS).astype(np.float32), 1)
    added = stains * changes[:, None, None, :3] + changes[:, None, None, 3:]
    added = tf.tensordot(added, STAINS.astype(np.float32), 1)
    return images * 10.0**-added
