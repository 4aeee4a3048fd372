"""Files of more than 8 bits: one white for a set, said by the file or found in the set; never a guess per file."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from equipoise.core import greylevels, images
from equipoise.core.greylevels import GreyScale, Range

#: 12 bits, white among them, and no even steps.
GREY = (np.arange(24 * 16).reshape(24, 16) * 10.69).astype(np.uint16)
GREY_8 = np.rint(GREY * (255 / 4095)).astype(np.uint8)
COLOUR = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
COLOUR_8 = np.dstack([GREY_8, GREY_8[::-1], GREY_8[:, ::-1]])
TWELVE_BITS = GreyScale(4095)


def _tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def _png(values):
    return imagecodecs.png_encode(values)


def _with_chunk(png, name, content):
    """A PNG with a chunk after its header."""
    chunk = struct.pack(">I", len(content)) + name + content
    chunk += struct.pack(">I", zlib.crc32(name + content))
    return png[:33] + chunk + png[33:]


def _with_sbit(values, bits):
    channels = 1 if values.ndim == 2 else values.shape[2]
    return _with_chunk(_png(values), b"sBIT", bytes([bits] * channels))


def _pgm(values, white):
    header = f"P5\n# a remark\n{values.shape[1]} {values.shape[0]}\n{white}\n"
    return header.encode() + values.astype(">u2").tobytes()


def _jp2(values, bits):
    return imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits)


def _grey(levels):
    return np.dstack([levels] * 3)


@pytest.mark.parametrize(
    "content",
    [
        _png(GREY),
        _tiff(GREY),
        _tiff(GREY, compression="zlib", predictor=True),
        _tiff(GREY, compression="lzw", tile=(16, 16)),
        _tiff(GREY, byteorder=">"),
        _tiff(GREY, bigtiff=True),
        _tiff(GREY.astype(np.uint32)),
        _tiff(GREY.astype(np.int16)),
        _pgm(GREY, 65535),
        _jp2(GREY, 16),
    ],
)
def test_12_bits_of_16_become_all_256_levels_by_the_scale_of_the_set(content):
    np.testing.assert_array_equal(images.decode(content, scale=TWELVE_BITS), _grey(GREY_8))


@pytest.mark.parametrize("content", [_png(COLOUR), _tiff(COLOUR, photometric="rgb")])
def test_colours_of_12_bits_of_16_are_not_cut_to_8(content):
    np.testing.assert_array_equal(images.decode(content, scale=TWELVE_BITS), COLOUR_8)


def test_planes_of_colours_one_after_the_other():
    planes = np.ascontiguousarray(np.moveaxis(COLOUR, 2, 0))
    content = _tiff(planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(images.decode(content, scale=TWELVE_BITS), COLOUR_8)


def test_transparency_of_16_bits_is_dropped():
    with_alpha = np.dstack([GREY, np.full_like(GREY, 65535)])
    np.testing.assert_array_equal(images.decode(_png(with_alpha), scale=TWELVE_BITS), _grey(GREY_8))


@pytest.mark.parametrize(
    "content",
    [
        _with_sbit(GREY, 12),
        _with_sbit((GREY << 4) | (GREY >> 8), 12),  # stretched to 16 bits, as the standard wants
        _pgm(GREY, 4095),
        _jp2(GREY, 12),
        _tiff(GREY, extratags=[(341, 3, 1, 4095, True)]),
        _tiff(GREY, extratags=[(281, 3, 1, 4095, True)]),
    ],
)
@pytest.mark.parametrize("scale", [None, GreyScale(65535)])
def test_a_file_that_declares_its_depth_needs_no_scale(content, scale):
    levels = images.decode(content, scale=scale)
    np.testing.assert_allclose(levels, _grey(GREY_8), atol=0.51)


def test_a_dark_picture_that_is_stretched_to_16_bits_stays_dark():
    dark = GREY // 16
    content = _with_sbit((dark << 4) | (dark >> 8), 12)
    np.testing.assert_allclose(images.decode(content), _grey(dark * (255 / 4095)), atol=0.51)


def test_colours_that_declare_their_depth():
    np.testing.assert_array_equal(images.decode(_with_sbit(COLOUR, 12)), COLOUR_8)


def test_packed_12_bits():
    content = _tiff(GREY, bitspersample=12, compression=None)
    np.testing.assert_array_equal(images.decode(content), _grey(GREY_8))


@pytest.mark.parametrize(
    "content",
    [
        imagecodecs.ljpeg_encode(GREY, bitspersample=12),
        imagecodecs.jpeg_encode(GREY, bitspersample=12, level=100, lossless=False),
    ],
    ids=["lossless", "12 bits"],
)
def test_jpegs_that_pillow_does_not_know_are_read(content):
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(content))
    np.testing.assert_allclose(images.decode(content), _grey(GREY_8), atol=1)
    for share in (0.02, 0.4, 0.9):
        with pytest.raises(ValueError, match=r".+"):
            images.decode(content[: int(share * len(content))])


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_channels_that_are_not_read_are_flagged(planar):
    channels = [GREY, GREY[::-1], GREY // 2]
    stack = np.dstack(channels) if planar == "contig" else np.stack(channels)
    content = _tiff(stack, photometric="minisblack", planarconfig=planar)
    picture = images.open_picture(content)
    assert picture.notes == ("channels",)
    np.testing.assert_array_equal(picture.as_rgb(TWELVE_BITS), _grey(GREY_8))
    alpha = np.dstack([GREY, np.full_like(GREY, 65535)])
    content = _tiff(alpha, photometric="minisblack", planarconfig="contig", extrasamples=[2])
    assert images.open_picture(content).notes == ()
    assert images.open_picture(_tiff(COLOUR, photometric="rgb")).notes == ()


def test_the_greatest_value_of_a_picture_is_no_declaration():
    content = _tiff(GREY, extratags=[(341, 3, 1, 4094, True)])
    with pytest.raises(ValueError, match="nothing says which value is white"):
        images.decode(content)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_is_inverted_at_every_depth(dtype):
    white = np.iinfo(dtype).max
    levels = np.rint(GREY * (white / 4095)).astype(dtype)
    content = _tiff(white - levels, photometric="miniswhite")
    upright = images.decode(_tiff(levels))
    np.testing.assert_allclose(images.decode(content), upright.astype(int), atol=1)


def test_white_is_zero_with_12_bits_of_16():
    content = _tiff(4095 - GREY, photometric="miniswhite")
    np.testing.assert_allclose(
        images.decode(content, scale=TWELVE_BITS), _grey(GREY_8).astype(int), atol=1
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_deep_pictures_are_turned_upright_as_pillow_turns_others(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF":
        content = _tiff(GREY, extratags=[(274, 3, 1, orientation, True)])
    else:
        content = _with_chunk(_png(GREY), b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    shallow = Image.fromarray(GREY_8)
    shallow.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(shallow))
    np.testing.assert_array_equal(images.decode(content, scale=TWELVE_BITS), _grey(expected))


def test_shares_of_white_are_said_as_such():
    depths = [greylevels.Depth("float", 0, 1), greylevels.Depth("unsigned", 0, 4095)]
    assert greylevels.scale_text(GreyScale(4095), depths) == [
        "1 file of more than 8 bits with shares of white: 0 becomes black and 1 white",
        "4,096 grey levels in 1 file of more than 8 bits: scaled by 4,095",
    ]


def test_floats_within_0_and_1_are_shares_of_white():
    content = _tiff((GREY / 4095).astype(np.float32))
    np.testing.assert_array_equal(images.decode(content), _grey(GREY_8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
def test_hounsfield_units_need_a_window(dtype):
    hounsfield = GREY.astype(dtype) - 1000
    with pytest.raises(ValueError, match=r"from -1,000 to 3,.* Set ingest\.window"):
        images.decode(_tiff(hounsfield), scale=TWELVE_BITS)
    levels = images.decode(_tiff(hounsfield), scale=GreyScale(None, Range(-1000, 400)))
    expected = np.clip(GREY / 1400 * 255, 0, 255)
    np.testing.assert_allclose(levels, _grey(expected), atol=0.5001)


def test_floats_above_1_have_no_white():
    with pytest.raises(ValueError, match=r"float values from 0 to 4,.*ingest\.window"):
        images.decode(_tiff(GREY.astype(np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    values = GREY.astype(np.float32)
    values[3, 3] = value
    with pytest.raises(ValueError, match="values that are not numbers"):
        images.decode(_tiff(values))
    with pytest.raises(ValueError, match="complex64 numbers"):
        images.decode(_tiff(values.astype(np.complex64)))


def test_a_file_of_another_scale_is_refused():
    with pytest.raises(ValueError, match=r"up to 65,504, and white is 4,095"):
        images.decode(_png(GREY * 16), scale=TWELVE_BITS)


def test_12_bits_of_16_are_no_guess_for_a_model_of_8_bits():
    with pytest.raises(ValueError, match="nothing says which value is white"):
        images.decode(_png(GREY))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    "content",
    [
        _png(GREY),
        _tiff(GREY),
        _tiff(GREY, rowsperstrip=4, compression="lzw"),
        _tiff(GREY, tile=(16, 16)),
        _jp2(GREY, 12),
        _pgm(GREY, 4095),
    ],
)
def test_a_deep_file_that_is_cut_short_is_refused(content, share):
    with pytest.raises(ValueError, match=r"\w"):
        images.decode(content[: int(share * len(content))], scale=TWELVE_BITS)


def test_damaged_deep_files_are_only_ever_a_value_error():
    rng = np.random.default_rng(2)
    refused = 0
    for content in (_png(COLOUR), _tiff(GREY, compression="lzw"), _jp2(GREY, 12), _pgm(GREY, 4095)):
        for _ in range(60):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
            try:
                assert images.decode(damaged.tobytes(), scale=TWELVE_BITS).shape[2] == 3
            except ValueError:
                refused += 1
    assert refused > 0


def test_a_deep_decompression_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for content in (_png(GREY), _tiff(GREY), _jp2(GREY, 12)):
        with pytest.raises(ValueError, match="decompression bomb"):
            images.decode(content, scale=TWELVE_BITS)


def test_white_of_a_set_is_the_fewest_bits_that_hold_all_of_it():
    depths = [
        greylevels.depth_of(np.array([0, highest], np.uint16)) for highest in (250, 260, 3000)
    ]
    assert greylevels.shared_scale(depths) == GreyScale(4095)
    assert greylevels.shared_scale(depths[:1]) == GreyScale(255)
    declared = greylevels.depth_of(np.array([0, 9], np.uint16), Range(0, 16383))
    assert greylevels.shared_scale([*depths, declared]) == GreyScale(16383)


def test_one_signed_picture_shows_that_the_others_have_no_white():
    lung = greylevels.depth_of(np.array([-900, 100], np.int16))
    bone = greylevels.depth_of(np.array([200, 1500], np.int16))
    film = greylevels.depth_of(np.array([0, 4000], np.uint16))
    ranges = greylevels.unbounded([lung, bone, film])
    assert list(ranges) == ["signed"]
    assert (ranges["signed"].lowest, ranges["signed"].highest) == (-900, 1500)
    assert greylevels.unbounded([bone, film]) == {}


def test_a_window_is_for_what_has_no_white_and_else_for_all():
    window = Range(-1000, 400)
    lung = greylevels.depth_of(np.array([-900, 100], np.int16))
    film = greylevels.depth_of(np.array([0, 4000], np.uint16))
    assert greylevels.shared_scale([lung, film], window) == GreyScale(4095, window)
    assert greylevels.shared_scale([film], window) == GreyScale(None, window)
    assert greylevels.shared_scale([lung], window) == GreyScale(None, window)


@pytest.mark.parametrize(
    "scale",
    [GreyScale(4095), GreyScale(None, Range(-1000, 400.5)), GreyScale(65535, Range(0, 1e9))],
)
def test_a_scale_is_read_back_from_a_pipeline_and_from_a_manifest(scale):
    assert GreyScale.of_pipeline("pillow-rgb8/1/jpeg-draft" + scale.text) == scale
    assert GreyScale.of_dict(scale.as_dict()) == scale
    assert GreyScale.of_pipeline("pillow-rgb8/1/stored-float16") is None


def test_dark_and_flat_pictures_are_flagged():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    assert images.flags(_grey(ramp), grey=True) == []
    dark = _grey(ramp // 16)
    assert images.flags(dark, grey=True) == ["dark"]
    assert images.levels_left(dark) == 16
    assert images.flags(_grey(100 + ramp // 20), grey=True) == ["flat"]
