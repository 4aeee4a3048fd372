"""What is no image of a study is left out by its name or by what it shows, counted, and can be had back."""

import io
import os
import shutil
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from equipoise.core import config, dicom, images, yaml_text
from equipoise.core.documents import IngestSummary
from equipoise.core.errors import DataError
from equipoise.ingest import fingerprint, leftovers, masks, originals
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import breakhis
from equipoise.ingest.datasets.base import Dataset

ROOT = Path(__file__).resolve().parents[2]
#: Number of the user who owns nothing.
_NOBODY = 65534


def _picture(seed, side=40):
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def _mask(seed, side=40):
    y, x = np.mgrid[:side, :side]
    centre = np.random.default_rng(seed).uniform(10, 30, 2)
    return (np.hypot(y - centre[0], x - centre[1]) < 8).astype(np.uint8) * 255


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _study(tmp_path, **overrides):
    settings = {
        "ingest.dataset": "folder",
        "ingest.raw": "mine",
        "ingest.positive_class": "sick",
        "ingest.pseudonymise": False,
    }
    settings.update({f"ingest.{name}": value for name, value in overrides.items()})
    return config.load_study("chest_xray", config.read_params(ROOT), settings, tmp_path)


@pytest.fixture
def raw(tmp_path):
    """Three pictures of each class."""
    folder = tmp_path / "mine"
    for place, name in enumerate(("well", "sick")):
        for number in range(3):
            _save(folder / name / f"{name} ({number}).png", _picture(10 * place + number))
    return folder


def _empty(raw, *names):
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"")


# --- by names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sick/sick (0)_mask.png", leftovers.MASK_NAMES),
        ("sick/sick (0)_mask_1.png", leftovers.MASK_NAMES),
        ("sick/sick (1)_Segmentation.jpg", leftovers.MASK_NAMES),
        ("sick/sick (1)-seg2.png", leftovers.MASK_NAMES),
        ("sick/sick (2)_superpixels.png", leftovers.MASK_NAMES),
        ("well/mask_well (0).png", leftovers.MASK_NAMES),
        ("sick/masks/sick (0).png", leftovers.MASK_FOLDERS),
        ("Ground_Truth/1.png", leftovers.MASK_FOLDERS),
        ("sick/Annotations/1.png", leftovers.MASK_FOLDERS),
        ("leftMask/1.png", leftovers.MASK_FOLDERS),
        ("sick_masks/1.png", leftovers.MASK_FOLDERS),
        ("sick/GT/1.png", leftovers.MASK_FOLDERS),
        ("sick/Máscaras/1.png", leftovers.MASK_FOLDERS),
        ("sick/sick (1)_label.png", leftovers.MASK_NAMES),
        ("sick/sick (1)_overlay.png", leftovers.MASK_NAMES),
        ("sick/sick (1)_maske.png", leftovers.MASK_NAMES),
        ("sick/sick (1)mask.png", leftovers.MASK_NAMES),
        ("sick/sick (1)Mask2.png", leftovers.MASK_NAMES),
        ("sick/sick (1)_tumor_seg.png", leftovers.MASK_NAMES),
        ("sick/sick (1)_lungmask.png", leftovers.MASK_NAMES),
        ("sick/sick (1)_tumorMask.png", leftovers.MASK_NAMES),
        ("sick/heatmap/sick (1).png", leftovers.MASK_FOLDERS),
        ("sick/thumbs/a.jpg", leftovers.THUMBNAILS),
        ("sick/sick (0)_thumb.png", leftovers.THUMBNAILS),
        ("sick/thumbnails/a.jpg", leftovers.THUMBNAILS),
        ("@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", leftovers.SYSTEM),
        ("$RECYCLE.BIN/1.png", leftovers.SYSTEM),
        ("sick/lost+found/1.png", leftovers.SYSTEM),
        ("__MACOSX/sick/1.png", leftovers.SYSTEM),
        ("sick/@Recently-Snapshot/1.png", leftovers.SYSTEM),
        ("Network Trash Folder/1.png", leftovers.SYSTEM),
        ("sick/.ipynb_checkpoints/1-checkpoint.png", leftovers.HIDDEN),
        ("sick/._sick (0).png", leftovers.HIDDEN),
        (".malignant/1.png", leftovers.HIDDEN_FOLDERS),
        ("sick/notes.TXT", ".txt"),
        ("sick/scan.1.nii.gz", ".nii.gz"),
        ("README", leftovers.WITHOUT_ENDING),
    ],
)
def test_what_is_no_image_is_counted_by_kind(raw, name, kind):
    _empty(raw, name)
    listing = leftovers.list_images(raw, images.SUFFIXES, skip=[], keep=[])
    assert listing.left_out == {kind: 1}
    assert len(listing.paths) == 6


