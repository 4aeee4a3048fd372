"""Studies of files with more than 8 bits: one white, printed, kept, and asked for where there is none."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image

from equipoise.core import config
from equipoise.core.documents import IngestSummary
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.greylevels import GreyScale, Range
from equipoise.embed.embedder import pipeline_of
from equipoise.ingest import masks
from equipoise.ingest import stage as ingest
from equipoise.ingest.summary import summary_text
from equipoise.pipeline import Freshness

ROOT = Path(__file__).resolve().parents[2]
SIZE = 48


@pytest.fixture
def root(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def _field(seed):
    """A picture with values 0..1: a bright disc on a ramp, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    disc = (x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.3, 0.7)) ** 2 < 0.04
    field = 0.2 + 0.3 * x + 0.3 * disc + rng.normal(0, 0.05, x.shape)
    return field.clip(0, 1)


def _put(root, make, names=("a", "b", "c", "d"), kind="png"):
    """Write the same pictures under both classes, and return the mean grey that is right for each."""
    right = {}
    for label, class_name in enumerate(("normal", "sick")):
        folder = root / "data/raw/own" / class_name
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            field = _field(100 * label + number)
            path = folder / f"{name}.{kind}"
            if kind == "tif":
                tifffile.imwrite(path, make(field))
            else:
                Image.fromarray(make(field)).save(path)
            right[f"{class_name}/{path.name}"] = field.mean() * 255
    return right


def _study(root, **settings):
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    own = {section: {} for section in params["studies"]["demo"]}
    own["ingest"] = {"dataset": "folder", "positive_class": "sick", "pseudonymise": False}
    own["ingest"].update(settings)
    params["studies"]["own"] = own
    return config.load_study("own", params, root=root)


def _means(done):
    return done.manifest.table.set_index("image_id")["grey_mean"]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_bits_that_are_used_become_all_grey_levels(root, bits, kind):
    white = 2**bits - 1
    right = _put(root, lambda field: (field * white).astype(np.uint16), kind=kind)
    done = ingest.run(_study(root))
    pd.testing.assert_series_equal(
        _means(done).sort_index(), pd.Series(right), atol=0.6, **_loose()
    )
    assert done.manifest.grey_scale == GreyScale(white)
    said = summary_text(done.summary, done.quarantined)
    assert f"{white + 1:,} grey levels in 8 files of more than 8 bits: scaled by {white:,}" in said
    assert "dark" not in said


def _loose():
    return {"check_names": False, "check_index_type": False, "rtol": 0}


def test_a_dark_picture_stays_darker_than_its_neighbours(root):
    _put(root, lambda field: (field * 4095).astype(np.uint16))
    dark = _put(root, lambda field: (field * 250).astype(np.uint16), names=["z"])
    done = ingest.run(_study(root))
    for image_id, mean in dark.items():
        assert _means(done)[image_id] == pytest.approx(mean * 250 / 4095, abs=0.6)
    assert done.summary.flagged["dark"] == 2
    levels = done.summary.fewest_levels["dark"]
    assert 4 < levels <= 16
    said = summary_text(done.summary, done.quarantined)
    assert f"2 dark (as few as {levels} of 256 grey levels left)" in said
    assert "bits used: 8 in 2, 12 in 8; one white for all of these" in said


def test_files_of_8_bits_beside_deep_ones_keep_their_levels(root):
    shallow = _put(root, lambda field: np.rint(field * 255).astype(np.uint8), names=["s", "t"])
    _put(root, lambda field: (field * 4095).astype(np.uint16), names=["u", "v"], kind="tif")
    done = ingest.run(_study(root, duplicates="keep"))
    for image_id, mean in shallow.items():
        assert _means(done)[image_id] == pytest.approx(mean, abs=0.6)


def test_hounsfield_units_are_refused_without_a_window_and_read_with_one(root):
    right = _put(root, lambda field: (field * 2000 - 1000).astype(np.float32), kind="tif")
    with pytest.raises(DataError, match=r"float values from -\d.* to \d.*Set ingest\.window"):
        ingest.run(_study(root))
    done = ingest.run(_study(root, window=[-1000, 1000]))
    pd.testing.assert_series_equal(
        _means(done).sort_index(), pd.Series(right), atol=0.6, **_loose()
    )
    assert done.manifest.grey_scale == GreyScale(None, Range(-1000, 1000))
    said = summary_text(done.summary, done.quarantined)
    assert "8 files of more than 8 bits: -1,000 becomes black and 1,000 white" in said


def test_files_without_a_white_are_left_out_with_the_reason_beside_others(root):
    _put(root, lambda field: (field * 4095).astype(np.uint16))
    _put(root, lambda field: (field * 900 - 300).astype(np.int16), names=["h"], kind="tif")
    # This one alone has no value below 0, and is of the same kind.
    bone = (_field(7) * 900).astype(np.int16)
    tifffile.imwrite(root / "data/raw/own/sick/bone.tif", bone)
    done = ingest.run(_study(root))
    reasons = {item.image_id: item.reason for item in done.quarantined}
    assert sorted(reasons) == ["normal/h.tif", "sick/bone.tif", "sick/h.tif"]
    assert all("ingest.window" in reason for reason in reasons.values())
    assert done.manifest.grey_scale == GreyScale(4095)


