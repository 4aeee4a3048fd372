"""Near-duplicate pictures: the same picture saved again, resized, slightly cropped or made brighter.

Candidates are neighbours in a space of low spatial frequencies, where each picture also looks for others as if it were
slightly cropped. A candidate is confirmed when the fine structure of the two pictures agrees after alignment: films
of different patients look alike at low frequencies, never in detail.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy.fft import dct
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

SIDE = 32
#: Two pictures are the same from this correlation of their aligned detail on. Chest films: copies 0.97 and more, films
#: that are not copies 0.92 and less; drawn phantoms, which differ in little but noise, 0.95 and less.
SAME_CORRELATION = 0.96

_SAMPLES_PX = 6 * SIDE
_MIN_DETAIL = 1.0  # standard deviation in grey levels; below it there is only rounding, in blank pictures for example
_SEARCHED = 12  # principal axes in the tree; all 63 frequencies then filter what the tree finds
_NEIGHBOURS = 8
_BLOCK = 2048
_MARGIN = (
    2  # cells, wider than the largest crop: what one picture lacks at its edge is not compared
)
_MAX_CROP = 0.045
_CROP = 0.03
# Fractions taken off left, right, top, bottom.
_CROPS = np.array(
    [[0, 0, 0, 0], [_CROP / 2] * 4, [_CROP] * 4, *(_CROP * np.eye(4)).tolist()],
    dtype=np.float32,
)
# A clipped exposure changes a spectrum more (chest films: 0.15) than a crop does that is among the above (0.09). The
# search slows down quickly with the radius.
_RADII = [0.16] + [0.1] * (len(_CROPS) - 1)
_AT = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Shrink a picture to a small grey square; its aspect ratio is lost.

    Args:
        pixels: uint8 (height_px, width_px, 3), RGB.

    Returns:
        uint8 (SIDE, SIDE), the mean of the three colours.

    >>> np.unique(thumbnail(np.full((100, 50, 3), 7, np.uint8))).tolist()
    [7]
    """
    height, width = pixels.shape[:2]
    step_y, step_x = max(1, height // _SAMPLES_PX), max(1, width // _SAMPLES_PX)
    rows = pixels[step_y // 2 :: step_y, step_x // 2 :: step_x]
    # As one grey row of three times the width, the resize also takes the mean of the colours.
    image = Image.fromarray(rows.reshape(rows.shape[0], -1))
    box = (0, 0, min(image.width, 3 * width / step_x), min(image.height, height / step_y))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))


