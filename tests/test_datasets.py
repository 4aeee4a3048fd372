"""Every dataset keeps its contract; the grammars read real names; the phantom is the same for the same seed."""

from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from equipoise import config, datasets, images, ingest, splits
from equipoise.datasets import Card, Unrecognised, breakhis, chest_xray, phantom
from equipoise.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data"
KERMANY = "chest_xray/chest_xray/"


def _needs(folder):
    reason = f"real images are not here ({REAL.name}/{folder} beside the checkout)"
    return pytest.mark.skipif(not (REAL / folder).is_dir(), reason=reason)


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- contract of every dataset ---------------------------------------------------------------------------------------


@pytest.fixture(params=datasets.names())
def dataset(request):
    return datasets.load_dataset(request.param)


def test_shipped_datasets_are_found():
    assert {"breakhis", "chest_xray", "phantom"} <= set(datasets.names())


@pytest.mark.parametrize("field", ["title", "source", "licence", "citation"])
def test_card_is_filled(dataset, field):
    assert getattr(dataset.CARD, field).strip()


def test_card_names_classes_and_the_positive_one(dataset):
    assert len(set(dataset.CARD.classes)) == len(dataset.CARD.classes) >= 2
    assert dataset.CARD.positive_class in dataset.CARD.classes


def test_card_explains_every_reading(dataset):
    assert dataset.CARD.readings
    assert all(meaning.strip() for meaning in dataset.CARD.readings.values())
    assert not set(dataset.CARD.readings) & {"label", "path", "image_id", "sha256", "class_name", "patient_id"}


def test_expected_images_are_of_every_class_or_none(dataset):
    assert set(dataset.CARD.expected_images) in (set(), set(dataset.CARD.classes))


@pytest.mark.parametrize("path", ["", "cat.png", "train/CATS/cat_1.jpeg", "readme/Thumbs.db", "a/b/c/d/e.tif"])
def test_unrecognised_path_says_why(dataset, path):
    with pytest.raises(Unrecognised) as error:
        dataset.parse(PurePosixPath(path))
    assert str(error.value).strip()


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"There is no dataset 'breakhiss'\. Did you mean 'breakhis'\?"):
        datasets.load_dataset("breakhiss")


def test_base_is_no_dataset():
    with pytest.raises(ConfigError, match="There is no dataset 'base'"):
        datasets.load_dataset("base")


@pytest.mark.parametrize(
    ("counts", "word"),
    [({"a": 2, "b": 3}, "complete: a 2, b 3"), ({"a": 1, "b": 3}, "partial"), ({"a": 2, "b": 4}, "different")],
)
def test_completeness_compares_with_the_published_counts(counts, word):
    card = Card("t", "s", "l", "c", ("a", "b"), "b", {"r": "m"}, {"a": 2, "b": 3})
    assert card.completeness(counts).startswith(word)


# --- Kermany ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "class_name", "person", "subtype_person", "side"),
    [
        ("train/NORMAL/NORMAL2-IM-0012-0001.jpeg", "normal", "IM-0012", "NORMAL2-IM-0012", "train"),
        ("test/NORMAL/IM-0012-0001.jpeg", "normal", "IM-0012", "IM-0012", "test"),
        ("train/NORMAL/IM-0115-0001-0001.jpeg", "normal", "IM-0115", "IM-0115", "train"),
        ("val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "normal", "IM-1427", "NORMAL2-IM-1427", "train"),
        ("train/PNEUMONIA/person1_virus_11.jpeg", "pneumonia", "person1", "virus_person1", "train"),
        ("test/PNEUMONIA/person1_virus_6.jpeg", "pneumonia", "person1", "virus_person1", "test"),
        ("train/PNEUMONIA/person1_bacteria_1.jpeg", "pneumonia", "person1", "bacteria_person1", "train"),
        ("val/PNEUMONIA/person1946_bacteria_4874.jpeg", "pneumonia", "person1946", "bacteria_person1946", "train"),
        (f"{KERMANY}train/PNEUMONIA/person1_virus_11.jpeg", "pneumonia", "person1", "virus_person1", "train"),
        (f"{KERMANY}test/NORMAL/IM-0001-0001.jpg", "normal", "IM-0001", "IM-0001", "test"),
    ],
)
def test_kermany_names(path, class_name, person, subtype_person, side):
    parsed = chest_xray.parse(PurePosixPath(path))
    assert parsed.class_name == class_name
    assert parsed.patients == {"person": person, "subtype_person": subtype_person}
    assert parsed.columns["official_split"] == side
    assert parsed.columns["subtype"] == (subtype_person.split("_")[0] if class_name == "pneumonia" else "normal")


