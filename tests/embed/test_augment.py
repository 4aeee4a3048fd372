"""A view is a few numbers: the same for the same picture, and what they do to pixels is what the policy allows."""

from pathlib import Path

import numpy as np
import pytest

from equipoise.core import config
from equipoise.embed import augment

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = config.load_study("demo", config.read_params(ROOT)).settings.augment
STILL = {
    "horizontal_flip": False,
    "vertical_flip": False,
    "quarter_turns": False,
    "rotation_degrees": 0.0,
    "zoom_fraction": 0.0,
    "shift_fraction": 0.0,
    "brightness_fraction": 0.0,
    "contrast_fraction": 0.0,
    "stain_fraction": 0.0,
    "seed": 7,
}
SIZE = 16
DIGESTS = [f"{number:02x}" * 32 for number in range(40)]
PICTURE = np.random.default_rng(0).uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)


def _policy(**changes):
    return config.Augment.model_validate({**STILL, **changes})


def _views(policy, digests=DIGESTS, view=1):
    return np.stack([augment.view_parameters(digest, view, policy, SIZE) for digest in digests])


def _applied(parameters, pictures=None):
    pictures = np.repeat(PICTURE[None], len(parameters), axis=0) if pictures is None else pictures
    return np.asarray(augment.apply_views(pictures, parameters))


def _same(left, right, tolerance=1e-3):
    return bool(np.abs(left - right).max() < tolerance)


# --- parameters (numpy only) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", DIGESTS[:3])
def test_view_0_is_the_identity(digest):
    np.testing.assert_array_equal(
        augment.view_parameters(digest, 0, SHIPPED, SIZE), augment.IDENTITY
    )


def test_parameters_are_the_same_for_the_same_picture_view_and_seed():
    one, two = _views(SHIPPED), _views(config.Augment.model_validate(SHIPPED.model_dump()))
    np.testing.assert_array_equal(one, two)
    assert (one.shape, one.dtype) == ((len(DIGESTS), augment.NUM_PARAMETERS), np.float32)


def test_parameters_differ_by_picture_view_and_seed():
    other_seed = SHIPPED.model_copy(update={"seed": SHIPPED.seed + 1})
    drawn = np.concatenate([_views(SHIPPED), _views(SHIPPED, view=2), _views(other_seed)])
    assert len(np.unique(drawn, axis=0)) == 3 * len(DIGESTS)


def test_still_policy_is_the_identity_for_every_view():
    np.testing.assert_allclose(
        _views(_policy()), np.tile(augment.IDENTITY, (len(DIGESTS), 1)), atol=1e-6
    )


def test_turning_one_change_off_leaves_the_others_as_drawn():
    with_flip = _views(
        _policy(horizontal_flip=True, brightness_fraction=0.1, contrast_fraction=0.2)
    )
    without = _views(_policy(brightness_fraction=0.1, contrast_fraction=0.2))
    np.testing.assert_array_equal(with_flip[:, 6:], without[:, 6:])


def test_parameters_stay_within_the_policy():
    policy = _policy(
        rotation_degrees=10.0, zoom_fraction=0.1, brightness_fraction=0.1, contrast_fraction=0.2
    )
    drawn = _views(policy).astype(np.float64)
    determinant = drawn[:, 0] * drawn[:, 4] - drawn[:, 1] * drawn[:, 3]
    zoom = 1 / np.sqrt(determinant)
    degrees = np.rad2deg(np.arctan2(drawn[:, 3], drawn[:, 0]))
    brightness, contrast = drawn[:, 6], drawn[:, 7]
    _fill(zoom - 1, bound=0.1)
    _fill(degrees, bound=10.0)
    _fill(brightness, bound=0.1 * 255)
    _fill(contrast - 1, bound=0.2)


def _fill(values, bound):
    """The values stay within the bound and use a good part of it on both sides."""
    assert abs(values).max() <= bound * 1.001
    assert values.min() < -0.3 * bound
    assert values.max() > 0.3 * bound


def test_stain_jitter_leaves_the_other_numbers_as_drawn_and_stays_within_the_policy():
    with_stains = SHIPPED.model_copy(update={"stain_fraction": 0.05})
    without = _views(SHIPPED)
    drawn = _views(with_stains)
    np.testing.assert_array_equal(drawn[:, :8], without[:, :8])
    assert not without[:, 8:].any()
    assert 0.03 < abs(drawn[:, 8:]).max() <= 0.05
    assert len(np.unique(drawn[:, 8:])) == 6 * len(DIGESTS)


def test_chest_films_are_not_turned_upside_down_and_only_histology_changes_stains():
    params = config.read_params(ROOT)
    film, slide = (
        config.load_study(name, params).settings.augment for name in ("chest_xray", "breakhis")
    )
    assert (film.vertical_flip, film.quarter_turns, film.stain_fraction) == (False, False, 0.0)
    assert (slide.vertical_flip, slide.quarter_turns, slide.stain_fraction) == (True, True, 0.05)


def test_shift_is_a_fraction_of_the_size():
    drawn = _views(_policy(shift_fraction=0.25))
    assert abs(drawn[:, [2, 5]]).max() <= 0.25 * SIZE
    assert abs(drawn[:, [2, 5]]).max() > 0.15 * SIZE


