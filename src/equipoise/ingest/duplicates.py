"""Near-duplicate pictures: the same picture saved again, resized, slightly cropped or made brighter.

The search has two steps. First, candidates: each picture is described by its low spatial
frequencies, once as it is and once for each of a few slight crops; pictures whose descriptions lie
close together are candidates. Second, confirmation: a candidate counts when the fine structure of
the two pictures agrees after they are aligned. Films of different patients look alike at low
frequencies, never in detail.

Both steps ask what is usual among the pictures at hand. Cells on black, registered slices or frames
of a screen share an outline that makes up most of their detail: so what is left of a pair without
the mean picture must agree as well, place by place. Pieces of tissue share nothing: where any two
pictures differ so much, a rougher likeness is enough, and crops of fine texture are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dct
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from equipoise.core.greylevels import repeated

#: Cells on each side of a thumbnail.
SIDE = 32
#: Two pictures are the same from this correlation of their aligned detail on. Chest films: copies
#: 0.97 and more, films that are not copies 0.92 and less; drawn phantoms, which differ in little
#: but noise, 0.95 and less.
SAME_CORRELATION = 0.96

#: Where any two pictures of a set differ much, a rougher likeness is enough, but never one below
#: this. Histology: crops of 3 % 0.73 and more, pictures that are not copies 0.25 and less.
_SAME_CORRELATION_LOW = 0.7
#: So many standard deviations (of Fisher's z) above the likeness of any two pictures. Far, because
#: candidates are no pairs drawn by lot.
_ABOVE_ANY_TWO = 8.0
#: What is left of two pictures without the mean picture may agree so much less, averaged over
#: places. Copies of films 0.94 and more; cells, slices and screens with one outline 0.77 and less.
_LESS_WITHOUT_MEAN = 0.11
#: Places along each side, of 7 x 7 cells.
_PLACES = 4
#: Root mean square in grey levels; a place with less is not compared.
_MIN_LEFT = 0.5
#: Pictures by which it is known what is usual in a set; with fewer than `_FEW` nothing is.
_SAMPLE = 512
_FEW = 20

#: A large picture is thinned out to about so many pixels a side before it is averaged.
_SAMPLES_PX = 6 * SIDE
#: Standard deviation in grey levels; below it there is only rounding, in blank pictures for
#: example.
_MIN_DETAIL = 1.0
#: Frequencies along each axis that describe a picture: 8 x 8 less the mean, so 63 numbers.
_FREQUENCIES = 8
#: Principal axes in the search tree; all 63 frequencies then filter what the tree finds.
_TREE_AXES = 12
_NEIGHBOURS = 8
#: Pictures or pairs that are worked on at a time: their numbers stay in the cache.
_BLOCK = 256
#: Cells, wider than the largest crop: what one picture lacks at its edge is not compared.
_MARGIN = 2
#: Alignment stops at this crop; the search looks for crops of `_CROP` and half of it.
_MAX_CROP = 0.045
_CROP = 0.03
_HALF = _CROP / 2
#: The crops that are searched for: fractions taken off left, right, top, bottom.
_CROPS = np.array(
    [
        [0, 0, 0, 0],
        [_HALF, _HALF, _HALF, _HALF],
        [_CROP, _CROP, _CROP, _CROP],
        [_CROP, 0, 0, 0],
        [0, _CROP, 0, 0],
        [0, 0, _CROP, 0],
        [0, 0, 0, _CROP],
    ],
    dtype=np.float32,
)
#: How far apart two descriptions may lie. A clipped exposure changes a description more (chest
#: films: 0.15) than a crop does that is among the above (0.09). The search slows down quickly with
#: it, so it grows only where pictures lie far apart: to half the usual distance to the nearest one,
#: less a reserve. Films 0.44; histology 1.18, its copies 0.47 and less. Not among very many pictures.
_RADIUS_UNCROPPED = 0.16
_RADIUS_CROPPED = 0.1
_RADIUS_RESERVE = 0.15
_MANY_PICTURES = 20_000
#: Parts of a picture, of SIDE // _PARTS rows of cells, that are averaged one after the other.
_PARTS = 4
#: Pillow resizes 8 bits by weights with so many bits behind the point.
_FRACTION_BITS = 22
#: Keeps a division from dividing by nothing.
_TINY = 1e-6
_CELLS = np.arange(SIDE, dtype=np.float32)
#: Middle of each cell, as a fraction of the side.
_MIDDLES = (_CELLS + 0.5) / SIDE
_IDENTITY = np.eye(SIDE, dtype=np.float32)

#: uint8 (n, SIDE, SIDE), from `thumbnail`.
Thumbnails = np.ndarray
#: float32 (m, SIDE, SIDE): thumbnails on their way through a computation.
Pictures = np.ndarray
#: float32 (4,) or (m, 4): fractions taken off left, right, top, bottom.
Crops = np.ndarray
#: float32 (n, 63): low frequencies of n pictures.
Descriptions = np.ndarray
#: float32 (..., SIDE, SIDE): new cells of an axis from its old ones.
Resampling = np.ndarray
#: int64: row numbers of thumbnails.
Rows = np.ndarray
#: bool: which rows or pairs.
Flags = np.ndarray


@dataclass(frozen=True)
class Candidates:
    """Pairs of pictures that may show the same.

    Attributes:
        pairs: (num_pairs, 2), row numbers (i, j): j may be i cropped.
        crops: The crop of each i that comes closest to its j.
    """

    pairs: Rows
    crops: Crops


@dataclass(frozen=True)
class _Neighbours:
    """Pairs that lie close together when the first one is cropped; all arrays are (num_pairs,).

    Attributes:
        one: Row number of the picture that is cropped.
        other: Row number of the other picture.
        distance: Distance of their descriptions.
    """

    one: Rows
    other: Rows
    distance: np.ndarray


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Shrink a picture to a small grey square; its aspect ratio is lost.

    Args:
        pixels: uint8 (height_px, width_px, 3), RGB, or (height_px, width_px) of a grey picture.

    Returns:
        uint8 (SIDE, SIDE), the mean of the three colours, by Pillow's arithmetic.

    >>> np.unique(thumbnail(np.full((100, 50, 3), 7, np.uint8))).tolist()
    [7]
    """
    height, width = pixels.shape[:2]
    step_y = max(1, height // _SAMPLES_PX)
    step_x = max(1, width // _SAMPLES_PX)
    sampled = pixels[step_y // 2 :: step_y]
    sampled = sampled[:, step_x // 2 :: step_x]
    # As one grey row of three times the width, the resize also takes the mean of the colours.
    colours_side_by_side = repeated(sampled).reshape(len(sampled), -1)
    right = 3 * width / step_x
    bottom = height / step_y
    if (bottom, right) == colours_side_by_side.shape and _has_whole_blocks(colours_side_by_side):
        return _means_of_blocks(colours_side_by_side)
    image = Image.fromarray(colours_side_by_side)
    box = (0, 0, min(image.width, right), min(image.height, bottom))
    mean = Image.Resampling.BOX
    small = image.resize((SIDE, SIDE), mean, box=box)
    return np.asarray(small)


def _has_whole_blocks(cells: np.ndarray) -> bool:
    """Whether each cell of a thumbnail is a block of whole cells, and Pillow means rows before columns."""
    height, width = cells.shape
    is_low = height < 2 * width  # from here on columns come first, which rounds otherwise
    return is_low and not height % SIDE and not width % SIDE


def _means_of_blocks(cells: np.ndarray) -> np.ndarray:
    """The same as Pillow's resize where a block of whole cells becomes one, in half the time.

    Args:
        cells: uint8 (height, width), multiples of SIDE.

    Returns:
        uint8 (SIDE, SIDE).
    """
    across = cells.shape[1] // SIDE
    down = cells.shape[0] // SIDE
    ones = np.ones(across, np.float32)
    # Exact, as whole numbers far below 2^24; in parts that the processor's cache holds.
    parts = cells.reshape(_PARTS, -1, across)
    sums_across = np.concatenate([part.astype(np.float32) @ ones for part in parts])
    means = _rounded_mean(sums_across.astype(np.int32), across)
    sums_down = means.reshape(SIDE, down, SIDE).sum(axis=1, dtype=np.int32)
    return _rounded_mean(sums_down, down).astype(np.uint8)


def _rounded_mean(sums: np.ndarray, number: int) -> np.ndarray:
    """Sums of so many levels divided by their number, rounded as Pillow does: in fixed point."""
    weight = int(2**_FRACTION_BITS / number + 0.5)
    half = 2 ** (_FRACTION_BITS - 1)
    return (sums * weight + half) >> _FRACTION_BITS


def confirm(thumbnails: Thumbnails, candidates: Candidates) -> Flags:
    """Which candidates agree in detail after alignment: bool (num_pairs,).

    Args:
        thumbnails: Pictures that differ and are not blank.
        candidates: Pairs of them.
    """
    is_same = np.empty(len(candidates.pairs), bool)
    if not len(is_same):
        return is_same
    usual = _usual(thumbnails)
    for block in _blocks(len(is_same)):
        pairs = candidates.pairs[block]
        crops = candidates.crops[block]
        is_same[block] = _agree(thumbnails, pairs, crops, usual)
    return is_same


# One thread: no result depends on the number of cores, and small products do not wait for each other.
@threadpool_limits.wrap(limits=1, user_api="blas")
def near_pairs(
    thumbnails: Thumbnails,
    confirm: Callable[[Thumbnails, Candidates], Flags] = confirm,
) -> Rows:
    """Find the pairs that show the same picture.

    Pictures without detail (blank ones) are in no pair. Of equal thumbnails each is paired with the
    first only, and of the many copies of one picture each with its nearest: that joins the same
    group with fewer pairs.

    Args:
        thumbnails: All the pictures.
        confirm: Says which candidates are the same picture.

    Returns:
        int64 (num_pairs, 2), row numbers i < j, sorted.

    Raises:
        ValueError: For another shape or type.
    """
    is_uint8 = thumbnails.dtype == np.uint8
    if not is_uint8 or thumbnails.shape[1:] != (SIDE, SIDE):
        raise ValueError(
            f"thumbnails are {thumbnails.dtype} {thumbnails.shape}; "
            f"expected uint8 (n, {SIDE}, {SIDE}) from `thumbnail`"
        )
    rows = np.flatnonzero(_has_detail(thumbnails))
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)

    # Sorted by content, so that no result depends on the order of the rows.
    content = _as_bytes(thumbnails[rows])
    _, first_places, group = np.unique(content, return_index=True, return_inverse=True)
    first_rows = rows[first_places]
    different = thumbnails[first_rows]
    candidates = _candidates(different)
    is_same = confirm(different, candidates)
    confirmed = candidates.pairs[is_same]

    first_of_equals = first_rows[group]
    is_repeated = first_of_equals != rows
    equal_pairs = np.stack([first_of_equals, rows], axis=1)
    pairs = np.concatenate([first_rows[confirmed], equal_pairs[is_repeated]])
    pairs.sort(axis=1)
    return np.unique(pairs, axis=0)


def _as_bytes(thumbnails: Thumbnails) -> np.ndarray:
    """Each thumbnail as one value (n,), so that whole thumbnails can be sorted and compared."""
    cells = np.ascontiguousarray(thumbnails)
    one_row_each = cells.reshape(len(thumbnails), -1)
    return one_row_each.view(f"V{SIDE * SIDE}").ravel()


def _blocks(size: int) -> Iterator[slice]:
    for start in range(0, size, _BLOCK):
        yield slice(start, start + _BLOCK)


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean length of each row, (m,) from (m, k)."""
    return np.linalg.norm(rows, axis=1)


# --- first step: who may be whose copy ------------------------------------------------------------


def _candidates(thumbnails: Thumbnails) -> Candidates:
    """For each picture the pictures that it may be when it is cropped by one of `_CROPS`.

    A pair that is near under several crops is listed once, with the crop that brings it closest.
    """
    uncropped = _describe(thumbnails, _CROPS[0])
    search = _Search(uncropped)
    wide_radius = _wide_radius(uncropped)
    near_by_crop = []
    for crop in _CROPS:
        radius = _RADIUS_CROPPED if crop.any() else _RADIUS_UNCROPPED
        radius = max(radius, wide_radius)
        cropped = _describe(thumbnails, crop)
        near = search.near(cropped, radius)
        near_by_crop.append(near)
    return _closest_crops(near_by_crop)


def _wide_radius(described: Descriptions) -> float:
    """How far a copy may lie where pictures lie far apart; 0 where that is not known, or too dear."""
    if not _FEW <= len(described) <= _MANY_PICTURES:
        return 0.0
    rows = _sample(len(described))
    cosines = described[rows] @ described.T
    # The highest is the picture itself, and the nearest may be its copy.
    ascending = np.partition(cosines, -3, axis=1)
    third_highest = ascending[:, -3]
    cosine = np.median(third_highest)
    usual_distance = np.sqrt(max(2 - 2 * cosine, 0))
    return float(usual_distance / 2 - _RADIUS_RESERVE)


def _sample(size: int) -> Rows:
    """At most `_SAMPLE` row numbers, evenly spaced."""
    number = min(size, _SAMPLE)
    rows = np.linspace(0, size - 1, number)
    return rows.astype(np.int64)


class _Search:
    """The uncropped pictures, ready to be asked which of them are near."""

    def __init__(self, uncropped: Descriptions) -> None:
        self._uncropped = uncropped
        self._axes = _principal_axes(uncropped)
        self._tree = cKDTree(uncropped @ self._axes)

    def near(self, cropped: Descriptions, radius: float) -> _Neighbours:
        """Which uncropped pictures are closer than `radius` to each of the cropped ones."""
        nearest = self._nearest(cropped, radius)
        is_found = nearest < len(cropped)
        own_row = np.arange(len(cropped))[:, None]
        is_another = nearest != own_row
        one, place = np.nonzero(is_found & is_another)
        other = nearest[one, place]
        distance = self._distances(cropped, one, other)
        is_near = distance < radius
        return _Neighbours(
            one=one[is_near],
            other=other[is_near],
            distance=distance[is_near],
        )

    def _nearest(self, cropped: Descriptions, radius: float) -> Rows:
        """Rows that the tree names for each picture, (n, _NEIGHBOURS); n where it names no further one."""
        points = cropped @ self._axes
        _, nearest = self._tree.query(points, _NEIGHBOURS, distance_upper_bound=radius, workers=-1)
        return nearest

    def _distances(self, cropped: Descriptions, one: Rows, other: Rows) -> np.ndarray:
        distance = np.empty(len(one), np.float32)
        for block in _blocks(len(one)):
            start = cropped[one[block]]
            end = self._uncropped[other[block]]
            distance[block] = _lengths(start - end)
        return distance


def _principal_axes(described: Descriptions) -> np.ndarray:
    """The directions in which the descriptions spread most, as columns (63, _TREE_AXES).

    Along them a tree separates the pictures soonest. The distance along some axes never exceeds the
    whole distance, so the tree overlooks nothing.
    """
    _, ascending = np.linalg.eigh(described.T @ described)
    descending = ascending[:, ::-1]
    return descending[:, :_TREE_AXES]


def _closest_crops(near_by_crop: Sequence[_Neighbours]) -> Candidates:
    """List each pair once, with the crop under which it is closest; the earlier one of two equally close."""
    one = np.concatenate([near.one for near in near_by_crop])
    other = np.concatenate([near.other for near in near_by_crop])
    distance = np.concatenate([near.distance for near in near_by_crop])
    pairs_by_crop = [len(near.one) for near in near_by_crop]
    numbers = np.arange(len(near_by_crop))
    crop = np.repeat(numbers, pairs_by_crop)

    by_pair_then_distance = np.lexsort((crop, distance, other, one))
    pairs = np.stack([one, other], axis=1)
    pairs = pairs[by_pair_then_distance]
    crop = crop[by_pair_then_distance]
    is_closest = np.ones(len(pairs), bool)
    is_new_pair = pairs[1:] != pairs[:-1]
    is_closest[1:] = is_new_pair.any(axis=1)
    return Candidates(pairs[is_closest], _CROPS[crop[is_closest]])


def _describe(thumbnails: Thumbnails, crop: Crops) -> Descriptions:
    """Low frequencies of thumbnails that are all cropped alike, the lowest frequency first.

    Each row has length 1 and no mean, so brightness and contrast do not count.
    """
    kernel = _frequency_kernel(crop)
    size = (len(thumbnails), kernel.shape[1])
    described = np.empty(size, np.float32)
    for block in _blocks(len(thumbnails)):
        cells = thumbnails[block].reshape(-1, SIDE * SIDE)
        described[block] = cells.astype(np.float32) @ kernel
    return _of_length_1(described)


def _frequency_kernel(crop: Crops) -> np.ndarray:
    """The matrix, float32 (SIDE * SIDE, 63), that takes a thumbnail to the low frequencies of its crop."""
    left, right, top, bottom = crop
    cosines = dct(_IDENTITY, axis=0, norm="ortho")
    low_cosines = cosines[:_FREQUENCIES]
    down = low_cosines @ _resampling(top, bottom)
    across = low_cosines @ _resampling(left, right)
    kernel = np.einsum("uy,vx->yxuv", down, across)
    kernel = kernel.reshape(SIDE * SIDE, -1)

    frequency_down, frequency_across = np.mgrid[:_FREQUENCIES, :_FREQUENCIES]
    frequency = np.hypot(frequency_down, frequency_across).ravel()
    without_mean = np.argsort(frequency, kind="stable")[1:]
    # Pictures have about 1 / frequency of amplitude: weighted so that all frequencies have a say.
    weighted = kernel[:, without_mean] * frequency[without_mean]
    return weighted.astype(np.float32)


def _resampling(before: np.ndarray, after: np.ndarray) -> Resampling:
    """Matrices that crop one axis and stretch it again to its length.

    Args:
        before: (...), fractions cut off at the beginning of the axis.
        after: (...), fractions cut off at its end.
    """
    before = np.asarray(before)[..., None]
    after = np.asarray(after)[..., None]
    kept = 1 - before - after
    source = (before + _MIDDLES * kept) * SIDE - 0.5
    source = np.clip(source, 0, SIDE - 1)
    away = np.abs(source[..., None] - _CELLS)
    weights = _cubic_weights(away)
    return weights / weights.sum(axis=-1, keepdims=True)


def _cubic_weights(away: np.ndarray) -> np.ndarray:
    """Weight of a cell that is so many cells away, float32: cubic convolution (Keys 1981).

    Linear weights would blur away the detail that is compared.
    """
    within_one = 1.5 * away**3 - 2.5 * away**2 + 1
    within_two = -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    outer = np.where(away < 2, within_two, 0)
    weights = np.where(away < 1, within_one, outer)
    return weights.astype(np.float32)


# --- second step: is it a copy --------------------------------------------------------------------


@dataclass(frozen=True)
class _Usual:
    """What is usual in a set of pictures.

    Attributes:
        rows: Row numbers of the pictures it was learned from.
        total: float32 (cells,), sum of their details, each of length 1.
        same_correlation: From here on two pictures agree more than any two of this set would.
    """

    rows: Rows
    total: np.ndarray
    same_correlation: float

    def mean_without(self, pairs: Rows, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Mean detail of the other pictures, (m, cells), given the details of length 1 of each pair."""
        is_learned = np.isin(pairs, self.rows)
        one_is_learned = is_learned[:, :1]
        other_is_learned = is_learned[:, 1:]
        own = one * one_is_learned + other * other_is_learned
        num_others = len(self.rows) - one_is_learned - other_is_learned.astype(int)
        return (self.total - own) / np.maximum(num_others, 1)

    def chance(self, mean: np.ndarray) -> np.ndarray:
        """How much of the square of a mean (m, cells) is there by chance, (m, 1, 1), for one place."""
        square = mean**2
        not_shared = 1 - square.sum(axis=1)
        by_chance = not_shared / len(self.rows)
        for_a_place = by_chance / _PLACES**2
        return for_a_place[:, None, None]


def _usual(thumbnails: Thumbnails) -> _Usual:
    rows = _sample(len(thumbnails))
    pictures = thumbnails[rows].astype(np.float32)
    details = _of_length_1(_detail(pictures))
    return _Usual(
        rows=rows,
        total=details.sum(axis=0),
        same_correlation=_same_correlation(details),
    )


def _same_correlation(details: np.ndarray) -> float:
    """The correlation from which on two pictures are the same, given details (n, cells) of a set."""
    if len(details) < _FEW:
        return SAME_CORRELATION
    agreement = details @ details.T
    np.fill_diagonal(agreement, -1)
    every_pair = np.ones(agreement.shape, bool)
    is_counted = np.triu(every_pair, 1)
    # The partner of each picture may be its copy. Whole families of likeness do count: they make
    # the rule stricter.
    rows = np.arange(len(details))
    partner = agreement.argmax(axis=1)
    is_counted[rows, partner] = False
    is_counted[partner, rows] = False
    of_any_two = np.clip(agreement[is_counted], -0.999, 0.999)
    likeness = np.arctanh(of_any_two)
    far_above = likeness.mean() + _ABOVE_ANY_TWO * likeness.std()
    correlation = np.tanh(far_above)
    bounded = np.clip(correlation, _SAME_CORRELATION_LOW, SAME_CORRELATION)
    return float(bounded)


def _agree(thumbnails: Thumbnails, pairs: Rows, crops: Crops, usual: _Usual) -> Flags:
    """Which pairs agree in detail once the first is cropped to fit the second: bool (m,).

    Args:
        thumbnails: All the pictures.
        pairs: (m, 2), their row numbers.
        crops: A first guess.
        usual: What is usual in this set.
    """
    one, other = thumbnails[pairs.T].astype(np.float32)
    crops = _improved(crops, one, other)
    crops = _improved(crops, one, other)
    detail = _detail(_cropped(one, crops))
    other_detail = _detail(other)
    length = _lengths(detail)
    other_length = _lengths(other_detail)
    levels = np.minimum(length, other_length)
    detail = _of_length_1(detail)
    other_detail = _of_length_1(other_detail)
    agreement = (detail * other_detail).sum(axis=1)
    is_like = agreement >= usual.same_correlation

    uncropped_detail = _of_length_1(_detail(one))
    mean = usual.mean_without(pairs, uncropped_detail, other_detail)
    chance = usual.chance(mean)
    without_mean = _agreement_by_place(detail, other_detail, mean, chance, levels)
    enough = usual.same_correlation - _LESS_WITHOUT_MEAN
    return is_like & (without_mean >= enough)


def _agreement_by_place(
    one: np.ndarray, other: np.ndarray, mean: np.ndarray, chance: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Correlation of what is left without the mean picture, averaged over places, (m,).

    Places where either shows nothing more are not compared; without any it is 0.

    Args:
        one: (m, cells), details in units of `levels`.
        other: (m, cells), those of the other pictures.
        mean: (m, cells), of the set.
        chance: (m, 1, 1), of the squares of the mean, for a place.
        levels: (m,), grey levels.
    """
    mean_places = _by_place(mean)
    one_left = _without(_by_place(one), mean_places, chance)
    other_left = _without(_by_place(other), mean_places, chance)
    length = np.linalg.norm(one_left, axis=2)
    other_length = np.linalg.norm(other_left, axis=2)
    agreement = (one_left * other_left).sum(axis=2)
    full_agreement = np.maximum(length * other_length, _TINY)
    correlation = agreement / full_agreement

    num_cells = one_left.shape[2]
    shorter = np.minimum(length, other_length)
    levels_left = shorter * levels[:, None] / np.sqrt(num_cells)
    is_compared = levels_left >= _MIN_LEFT
    num_compared = is_compared.sum(axis=1)
    total = (correlation * is_compared).sum(axis=1)
    return total / np.maximum(num_compared, 1)


def _without(places: np.ndarray, mean: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Take from each place as much of the mean as it holds; all are (m, places, cells of a place).

    This is ridge regression on the mean: the mean of few pictures is not known so well.
    """
    overlap = (places * mean).sum(axis=2, keepdims=True)
    square = (mean**2).sum(axis=2, keepdims=True)
    share = overlap / np.maximum(square + chance, _TINY)
    return places - share * mean


def _by_place(details: np.ndarray) -> np.ndarray:
    """Cells of each place, less their mean: (m, places, cells of a place) from (m, cells)."""
    side = (SIDE - 2 * _MARGIN) // _PLACES
    number = len(details)
    squares = details.reshape(number, _PLACES, side, _PLACES, side)
    squares = squares.swapaxes(2, 3)
    places = squares.reshape(number, _PLACES**2, side**2)
    mean = places.mean(axis=2, keepdims=True)
    return places - mean


def _of_length_1(rows: np.ndarray) -> np.ndarray:
    lengths = np.maximum(_lengths(rows), _TINY)
    return rows / lengths[:, None]


def _cropped(pictures: Pictures, crops: Crops) -> Pictures:
    left, right, top, bottom = crops.T
    down = _resampling(top, bottom)
    across = _resampling(left, right)
    return down @ pictures @ across.swapaxes(1, 2)


def _improved(crops: Crops, one: Pictures, other: Pictures) -> Crops:
    """Change the crops so that `one` becomes more like `other`, up to gain and offset.

    This is one Gauss-Newton step of the least-squares fit other = gain * crop(one) + offset.
    """
    slopes = _slopes(_cropped(one, crops))
    transposed = slopes.swapaxes(1, 2)
    normal = transposed @ slopes
    trace = np.einsum("mii->mi", normal)[:, None]
    # Where a picture is flat nothing says how to move it: then it stays.
    damping = 1e-3 * trace + 1e-6
    normal += np.eye(5, dtype=np.float32) * damping
    target = transposed @ _inner(other)[..., None]
    solution = np.linalg.solve(normal, target)
    gain = solution[:, :1, 0]
    move = solution[:, 1:, 0]
    change = move / np.maximum(gain, 0.1)
    change = np.clip(change, -_CROP, _CROP)
    return np.clip(crops + change, -_MAX_CROP, _MAX_CROP)


def _slopes(cropped: Pictures) -> np.ndarray:
    """How the cells change with the gain and with each side of a crop: (m, cells, 5).

    A cell at height y and width x moves by (1 - x) * left - x * right, and so for top and bottom.
    """
    per_side = cropped * np.float32(SIDE)
    down, across = np.gradient(per_side, axis=(1, 2))
    x = _MIDDLES
    y = _MIDDLES[:, None]
    left = across * (1 - x)
    right = -across * x
    top = down * (1 - y)
    bottom = -down * y
    parts = [cropped, left, right, top, bottom]
    columns = [_inner(part) for part in parts]
    return np.stack(columns, axis=2)


def _inner(pictures: Pictures) -> np.ndarray:
    """Cells away from the edge, less their mean: (m, cells)."""
    inside = pictures[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    cells = inside.reshape(len(pictures), -1)
    return cells - cells.mean(axis=1, keepdims=True)


def _smoothing(width_cells: float) -> Resampling:
    """The matrix that smooths one axis with a Gaussian."""
    return gaussian_filter1d(_IDENTITY, width_cells, axis=0)


_FINE = _smoothing(0.5)
_COARSE = _smoothing(2.0)


def _detail(pictures: Pictures) -> np.ndarray:
    """Structures of 1 to 8 cells: (m, cells)."""
    fine = _FINE @ pictures @ _FINE.T
    coarse = _COARSE @ pictures @ _COARSE.T
    return _inner(fine - coarse)


def _has_detail(thumbnails: Thumbnails) -> Flags:
    """Which pictures are not blank: bool (n,)."""
    has_detail = np.empty(len(thumbnails), bool)
    for block in _blocks(len(thumbnails)):
        detail = _detail(thumbnails[block].astype(np.float32))
        has_detail[block] = detail.std(axis=1) >= _MIN_DETAIL
    return has_detail
