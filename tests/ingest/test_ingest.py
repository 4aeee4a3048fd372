"""Raw folder -> manifest: no file disappears without a reason, and a picture belongs to one patient."""

import csv
import hashlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from equipoise.core import config
from equipoise.core.documents import ClassCount, IngestSummary
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest
from equipoise.ingest import fingerprint, originals, pseudonyms
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom

ROOT = Path(__file__).resolve().parents[2]
RAW = Path("data/raw/demo")


def _picture(value, kind="PNG", size=(6, 4)):
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, kind)
    return buffer.getvalue()


def _put(root, name, content):
    path = root / RAW / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _study(root, **overrides):
    return config.load_study("demo", overrides=overrides, root=root)


def _reasons(done):
    return {item.image_id: item.reason for item in done.quarantined}


@pytest.fixture
def root(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def tree(root):
    """Eight usable images of eight patients, four of each class."""
    for number in range(4):
        _put(root, f"clear/patient{number:04d}_0.png", _picture(10 + number))
        _put(root, f"opacity/patient{100 + number:04d}_0.png", _picture(110 + number))
    return root


def test_phantom_folder_is_ingested_with_its_planted_faults(root):
    shipped = _study(root).settings.phantom
    settings = shipped.model_copy(update={"patients": 30, "size_px": 32})
    files = phantom.draw(root / RAW, settings)
    done = ingest.run(_study(root))
    assert done.summary.files_seen == files == done.summary.images + done.summary.quarantined
    reasons = _reasons(done)
    assert len(reasons) == done.summary.quarantined == 3
    assert reasons["clear/patient9999_0.png"] == "unreadable: the file is empty"
    assert reasons["clear/patient9998_0.png"].startswith("unreadable: ")
    assert sum(reason.startswith("exact duplicate of clear/") for reason in reasons.values()) == 1
    assert done.summary.patients == 30
    assert done.manifest.table["image_id"].is_unique


def test_manifest_describes_every_image(tree):
    done = ingest.run(_study(tree))
    row = done.manifest.table.set_index("image_id").loc["opacity/patient0100_0.png"]
    assert (row["label"], row["class_name"], row["patient_id"]) == (1, "opacity", "patient0100")
    content = (tree / RAW / row["path"]).read_bytes()
    assert (row["width_px"], row["height_px"], row["bytes"]) == (6, 4, len(content))
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert done.manifest.counts().tolist() == [4, 4]
    assert done.manifest.meta["readings"] == ["patient"]
    assert done.summary.by_class["clear"] == ClassCount(images=4, patients=4, image_share=0.5)


def test_unusable_files_are_quarantined_with_their_reason(tree):
    _put(tree, "clear/patient0900_0.png", _picture(1, size=(64, 64))[:60])
    _put(tree, "clear/patient0901_0.png", b"")
    _put(tree, "clear/patient0902_0.png", b"no picture")
    _put(tree, "clear/holiday.jpg", _picture(2, "JPEG"))
    _put(tree, "elsewhere/patient0903_0.png", _picture(3))
    done = ingest.run(_study(tree))
    reasons = _reasons(done)
    assert sorted(reasons) == [
        "clear/holiday.jpg",
        "clear/patient0900_0.png",
        "clear/patient0901_0.png",
        "clear/patient0902_0.png",
        "elsewhere/patient0903_0.png",
    ]
    assert reasons["clear/holiday.jpg"].startswith("not recognised: expected")
    assert reasons["elsewhere/patient0903_0.png"].startswith("not recognised: expected")
    for name in ("0900", "0901", "0902"):
        assert reasons[f"clear/patient{name}_0.png"].startswith("unreadable: ")
    assert len(done.manifest.table) == 8
    assert done.summary.files_seen == 13
    assert not set(done.manifest.table["image_id"]) & set(reasons)


def test_quarantine_is_written_beside_the_manifest(tree):
    _put(tree, "clear/a, b.png", _picture(1))
    done = ingest.run(_study(tree))
    with open(tree / "data/manifest/demo.quarantine.csv", newline="") as handle:
        assert list(csv.DictReader(handle)) == [item._asdict() for item in done.quarantined]
    written = IngestSummary.read(tree / "data/manifest/demo.json")
    assert written == done.summary
    assert (written.images, written.quarantined) == (8, 1)
    assert written.manifest == Manifest.read(tree / "data/manifest/demo.parquet").digest


def test_system_files_are_ignored_and_counted(tree):
    for name in (
        ".DS_Store",
        "clear/._patient0000_0.png",
        "clear/Thumbs.db",
        "clear/desktop.ini",
        "__MACOSX/clear/patient0000_0.png",
        ".cache/clear/patient0000_0.png",
        "README.txt",
    ):
        _put(tree, name, b"system")
    done = ingest.run(_study(tree))
    assert done.summary.other_files_ignored == 7
    assert (done.summary.files_seen, done.summary.quarantined) == (8, 0)


def test_suffix_may_be_in_capitals(tree):
    _put(tree, "clear/PATIENT.PNG", _picture(50))
    done = ingest.run(_study(tree))
    assert list(_reasons(done)) == ["clear/PATIENT.PNG"]


# --- the same picture twice -----------------------------------------------------------------------


def test_exact_duplicate_is_dropped_with_a_reason(tree):
    _put(tree, "clear/patient0000_7.png", _picture(10))
    done = ingest.run(_study(tree))
    assert _reasons(done) == {
        "clear/patient0000_7.png": "exact duplicate of clear/patient0000_0.png"
    }
    assert done.summary.files_seen == len(done.manifest.table) + 1


def test_exact_duplicate_is_kept_when_asked(tree):
    _put(tree, "clear/patient0000_7.png", _picture(10))
    done = ingest.run(_study(tree, **{"ingest.duplicates": "keep"}))
    assert (len(done.manifest.table), done.summary.quarantined) == (9, 0)
    assert done.manifest.table["sha256"].duplicated().sum() == 1


@pytest.mark.parametrize(("duplicates", "images"), [("drop", 9), ("keep", 10)])
def test_patients_who_share_a_picture_become_one(tree, duplicates, images):
    _put(tree, "clear/patient0003_1.png", _picture(10))  # the picture of patient 0000
    _put(tree, "clear/patient0003_2.png", _picture(77))
    done = ingest.run(_study(tree, **{"ingest.duplicates": duplicates}))
    patients = done.manifest.table.set_index("image_id")["patient_id"]
    assert (
        patients["clear/patient0003_0.png"] == patients["clear/patient0003_2.png"] == "patient0000"
    )
    assert patients["clear/patient0001_0.png"] == "patient0001"
    assert len(done.manifest.table) == images
    assert done.summary.patients == 7
    pd.testing.assert_series_equal(
        done.manifest.table["patient"], done.manifest.table["patient_id"], check_names=False
    )


def test_patients_are_joined_through_a_chain_of_pictures(tree):
    _put(tree, "clear/patient0001_1.png", _picture(12))  # 0001 shares with 0002
    _put(tree, "clear/patient0002_1.png", _picture(13))  # 0002 shares with 0003
    done = ingest.run(_study(tree, **{"ingest.duplicates": "keep"}))
    patients = done.manifest.table.set_index("image_id")["patient_id"]
    assert (
        patients[[f"clear/patient000{number}_0.png" for number in (1, 2, 3)]].tolist()
        == ["patient0001"] * 3
    )
    assert patients["clear/patient0000_0.png"] == "patient0000"


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_picture_under_two_classes_is_a_label_conflict(tree, duplicates):
    _put(tree, "opacity/patient0000_5.png", _picture(10))
    done = ingest.run(_study(tree, **{"ingest.duplicates": duplicates}))
    one, other = "clear/patient0000_0.png", "opacity/patient0000_5.png"
    reason = "label conflict: same picture as {}, filed under clear and opacity; decide with ingest.trusted"
    assert _reasons(done) == {one: reason.format(other), other: reason.format(one)}
    assert done.summary.label_conflicts == 2
    assert len(done.manifest.table) == 7


# --- what cannot be studied -----------------------------------------------------------------------


def test_missing_folder_says_where_it_should_be(root):
    with pytest.raises(
        DataError, match=r"There is no folder .*data/raw/demo\. Put the originals there"
    ):
        ingest.run(_study(root))


def test_empty_folder_counts_the_other_files(root):
    _put(root, "notes.txt", b"x")
    _put(root, ".DS_Store", b"x")
    with pytest.raises(
        DataError, match=r"data/raw/demo holds no image file \(2 other files: 1 hidden, 1 .txt\)"
    ):
        ingest.run(_study(root))


def test_folder_without_a_usable_image_gives_the_first_reason(root):
    _put(root, "clear/patient0001_0.png", b"")
    _put(root, "clear/patient0002_0.png", b"")
    with pytest.raises(
        DataError, match=r"None of the 2 image files .* First reason: unreadable: the file is empty"
    ):
        ingest.run(_study(root))


def test_one_class_only_is_refused_with_the_counts(tree):
    shutil.rmtree(tree / RAW / "opacity")
    with pytest.raises(DataError, match=r"no image of class opacity \(found: clear 4, opacity 0\)"):
        ingest.run(_study(tree))
    assert not (tree / "data/manifest").exists()


def test_class_lost_to_label_conflicts_is_refused_with_the_counts(root):
    _put(root, "clear/patient0001_0.png", _picture(1))
    _put(root, "opacity/patient0002_0.png", _picture(1))
    with pytest.raises(
        DataError, match=r"no image of class clear, opacity \(found: clear 0, opacity 0\)"
    ):
        ingest.run(_study(root))


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux allows file names that are not UTF-8"
)
def test_file_name_that_is_not_utf8_is_quarantined(tree):
    with open(os.fsencode(tree / RAW / "clear") + b"/patient\xff.png", "wb") as handle:
        handle.write(_picture(1))
    done = ingest.run(_study(tree))
    assert (done.summary.images, done.summary.quarantined) == (8, 1)