@pytest.mark.parametrize(
    "name",
    [
        "sick/with_mask_1.png",
        "sick/slide_seg3.png",
        "sick/masked.png",
        "sick/thumb_0.png",
        "mask wearers/1.png",
        "with_mask/1.png",
        "sick/first_label.png",
        "sick/segment/1.png",
        "heatmap/other.png",
        "sick/sick (1)_masked.png",
        "sick/unmask.png",
        "sick/labels/other.png",
    ],
)
def test_a_word_alone_makes_no_mask(raw, name):
    _empty(raw, name)
    listing = leftovers.list_images(raw, images.SUFFIXES, skip=[], keep=[])
    assert name in listing.paths
    assert not listing.left_out


@pytest.mark.parametrize(
    ("pictures", "drawn"),
    [
        ("{name}/images/{n}.png", "{name}/infection masks/{n}.png"),
        ("{name}/imagesTr/{n}.png", "{name}/labelsTr/{n}.png"),
        ("images/{name}/{n}.png", "GT_maps/{name}/{n}.png"),
        ("{name}/full/{n}.png", "{name}/roi_mask/{n}_1.png"),
        ("{name}/1. Original Images/{n}.jpg", "{name}/2. Groundtruths/1. Lesions/{n}_MA.tif"),
    ],
)
def test_folders_of_masks_beside_those_of_their_pictures(tmp_path, pictures, drawn):
    for form in (pictures, drawn):
        _empty(tmp_path, *[form.format(name=name, n=n) for name in "ab" for n in range(2)])
    listing = leftovers.list_images(tmp_path, images.SUFFIXES, skip=[], keep=[])
    assert listing.left_out == {leftovers.MASK_FOLDERS: 4}
    _empty(tmp_path, drawn.format(name="a", n="of no picture"))
    listing = leftovers.list_images(tmp_path, images.SUFFIXES, skip=[], keep=[])
    assert drawn.format(name="a", n="of no picture") in listing.paths


def test_classes_whose_names_speak_of_masks_stay(tmp_path):
    _empty(tmp_path, *[f"{name}/{n}.png" for name in ("with mask", "no mask") for n in range(2)])
    listing = leftovers.list_images(tmp_path, images.SUFFIXES, skip=[], keep=[])
    assert len(listing.paths) == 4


def test_names_with_two_endings_are_said(tmp_path, raw):
    _save(raw / "sick" / "sick (1).jpg", _picture(80))
    (told,) = [remark for remark in ingest.run(_study(tmp_path)).remarks if "several" in remark]
    assert "1 name with several endings, as sick/sick (1).jpg and sick/sick (1).png" in told
    assert yaml_text.parse(told.split("with ")[-1], "the remark") == {"ingest.skip": ["*.png"]}


def test_dicom_under_another_ending_is_told(raw):
    (raw / "sick/1.dcm30").write_bytes(bytes(128) + b"DICM")
    (raw / "sick/1.bin").write_bytes(b"\x08\0\0\0" * 50)
    listing = leftovers.list_images(raw, images.SUFFIXES, skip=[], keep=[])
    assert listing.left_out == {".dcm30 that are DICOM inside: rename them to .dcm": 1, ".bin": 1}