def test_a_window_that_changes_nothing_is_said(root):
    _put(root, lambda field: np.rint(field * 255).astype(np.uint8))
    done = ingest.run(_study(root, window=[-1000, 400]))
    said = summary_text(done.summary, done.quarantined)
    assert "ingest.window changes nothing: no file has more than 8 bits" in said


def test_a_window_that_is_none_is_refused(root):
    with pytest.raises(ConfigError, match="low < high"):
        _study(root, window=[400, -1000])


def test_another_window_makes_the_manifest_stale_until_it_is_read_again(root):
    _put(root, lambda field: (field * 2000 - 1000).astype(np.float32), kind="tif")
    lung = _study(root, window=[-1000, 1000])
    ingest.run(lung)
    assert Freshness.of(lung).ingest
    bone = _study(root, window=[-500, 1500])
    assert not Freshness.of(bone).ingest
    assert not Freshness.of(_study(root)).ingest
    assert ingest.run(bone).manifest.grey_scale.window == Range(-500, 1500)
    assert Freshness.of(bone).ingest
    assert not Freshness.of(lung).ingest


def test_masks_of_8_bits_beside_deep_pictures_are_left_out_and_the_scale_stays(root):
    _put(root, lambda field: (field * 4095).astype(np.uint16), kind="tif")
    for class_name in ("normal", "sick"):
        for name in ("a", "b", "c", "d"):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[8:30, 8:30] = 255
            Image.fromarray(mask).save(root / f"data/raw/own/{class_name}/{name}.png")
    done = ingest.run(_study(root))
    assert set(done.manifest.table["image_id"].str[-4:]) == {".tif"}
    assert {item.reason for item in done.quarantined} == {masks.REASON}
    assert done.manifest.grey_scale == GreyScale(4095)
    said = summary_text(done.summary, done.quarantined)
    assert "4,096 grey levels in 8 files of more than 8 bits" in said


def test_masks_of_16_bits_have_no_say_in_which_value_is_white(root):
    right = _put(root, lambda field: (field * 4095).astype(np.uint16))
    mask = np.zeros((SIZE, SIZE), np.uint16)
    mask[8:30, 8:30] = 65535
    Image.fromarray(mask).save(root / "data/raw/own/sick/a_lesion.png")
    done = ingest.run(_study(root))
    assert done.manifest.grey_scale == GreyScale(4095)
    assert _means(done).to_dict() == pytest.approx(right, abs=0.6)
    assert [item.image_id for item in done.quarantined] == ["sick/a_lesion.png"]
    assert "values up to 65,535, and white is 4,095" in done.quarantined[0].reason


def test_a_dark_film_beside_a_bright_one_of_its_name_is_no_mask(root):
    _put(root, lambda field: (field * 65535).astype(np.uint16))
    dark = (_field(7) * 600).astype(np.uint16)
    Image.fromarray(dark).save(root / "data/raw/own/sick/a_2.png")
    done = ingest.run(_study(root))
    assert "sick/a_2.png" in set(done.manifest.table["image_id"])
    assert not done.quarantined
    assert not [remark for remark in done.remarks if "two or three grey values" in remark]


def test_pages_of_files_that_pillow_cannot_read_are_counted_too(root):
    _put(root, lambda field: field.astype(np.float64), kind="tif")
    pages = np.stack([_field(201), _field(202), _field(203)])
    tifffile.imwrite(root / "data/raw/own/sick/stack.tif", pages, photometric="minisblack")
    done = ingest.run(_study(root))
    said = "files with several pages: 1; the first page of each is read, 2 further ones are not"
    assert said in done.remarks


def test_the_scale_is_part_of_the_key_of_the_features(root):
    _put(root, lambda field: (field * 4095).astype(np.uint16))
    study = _study(root)
    scale = ingest.run(study).manifest.grey_scale
    plain = pipeline_of(study.settings.embed)
    pipeline = pipeline_of(study.settings.embed, scale)
    assert pipeline == plain + "/white[4095]"
    assert GreyScale.of_pipeline(pipeline) == scale


def test_files_of_8_bits_leave_no_trace_of_any_scale(root):
    _put(root, lambda field: np.rint(field * 255).astype(np.uint8))
    study = _study(root)
    done = ingest.run(study)
    assert "grey_scale" not in done.manifest.meta
    written = IngestSummary.read(study.manifest_path.with_suffix(".json")).as_dict()
    assert not {"grey_levels", "fewest_levels"}.intersection(written)
    assert list(written["flagged"]) == ["tiny", "blank", "colour"]