# --- the same again -------------------------------------------------------------------------------


def test_same_folder_gives_the_same_bytes(tree):
    _put(tree, "clear/patient0000_7.png", _picture(10))
    _put(tree, "clear/patient0901_0.png", b"")
    written = []
    for _ in range(2):
        ingest.run(_study(tree))
        written.append(
            {path.name: path.read_bytes() for path in (tree / "data/manifest").iterdir()}
        )
    assert written[0] == written[1]
    assert sorted(written[0]) == ["demo.json", "demo.parquet", "demo.quarantine.csv"]


def test_raw_folder_may_lie_elsewhere_and_gives_the_same_images(tree):
    here = ingest.run(_study(tree)).manifest
    shutil.move(tree / RAW, tree / "originals")
    there = ingest.run(_study(tree, **{"ingest.raw": "originals"})).manifest
    pd.testing.assert_frame_equal(here.table, there.table)


def test_ingest_touches_nothing_in_the_raw_folder(tree):
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tree / RAW).rglob("*.png")
    }
    ingest.run(_study(tree))
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (tree / RAW).rglob("*")
        if path.is_file()
    } == before


# --- the same picture in other files --------------------------------------------------------------


def _textured(seed, side=64):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(30, 220, (9, 9), dtype=np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray(
        np.clip(smooth + rng.normal(0, 6, (side, side)), 0, 255).astype(np.uint8)
    )


def _save(root, name, image, kind="PNG", **options):
    """Files of every kind are named .png, as the phantom's grammar wants them; the decoder looks inside."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    _put(root, name, buffer.getvalue())


@pytest.fixture
def films(root):
    """Six patients of each class, every picture its own."""
    for number in range(6):
        _save(root, f"clear/patient{number:04d}_0.png", _textured(number))
        _save(root, f"opacity/patient{100 + number:04d}_0.png", _textured(100 + number))
    return root


def test_other_bytes_with_the_same_pixels_are_an_exact_duplicate(films):
    _save(films, "clear/patient0003_1.png", _textured(1), "BMP")
    done = ingest.run(_study(films))
    assert _reasons(done) == {
        "clear/patient0003_1.png": "exact duplicate of clear/patient0001_0.png"
    }
    patients = done.manifest.table.set_index("image_id")["patient_id"]
    assert (
        patients["clear/patient0003_0.png"] == patients["clear/patient0001_0.png"] == "patient0001"
    )


@pytest.mark.parametrize(("rule", "images"), [("drop", 13), ("keep", 13), ("drop_near", 12)])
def test_near_copies_stay_with_one_patient_and_are_dropped_on_request(films, rule, images):
    _save(films, "clear/patient0004_1.png", _textured(2), "JPEG", quality=50)
    done = ingest.run(_study(films, **{"ingest.duplicates": rule}))
    assert done.summary.near_copies == 1
    assert len(done.manifest.table) == images
    patients = done.manifest.table.set_index("image_id")["patient_id"]
    assert (
        patients["clear/patient0002_0.png"] == patients["clear/patient0004_0.png"] == "patient0002"
    )
    assert done.summary.patients == 11
    if rule == "drop_near":
        assert _reasons(done) == {
            "clear/patient0004_1.png": "near duplicate of clear/patient0002_0.png"
        }
    else:
        pictures = done.manifest.table.set_index("image_id")["picture"]
        assert pictures["clear/patient0002_0.png"] == pictures["clear/patient0004_1.png"]
        assert done.manifest.table["picture"].nunique() == 12


def test_near_copies_are_looked_for_only_on_request(films):
    _save(films, "clear/patient0004_1.png", _textured(2), "JPEG", quality=50)
    _save(films, "clear/patient0003_1.png", _textured(1), "BMP")
    done = ingest.run(_study(films, **dict([config.parse_override("ingest.near_copies=off")])))
    assert done.summary.near_copies == 0
    patients = done.manifest.table.set_index("image_id")["patient_id"]
    assert patients["clear/patient0002_0.png"] == "patient0002"
    assert patients["clear/patient0004_0.png"] == "patient0004"
    assert "exact duplicate" in _reasons(done)["clear/patient0003_1.png"]


def test_a_near_copy_under_another_class_waits_for_a_decision(films):
    copy, original = "opacity/patient0200_0.png", "clear/patient0002_0.png"
    _save(films, copy, _textured(2), "JPEG", quality=50)
    done = ingest.run(_study(films))
    assert set(_reasons(done)) == {copy, original}
    assert "nearly the same picture" in _reasons(done)[copy]
    assert done.manifest.meta["label_conflicts"] == 2
    decided = ingest.run(_study(films, **{"ingest.trusted": [original]}))
    assert set(_reasons(decided)) == {copy}
    assert original in set(decided.manifest.table["image_id"])
    both = ingest.run(_study(films, **{"ingest.trusted": [original, copy]}))
    assert not both.quarantined
    assert len(both.manifest.table) == 13


def test_trusting_the_same_pixels_twice_or_nobody_is_refused(films):
    _save(films, "opacity/patient0200_0.png", _textured(2))
    same = ["clear/patient0002_0.png", "opacity/patient0200_0.png"]
    with pytest.raises(DataError, match="the same pixels under two classes"):
        ingest.run(_study(films, **{"ingest.trusted": same}))
    with pytest.raises(ConfigError, match=r"'clear/patient7777_0\.png', which is no usable image"):
        ingest.run(_study(films, **{"ingest.trusted": ["clear/patient7777_0.png"]}))


# --- keyed hashes ---------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("home") / "private" / "key"
    monkeypatch.setenv("EQUIPOISE_KEY", str(path))
    return path


HIDDEN = {"ingest.pseudonymise": True}


def _texts_outside_raw(root):
    return {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and not path.is_relative_to(root / "data/raw")
        and path.name != "params.yaml"
    }


def test_no_tracked_file_names_a_patient_or_a_path(films, key):
    _put(films, "clear/patient9001_0.png", b"")
    _put(films, "clear/Miller, John.png", _picture(1))
    _save(films, "clear/patient0003_1.png", _textured(1))
    done = ingest.run(_study(films, **HIDDEN))
    files = _texts_outside_raw(films)
    for name in ("demo.csv", "demo.files.json"):
        assert b"patient0003" in files.pop(films / "data/local" / name)
    for path, content in files.items():
        for word in (b"patient0", b"patient1", b"patient9", b"Miller", b"clear/", b"opacity/"):
            assert word not in content, path
    assert done.summary.quarantined == 3
    assert done.manifest.table["image_id"].is_monotonic_increasing, (
        "the order of the names would tell something"
    )
    assert set(done.manifest.table["path"]) == {""}
    assert key.stat().st_mode & 0o077 == 0
    assert key.read_text().strip() not in str(done.summary)


def test_hidden_ids_keep_the_structure_and_lead_back_with_the_key(films, key):
    _save(films, "clear/patient0003_1.png", _textured(40))
    plain = ingest.run(_study(films)).manifest
    hidden = ingest.run(_study(films, **HIDDEN)).manifest
    places = originals.locate(_study(films), hidden)
    back = hidden.table.assign(path=hidden.table["image_id"].map(places)).set_index("path")
    table = plain.table.set_index("image_id")
    assert sorted(back.index) == sorted(table.index)
    assert (back.loc[table.index, "sha256"] == table["sha256"]).all()
    pairs = set(zip(back.loc[table.index, "patient_id"], table["patient_id"]))
    assert len(pairs) == table["patient_id"].nunique(), "one hash for each patient"
    (films / "data/local/demo.csv").unlink()
    assert originals.locate(_study(films), hidden) == places, "made again from the key"
    assert ingest.run(_study(films, **HIDDEN)).manifest.digest == hidden.digest


def test_another_key_is_noticed_and_studies_cannot_be_linked(films, key, monkeypatch):
    hidden = ingest.run(_study(films, **HIDDEN)).manifest
    (films / "data/local/demo.csv").unlink()
    monkeypatch.setenv("EQUIPOISE_KEY", str(key.with_name("other")))
    with pytest.raises(
        DataError, match=f"12 of the 12 images .* key {hidden.meta['pseudonym_key']}"
    ):
        originals.locate(_study(films), hidden)
    one, other = pseudonyms.load("one", films), pseudonyms.load("other", films)
    assert one.fingerprint == other.fingerprint
    assert one.of("image", "a.png") != other.of("image", "a.png")


@pytest.mark.parametrize("content", ["", "zz", "00" * 8])
def test_a_damaged_key_is_refused(root, key, content):
    key.parent.mkdir(parents=True)
    key.write_text(content)
    with pytest.raises(ConfigError, match="pseudonym key"):
        pseudonyms.load("demo", root)


def test_a_key_inside_the_repository_is_refused(films, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_KEY", str(films / "secrets/key"))
    with pytest.raises(ConfigError, match="inside the repository"):
        ingest.run(_study(films, **HIDDEN))
    assert not (films / "secrets").exists()


def test_without_a_home_folder_the_place_of_the_key_is_asked_for(tmp_path, monkeypatch):
    def getpwuid(uid):
        raise KeyError(uid)

    for name in ("EQUIPOISE_KEY", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    with pytest.raises(ConfigError, match=r"there is no such home folder\. Set EQUIPOISE_KEY"):
        pseudonyms.load("one", tmp_path)


# --- originals read again ------------------------------------------------------------------------


def test_an_original_is_read_again_only_as_it_was(tree):
    study = _study(tree)
    row = ingest.run(study).manifest.table.iloc[0]
    content = originals.read_unchanged(study.raw, row["path"], row["sha256"])
    assert hashlib.sha256(content).hexdigest() == row["sha256"]
    _put(tree, row["path"], _picture(99))
    with pytest.raises(DataError, match="is not the file that ingest read"):
        originals.read_unchanged(study.raw, row["path"], row["sha256"])
    (study.raw / row["path"]).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        originals.read_unchanged(study.raw, row["path"], row["sha256"])


# --- is the manifest still of what is there? -------------------------------------------------------


def _remove(tree):
    (tree / RAW / "clear/patient0000_0.png").unlink()


def _remove_all(tree):
    shutil.rmtree(tree / RAW)


def _add(tree):
    _put(tree, "clear/patient0009_0.png", _picture(99))


def _rename(tree):
    (tree / RAW / "clear/patient0000_0.png").rename(tree / RAW / "clear/patient0001_1.png")


def _edit_in_place(tree):
    """Other bytes in the same number of them, as another plain grey has."""
    path = tree / RAW / "clear/patient0000_0.png"
    size = path.stat().st_size
    path.write_bytes(_picture(60))
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_remove, "holds other files than then"),
        (_remove_all, "is not there any more"),
        (_add, "holds other files than then"),
        (_rename, "holds other files than then"),
        (_edit_in_place, "1 files of .* hold other bytes .clear/patient0000_0.png"),
    ],
)
def test_a_manifest_of_other_files_is_noticed(tree, change, said):
    study = _study(tree)
    manifest = ingest.run(study).manifest
    fingerprint.require_current(study, manifest)
    change(tree)
    with pytest.raises(DataError, match=f"{said}.*Run `equipoise ingest --study demo`"):
        fingerprint.require_current(study, manifest)


def test_a_file_that_was_only_touched_is_read_once_and_changes_nothing(tree):
    study = _study(tree)
    manifest = ingest.run(study).manifest
    path = tree / RAW / "clear/patient0000_0.png"
    os.utime(path, ns=(1, 1))
    assert fingerprint.change(study, manifest) == ""
    fingerprint.remember(study, manifest)
    notes = json.loads((tree / "data/local/demo.files.json").read_text())
    assert notes["files"]["clear/patient0000_0.png"][0] == 1


def test_a_clone_without_notes_goes_by_names_and_sizes_that_are_the_same_everywhere(tree, tmp_path):
    study = _study(tree)
    manifest = ingest.run(study).manifest
    clone = tmp_path / "clone"
    shutil.copytree(tree, clone, ignore=shutil.ignore_patterns("local", "clone"))
    for path in (clone / RAW).rglob("*.png"):
        os.utime(path, ns=(1, 1))
    there = _study(clone)
    assert fingerprint.change(there, manifest) == ""
    again = ingest.run(there)
    for suffix in (".json", ".parquet"):
        told = [path.with_suffix(suffix) for path in (study.manifest_path, there.manifest_path)]
        assert told[0].read_bytes() == told[1].read_bytes()
    (clone / RAW / "clear/patient0000_0.png").unlink()
    assert "holds other files" in fingerprint.change(there, again.manifest)