def test_a_folder_may_be_called_like_an_archive_of_pictures(tmp_path, raw):
    _save(raw / "sick" / "set.npz" / "1.png", _picture(90))
    done = ingest.run(_study(tmp_path))
    assert "sick/set.npz/1.png" in set(done.manifest.table["image_id"])


def test_what_is_no_file_is_counted_and_never_opened(raw):
    os.mkfifo(raw / "sick/pipe")  # whoever opens it waits for ever
    os.mkfifo(raw / "sick/pipe.png")
    (raw / "sick/itself.png").symlink_to("itself.png")
    listing = leftovers.list_images(raw, images.SUFFIXES, skip=[], keep=[])
    assert listing.left_out == {leftovers.NO_FILES: 2, leftovers.BROKEN_LINKS: 1}
    assert len(listing.paths) == 6


@pytest.fixture
def home():
    """A folder of somebody who is not root: root may read whatever the rights say."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, _NOBODY, _NOBODY)
        os.seteuid(_NOBODY)
    yield folder
    os.seteuid(user)
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("rights", [0o000, 0o444, 0o111])
def test_what_may_not_be_read_is_named_and_stops_nothing(home, rights):
    for place, name in enumerate(("well", "sick", "other")):
        for number in range(3):
            _save(home / "mine" / name / f"{number}.png", _picture(10 * place + number))
    closed = home / "mine" / "other"
    closed.chmod(rights)
    (home / "mine" / "sick" / "0.png").chmod(0)
    study = _study(home)
    done = ingest.run(study)
    closed.chmod(0o700)
    assert done.summary.by_class.keys() == {"well", "sick"}
    assert list(done.summary.left_out) == [leftovers.UNREADABLE]
    (told,) = [remark for remark in done.remarks if "may not read" in remark]
    assert "other" in told
    assert not any("no classes" in remark for remark in done.remarks)
    reasons = {item.image_id: item.reason for item in done.quarantined}
    assert reasons == {"sick/0.png": "unreadable: Permission denied"}
    shutil.rmtree(closed)
    (home / "mine" / "sick" / "0.png").chmod(0o600)
    assert "hold other bytes (sick/0.png)" in _change_of_bytes(study, done.manifest)


def _change_of_bytes(study, manifest):
    """What has changed, were names and sizes the same."""
    files = fingerprint.list_files(study.raw)
    hashed = fingerprint.names_and_sizes(files, hashed=False)
    path = study.manifest_path.with_suffix(".json")
    IngestSummary.read(path).model_copy(update={"raw": hashed}).write(path)
    return fingerprint.change(study, manifest)


def test_a_raw_folder_or_a_table_that_may_not_be_read_is_a_sentence(home):
    for name in ("well", "sick"):
        _save(home / "mine" / name / "1.png", _picture(len(name)))
    (home / "mine" / "tables").mkdir(mode=0)
    with pytest.raises(DataError, match=r"tables/t\.csv cannot be read: Permission denied"):
        ingest.run(_study(home, table="tables/t.csv"))
    (home / "mine").chmod(0o111)
    with pytest.raises(DataError, match="mine may not be read by this user"):
        ingest.run(_study(home))
    (home / "mine").chmod(0o700)


def test_a_link_that_leads_nowhere_is_counted(raw):
    (raw / "sick" / "gone.png").symlink_to(raw / "no such file.png")
    listing = leftovers.list_images(raw, images.SUFFIXES, skip=[], keep=[])
    assert listing.left_out == {leftovers.BROKEN_LINKS: 1}


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*_mask*", "sick/1_mask_2.png", True),
        ("*_mask*", "a_mask/1.png", True),
        ("masks/", "sick/masks/1.png", True),
        ("masks/", "masks", False),
        ("sick/old", "sick/old/1.png", True),
        ("sick/old", "well/sick/old/1.png", False),
        ("./sick/*.png", "sick/1.png", True),
        ("/sick/*", "sick/1.png", True),
        ("1.png", "sick/11.png", False),
        ("[ab]?.png", "sick/a1.png", True),
        ("scan [1].png", "sick/scan [1].png", True),
        ("sick\\old\\*", "sick/old/1.png", True),
        ("e\u0301.png", "sick/\u00e9.png", True),
    ],
)
def test_patterns(pattern, path, fits):
    assert leftovers.fits(path, pattern) is fits


def test_skip_and_keep_have_the_last_word(tmp_path, raw):
    _save(raw / "sick" / "sick (0)_mask.png", _picture(50))
    _save(raw / "sick" / "drafts" / "a.png", _picture(51))
    done = ingest.run(_study(tmp_path, skip=["drafts/", "*_overlay*"], keep=["*_mask.png"]))
    assert {name: count.images for name, count in done.summary.by_class.items()} == {
        "well": 3,
        "sick": 4,
    }
    assert done.summary.left_out == {leftovers.SKIPPED: 1}
    assert "no file fits the pattern '*_overlay*'" in done.remarks


def test_everything_left_out_is_an_error_with_the_kinds(tmp_path):
    for name in ("well", "sick"):
        _save(tmp_path / "mine" / "masks" / f"{name}.png", _mask(1))
    with pytest.raises(DataError, match=r"2 other files: 2 in folders of masks"):
        ingest.run(_study(tmp_path, dataset="breakhis"))


# --- by what they show ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("quality", [None, 75, 95])
def test_a_mask_has_few_values_also_as_a_jpeg(seed, quality):
    buffer = io.BytesIO()
    mask = Image.fromarray(_mask(seed)).resize((300, 300), Image.Resampling.NEAREST)
    if quality is None:
        mask.save(buffer, "png")
    else:
        mask.save(buffer, "jpeg", quality=quality)
    assert masks.count_few_values(images.decode(buffer.getvalue())) == 2


@pytest.mark.parametrize("quality", [75, 95])
def test_a_dark_or_flat_picture_is_no_mask(quality):
    flat = np.random.default_rng(0).normal(20, 8, (200, 200)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, "jpeg", quality=quality)
    assert masks.count_few_values(images.decode(buffer.getvalue())) == 0


def _found(paths):
    """Paths with the number of few values -> which are masks."""
    rows = pd.DataFrame({"path": list(paths), "few_values": list(paths.values())})
    return [path for path, is_mask in zip(paths, masks.find(rows, keep=[])) if is_mask]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ({"a/1.jpg": 0, "a/1.png": 2}, ["a/1.png"]),
        ({"a/1.png": 0, "a/1_lesion.png": 3}, ["a/1_lesion.png"]),
        ({"a/1.png": 0, "a/1_lesion.png": 1}, []),  # blank, and nothing else says mask
        ({"a/1_mask.png": 2, "a/2.png": 0}, ["a/1_mask.png"]),
        ({"a/1.png": 0, "a/2.png": 2}, []),
        ({"a/images/1.png": 0, "a/roi/1.png": 2}, ["a/roi/1.png"]),
        ({"images/a/1.png": 0, "roi/a/1.png": 2}, ["roi/a/1.png"]),
        ({"a/1.png": 0, "a/roi/1.png": 2}, ["a/roi/1.png"]),
        (
            {"a/x/1.png": 0, "a/x/2.png": 0, "a/roi/1.png": 2, "a/roi/2.png": 1},
            ["a/roi/1.png", "a/roi/2.png"],
        ),
        ({"p1/1.png": 0, "p1/2.png": 2, "p2/1.png": 0, "p2/2.png": 0}, []),
        ({"p1/1.png": 1, "p2/1.png": 0}, []),
        ({"a/1.png": 2, "a/2.png": 2, "b/1.png": 2}, []),  # a study of drawings
    ],
)
def test_a_picture_of_few_values_is_a_mask_only_beside_its_picture(paths, found):
    assert _found(paths) == found


def test_masks_that_only_the_pixels_tell_wait_in_quarantine(tmp_path, raw):
    for number in range(3):
        _save(raw / "sick" / f"sick ({number}) lesion.png", _mask(number))
    _save(raw / "well" / "drawing.png", _mask(9))
    done = ingest.run(_study(tmp_path))
    reasons = {item.image_id: item.reason for item in done.quarantined}
    assert reasons == {f"sick/sick ({number}) lesion.png": masks.REASON for number in range(3)}
    assert done.summary.by_class["sick"].images == 3
    assert any(
        "that stay, because no picture of their names lies beside them: 1;" in remark
        for remark in done.remarks
    )
    kept = ingest.run(_study(tmp_path, keep=["* lesion.png"]))
    assert kept.summary.by_class["sick"].images == 6
    assert not kept.quarantined


def test_pages_beyond_the_first_are_said(tmp_path, raw):
    pages = [Image.fromarray(_picture(seed)) for seed in (60, 61, 62)]
    pages[0].save(raw / "sick" / "stack.tif", save_all=True, append_images=pages[1:])
    done = ingest.run(_study(tmp_path))
    assert done.summary.by_class["sick"].images == 4
    said = "files with several pages: 1; the first page of each is read, 2 further ones are not"
    assert said in done.remarks


# --- the way back ---------------------------------------------------------------------------------


def test_hashes_of_quarantined_files_lead_back_too(tmp_path, raw, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_KEY", str(tmp_path.parent / f"{tmp_path.name}-key"))
    rows = [f"{name}/{name} ({n}).png,p{name}{n}" for name in ("well", "sick") for n in (0, 1)]
    (raw / "patients.csv").write_text("image,patient_id\n" + "\n".join(rows) + "\n")
    _empty(raw, "well/well (0).png")
    study = _study(tmp_path, pseudonymise=True, table="patients.csv")
    done = ingest.run(study)
    assert len(done.quarantined) == 3
    places = pd.read_csv(study.places_path, dtype=str).set_index("image_id")["path"]
    led_back = {places[item.image_id]: item.reason for item in done.quarantined}
    assert led_back["well/well (0).png"] == "unreadable: the file is empty"
    assert led_back["sick/sick (2).png"].endswith("ingest.table has no row for this file")
    assert set(places) == set(leftovers.list_images(raw, images.SUFFIXES, [], []).paths)


def test_file_names_in_another_form_of_accents_are_read(tmp_path, raw):
    name = unicodedata.normalize("NFD", "sick/é.png")
    _save(raw / name, _picture(70))
    done = ingest.run(_study(tmp_path))
    assert name in set(done.manifest.table["image_id"])


def test_dicom_files_are_named_where_pydicom_is_missing(raw, monkeypatch):
    monkeypatch.setattr(dicom, "is_installed", lambda: False)
    _empty(raw, "sick/1.dcm", "sick/2.DCM", "notes.txt")
    (raw / "sick/IM0001").write_bytes(bytes(128) + b"DICM")
    suffixes = images.SUFFIXES - dicom.SUFFIXES
    listing = leftovers.list_images(raw, suffixes, [], [])
    assert listing.left_out == {".dcm without pydicom": 2, "DICOM without pydicom": 1, ".txt": 1}


def test_a_folder_of_nothing_but_dicom_says_how_to_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "is_installed", lambda: False)
    _empty(tmp_path / "mine", "sick/1.dcm", "well/2.dcm")
    study = _study(tmp_path)
    dataset = Dataset(breakhis.CARD, breakhis.parse, suffixes=images.SUFFIXES - dicom.SUFFIXES)
    with pytest.raises(
        DataError, match=r"2 \.dcm without pydicom.*pip install 'equipoise\[dicom\]'"
    ):
        originals.list_files(study.raw, dataset, study.settings.ingest)
