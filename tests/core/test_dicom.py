"""DICOM: pydicom and the standard say what is right; a PNG of the same values gives the same picture."""

import io
import subprocess
import sys

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from equipoise.core import dicom, images
from equipoise.core.greylevels import GreyScale, Range
from fabricate.dicom import JPEG_2000, JPEG_LOSSLESS, PLAIN, WHITE, dicom_bytes, with_private_tag

GREY = np.random.default_rng(3).integers(0, WHITE + 1, (40, 30)).astype(np.uint16)
GREY[0, 0] = WHITE
GREY_8 = np.rint(GREY * (255 / WHITE)).astype(np.uint8)
HOUNSFIELD = {"RescaleIntercept": -1024, "RescaleSlope": 1}


def _grey(levels):
    return np.dstack([levels] * 3)


def _table(values, bits):
    item = Dataset()
    item.LUTDescriptor = [len(values), 0, bits]
    item.LUTData = values
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "US"
    return [item]


@pytest.mark.parametrize("syntax", [PLAIN, JPEG_2000, JPEG_LOSSLESS])
def test_a_dicom_file_and_a_png_of_its_values_are_one_picture(syntax):
    content = dicom_bytes(GREY, syntax)
    np.testing.assert_array_equal(images.decode(content), _grey(GREY_8))
    png = imagecodecs.png_encode(GREY)
    np.testing.assert_array_equal(
        images.decode(content), images.decode(png, scale=GreyScale(WHITE))
    )


@pytest.mark.parametrize("syntax", [PLAIN, JPEG_2000, JPEG_LOSSLESS])
def test_monochrome1_is_inverted(syntax):
    content = dicom_bytes(GREY, syntax, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(images.decode(content), _grey(255 - GREY_8))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_bits_stored_say_what_is_white(bits):
    values = GREY >> (16 - bits) if bits < 12 else GREY
    content = dicom_bytes(values, BitsStored=bits, HighBit=bits - 1)
    expected = values * (255 / (2**bits - 1))
    np.testing.assert_allclose(images.decode(content), _grey(expected), atol=0.5001)


def test_16_of_16_bits_say_nothing():
    content = dicom_bytes(GREY, BitsStored=16, HighBit=15)
    np.testing.assert_array_equal(images.decode(content, scale=GreyScale(WHITE)), _grey(GREY_8))
    with pytest.raises(ValueError, match="nothing says which value is white"):
        images.decode(content)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [{}, HOUNSFIELD, {"RescaleIntercept": 10, "RescaleSlope": 0.5}])
def test_windows_of_files_are_applied_as_pydicom_applies_them(function, rescale):
    window = {"WindowCenter": [600, 50], "WindowWidth": [900, 350], "VOILUTFunction": function}
    content = dicom_bytes(GREY, **window, **rescale)
    header = pydicom.dcmread(io.BytesIO(content))
    shown = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header)
    slope, intercept = rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)
    expected = (shown - intercept) / slope * (255 / WHITE)
    np.testing.assert_allclose(images.decode(content), _grey(expected), atol=0.5001)


def test_the_window_of_the_study_goes_before_that_of_the_file():
    content = dicom_bytes(GREY, WindowCenter=40, WindowWidth=400, **HOUNSFIELD)
    assert images.open_picture(content).notes == ("own-window",)
    levels = images.decode(content, scale=GreyScale(None, Range(-1000, 400)))
    expected = np.clip((GREY - 24.0) * (255 / 1400), 0, 255)
    np.testing.assert_allclose(levels, _grey(expected), atol=0.5001)


def test_hounsfield_units_without_any_window_are_refused():
    with pytest.raises(ValueError, match=r"from -1,0\d\d to 3,071, which .*ingest\.window"):
        images.decode(dicom_bytes(GREY, **HOUNSFIELD))
    signed = GREY.astype(np.int16) - 2048
    with pytest.raises(ValueError, match=r"signed values .*ingest\.window"):
        images.decode(dicom_bytes(signed))


def test_a_rescale_that_changes_nothing_leaves_the_depth():
    content = dicom_bytes(GREY, RescaleIntercept="0", RescaleSlope="1.0")
    np.testing.assert_array_equal(images.decode(content), _grey(GREY_8))


def test_a_window_of_width_0_is_none():
    content = dicom_bytes(GREY, WindowCenter=0, WindowWidth=0)
    np.testing.assert_array_equal(images.decode(content), _grey(GREY_8))