def test_flips_come_up_about_half_the_time_and_only_where_allowed():
    digests = [f"{number:064x}"[::-1] for number in range(400)]
    for change, flipped, kept in (("horizontal_flip", 0, 4), ("vertical_flip", 4, 0)):
        drawn = _views(_policy(**{change: True}), digests)
        is_flipped = drawn[:, flipped] < 0
        assert 0.4 < is_flipped.mean() < 0.6
        assert (drawn[:, kept] > 0).all()


# --- pixels (TensorFlow) ---------------------------------------------------------------------------------------------


def test_identity_returns_the_picture():
    assert _same(_applied(augment.IDENTITY[None])[0], PICTURE)


@pytest.mark.parametrize(
    ("change", "turned"),
    [("horizontal_flip", PICTURE[:, ::-1]), ("vertical_flip", PICTURE[::-1])],
)
def test_flip_mirrors_exactly(change, turned):
    shown = _applied(_views(_policy(**{change: True})))
    flipped, plain = (
        np.array([_same(picture, other) for picture in shown]) for other in (turned, PICTURE)
    )
    assert (flipped ^ plain).all()
    assert flipped.any()
    assert plain.any()


def test_quarter_turns_are_exact_and_all_occur():
    shown = _applied(_views(_policy(quarter_turns=True)))
    turns = [
        [turn for turn in range(4) if _same(picture, np.rot90(PICTURE, turn), 0.1)]
        for picture in shown
    ]
    assert all(len(fitting) == 1 for fitting in turns)
    assert {fitting[0] for fitting in turns} == {0, 1, 2, 3}


def test_brightness_moves_the_mean_and_contrast_keeps_it():
    pale = PICTURE / 5 + 100
    parameters = np.stack([augment.IDENTITY, augment.IDENTITY])
    parameters[0, 6] = 12.0
    parameters[1, 7] = 0.5
    brighter, flatter = _applied(parameters, np.stack([pale, pale]))
    np.testing.assert_allclose(brighter, pale + 12, atol=1e-2)
    np.testing.assert_allclose(flatter.mean(), pale.mean(), atol=1e-2)
    np.testing.assert_allclose(flatter.std(), pale.std() / 2, rtol=1e-3)


def test_values_stay_in_0_to_255_and_reach_both_ends():
    policy = _policy(
        horizontal_flip=True,
        rotation_degrees=30.0,
        zoom_fraction=0.3,
        shift_fraction=0.3,
        brightness_fraction=0.5,
        contrast_fraction=0.9,
    )
    shown = _applied(_views(policy))
    assert (shown.min(), shown.max()) == (0.0, 255.0)
    assert shown.shape == (len(DIGESTS), SIZE, SIZE, 3)


def test_outside_of_the_picture_mirrors_its_edge():
    constant = np.full((1, SIZE, SIZE, 3), 200.0, dtype=np.float32)
    shifted = _views(
        _policy(shift_fraction=0.4, rotation_degrees=45.0, zoom_fraction=0.4), DIGESTS[:1]
    )
    assert _same(_applied(shifted, constant), constant)


def test_a_view_does_not_depend_on_its_batch():
    parameters = _views(SHIPPED, DIGESTS[:5])
    together = _applied(parameters)
    alone = np.concatenate([_applied(parameters[number : number + 1]) for number in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-3)


# --- stains: skimage/color/colorconv.py, written out ------------------------------------------------------------------

RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def _rgb2hed(rgb):
    """separate_stains(rgb, hed_from_rgb); rgb 0..1."""
    rgb = np.maximum(rgb, 1e-6)
    return np.maximum((np.log(rgb) / np.log(1e-6)) @ np.linalg.inv(RGB_FROM_HED), 0)


def _hed2rgb(stains):
    """combine_stains(stains, rgb_from_hed)."""
    log_rgb = -(stains * -np.log(1e-6)) @ RGB_FROM_HED
    return np.clip(np.exp(log_rgb), 0, 1)


def test_stain_jitter_is_scikit_images_separation_changed_and_combined():
    rng = np.random.default_rng(1)
    pictures = 255 * _hed2rgb(rng.uniform(0.01, 0.08, (5, SIZE, SIZE, 3)))
    parameters = np.tile(augment.IDENTITY, (5, 1))
    parameters[:, 8:] = rng.uniform(-0.2, 0.2, (5, 6))
    parameters[0] = augment.IDENTITY
    changes = parameters[:, None, None, 8:].astype(float)
    relative, offset = changes[..., :3], changes[..., 3:]
    stains = _rgb2hed(pictures / 255)
    # Its stains are optical densities over that of 1e-6, which is 6 in base 10.
    changed = stains * (1 + relative) + offset / 6
    expected = 255 * _hed2rgb(changed)
    shown = _applied(parameters, pictures.astype(np.float32))
    np.testing.assert_allclose(shown, expected, atol=0.01)
    assert np.abs(shown[1:] - pictures[1:]).mean() > 5


def test_a_view_without_stain_jitter_is_the_same_pixels_beside_one_with_it():
    parameters = _views(SHIPPED, DIGESTS[:4])
    alone = _applied(parameters)
    parameters[3, 8:] = 0.05
    beside = _applied(parameters)
    np.testing.assert_array_equal(beside[:3], alone[:3])
    assert np.abs(beside[3] - alone[3]).max() > 1