@pytest.mark.parametrize(
    "path",
    [
        "NORMAL/IM-0012-0001.jpeg",  # the published side is missing
        "training/NORMAL/IM-0012-0001.jpeg",
        "train/NORMAL/person1_virus_11.jpeg",  # filed under the wrong class
        "train/PNEUMONIA/IM-0012-0001.jpeg",
        "train/PNEUMONIA/person1_fungus_11.jpeg",
        "train/PNEUMONIA/person_virus_11.jpeg",
        "train/NORMAL/IM-0012-0001.jpeg.png",
        "train/NORMAL/copy of IM-0012-0001.jpeg",
    ],
)
def test_kermany_refuses(path):
    with pytest.raises(Unrecognised):
        chest_xray.parse(PurePosixPath(path))


# --- BreakHis --------------------------------------------------------------------------------------------------------

_SLIDES = "BreaKHis_v1/histology_slides/breast/malignant/SOB/ductal_carcinoma/SOB_M_DC_14-13412/40X/"


@pytest.mark.parametrize(
    ("path", "class_name", "accession", "dedup", "slide", "magnification"),
    [
        ("SOB_M_DC-14-13412-40-001.png", "malignant", "14-13412", "14-13412", "DC-14-13412", "40X"),
        ("SOB_M_LC-14-13412-100-012.png", "malignant", "14-13412", "14-13412", "LC-14-13412", "100X"),
        ("SOB_M_PC-15-190EF-400-003.png", "malignant", "15-190", "15-190EF", "PC-15-190EF", "400X"),
        ("SOB_B_A-14-22549AB-40-001.png", "benign", "14-22549", "14-22549AB", "A-14-22549AB", "40X"),
        ("SOB_B_A-14-22549CD-200-030.png", "benign", "14-22549", "14-22549CD", "A-14-22549CD", "200X"),
        ("SOB_B_TA-14-3411F-100-001.png", "benign", "14-3411", "14-3411F", "TA-14-3411F", "100X"),
        (f"{_SLIDES}SOB_M_DC-14-13412-40-001.png", "malignant", "14-13412", "14-13412", "DC-14-13412", "40X"),
    ],
)
def test_breakhis_names(path, class_name, accession, dedup, slide, magnification):
    parsed = breakhis.parse(PurePosixPath(path))
    assert parsed.class_name == class_name
    assert parsed.patients == {"accession": accession, "dedup": dedup, "slide": slide}
    assert parsed.columns == {"subtype": slide.split("-")[0], "magnification": magnification}


def test_slide_filed_under_two_types_is_one_patient_unless_read_by_slide():
    one = breakhis.parse(PurePosixPath("SOB_M_DC-14-13412-40-001.png")).patients
    two = breakhis.parse(PurePosixPath("SOB_M_LC-14-13412-40-001.png")).patients
    assert [reading for reading in breakhis.CARD.readings if one[reading] == two[reading]] == ["accession", "dedup"]


@pytest.mark.parametrize(
    "name",
    [
        "SOB_M_DC-14-13412-50-001.png",
        "SOB_M_XX-14-13412-40-001.png",
        "SOB_X_DC-14-13412-40-001.png",
        "SOB_M_DC-14-13412-40-001.jpg",
        "SOB_M_DC-14--40-001.png",
        "SOB_M_DC-14-13412-40-001 (1).png",
    ],
)
def test_breakhis_refuses(name):
    with pytest.raises(Unrecognised):
        breakhis.parse(PurePosixPath(name))


# --- phantom ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    shipped = config.load_study("demo", config.read_params(ROOT)).settings.phantom.model_dump()
    return {**shipped, "patients": 90, "size_px": 32}


