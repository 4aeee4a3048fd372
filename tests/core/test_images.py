"""One decoder for every kind of file a hospital sends, and a ValueError for everything else."""

import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from equipoise.core import images
from fabricate.dicom import dicom_bytes

RAMP = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
COLOUR = np.dstack([RAMP, RAMP[::-1], np.full_like(RAMP, 100)])


def _encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png_header(width, height):
    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def _assert_rgb(pixels, expected):
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    np.testing.assert_array_equal(pixels, expected)


def test_rgb_comes_back_as_it_is():
    _assert_rgb(images.decode(_encoded(Image.fromarray(COLOUR))), COLOUR)


def test_grey_is_repeated_three_times():
    _assert_rgb(images.decode(_encoded(Image.fromarray(RAMP))), np.dstack([RAMP] * 3))


def test_transparency_is_dropped():
    transparent = np.zeros_like(RAMP)
    _assert_rgb(
        images.decode(_encoded(Image.fromarray(np.dstack([COLOUR, transparent]), "RGBA"))), COLOUR
    )
    grey = Image.fromarray(np.dstack([RAMP, transparent]), "LA")
    _assert_rgb(images.decode(_encoded(grey)), np.dstack([RAMP] * 3))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_gives_its_colours(kind):
    colours = np.array([[255, 0, 0], [0, 128, 0], [1, 2, 3]], dtype=np.uint8)
    places = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    image = Image.fromarray(places, "P")
    image.putpalette(colours.ravel().tolist())
    _assert_rgb(images.decode(_encoded(image, kind)), colours[places])


def test_one_bit_image_is_black_and_white():
    image = Image.fromarray(RAMP > 100)
    _assert_rgb(
        images.decode(_encoded(image)),
        np.dstack([np.where(RAMP > 100, 255, 0).astype(np.uint8)] * 3),
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_that_are_all_used_need_no_scale(kind):
    deep = RAMP.astype(np.uint16) * 257
    _assert_rgb(images.decode(_encoded(Image.fromarray(deep), kind)), np.dstack([RAMP] * 3))


def test_float_image_with_nan_is_refused():
    values = RAMP.astype(np.float32)
    values[0, 0] = np.nan
    with pytest.raises(ValueError, match="values that are not numbers"):
        images.decode(_encoded(Image.fromarray(values), "TIFF"))


def test_cmyk_jpeg_becomes_rgb():
    plain = Image.new("RGB", (16, 16), (200, 60, 20))
    pixels = images.decode(_encoded(plain.convert("CMYK"), "JPEG", quality=95))
    assert pixels.shape == (16, 16, 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(axis=0), (200, 60, 20), atol=6)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, COLOUR),
        (2, COLOUR[:, ::-1]),
        (3, COLOUR[::-1, ::-1]),
        (6, np.rot90(COLOUR, -1)),
        (8, np.rot90(COLOUR)),
    ],
)
def test_exif_orientation_is_applied(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _assert_rgb(images.decode(_encoded(Image.fromarray(COLOUR), exif=exif)), upright)


def test_exif_orientation_of_a_jpeg_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.decode(_encoded(Image.fromarray(COLOUR), "JPEG", exif=exif)).shape == (8, 6, 3)


def test_path_and_bytes_give_the_same(tmp_path):
    content = _encoded(Image.fromarray(COLOUR))
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_array_equal(images.decode(tmp_path / "a.png"), images.decode(content))


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="the file is empty"):
        images.decode(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_truncated_file_is_refused(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    content = _encoded(Image.fromarray(noise), kind)
    assert images.decode(content).shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"\w"):
        images.decode(content[: int(share * len(content))])


def test_text_named_png_is_refused_without_a_memory_address(tmp_path):
    (tmp_path / "a.png").write_text("patient;label\n1;2\n")
    with pytest.raises(ValueError, match="cannot identify image file") as error:
        images.decode(tmp_path / "a.png")
    assert "BytesIO object" not in str(error.value)


@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (30_000, 40_000), (10_000, 10_000)]
)
def test_decompression_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(ValueError, match="decompression bomb"):
        images.decode(_png_header(width, height))


def test_damaged_bytes_are_only_ever_a_value_error():
    rng = np.random.default_rng(1)
    picture = Image.fromarray(COLOUR)
    refused = 0
    for content in (
        _encoded(picture),
        _encoded(picture, "JPEG"),
        _encoded(picture, "BMP"),
        _encoded(picture, "GIF"),
    ):
        for _ in range(100):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
            try:
                assert images.decode(damaged.tobytes()).shape[2] == 3
            except ValueError:
                refused += 1
    assert refused > 0