def test_tables_of_files_are_applied():
    inverse = [WHITE - value for value in range(WHITE + 1)]
    content = dicom_bytes(GREY, VOILUTSequence=_table(inverse, 12))
    np.testing.assert_allclose(images.decode(content), _grey(255.0 - GREY_8), atol=1)


def test_the_first_of_several_frames_is_read_and_flagged():
    other = WHITE - GREY
    for syntax in (PLAIN, JPEG_2000):
        content = dicom_bytes([GREY, other, other], syntax)
        picture = images.open_picture(content)
        assert picture.notes == ("frames",)
        np.testing.assert_array_equal(picture.as_rgb(None), _grey(GREY_8))


def _sequence(**fields):
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return [item]


@pytest.mark.parametrize(
    "place", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
)
def test_transforms_of_enhanced_files_are_those_of_others(place, tmp_path):
    window = {"WindowCenter": 40, "WindowWidth": 400}
    groups = {
        "PixelValueTransformationSequence": _sequence(**HOUNSFIELD),
        "FrameVOILUTSequence": _sequence(**window),
        "FrameAnatomySequence": _sequence(FrameLaterality="L"),
    }
    others = _sequence(
        PixelValueTransformationSequence=_sequence(RescaleIntercept=7, RescaleSlope=3)
    )
    frames = _sequence(**groups) + others if place.startswith("PerFrame") else _sequence(**groups)
    enhanced = dicom_bytes([GREY, GREY], **{place: frames})
    plain = dicom_bytes(GREY, **HOUNSFIELD, **window)
    np.testing.assert_array_equal(images.decode(enhanced), images.decode(plain))
    scale = GreyScale(white=None, window=Range(-1000, 400))
    shown = images.open_picture(enhanced, has_window=True).as_rgb(scale)
    units = apply_modality_lut(GREY, pydicom.dcmread(io.BytesIO(plain)))
    np.testing.assert_allclose(
        shown, _grey(np.clip((units + 1000) / 1400 * 255, 0, 255)), atol=0.5001
    )
    (tmp_path / "1.dcm").write_bytes(enhanced)
    assert dicom.read_fields(tmp_path / "1.dcm", ["FrameLaterality"]) == {"FrameLaterality": "L"}


@pytest.mark.parametrize("unused_bits", [0, 2, 4])
def test_values_that_end_at_the_highest_bit_are_read_as_others(unused_bits):
    values = (GREY << unused_bits).astype(np.uint16)
    content = dicom_bytes(values, HighBit=11 + unused_bits)
    np.testing.assert_array_equal(images.decode(content), _grey(GREY_8))


@pytest.mark.parametrize("bits", [1, 4])
def test_fewer_than_8_bits_are_stretched_as_others(bits):
    values = GREY >> (12 - bits)
    content = dicom_bytes(values, BitsStored=bits, HighBit=bits - 1)
    expected = np.rint(values * (255 / (2**bits - 1)))
    np.testing.assert_array_equal(images.decode(content), _grey(expected))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_above_the_picture_is_black_and_no_grey_level(photometric):
    padded = np.pad(GREY, 4, constant_values=63536)
    fields = {"BitsStored": 16, "HighBit": 15, "PhotometricInterpretation": photometric}
    picture = images.open_picture(dicom_bytes(padded, PixelPaddingValue=63536, **fields))
    assert picture.depth.highest == WHITE
    shown = picture.as_rgb(GreyScale(WHITE))
    alone = images.open_picture(dicom_bytes(GREY, **fields)).as_rgb(GreyScale(WHITE))
    np.testing.assert_array_equal(shown[4:-4, 4:-4], alone)
    assert shown[:4].max() == alone.min()
    assert images.open_picture(dicom_bytes(padded, **fields)).depth.highest == 63536


def test_what_may_name_a_person_is_flagged():
    assert images.open_picture(dicom_bytes(GREY)).notes == ()
    burned = dicom_bytes(GREY, BurnedInAnnotation="YES")
    assert images.open_picture(burned).notes == ("burned-in",)
    private = with_private_tag(dicom_bytes(GREY, BurnedInAnnotation="NO"))
    assert images.open_picture(private).notes == ("private",)


def test_colours_of_8_bits():
    colours = np.random.default_rng(4).integers(0, 256, (16, 12, 3)).astype(np.uint8)
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(GREY)))
    header.Rows, header.Columns, header.SamplesPerPixel = 16, 12, 3
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit = 7
    header.PlanarConfiguration = 0
    header.PhotometricInterpretation = "RGB"
    header.PixelData = colours.tobytes()
    buffer = io.BytesIO()
    header.save_as(buffer)
    np.testing.assert_array_equal(images.decode(buffer.getvalue()), colours)


