"""Raw folder -> manifest: no file disappears without a reason, and a picture belongs to one patient."""

import csv
import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from equipoise import config, ingest
from equipoise.datasets import phantom
from equipoise.errors import DataError
from equipoise.records import Manifest, read_json

ROOT = Path(__file__).resolve().parents[1]
RAW = Path("data/raw/demo")


def _picture(value, kind="PNG", size=(6, 4)):
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, kind)
    return buffer.getvalue()


def _put(name, content):
    path = RAW / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _study(**overrides):
    return config.load_study("demo", overrides=overrides)


def _reasons(summary):
    return {item["image_id"]: item["reason"] for item in summary["quarantine"]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tree(root):
    """Eight usable images of eight patients, four of each class."""
    for number in range(4):
        _put(f"clear/patient{number:04d}_0.png", _picture(10 + number))
        _put(f"opacity/patient{100 + number:04d}_0.png", _picture(110 + number))
    return root


def test_phantom_folder_is_ingested_with_its_planted_faults(root):
    settings = {**_study().settings.phantom.model_dump(), "patients": 30, "size_px": 32}
    files = phantom.draw(RAW, settings)
    manifest, summary = ingest.run(_study())
    assert summary["files_seen"] == files == summary["images"] + summary["quarantined"]
    reasons = _reasons(summary)
    assert len(reasons) == summary["quarantined"] == 3
    assert reasons["clear/patient9999_0.png"] == "unreadable: the file is empty"
    assert reasons["clear/patient9998_0.png"].startswith("unreadable: ")
    assert sum(reason.startswith("exact duplicate of clear/") for reason in reasons.values()) == 1
    assert summary["patients"] == 30
    assert manifest.table["image_id"].is_unique


def test_manifest_describes_every_image(tree):
    manifest, summary = ingest.run(_study())
    row = manifest.table.set_index("image_id").loc["opacity/patient0100_0.png"]
    assert (row["label"], row["class_name"], row["patient_id"]) == (1, "opacity", "patient0100")
    content = (RAW / row["path"]).read_bytes()
    assert (row["width_px"], row["height_px"], row["bytes"]) == (6, 4, len(content))
    assert row["sha256"] == ingest.hashlib.sha256(content).hexdigest()
    assert manifest.counts().tolist() == [4, 4]
    assert manifest.meta["readings"] == ["patient"]
    assert summary["by_class"]["clear"] == {"images": 4, "patients": 4, "image_share": 0.5}


def test_unusable_files_are_quarantined_with_their_reason(tree):
    _put("clear/patient0900_0.png", _picture(1, size=(64, 64))[:60])
    _put("clear/patient0901_0.png", b"")
    _put("clear/patient0902_0.png", b"no picture")
    _put("clear/holiday.jpg", _picture(2, "JPEG"))
    _put("elsewhere/patient0903_0.png", _picture(3))
    manifest, summary = ingest.run(_study())
    reasons = _reasons(summary)
    assert sorted(reasons) == [
        "clear/holiday.jpg",
        "clear/patient0900_0.png",
        "clear/patient0901_0.png",
        "clear/patient0902_0.png",
        "elsewhere/patient0903_0.png",
    ]
    assert reasons["clear/holiday.jpg"].startswith("name not recognised: expected")
    assert reasons["elsewhere/patient0903_0.png"].startswith("name not recognised: expected")
    for name in ("0900", "0901", "0902"):
        assert reasons[f"clear/patient{name}_0.png"].startswith("unreadable: ")
    assert len(manifest.table) == 8
    assert summary["files_seen"] == 13
    assert not set(manifest.table["image_id"]) & set(reasons)


def test_quarantine_is_written_beside_the_manifest(tree):
    _put("clear/a, b.png", _picture(1))
    _, summary = ingest.run(_study())
    with open("data/manifest/demo.quarantine.csv", newline="") as handle:
        assert list(csv.DictReader(handle)) == summary["quarantine"]
    written = read_json(Path("data/manifest/demo.json"))
    assert (written["images"], written["quarantined"]) == (8, 1)
    assert written["manifest"] == Manifest.read(Path("data/manifest/demo.parquet")).digest


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
        _put(name, b"system")
    _, summary = ingest.run(_study())
    assert summary["other_files_ignored"] == 7
    assert (summary["files_seen"], summary["quarantined"]) == (8, 0)


def test_suffix_may_be_in_capitals(tree):
    _put("clear/PATIENT.PNG", _picture(50))
    _, summary = ingest.run(_study())
    assert list(_reasons(summary)) == ["clear/PATIENT.PNG"]


# --- the same picture twice ------------------------------------------------------------------------------------------


def test_exact_duplicate_is_dropped_with_a_reason(tree):
    _put("clear/patient0000_7.png", _picture(10))
    manifest, summary = ingest.run(_study())
    assert _reasons(summary) == {"clear/patient0000_7.png": "exact duplicate of clear/patient0000_0.png"}
    assert summary["files_seen"] == len(manifest.table) + 1


def test_exact_duplicate_is_kept_when_asked(tree):
    _put("clear/patient0000_7.png", _picture(10))
    manifest, summary = ingest.run(_study(**{"ingest.duplicates": "keep"}))
    assert (len(manifest.table), summary["quarantined"]) == (9, 0)
    assert manifest.table["sha256"].duplicated().sum() == 1


@pytest.mark.parametrize(("duplicates", "images"), [("drop", 9), ("keep", 10)])
def test_patients_who_share_a_picture_become_one(tree, duplicates, images):
    _put("clear/patient0003_1.png", _picture(10))  # the picture of patient 0000
    _put("clear/patient0003_2.png", _picture(77))
    manifest, summary = ingest.run(_study(**{"ingest.duplicates": duplicates}))
    patients = manifest.table.set_index("image_id")["patient_id"]
    assert patients["clear/patient0003_0.png"] == patients["clear/patient0003_2.png"] == "patient0000"
    assert patients["clear/patient0001_0.png"] == "patient0001"
    assert len(manifest.table) == images
    assert summary["patients"] == 7
    pd.testing.assert_series_equal(manifest.table["patient"], manifest.table["patient_id"], check_names=False)


def test_patients_are_joined_through_a_chain_of_pictures(tree):
    _put("clear/patient0001_1.png", _picture(12))  # 0001 shares with 0002
    _put("clear/patient0002_1.png", _picture(13))  # 0002 shares with 0003
    manifest, _ = ingest.run(_study(**{"ingest.duplicates": "keep"}))
    patients = manifest.table.set_index("image_id")["patient_id"]
    assert patients[[f"clear/patient000{number}_0.png" for number in (1, 2, 3)]].tolist() == ["patient0001"] * 3
    assert patients["clear/patient0000_0.png"] == "patient0000"


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_picture_under_two_classes_is_a_label_conflict(tree, duplicates):
    _put("opacity/patient0000_5.png", _picture(10))
    manifest, summary = ingest.run(_study(**{"ingest.duplicates": duplicates}))
    reason = "label conflict: the same bytes are filed under clear and opacity"
    assert _reasons(summary) == {"clear/patient0000_0.png": reason, "opacity/patient0000_5.png": reason}
    assert len(manifest.table) == 7


# --- what cannot be studied ------------------------------------------------------------------------------------------


def test_missing_folder_says_where_it_should_be(root):
    with pytest.raises(DataError, match=r"There is no folder data/raw/demo\. Put the originals there"):
        ingest.run(_study())


def test_empty_folder_counts_the_other_files(root):
    _put("notes.txt", b"x")
    _put(".DS_Store", b"x")
    with pytest.raises(DataError, match=r"data/raw/demo holds no image file \(2 other files\)"):
        ingest.run(_study())


def test_folder_without_a_usable_image_gives_the_first_reason(root):
    _put("clear/patient0001_0.png", b"")
    _put("clear/patient0002_0.png", b"")
    with pytest.raises(DataError, match=r"None of the 2 image files .* First reason: unreadable: the file is empty"):
        ingest.run(_study())


def test_one_class_only_is_refused_with_the_counts(tree):
    shutil.rmtree(RAW / "opacity")
    with pytest.raises(DataError, match=r"no image of class opacity \(found: clear 4, opacity 0\)"):
        ingest.run(_study())
    assert not Path("data/manifest").exists()


def test_class_lost_to_label_conflicts_is_refused_with_the_counts(root):
    _put("clear/patient0001_0.png", _picture(1))
    _put("opacity/patient0002_0.png", _picture(1))
    with pytest.raises(DataError, match=r"no image of class clear, opacity \(found: clear 0, opacity 0\)"):
        ingest.run(_study())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_file_name_that_is_not_utf8_is_quarantined(tree):
    with open(os.fsencode(RAW / "clear") + b"/patient\xff.png", "wb") as handle:
        handle.write(_picture(1))
    _, summary = ingest.run(_study())
    assert (summary["images"], summary["quarantined"]) == (8, 1)


# --- the same again --------------------------------------------------------------------------------------------------


def test_same_folder_gives_the_same_bytes(tree):
    _put("clear/patient0000_7.png", _picture(10))
    _put("clear/patient0901_0.png", b"")
    written = []
    for _ in range(2):
        ingest.run(_study())
        written.append({path.name: path.read_bytes() for path in Path("data/manifest").iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["demo.json", "demo.parquet", "demo.quarantine.csv"]


def test_raw_folder_may_lie_elsewhere_and_gives_the_same_images(tree):
    here, _ = ingest.run(_study())
    shutil.move(RAW, "originals")
    there, _ = ingest.run(_study(**{"ingest.raw": "originals"}))
    pd.testing.assert_frame_equal(here.table, there.table)


def test_ingest_touches_nothing_in_the_raw_folder(tree):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in RAW.rglob("*.png")}
    ingest.run(_study())
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in RAW.rglob("*") if path.is_file()} == before


def test_joined_keeps_patients_apart_who_share_nothing():
    patients, digests = pd.Series(["b", "a", "c", "a"]), pd.Series(["1", "2", "3", "4"])
    np.testing.assert_array_equal(ingest._joined(patients, digests), patients)