def test_bomb_is_refused_while_another_thread_decodes(monkeypatch):
    small, large = _encoded(Image.new("L", (2, 2))), _encoded(Image.new("L", (15, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    both_inside, small_done = threading.Event(), threading.Event()
    plain_open = Image.open

    def open_in_turn(stream):
        if len(stream.getvalue()) == len(small):
            both_inside.wait(10)
        else:
            both_inside.set()
            small_done.wait(10)
        return plain_open(stream)

    def decode_small():
        images.decode(small)
        small_done.set()

    monkeypatch.setattr(Image, "open", open_in_turn)
    thread = threading.Thread(target=decode_small)
    thread.start()
    try:
        with pytest.raises(ValueError, match="decompression bomb"):
            images.decode(large)
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("draft_px", "shape"),
    [
        (0, (240, 320, 3)),
        (121, (240, 320, 3)),
        (120, (120, 160, 3)),
        (60, (60, 80, 3)),
        (1, (30, 40, 3)),
    ],
)
def test_draft_is_the_smallest_scale_not_below_the_asked_size(draft_px, shape):
    grey = np.add.outer(np.arange(240) // 2, np.arange(320) // 4).astype(np.uint8)
    content = _encoded(Image.fromarray(grey), "JPEG", quality=95)
    pixels = images.decode(content, draft_px)
    assert pixels.shape == shape
    scale = 240 // shape[0]
    means = grey.reshape(shape[0], scale, shape[1], scale).mean(axis=(1, 3))
    np.testing.assert_allclose(pixels[..., 0], means, atol=4)


def test_draft_leaves_other_formats_as_they_are_and_keeps_the_orientation():
    _assert_rgb(images.decode(_encoded(Image.fromarray(COLOUR)), 1), COLOUR)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.decode(_encoded(Image.new("L", (64, 32)), "JPEG", exif=exif), 16).shape == (
        32,
        16,
        3,
    )


@pytest.mark.parametrize("kind", ["PNG", "MPO", "GIF", "WEBP", "TIFF"])
def test_pages_are_counted_by_what_a_file_holds(kind):
    rng = np.random.default_rng(1)
    pages = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
    buffer = io.BytesIO()
    pages[0].save(buffer, kind, save_all=True, append_images=pages[1:])
    assert images.count_pages(buffer.getvalue()) == 3
    buffer = io.BytesIO()
    pages[0].save(buffer, "JPEG" if kind == "MPO" else kind)
    assert images.count_pages(buffer.getvalue()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"\r\n<!DOCTYPE HTML PUBLIC>", "a web page"),
        (b"<html><body>404", "a web page"),
        (b"%PDF-1.4\n", "a PDF document"),
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
        (b"\x1f\x8b\x08" + bytes(30), "gzip"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "HEIC.* save it as JPEG"),
        (bytes(4096), "nothing but zeros"),
        (b"<svg xmlns=''/>", "SVG"),
        (b"not known", "cannot identify image file"),
    ],
)
def test_what_lies_in_place_of_a_picture_is_named(content, reason):
    with pytest.raises(ValueError, match=reason):
        images.decode(content)


def test_a_dicom_file_that_begins_like_a_tiff_has_one_page():
    content = bytearray(dicom_bytes(np.arange(64, dtype=np.uint16).reshape(8, 8)))
    content[:8] = b"II*\0\x10\0\0\0"
    assert images.count_pages(bytes(content)) == 1
    assert images.open_picture(bytes(content)).values.shape == (8, 8)


def test_odd_palettes_are_read_without_a_warning():
    palette = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "png", transparency=bytes(range(256)))
    script = "import sys; from equipoise.core import images; images.decode(sys.stdin.buffer.read())"
    done = subprocess.run(
        [sys.executable, "-c", script], input=buffer.getvalue(), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_page_without_a_size_is_no_traceback():
    buffer = io.BytesIO()
    page = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    page.save(buffer, "TIFF", save_all=True, append_images=[page])
    content = buffer.getvalue()
    assert images.count_pages(content) == 2
    width = struct.pack("<HHII", 256, 4, 1, 16)
    at = content.rindex(width)
    damaged = content[:at] + struct.pack("<H", 255) + content[at + 2 :]
    assert images.count_pages(damaged) in (1, 2)


@pytest.mark.parametrize("error", [TypeError("Missing dimensions"), struct.error(), MemoryError()])
def test_whatever_a_decoder_raises_is_a_reason(monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ValueError, match=str(error) or type(error).__name__):
        images.decode(b"an image")
    assert images.count_pages(b"GIF89a") == 1


def test_levels_of_a_large_picture_are_counted_in_little_memory():
    pixels = np.zeros((3000, 1000, 3), np.uint8)
    pixels[-1, -1] = (7, 8, 9)
    tracemalloc.start()
    assert images.levels_left(pixels) == 4
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * pixels.nbytes