def test_a_file_without_an_ending_is_recognised(tmp_path):
    for name in ("IM0001", "1.2.840.17", "DICOMDIR"):
        (tmp_path / name).write_bytes(dicom_bytes(GREY))
    (tmp_path / "notes").write_text("no picture")
    assert images.walk(tmp_path).paths == ["1.2.840.17", "IM0001"]


def test_a_file_without_preamble_is_recognised():
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(GREY)))
    buffer = io.BytesIO()
    del header.file_meta
    header.preamble = None
    header.save_as(buffer, implicit_vr=True, little_endian=True)
    assert b"DICM" not in buffer.getvalue()[:200]
    np.testing.assert_array_equal(images.decode(buffer.getvalue()), _grey(GREY_8))
    without_preamble_only = dicom_bytes(GREY)[132:]
    np.testing.assert_array_equal(images.decode(without_preamble_only), _grey(GREY_8))


@pytest.mark.parametrize("syntax", [PLAIN, JPEG_2000, JPEG_LOSSLESS])
def test_damaged_dicom_is_only_ever_a_value_error(syntax):
    content = dicom_bytes(GREY, syntax, WindowCenter=600, WindowWidth=900)
    rng = np.random.default_rng(5)
    refused = 0
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(ValueError, match=r"\w"):
            images.decode(content[: int(share * len(content))])
    for _ in range(60):
        damaged = np.frombuffer(content, dtype=np.uint8).copy()
        damaged[rng.integers(132, len(damaged), 8)] = rng.integers(0, 256, 8)
        try:
            assert images.decode(damaged.tobytes()).shape[2] == 3
        except ValueError:
            refused += 1
    assert refused > 0


def test_a_report_holds_no_picture():
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(GREY, Modality="SR")))
    del header.PixelData, header.Rows, header.Columns
    buffer = io.BytesIO()
    header.save_as(buffer)
    with pytest.raises(ValueError, match=r"\(SR\) holds no picture"):
        images.decode(buffer.getvalue())


@pytest.mark.parametrize(
    ("modality", "what"), [("SEG", "a segmentation"), ("RTDOSE", "doses of radiation")]
)
def test_objects_with_numbers_that_are_no_picture_are_refused(modality, what):
    with pytest.raises(ValueError, match=rf"\({modality}\) holds {what}, no picture"):
        images.decode(dicom_bytes(GREY, Modality=modality))


def test_a_header_without_a_size_is_said():
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(GREY)))
    del header.Rows
    buffer = io.BytesIO()
    header.save_as(buffer)
    with pytest.raises(
        ValueError, match=r"does not say how large its picture is \(Rows, Columns\)"
    ):
        images.decode(buffer.getvalue())


def test_pixels_that_no_program_unpacks_are_said_with_the_reason():
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(GREY, JPEG_2000)))
    header.PixelData = pydicom.encaps.encapsulate([b"no JPEG 2000 at all"])
    buffer = io.BytesIO()
    header.save_as(buffer)
    with pytest.raises(ValueError, match=r"JPEG 2000.*cannot be unpacked: \w+: .*Save them"):
        images.decode(buffer.getvalue())


@pytest.mark.parametrize("syntax", [PLAIN, JPEG_2000, JPEG_LOSSLESS])
def test_a_file_that_is_cut_short_is_said_to_be(syntax):
    content = dicom_bytes(GREY, syntax, Modality="DX")
    for share in (0.5, 0.9, 0.99):
        with pytest.raises(ValueError, match=r"cut short|less than expected"):
            images.decode(content[: int(share * len(content))])


def test_a_bomb_is_refused_before_its_pixels_are_unpacked():
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(GREY)))
    header.Rows = header.Columns = 30_000
    buffer = io.BytesIO()
    header.save_as(buffer)
    with pytest.raises(ValueError, match="decompression bomb"):
        images.decode(buffer.getvalue())


def test_without_pydicom_one_sentence_says_what_to_install(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(GREY))
    script = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from equipoise.core import images\n"
        "print('.dcm' in images.SUFFIXES)\n"
        "try: images.decode(open(sys.argv[1], 'rb').read())\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.splitlines() == [
        "False",
        "DICOM files need pydicom. Install it: pip install 'equipoise[dicom]'",
    ]


def test_a_window_whose_black_is_its_white_is_refused():
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    content = dicom_bytes(GREY, RescaleSlope=2, RescaleIntercept=1e300, **window)
    with pytest.raises(ValueError, match=r"its header makes .* both black and white"):
        images.decode(content)
