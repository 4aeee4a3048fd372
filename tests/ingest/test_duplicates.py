"""A picture saved again, resized, cropped or made brighter is found; another patient's is not."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from conftest import REPO
from equipoise.core import config, images
from equipoise.ingest import duplicates
from equipoise.ingest.datasets import phantom

FILMS = REPO / "../shared/data/chest_xray"
SIDE = duplicates.SIDE


def _saved(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return images.decode(buffer.getvalue())


def _cropped(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


def _resized(image, factor):
    return image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


COPIES = {
    "the same file": np.asarray,
    "quality 50": lambda image: _saved(image, 50),
    "60 % of the size": lambda image: _saved(_resized(image, 0.6)),
    "150 % of the size": lambda image: _saved(_resized(image, 1.5)),
    "3 % off in all": lambda image: _saved(_cropped(image, 0.015, 0.015, 0.015, 0.015)),
    "3 % off the left": lambda image: _saved(_cropped(image, 0.03, 0, 0, 0)),
    "3 % off the foot": lambda image: _saved(_cropped(image, 0, 0, 0, 0.03)),
    "3 % off each side": lambda image: _saved(_cropped(image, 0.03, 0.03, 0.03, 0.03)),
    "10 % brighter": lambda image: _saved(image.point(lambda value: min(255, value * 1.1))),
    "10 % darker": lambda image: _saved(image.point(lambda value: value * 0.9)),
    "25 levels up": lambda image: _saved(image.point(lambda value: min(255, value + 25))),
    "25 levels down": lambda image: _saved(image.point(lambda value: max(0, value - 25))),
    "all at once": lambda image: _saved(
        _resized(
            _cropped(image, 0.03, 0.03, 0.03, 0.03).point(lambda value: min(255, value * 1.1)), 0.6
        ),
        50,
    ),
}


def _field(seed, size_px=224):
    """Smooth at several scales, about as much of each as in a film."""
    rng = np.random.default_rng(seed)
    grey = sum(
        width
        * gaussian_filter(rng.standard_normal((size_px, size_px)), width, mode="reflect")
        * share
        for width, share in ((30, 3.0), (12, 2.0), (6, 1.2))
    )
    grey = np.clip(125 + 40 * grey / grey.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


FIELDS = [_field(seed) for seed in range(40)]
THUMBNAILS = np.stack([duplicates.thumbnail(pixels) for pixels in FIELDS])


def _pairs(thumbnails):
    pairs = duplicates.near_pairs(np.asarray(thumbnails))
    assert pairs.dtype == np.int64
    assert pairs.ndim == 2
    assert (pairs[:, 0] < pairs[:, 1]).all()
    listed = [tuple(pair) for pair in pairs.tolist()]
    assert listed == sorted(set(listed))
    return set(listed)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(kind):
    copies = [duplicates.thumbnail(COPIES[kind](Image.fromarray(pixels))) for pixels in FIELDS[:20]]
    found = _pairs([*THUMBNAILS, *copies])
    assert found <= {(number, 40 + number) for number in range(20)}
    assert len(found) >= 19


def test_the_cropped_one_may_come_first():
    copies = [
        duplicates.thumbnail(COPIES["3 % off each side"](Image.fromarray(pixels)))
        for pixels in FIELDS[:20]
    ]
    found = _pairs([*copies, *THUMBNAILS])
    assert found <= {(number, 20 + number) for number in range(20)}
    assert len(found) >= 19


@pytest.mark.parametrize("change", ["upside down", "half of it"])
def test_other_views_of_a_picture_are_not_copies(change):
    changed = {
        "upside down": lambda pixels: pixels[::-1],
        "half of it": lambda pixels: pixels[:112],
    }[change]
    others = [duplicates.thumbnail(np.ascontiguousarray(changed(pixels))) for pixels in FIELDS]
    assert not _pairs([*THUMBNAILS, *others])


def test_order_of_the_rows_does_not_matter():
    copies = [duplicates.thumbnail(copy(Image.fromarray(FIELDS[3]))) for copy in COPIES.values()]
    thumbnails = np.stack([*THUMBNAILS, *copies])
    order = np.random.default_rng(3).permutation(len(thumbnails))
    expected = _pairs(thumbnails)
    assert len(expected) > len(COPIES)
    assert {
        tuple(sorted(order[list(pair)].tolist())) for pair in _pairs(thumbnails[order])
    } == expected


def test_drawn_patients_are_different_pictures(tmp_path):
    shipped = config.load_study("demo", root=REPO).settings.phantom
    phantom.draw(tmp_path / "raw", shipped.model_copy(update={"patients": 150}))
    files = [path for path in sorted((tmp_path / "raw").rglob("*.png")) if "999" not in path.name]
    found = _pairs([duplicates.thumbnail(images.decode(path)) for path in files])
    (copy,) = [path for path in files if path.stem.endswith("_copy")]
    original = copy.with_name(copy.name.replace("_copy", ""))
    assert found == {tuple(sorted((files.index(copy), files.index(original))))}


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_pictures(number):
    assert duplicates.near_pairs(THUMBNAILS[:number]).shape == (0, 2)


def test_blank_pictures_are_in_no_pair():
    blank = np.repeat(np.arange(0, 250, dtype=np.uint8), 10)[:, None, None] * np.ones(
        (1, SIDE, SIDE), np.uint8
    )
    assert _pairs([*blank, *THUMBNAILS, THUMBNAILS[0]]) == {(2500, 2540)}
    assert not _pairs(blank)


def test_equal_thumbnails_are_paired_with_the_first():
    assert _pairs([THUMBNAILS[0], THUMBNAILS[1], THUMBNAILS[0], THUMBNAILS[0]]) == {(0, 2), (0, 3)}


def test_thousands_of_equal_thumbnails_give_one_pair_each():
    copy = duplicates.thumbnail(COPIES["3 % off the left"](Image.fromarray(FIELDS[0])))
    found = _pairs([*[THUMBNAILS[0]] * 5000, THUMBNAILS[1], copy])
    assert found == {(0, number) for number in (*range(1, 5000), 5001)}


def _others(number):
    """So many smooth thumbnails that differ."""
    noise = np.random.default_rng(1).standard_normal((number, SIDE, SIDE))
    smooth = gaussian_filter(noise, (0, 1.5, 1.5))
    return np.clip(125 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def test_many_copies_that_differ_stay_one_group():
    noise = np.random.default_rng(0).integers(-2, 3, (50, SIDE, SIDE))
    copies = np.clip(THUMBNAILS[0] + noise, 0, 255).astype(np.uint8)
    pairs = duplicates.near_pairs(np.concatenate([copies, _others(1000)]))
    assert set(pairs.ravel().tolist()) == set(range(50))
    assert len(pairs) < 60 * 50


def _cell(seed, irregular, spread):
    """A cell on black: one outline for all, a texture of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:120, :120] / 120 - 0.5
    angle = np.arctan2(y, x)
    waves = [rng.normal() / k * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4, 5)]
    is_inside = np.hypot(x, y) < 0.45 + irregular * sum(waves)
    texture = gaussian_filter(rng.standard_normal((120, 120)), 6)
    grey = 180 + spread * texture / texture.std() + rng.normal(0, 2, (120, 120))
    cell = np.where(is_inside, np.clip(grey, 0, 255), 0).astype(np.uint8)
    return np.repeat(cell[..., None], 3, axis=-1)


