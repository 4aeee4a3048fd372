"""One definition of each augmented view, for features and for fine-tuning.

A view is a few numbers drawn from the image's content, the view's number and the seed, so the same
view of the same picture is the same everywhere. Drawing needs numpy only; applying runs inside
TensorFlow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from equipoise.core.config import Augment

#: Numbers per view, in this order: the affine map, brightness, contrast, and the changes of three
#: stains.
NUM_PARAMETERS = 14
#: Six numbers, two rows of three: the map from a pixel of the view to a pixel of the image.
_AFFINE = slice(0, 6)
#: Added to every pixel, in grey levels (0..255).
_BRIGHTNESS = slice(6, 7)
#: Factor of the distance to the picture's mean.
_CONTRAST = slice(7, 8)
#: For haematoxylin, eosin and DAB three relative changes, then three offsets (optical density, base
#: 10).
_STAIN = slice(8, 14)


def _identity() -> np.ndarray:
    parameters = np.zeros(NUM_PARAMETERS, dtype=np.float32)
    parameters[_AFFINE] = [1, 0, 0, 0, 1, 0]
    parameters[_CONTRAST] = 1
    return parameters


#: The view that changes nothing.
IDENTITY = _identity()

#: Optical density of red, green, blue per unit of each stain (Ruifrok & Johnston 2001).
STAINS = np.array(
    [
        [0.65, 0.70, 0.29],  # haematoxylin
        [0.07, 0.99, 0.11],  # eosin
        [0.27, 0.57, 0.78],  # DAB
    ]
)
#: Light below this share of full light counts as this much, so that its logarithm exists.
_DARKEST = 1e-6


def view_parameters(sha256: str, view: int, policy: Augment, size_px: int) -> np.ndarray:
    """Draw the numbers of one view.

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
    content = int(sha256[:15], 16)
    rng = np.random.default_rng([policy.seed, view, content])
    # Everything is drawn, always in this order: turning one change off leaves the others as drawn.
    degrees = _within(policy.rotation_degrees, rng)
    turns = int(rng.integers(4))
    zoom = 1 + _within(policy.zoom_fraction, rng)
    shift_px = _within(policy.shift_fraction, rng, 2) * size_px
    is_mirrored = rng.random(2) < 0.5
    brightness = _within(policy.brightness_fraction, rng) * 255
    contrast = 1 + _within(policy.contrast_fraction, rng)
    stain = _within(policy.stain_fraction, rng, 6)

    if not policy.quarter_turns:
        turns = 0
    angle = np.deg2rad(degrees) + turns * np.pi / 2
    may_mirror = [policy.horizontal_flip, policy.vertical_flip]
    flip = np.where(may_mirror & is_mirrored, -1.0, 1.0)

    parameters = np.empty(NUM_PARAMETERS)
    parameters[_AFFINE] = _affine_map(angle, flip, zoom, shift_px, size_px).ravel()
    parameters[_BRIGHTNESS] = brightness
    parameters[_CONTRAST] = contrast
    parameters[_STAIN] = stain
    return parameters.astype(np.float32)


def _within(bound: float, rng: np.random.Generator, count: int | None = None) -> Any:
    """Draw evenly between -bound and bound: one number, or an array of `count`."""
    return rng.uniform(-1, 1, count) * bound


def _affine_map(
    angle: float, flip: np.ndarray, zoom: float, shift_px: np.ndarray, size_px: int
) -> np.ndarray:
    """Turn, mirror and zoom around the centre of the image, then shift.

    Args:
        angle: Radians.
        flip: -1 where an axis (x, y) is mirrored, else 1.
        zoom: Above 1 the picture appears larger.
        shift_px: Along x and y, pixels.
        size_px: Width and height of the image.

    Returns:
        float64 (2, 3): the matrix of the map and, in the last column, its offset.
    """
    cosine = np.cos(angle)
    sine = np.sin(angle)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    mirror = np.diag(flip)
    matrix = rotation @ mirror / zoom
    centre = np.full(2, (size_px - 1) / 2)
    offset = centre - matrix @ centre + shift_px
    return np.column_stack([matrix, offset])


def apply_views(images: Any, parameters: Any) -> Any:
    """Apply views to a batch inside TensorFlow.

    Args:
        images: float32 (batch, height, width, 3), 0..255.
        parameters: float32 (batch, 14) of `view_parameters`.

    Returns:
        float32 tensor of the same shape, 0..255; what comes from outside the picture mirrors its
        edge.
    """
    import tensorflow as tf

    moved = _transform(images, parameters[:, _AFFINE])
    stain = parameters[:, _STAIN]
    moved = tf.cond(
        tf.reduce_any(stain != 0),
        lambda: jitter_stains(moved, stain),
        lambda: moved,
    )
    brightness = _at_every_pixel(parameters[:, _BRIGHTNESS])
    contrast = _at_every_pixel(parameters[:, _CONTRAST])
    mean = tf.reduce_mean(moved, axis=[1, 2, 3], keepdims=True)
    changed = (moved - mean) * contrast + mean + brightness
    return tf.clip_by_value(changed, 0.0, 255.0)


def _at_every_pixel(numbers: Any) -> Any:
    """Shape (batch, channels) as (batch, 1, 1, channels), which fits beside images."""
    return numbers[:, None, None, :]


def _transform(images: Any, affine: Any) -> Any:
    """Move the pixels of a batch; `affine` is float32 (batch, 6)."""
    import tensorflow as tf

    # TensorFlow wants the eight free numbers of a projective map; an affine one has zeros in its
    # last row.
    last_row = tf.zeros_like(affine[:, :2])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.concat([affine, last_row], axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def jitter_stains(images: Any, changes: Any) -> Any:
    r"""Change the amounts of haematoxylin, eosin and DAB in stained tissue.

    $s = -\log_{10}(x / 255)\,M^{-1}$ becomes $s (1 + a) + b$ with $M$ = `STAINS`. Zeros leave every
    pixel exactly as it is.

    Args:
        images: float32 (batch, height, width, 3), 0..255.
        changes: float32 (batch, 6): three relative changes a, three offsets b.

    Returns:
        float32 tensor of the same shape, from 0; values above 255 are left to the caller.

    Reference: Tellez et al. 2018, https://doi.org/10.1109/TMI.2018.2820199
    """
    import tensorflow as tf

    stains_from_density = np.linalg.inv(STAINS).astype(np.float32)
    density_from_stains = STAINS.astype(np.float32)
    relative = _at_every_pixel(changes[:, :3])
    offset = _at_every_pixel(changes[:, 3:])

    light = tf.maximum(images / 255.0, _DARKEST)
    density = -tf.math.log(light) / np.log(10.0)
    stains = tf.tensordot(density, stains_from_density, 1)
    added_stains = stains * relative + offset
    added_density = tf.tensordot(added_stains, density_from_stains, 1)
    return images * 10.0**-added_density