@pytest.fixture(scope="module")
def drawn(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "demo"
    assert phantom.draw(folder, small) == len(_files(folder))
    return folder


def test_phantom_is_the_same_bytes_for_the_same_seed(small, drawn, tmp_path):
    phantom.draw(tmp_path / "again", small)
    assert _files(tmp_path / "again") == _files(drawn)


def test_phantom_is_other_bytes_for_another_seed(small, drawn, tmp_path):
    phantom.draw(tmp_path / "other", {**small, "seed": small["seed"] + 1, "patients": 20})
    name = "clear/patient0019_0.png"
    assert _files(tmp_path / "other")[name] != _files(drawn)[name]


def test_phantom_replaces_what_is_there_and_leaves_nothing_beside(small, tmp_path):
    (tmp_path / "demo" / "clear").mkdir(parents=True)
    (tmp_path / "demo" / "clear" / "old.png").write_bytes(b"old")
    phantom.draw(tmp_path / "demo", {**small, "patients": 12})
    assert not (tmp_path / "demo" / "clear" / "old.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_phantom_that_fails_leaves_what_is_there(small, tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "old.png").write_bytes(b"old")
    monkeypatch.setattr(phantom, "_plant_faults", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        phantom.draw(tmp_path / "demo", {**small, "patients": 12})
    assert _files(tmp_path) == {"demo/old.png": b"old"}


def test_phantom_imbalance_is_about_one_to_eight(drawn):
    clear, opacity = (len(list((drawn / name).glob("*.png"))) for name in phantom.CARD.classes)
    assert 5 < clear / opacity < 12


def test_phantom_patients_show_one_class(drawn):
    shown = {}
    for name in _files(drawn):
        parsed = phantom.parse(PurePosixPath(name))
        shown.setdefault(parsed.patients["patient"], set()).add(parsed.class_name)
    assert {len(classes) for classes in shown.values()} == {1}


def test_phantom_plants_a_copy_a_truncated_and_an_empty_file(drawn):
    copies = list(drawn.rglob("*_copy.png"))
    assert len(copies) == 1
    original = copies[0].with_name(copies[0].name.replace("_copy", ""))
    assert copies[0].read_bytes() == original.read_bytes()
    assert (drawn / "clear" / "patient9999_0.png").stat().st_size == 0
    with pytest.raises(ValueError, match=r"\w"):
        images.decode(drawn / "clear" / "patient9998_0.png")


def test_phantom_images_are_grey_frames_of_the_asked_size(drawn):
    pixels = images.decode(drawn / "opacity" / "patient0000_0.png")
    assert pixels.shape == (32, 32, 3)
    assert pixels.std() > 10
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_opacity_is_where_its_centre_says(small, tmp_path):
    settings = {**small, "patients": 40, "noise": 0.0, "opacity_speckle": 0.0}
    phantom.draw(tmp_path / "with", settings)
    phantom.draw(tmp_path / "without", {**settings, "opacity_contrast": 0.0})
    shown, plain = (
        images.decode(tmp_path / side / "opacity" / "patient0001_0.png")[..., 0].astype(float)
        for side in ("with", "without")
    )
    gain = shown - plain
    cx, cy, radius = phantom.opacity_centre(1, 0, settings)
    y, x = np.mgrid[0:32, 0:32] / 32
    distance = np.hypot(x - cx, y - cy)
    assert gain[distance < 0.5 * radius].min() > 25
    assert abs(gain[distance > 1.7 * radius]).max() <= 1


# --- real images, where they are -------------------------------------------------------------------------------------


def _ingested(name, tmp_path, monkeypatch, **overrides):
    params = config.read_params(ROOT)
    monkeypatch.chdir(tmp_path)
    study = config.load_study(name, params, {"ingest.raw": str(REAL / name), **overrides})
    return study, *ingest.run(study)


@_needs("chest_xray")
def test_real_chest_xrays(tmp_path, monkeypatch):
    _, manifest, summary = _ingested("chest_xray", tmp_path, monkeypatch)
    table = manifest.table
    assert summary["files_seen"] == summary["images"] + summary["quarantined"] == 1577
    quarantined = {item["image_id"]: item["reason"] for item in summary["quarantine"]}
    assert all(reason.startswith("exact duplicate of ") for reason in quarantined.values())
    found = [chest_xray.parse(PurePosixPath(name)) for name in [*table["image_id"], *quarantined]]
    counts = {}
    for parsed in found:
        key = parsed.class_name, parsed.columns["official_split"]
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("normal", "train"): 400,
        ("normal", "test"): 58,
        ("pneumonia", "train"): 1019,
        ("pneumonia", "test"): 100,
    }
    assert summary["minority_classes"] == ["normal"]
    assert summary["positive_class"] == "pneumonia"
    assert summary["completeness"].startswith("partial")


@_needs("breakhis")
def test_real_histology(tmp_path, monkeypatch):
    study, manifest, summary = _ingested("breakhis", tmp_path, monkeypatch, **{"split.group_by": "slide"})
    assert (summary["images"], summary["quarantined"]) == (118, 0)
    assert manifest.table["slide"].nunique() == 14
    assert manifest.table["accession"].nunique() < 14
    assert set(manifest.table["magnification"]) == {"100X"}
    assert summary["positive_class"] == "malignant"
    _, split_summary = splits.run(config.load_study(study.name, config.read_params(ROOT), {"split.folds": 3}))
    assert split_summary["patients"] == manifest.table["accession"].nunique()