def near_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Find the pairs that show the same picture.

    Pictures without detail (blank ones) are in no pair. Of equal thumbnails each is paired with the first only, and of
    the many copies of one picture each with its nearest: that joins the same group with fewer pairs.

    Args:
        thumbnails: uint8 (n, SIDE, SIDE), from `thumbnail`.

    Returns:
        int64 (num_pairs, 2), row numbers i < j, sorted.

    Raises:
        ValueError: For another shape or type.
    """
    if thumbnails.dtype != np.uint8 or thumbnails.shape[1:] != (SIDE, SIDE):
        raise ValueError(
            f"thumbnails are {thumbnails.dtype} {thumbnails.shape}; expected uint8 (n, {SIDE}, {SIDE}) from `thumbnail`"
        )
    rows = np.flatnonzero(_has_detail(thumbnails))
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    # Sorted by content, so that no result depends on the order of the rows.
    content = (
        np.ascontiguousarray(thumbnails[rows])
        .reshape(len(rows), -1)
        .view(f"V{SIDE * SIDE}")
        .ravel()
    )
    _, first, group = np.unique(content, return_index=True, return_inverse=True)
    different = thumbnails[rows[first]]
    tried, crops = _candidates(different)
    same = [_same(different, tried[block], crops[block]) for block in _blocks(len(tried))]
    near = tried[np.concatenate([*same, np.empty(0, bool)])]
    firsts = rows[first]
    equal = np.stack([firsts[group], rows], axis=1)[firsts[group] != rows]
    return np.unique(np.sort(np.concatenate([firsts[near], equal]), axis=1), axis=0)


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, size, _BLOCK))


def _candidates(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs (i, j) in which j may be i cropped by one of `_CROPS`, and the number of that crop."""
    plain = _spectrum(thumbnails, _CROPS[0])
    # Along the axes of most spread a tree parts the pictures soonest; a part of a distance never exceeds the whole.
    axes = np.linalg.eigh(plain.T @ plain)[1][:, : -_SEARCHED - 1 : -1]
    tree = cKDTree(plain @ axes)
    number = np.arange(len(plain))
    found = []
    for crop, (fractions, radius) in enumerate(zip(_CROPS, _RADII)):
        cropped = _spectrum(thumbnails, fractions)
        _, near = tree.query(cropped @ axes, k=_NEIGHBOURS, distance_upper_bound=radius, workers=-1)
        one, place = np.nonzero((near < len(plain)) & (near != number[:, None]))
        other = near[one, place]
        for block in _blocks(len(one)):
            distance = np.linalg.norm(cropped[one[block]] - plain[other[block]], axis=1)
            kept = distance < radius
            rows = [one[block][kept], other[block][kept], np.full(kept.sum(), crop), distance[kept]]
            found.append(np.stack(rows, axis=1))
    every = np.concatenate([*found, np.empty((0, 4))])
    every = every[np.lexsort((every[:, 2], every[:, 3], every[:, 1], every[:, 0]))]
    pairs = every[:, :2].astype(np.int64)
    best = np.ones(len(pairs), bool)
    best[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[best], _CROPS[every[best, 2].astype(int)]


def _spectrum(thumbnails: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Low frequencies of cropped thumbnails, float32 (n, 63) of length 1, the lowest first; no mean, no contrast."""
    cosines = dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")[:8]
    left, right, top, bottom = fractions
    down, across = cosines @ _resampling(top, bottom), cosines @ _resampling(left, right)
    frequency = np.hypot(*np.mgrid[:8, :8]).ravel()
    order = np.argsort(frequency, kind="stable")[1:]
    # Pictures have about 1 / frequency of amplitude: weighted so that all frequencies have a say.
    kernel = (
        np.einsum("uy,vx->yxuv", down, across).reshape(SIDE * SIDE, -1)[:, order] * frequency[order]
    )
    values = np.empty((len(thumbnails), len(order)), np.float32)
    for block in _blocks(len(thumbnails)):
        values[block] = thumbnails[block].reshape(-1, SIDE * SIDE).astype(
            np.float32
        ) @ kernel.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _resampling(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Matrices (..., SIDE, SIDE) that crop one axis by the fractions (...) at its ends and stretch it again."""
    before, after = np.asarray(before)[..., None], np.asarray(after)[..., None]
    at = (before + _AT * (1 - before - after)) * SIDE - 0.5
    away = np.abs(np.clip(at, 0, SIDE - 1)[..., None] - np.arange(SIDE, dtype=np.float32))
    # Cubic convolution (Keys 1981): linear weights would blur away the detail that is compared.
    near, far = 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    weights = np.where(away < 1, near, np.where(away < 2, far, 0)).astype(np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def _same(thumbnails: np.ndarray, pairs: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Which of the pairs (m, 2) agree in detail after alignment: bool (m,)."""
    one, other = (thumbnails[pairs[:, side]].astype(np.float32) for side in (0, 1))
    crops = _refined(one, other, _refined(one, other, crops))
    detail, other_detail = _detail(_cropped(one, crops)), _detail(other)
    product = np.linalg.norm(detail, axis=1) * np.linalg.norm(other_detail, axis=1)
    return (detail * other_detail).sum(axis=1) >= SAME_CORRELATION * np.maximum(product, 1e-6)


def _cropped(thumbnails: np.ndarray, crops: np.ndarray) -> np.ndarray:
    left, right, top, bottom = crops.T
    return _resampling(top, bottom) @ thumbnails @ _resampling(left, right).swapaxes(1, 2)


def _refined(one: np.ndarray, other: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Take one Gauss-Newton step of the crops (m, 4) that make `one` most like `other`, up to gain and offset."""
    cropped = _cropped(one, crops)
    down, across = np.gradient(cropped * np.float32(SIDE), axis=(1, 2))
    # Cells move by (1 - x) * left - x * right, and so for y.
    moves = (across * (1 - _AT), -across * _AT, down * (1 - _AT[:, None]), -down * _AT[:, None])
    slopes = np.stack([_inner(picture) for picture in (cropped, *moves)], axis=2)
    transposed = slopes.swapaxes(1, 2)
    normal = transposed @ slopes
    # Where a picture is flat nothing says how to move it: then it stays.
    normal += np.eye(5, dtype=np.float32) * (1e-3 * np.einsum("mii->mi", normal)[:, None] + 1e-6)
    gain, *move = np.linalg.solve(normal, transposed @ _inner(other)[..., None])[..., 0].T
    change = np.clip(np.stack(move, axis=1) / np.maximum(gain, 0.1)[:, None], -_CROP, _CROP)
    return np.clip(crops + change, -_MAX_CROP, _MAX_CROP)


def _inner(pictures: np.ndarray) -> np.ndarray:
    """Cells away from the edge, less their mean: (m, cells)."""
    cells = pictures[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].reshape(len(pictures), -1)
    return cells - cells.mean(axis=1, keepdims=True)


def _smoothing(width: float) -> np.ndarray:
    return gaussian_filter1d(np.eye(SIDE, dtype=np.float32), width, axis=0)


_FINE, _COARSE = _smoothing(0.5), _smoothing(2.0)


def _detail(pictures: np.ndarray) -> np.ndarray:
    """Structures of 1 to 8 cells: (m, cells)."""
    return _inner(_FINE @ pictures @ _FINE.T - _COARSE @ pictures @ _COARSE.T)


def _has_detail(thumbnails: np.ndarray) -> np.ndarray:
    spread = [
        _detail(thumbnails[block].astype(np.float32)).std(axis=1)
        for block in _blocks(len(thumbnails))
    ]
    return np.concatenate([np.empty(0), *spread]) >= _MIN_DETAIL