@pytest.mark.parametrize("irregular", [0.0, 0.01, 0.02, 0.04])
def test_pictures_that_share_an_outline_are_no_copies(irregular):
    cells = [_cell(seed, irregular, spread=5) for seed in range(60)]
    thumbnails = [duplicates.thumbnail(cell) for cell in cells]
    assert not _pairs(thumbnails)
    copies = [duplicates.thumbnail(_saved(Image.fromarray(cell))) for cell in cells[:5]]
    assert _pairs([*thumbnails, *copies]) == {(number, 60 + number) for number in range(5)}


def _slice(seed):
    """A registered slice: the same organ in the same place, a weak texture of its own."""
    rng = np.random.default_rng(seed)
    common = gaussian_filter(np.random.default_rng(777).standard_normal((128, 128)), 5)
    own = gaussian_filter(rng.standard_normal((128, 128)), 3)
    y, x = np.mgrid[:128, :128] / 128 - 0.5
    radius = (x / 0.36) ** 2 + (y / 0.44) ** 2
    organ = 90 + 25 * common / common.std() + 6 * own / own.std()
    bone = 180 * (np.abs(radius - 1.08) < 0.1)
    grey = np.where(radius < 1, organ, 0) + bone + rng.normal(0, 2, (128, 128))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _screen(seed):
    """A frame of an ultrasound screen: bars and boxes, and a small picture among them."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.standard_normal((60, 60)), 3)
    grey = np.zeros((240, 320))
    grey[20:220, 300:312] = 200
    grey[40:200, 10:40] = 120
    grey[5:15, 5:100] = 255
    grey[90:150, 130:190] = np.clip(64 + 20 * texture / texture.std(), 0, 255)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("drawn", [_slice, _screen])
def test_frames_and_registered_slices_are_no_copies(drawn):
    pictures = [drawn(seed) for seed in range(60)]
    thumbnails = [duplicates.thumbnail(picture) for picture in pictures]
    assert not _pairs(thumbnails)
    copies = [duplicates.thumbnail(_saved(Image.fromarray(picture))) for picture in pictures[:5]]
    assert _pairs([*thumbnails, *copies]) == {(number, 60 + number) for number in range(5)}


def _tissue(seed):
    """Texture as fine as that of stained tissue: nothing that two pictures share."""
    rng = np.random.default_rng(seed)
    fine = gaussian_filter(rng.standard_normal((230, 350)), 3)
    coarse = gaussian_filter(rng.standard_normal((230, 350)), 8)
    grey = 170 + 25 * fine / fine.std() + 20 * coarse / coarse.std()
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("kind", ["3 % off in all", "3 % off each side", "all at once"])
def test_crops_of_fine_texture_are_found(kind):
    pictures = [_tissue(seed) for seed in range(40)]
    thumbnails = [duplicates.thumbnail(picture) for picture in pictures]
    copies = [
        duplicates.thumbnail(COPIES[kind](Image.fromarray(picture))) for picture in pictures[:20]
    ]
    found = _pairs([*thumbnails, *copies])
    assert found <= {(number, 40 + number) for number in range(20)}
    assert len(found) >= 18


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, SIDE, SIDE))])
def test_other_arrays_are_refused(wrong):
    with pytest.raises(ValueError, match="expected uint8"):
        duplicates.near_pairs(wrong)


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (224, 224), (1105, 1213)])
def test_thumbnail_keeps_the_mean(shape):
    ramp = np.linspace(20, 220, shape[0] * shape[1] * 3).reshape(*shape, 3).astype(np.uint8)
    thumbnail = duplicates.thumbnail(ramp)
    assert thumbnail.dtype == np.uint8
    assert thumbnail.shape == (SIDE, SIDE)
    assert abs(float(thumbnail.mean()) - float(ramp.mean())) < 1.5


def test_thumbnail_is_the_mean_of_the_colours_of_each_cell():
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE * 4, SIDE * 3, 3)).astype(np.uint8)
    expected = pixels.reshape(SIDE, 4, SIDE, 9).mean(axis=(1, 3))
    np.testing.assert_allclose(duplicates.thumbnail(pixels), expected, atol=1.01)


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize(
    "shape", [(224, 224), (64, 96), (384, 320), (160, 32), (192, 32), (352, 32), (230, 350)]
)
def test_thumbnail_has_the_very_cells_of_a_resize_by_pillow(shape, grey):
    step_y, step_x = (max(1, length // (6 * SIDE)) for length in shape)
    for seed, low in enumerate([0, 0, 0, 128, 250]):
        pixels = np.random.default_rng(seed).integers(
            low, 256, (*shape, 1 if grey else 3), np.uint8
        )
        rgb = np.broadcast_to(pixels, (*shape, 3))
        thinned = rgb[step_y // 2 :: step_y, step_x // 2 :: step_x].reshape(shape[0] // step_y, -1)
        box = Image.Resampling.BOX
        expected = np.asarray(Image.fromarray(thinned).resize((SIDE, SIDE), box))
        thumbnail = duplicates.thumbnail(pixels[..., 0] if grey else pixels)
        np.testing.assert_array_equal(thumbnail, expected)


@pytest.mark.skipif(
    not FILMS.is_dir(), reason="the chest films are not beside the repository (../shared/data)"
)
def test_copies_of_real_films_are_found():
    files = random.Random(0).sample(sorted(Path(FILMS).rglob("*.jpeg")), 60)
    films = [images.decode(path) for path in files]
    thumbnails = [duplicates.thumbnail(pixels) for pixels in films]
    assert len(_pairs(thumbnails)) <= 1
    found = {
        kind: {(number, 60 + number) for number in range(60)}
        & _pairs(
            [
                *thumbnails,
                *(duplicates.thumbnail(copy(Image.fromarray(pixels))) for pixels in films),
            ]
        )
        for kind, copy in COPIES.items()
    }
    assert {kind: len(pairs) for kind, pairs in found.items() if len(pairs) < 57} == {}
