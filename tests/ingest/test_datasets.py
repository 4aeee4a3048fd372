"""Every dataset keeps its contract; the grammars read real names; the phantom is the same for the same seed."""

import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from equipoise.core import config, images
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import base as datasets
from equipoise.ingest.datasets import breakhis, chest_xray, phantom
from equipoise.ingest.datasets.base import Task, Unrecognised
from equipoise.split import stage as splits

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
KERMANY = "chest_xray/chest_xray/"


def _needs(folder):
    reason = f"real images are not here ({REAL.name}/{folder} beside the checkout)"
    return pytest.mark.skipif(not (REAL / folder).is_dir(), reason=reason)


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- contract of every dataset --------------------------------------------------------------------


@pytest.fixture(params=datasets.names())
def dataset(request):
    return datasets.load_dataset(request.param)


def test_shipped_datasets_are_found():
    assert {"breakhis", "chest_xray", "phantom"} <= set(datasets.names())


@pytest.mark.parametrize("field", ["title", "source", "licence", "citation"])
def test_card_is_filled(dataset, field):
    assert getattr(dataset.CARD, field).strip()


def test_every_task_names_classes_and_the_positive_one(dataset):
    assert dataset.CARD.tasks or dataset.__name__.endswith(".folder"), (
        "only own folders make their task themselves"
    )
    for task in dataset.CARD.tasks.values():
        assert len(set(task.classes)) == len(task.classes) >= 2
        assert task.positive_class in task.classes
        assert task.grouping is None or set(task.grouping.values()) == set(task.classes)


def test_card_explains_every_reading(dataset):
    assert dataset.CARD.readings
    assert all(meaning.strip() for meaning in dataset.CARD.readings.values())
    assert not set(dataset.CARD.readings) & {*Manifest.COLUMNS, "pixels", "part"}
    assert dataset.CARD.official_reading in (None, *dataset.CARD.readings)


def test_expected_images_are_of_every_class(dataset):
    for task in dataset.CARD.tasks.values():
        assert all(set(counts) == set(task.classes) for counts in task.expected_images.values())


def test_tasks_of_one_dataset_expect_the_same_images():
    for module in (chest_xray, breakhis):
        binary, finest = (module.CARD.tasks[name] for name in ("binary", "subtypes"))
        counted = dict.fromkeys(binary.classes, 0)
        for name, count in finest.expected_images[""].items():
            counted[binary.class_of(name)] += count
        assert counted == binary.expected_images[""]
    by_magnification = [
        counts
        for selection, counts in breakhis.CARD.tasks["binary"].expected_images.items()
        if selection
    ]
    assert len(by_magnification) == 4
    assert {
        name: sum(counts[name] for counts in by_magnification) for name in ("benign", "malignant")
    } == {
        "benign": 2480,
        "malignant": 5429,
    }


@pytest.mark.parametrize("module", [breakhis, chest_xray, phantom])
@pytest.mark.parametrize(
    "path", ["", "cat.png", "train/CATS/cat_1.jpeg", "readme/Thumbs.db", "a/b/Miller/d/e.tif"]
)
def test_unrecognised_path_says_why_and_repeats_no_part_of_it(module, path):
    with pytest.raises(Unrecognised) as error:
        module.parse(PurePosixPath(path))
    assert str(error.value).strip()
    assert not any(
        part in str(error.value) for part in ("cat", "CATS", "Thumbs", "Miller", "e.tif")
    )


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"There is no dataset 'breakhiss'\. Did you mean 'breakhis'\?"
    ):
        datasets.load_dataset("breakhiss")


def test_base_is_no_dataset():
    with pytest.raises(ConfigError, match="There is no dataset 'base'"):
        datasets.load_dataset("base")


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ({"a": 2, "b": 3}, "complete: a 2, b 3"),
        ({"a": 1, "b": 3}, "partial"),
        ({"a": 2, "b": 4}, "different"),
    ],
)
def test_completeness_compares_with_the_published_counts(counts, word):
    task = Task(("a", "b"), "b", expected_images={"": {"a": 2, "b": 3}})
    assert task.completeness(counts).startswith(word)
    assert task.completeness(counts, "magnification=400X").startswith(
        "there is no published number"
    )


# --- Kermany --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "class_name", "person", "subtype_person", "side"),
    [
        ("train/NORMAL/NORMAL2-IM-0012-0001.jpeg", "normal", "IM-0012", "NORMAL2-IM-0012", "train"),
        ("test/NORMAL/IM-0012-0001.jpeg", "normal", "IM-0012", "IM-0012", "test"),
        ("train/NORMAL/IM-0115-0001-0001.jpeg", "normal", "IM-0115", "IM-0115", "train"),
        ("val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "normal", "IM-1427", "NORMAL2-IM-1427", "train"),
        ("train/PNEUMONIA/person1_virus_11.jpeg", "virus", "person1", "virus_person1", "train"),
        ("test/PNEUMONIA/person1_virus_6.jpeg", "virus", "person1", "virus_person1", "test"),
        (
            "train/PNEUMONIA/person1_bacteria_1.jpeg",
            "bacteria",
            "person1",
            "bacteria_person1",
            "train",
        ),
        (
            "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
            "bacteria",
            "person1946",
            "bacteria_person1946",
            "train",
        ),
        (
            f"{KERMANY}train/PNEUMONIA/person1_virus_11.jpeg",
            "virus",
            "person1",
            "virus_person1",
            "train",
        ),
        (f"{KERMANY}test/NORMAL/IM-0001-0001.jpg", "normal", "IM-0001", "IM-0001", "test"),
    ],
)
def test_kermany_names(path, class_name, person, subtype_person, side):
    parsed = chest_xray.parse(PurePosixPath(path))
    assert parsed.class_name == class_name
    assert parsed.patients == {"person": person, "subtype_person": subtype_person}
    assert parsed.columns["official_split"] == side
    assert parsed.columns["subtype"] == class_name


@pytest.mark.parametrize(
    ("path", "subtype", "patient", "side"),
    [
        ("train/PNEUMONIA/BACTERIA-1008087-0001.jpeg", "bacteria", "1008087", "train"),
        ("test/PNEUMONIA/VIRUS-1008087-0002.jpeg", "virus", "1008087", "test"),
        ("CellData/chest_xray/train/NORMAL/NORMAL-1003233-0001.jpeg", "normal", "1003233", "train"),
        ("Test/Normal/normal-0003233-1.JPG", "normal", "0003233", "test"),
    ],
)
def test_kermany_names_of_the_later_release_hold_the_patient(path, subtype, patient, side):
    parsed = chest_xray.parse(PurePosixPath(path))
    assert parsed.class_name == parsed.columns["subtype"] == subtype
    assert parsed.patients == {"person": patient, "subtype_person": patient}
    assert parsed.columns["official_split"] == side


@pytest.mark.parametrize("ending", ["png", "JPG", "tif", "dcm"])
def test_kermany_names_say_the_same_whatever_the_files_were_saved_as(ending):
    for name in ("PNEUMONIA/person7_virus_12", "NORMAL/IM-0012-0001", "NORMAL/NORMAL-1003233-0001"):
        saved = chest_xray.parse(PurePosixPath(f"train/{name}.{ending}"))
        assert saved == chest_xray.parse(PurePosixPath(f"train/{name}.jpeg"))


def test_kermany_folders_may_be_in_any_case():
    given = chest_xray.parse(PurePosixPath("Train/Pneumonia/person1_virus_11.jpeg"))
    assert given == chest_xray.parse(PurePosixPath("train/PNEUMONIA/person1_virus_11.jpeg"))


@pytest.mark.parametrize(
    "path",
    [
        "train/NORMAL/BACTERIA-1008087-0001.jpeg",
        "train/PNEUMONIA/NORMAL-1008087-0001.jpeg",
        "train/PNEUMONIA/FUNGUS-1008087-0001.jpeg",
        "NORMAL/IM-0012-0001.jpeg",  # the published side is missing
        "trained/NORMAL/IM-0012-0001.jpeg",
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


# --- BreakHis -------------------------------------------------------------------------------------

_SLIDES = (
    "BreaKHis_v1/histology_slides/breast/malignant/SOB/ductal_carcinoma/SOB_M_DC_14-13412/40X/"
)


@pytest.mark.parametrize(
    ("path", "class_name", "accession", "dedup", "slide", "magnification"),
    [
        ("SOB_M_DC-14-13412-40-001.png", "malignant", "14-13412", "14-13412", "DC-14-13412", "40X"),
        (
            "SOB_M_LC-14-13412-100-012.png",
            "malignant",
            "14-13412",
            "14-13412",
            "LC-14-13412",
            "100X",
        ),
        ("SOB_M_PC-15-190EF-400-003.png", "malignant", "15-190", "15-190EF", "PC-15-190EF", "400X"),
        (
            "SOB_B_A-14-22549AB-40-001.png",
            "benign",
            "14-22549",
            "14-22549AB",
            "A-14-22549AB",
            "40X",
        ),
        (
            "SOB_B_A-14-22549CD-200-030.png",
            "benign",
            "14-22549",
            "14-22549CD",
            "A-14-22549CD",
            "200X",
        ),
        ("SOB_B_TA-14-3411F-100-001.png", "benign", "14-3411", "14-3411F", "TA-14-3411F", "100X"),
        (
            f"{_SLIDES}SOB_M_DC-14-13412-40-001.png",
            "malignant",
            "14-13412",
            "14-13412",
            "DC-14-13412",
            "40X",
        ),
    ],
)
def test_breakhis_names(path, class_name, accession, dedup, slide, magnification):
    parsed = breakhis.parse(PurePosixPath(path))
    assert breakhis.CARD.tasks["binary"].class_of(parsed.class_name) == class_name
    assert parsed.patients == {"accession": accession, "dedup": dedup, "slide": slide}
    assert parsed.columns == {"subtype": slide.split("-")[0], "magnification": magnification}


def test_slide_filed_under_two_types_is_one_patient_unless_read_by_slide():
    one = breakhis.parse(PurePosixPath("SOB_M_DC-14-13412-40-001.png")).patients
    two = breakhis.parse(PurePosixPath("SOB_M_LC-14-13412-40-001.png")).patients
    assert [reading for reading in breakhis.CARD.readings if one[reading] == two[reading]] == [
        "accession",
        "dedup",
    ]


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


# --- phantom --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    shipped = config.load_study("demo", config.read_params(ROOT)).settings.phantom
    return shipped.model_copy(update={"patients": 90, "size_px": 32})


@pytest.fixture(scope="module")
def drawn(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "demo"
    assert phantom.draw(folder, small) == len(_files(folder))
    return folder


def test_phantom_is_the_same_bytes_for_the_same_seed(small, drawn, tmp_path):
    phantom.draw(tmp_path / "again", small)
    assert _files(tmp_path / "again") == _files(drawn)


def test_phantom_is_other_bytes_for_another_seed(small, drawn, tmp_path):
    phantom.draw(
        tmp_path / "other", small.model_copy(update={"seed": small.seed + 1, "patients": 20})
    )
    name = "clear/patient0019_0.png"
    assert _files(tmp_path / "other")[name] != _files(drawn)[name]


def test_phantom_replaces_what_is_there_and_leaves_nothing_beside(small, tmp_path):
    (tmp_path / "demo" / "clear").mkdir(parents=True)
    (tmp_path / "demo" / "clear" / "old.png").write_bytes(b"old")
    phantom.draw(tmp_path / "demo", small.model_copy(update={"patients": 12}))
    assert not (tmp_path / "demo" / "clear" / "old.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_phantom_that_fails_leaves_what_is_there(small, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "old.png").write_bytes(b"old")
    nobody_is_clear = small.model_copy(update={"patients": 1, "opacity_patient_fraction": 0.99})
    with pytest.raises(ValueError, match="not enough values"):  # no clear image to plant faults in
        phantom.draw(tmp_path / "demo", nobody_is_clear)
    assert _files(tmp_path) == {"demo/old.png": b"old"}


def test_phantom_imbalance_is_about_one_to_eight(drawn):
    clear, opacity = (
        len(list((drawn / name).glob("*.png"))) for name in phantom.CARD.tasks["binary"].classes
    )
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


def test_phantom_files_have_one_size(drawn):
    planted = {"clear/patient9998_0.png", "clear/patient9999_0.png"}
    sizes = {len(content) for name, content in _files(drawn).items() if name not in planted}
    assert len(sizes) == 1


def test_phantom_is_as_bright_with_an_opacity_as_without(small, tmp_path):
    settings = small.model_copy(update={"patients": 40, "opacity_patient_fraction": 0.9})
    phantom.draw(tmp_path / "with", settings)
    phantom.draw(tmp_path / "without", settings.model_copy(update={"opacity_contrast": 0.0}))
    for shown in (tmp_path / "with" / "opacity").iterdir():
        plain = tmp_path / "without" / "opacity" / shown.name
        assert images.decode(shown).mean() == pytest.approx(images.decode(plain).mean(), abs=0.5)


def test_opacity_is_where_its_centre_says(small, tmp_path):
    settings = small.model_copy(update={"patients": 40, "noise": 0.0, "opacity_speckle": 0.0})
    phantom.draw(tmp_path / "with", settings)
    phantom.draw(tmp_path / "without", settings.model_copy(update={"opacity_contrast": 0.0}))
    shown, plain = (
        images.decode(tmp_path / side / "opacity" / "patient0001_0.png")[..., 0].astype(float)
        for side in ("with", "without")
    )
    gain = shown - plain
    gain -= np.median(gain)  # the exposure makes up for what the opacity adds
    cx, cy, radius = phantom.opacity_centre(1, 0, settings)
    y, x = np.mgrid[0:32, 0:32] / 32
    distance = np.hypot(x - cx, y - cy)
    assert gain[distance < 0.5 * radius].min() > 25
    assert abs(gain[distance > 1.7 * radius]).max() <= 1


# --- BreakHis' published folds --------------------------------------------------------------------


def _breakhis_study(tmp_path, **overrides):
    changes = {"split.scheme": "official", "split.repeats": 1, **overrides}
    return config.load_study("breakhis", config.read_params(ROOT), changes, tmp_path)


def _slides(raw, names):
    rng = np.random.default_rng(3)
    for name in names:
        path = raw / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)


def _fold_file(raw, fold, sides):
    lines = [f"{name}|40|{fold}|{side}" for name, side in sides.items()]
    (raw / f"dsfold{fold}.txt").write_text("\n".join(lines) + "\n")


def test_a_slide_on_both_published_sides_is_named_and_its_copies_are_kept(tmp_path):
    study = _breakhis_study(tmp_path)
    kinds = [("B", "A"), ("M", "PC")]
    names = [
        f"SOB_{kind}_{code}-14-{100 * place + slide}-40-001.png"
        for place, (kind, code) in enumerate(kinds, start=1)
        for slide in range(8)
    ]
    twins = ["SOB_M_DC-14-13412-40-001.png", "SOB_M_LC-14-13412-40-001.png"]
    _slides(study.raw, [*names, twins[0]])
    shutil.copy(study.raw / "slides" / twins[0], study.raw / "slides" / twins[1])
    for fold, apart in ((1, ("train", "test")), (2, ("test", "test"))):
        sides = {name: "test" if index % 4 == fold else "train" for index, name in enumerate(names)}
        _fold_file(study.raw, fold, {**sides, **dict(zip(twins, apart))})
    done = ingest.run(study)
    assert set(twins) <= {PurePosixPath(name).name for name in done.manifest.table["image_id"]}
    split, counted = splits.run(study)
    assert split.rounds() == [(0, 0), (0, 1)]
    official = next(check for check in counted.checks if check.code == "EQ-OFFICIAL")
    assert official.answer == "failed"
    assert "fold 1" in official.detail
    assert "14-13412" in official.detail
    assert "fold 2" not in official.detail
    for round_, fold in enumerate((1, 2)):
        rows = split.round(0, round_)
        published = {
            name: "test" if index % 4 == fold else "train" for index, name in enumerate(names)
        }
        for name, part in zip(rows["image_id"], rows["part"]):
            if (side := published.get(PurePosixPath(name).name)) is not None:
                assert (part == "test") == (side == "test")


def test_fold_files_are_found_behind_a_linked_folder(tmp_path):
    study = _breakhis_study(tmp_path)
    names = [f"SOB_{kind}-14-{slide}-40-001.png" for kind in ("B_A", "M_DC") for slide in (1, 2)]
    elsewhere = tmp_path / "elsewhere"
    _slides(elsewhere, names)
    _fold_file(elsewhere, 1, dict.fromkeys(names, "train"))
    study.raw.mkdir(parents=True)
    (study.raw / "linked").symlink_to(elsewhere)
    done = ingest.run(study)
    assert set(done.manifest.table["official_split_1"]) == {"train"}
    assert done.summary.images == 4


def test_a_fold_file_that_is_none_is_refused_with_its_line(tmp_path):
    study = _breakhis_study(tmp_path)
    _slides(study.raw, ["SOB_B_A-14-101-40-001.png"])
    (study.raw / "dsfold3.txt").write_text(
        "SOB_B_A-14-101-40-001.png|40|3|train\nSOB_B_A-14-101-40-002.png 40 3\n"
    )
    with pytest.raises(DataError, match=r"dsfold3\.txt, line 2 is not of the form"):
        ingest.run(study)


def test_subtypes_and_magnification_are_settings(tmp_path):
    study = _breakhis_study(tmp_path, **{"ingest.only": {"magnification": "40X"}})
    every = [
        f"SOB_{'B' if code in ('A', 'F', 'PT', 'TA') else 'M'}_{code}-14-{slide}{number}-{magnification}-001.png"
        for slide, code in enumerate(breakhis._SUBTYPES, start=10)
        for number in range(2)
        for magnification in (40, 400)
    ]
    _slides(study.raw, every)
    done = ingest.run(study)
    assert {name: row.images for name, row in done.summary.by_class.items()} == {
        "benign": 8,
        "malignant": 8,
    }
    assert (done.summary.selection, done.summary.not_selected) == ("magnification=40X", 16)
    assert (
        done.summary.completeness == "partial: the complete dataset has benign 625, malignant 1,370"
    )
    study = _breakhis_study(tmp_path, **{"ingest.task": "subtypes"})
    done = ingest.run(study)
    assert {row.images for row in done.summary.by_class.values()} == {4}
    assert len(done.manifest.classes) == 8
    for change, text in (
        ({"ingest.task": "subtype"}, "Did you mean 'subtypes'"),
        ({"ingest.only": {"magnifcation": "40X"}}, "Did you mean 'magnification'"),
        ({"ingest.only": {"width_px": "7"}}, "'7', which no image has. Found are: 30"),
        ({"ingest.only": {"magnification": "50X"}}, "which no image has. Found are: 400X, 40X"),
        ({"ingest.only": {"magnification": "40X", "subtype": "Z"}}, "'Z', which no image has"),
    ):
        with pytest.raises(ConfigError, match=text):
            ingest.run(_breakhis_study(tmp_path, **change))


# --- MedMNIST -------------------------------------------------------------------------------------


def _npz(path, labels, side=28, seed=0):
    """A file like MedMNIST's: uint8 (n, side, side), labels (n, 1)."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, values in labels.items():
        arrays[f"{part}_images"] = rng.integers(0, 256, (len(values), side, side), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.array(values, dtype=np.uint8).reshape(-1, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return arrays


LABELS = {"train": [0, 1, 1, 1] * 6, "val": [0, 1] * 4, "test": [1, 0, 1] * 4}


def _mnist_study(tmp_path, **overrides):
    named = {"ingest.dataset": "medmnist", "ingest.raw": "raw", **overrides}
    return config.load_study("chest_xray", config.read_params(ROOT), named, tmp_path)


@pytest.mark.parametrize(
    ("name", "of_one", "positives"),
    [("pneumoniamnist_64", "pneumonia", 30), ("breastmnist", "normal_benign", 14)],
)
def test_medmnist_reads_its_labels_as_the_paper_means_them(tmp_path, name, of_one, positives):
    study = _mnist_study(tmp_path)
    arrays = _npz(tmp_path / f"raw/{name}.npz", LABELS)
    done = ingest.run(study)
    table = done.manifest.table.set_index("image_id")
    assert len(table) == sum(map(len, LABELS.values()))
    assert table.loc[f"{name}.npz/train/00001", "class_name"] == of_one
    assert (table["class_name"] == done.manifest.positive_class).sum() == positives
    assert done.manifest.meta["patient_ids"] is done.summary.patient_ids is False
    assert set(table.loc[table.index.str.contains("/val/"), "official_split"]) == {"train"}
    pixels = images.decode(images.read(study.raw, f"{name}.npz/test/00005"))
    np.testing.assert_array_equal(pixels[..., 0], arrays["test_images"][5])
    _, counted = splits.run(study)
    first = next(check for check in counted.checks if check.code == "EQ001")
    assert first.answer == "not applicable"
    assert "no patient ids" in first.detail


def test_medmnist_files_that_are_none_are_refused(tmp_path):
    study = _mnist_study(tmp_path)
    with pytest.raises(DataError, match=r"There is no folder .*raw"):
        ingest.run(study)
    _npz(tmp_path / "raw/pathmnist.npz", LABELS)
    with pytest.raises(
        DataError, match=r"needs exactly one file named like .* found: pathmnist\.npz"
    ):
        ingest.run(study)
    (tmp_path / "raw/pathmnist.npz").unlink()
    (tmp_path / "raw/breastmnist.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"breastmnist\.npz is not a MedMNIST file"):
        ingest.run(study)
    np.savez(tmp_path / "raw/breastmnist.npz", train_images=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"breastmnist\.npz is not a MedMNIST file"):
        ingest.run(study)


# --- own folders ----------------------------------------------------------------------------------


def _own(tmp_path, files, table=None, **overrides):
    rng = np.random.default_rng(4)
    for name in files:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    if table is not None:
        (tmp_path / "mine/patients.csv").write_text(table, encoding="utf-8")
    settings = {
        "ingest.dataset": "folder",
        "ingest.raw": "mine",
        "ingest.positive_class": "sick",
        "ingest.pseudonymise": False,
        "ingest.table": None if table is None else "patients.csv",
    }
    settings.update(overrides)
    return config.load_study("chest_xray", config.read_params(ROOT), settings, tmp_path)


FILES = ["healthy/a.png", "healthy/b.png", "sick/sub/c.png", "sick/d.png"]
TABLE = "image,patient_id,age,name\nhealthy/a.png,p1,40,X\nhealthy/b.png,p1,40,X\n./sick/sub/c.png, p2 ,50,Y\n"


def test_own_folder_with_a_table(tmp_path):
    study = _own(tmp_path, FILES, TABLE, **{"ingest.columns": ["age"]})
    done = ingest.run(study)
    table = done.manifest.table.set_index("image_id")
    assert done.manifest.classes == ("healthy", "sick")
    assert table["patient_id"].to_dict() == {
        "healthy/a.png": "p1",
        "healthy/b.png": "p1",
        "sick/sub/c.png": "p2",
    }
    assert table["age"].to_dict() == {
        "healthy/a.png": "40",
        "healthy/b.png": "40",
        "sick/sub/c.png": "50",
    }
    assert "name" not in table, "only the columns that were asked for travel"
    reasons = {item.image_id: item.reason for item in done.quarantined}
    assert reasons == {"sick/d.png": "not recognised: ingest.table has no row for this file"}
    assert done.manifest.meta["patient_ids"] is True


def test_own_folder_hides_ids_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_KEY", str(tmp_path.parent / f"{tmp_path.name}-key"))
    study = _own(tmp_path, FILES, TABLE, **{"ingest.pseudonymise": None})
    done = ingest.run(study)
    assert done.summary.pseudonymised
    assert not set(done.manifest.table["patient_id"]) & {"p1", "p2"}


def test_own_folder_without_a_table_counts_images_as_patients(tmp_path):
    done = ingest.run(_own(tmp_path, FILES))
    assert done.summary.patients == done.summary.images == 4
    assert done.manifest.meta["patient_ids"] is False


def test_own_folder_with_sides_has_an_official_split(tmp_path):
    files = [f"{side}/{name}" for side in ("train", "val", "test") for name in FILES]
    done = ingest.run(_own(tmp_path, files))
    assert done.manifest.classes == ("healthy", "sick")
    sides = done.manifest.table.set_index("image_id")["official_split"]
    assert sides["val/sick/d.png"] == "train"
    assert sides["test/sick/d.png"] == "test"


@pytest.mark.parametrize(
    ("files", "table", "overrides", "error", "text"),
    [
        (
            FILES,
            None,
            {"ingest.positive_class": None},
            ConfigError,
            "set ingest.positive_class to one of healthy, sick",
        ),
        (FILES, None, {"ingest.positive_class": "sik"}, ConfigError, "Did you mean 'sick'"),
        (FILES[:2], None, {}, DataError, "at least two; found: healthy"),
        (
            FILES,
            "image,person\n",
            {},
            DataError,
            r"lacks the column\(s\) patient_id; it has image, person",
        ),
        (FILES, "", {}, DataError, "not readable as a CSV"),
        (
            FILES,
            TABLE + "sick/sub/c.png,p9,1,Z\n",
            {},
            DataError,
            "more than one row for sick/sub/c.png",
        ),
        (FILES, TABLE, {"ingest.columns": ["sex"]}, DataError, r"lacks the column\(s\) sex"),
        (FILES, None, {"ingest.columns": ["age"]}, ConfigError, "Set ingest.table"),
        (FILES, None, {"ingest.table": "none.csv"}, DataError, r"There is no .*mine/none.csv"),
        (
            FILES,
            TABLE.replace(",age", ",label"),
            {"ingest.columns": ["label"]},
            ConfigError,
            "cannot hold label",
        ),
        (FILES, TABLE.replace("p1", ""), {}, DataError, "no image of class healthy"),
    ],
)
def test_own_folder_says_what_is_wrong(tmp_path, files, table, overrides, error, text):
    study = _own(tmp_path, files, table, **overrides)
    with pytest.raises(error, match=text):
        ingest.run(study)
    assert not (tmp_path / "data/manifest").exists()


# --- real images, where they are ------------------------------------------------------------------


def _ingested(name, tmp_path, **overrides):
    changes = {"ingest.raw": str(REAL / name), **overrides}
    study = config.load_study(name, config.read_params(ROOT), changes, tmp_path)
    return study, ingest.run(study)


@_needs("chest_xray")
def test_real_chest_xrays(tmp_path):
    _, done = _ingested("chest_xray", tmp_path)
    table, summary = done.manifest.table, done.summary
    assert summary.files_seen == summary.images + summary.quarantined == 1577
    quarantined = {item.image_id: item.reason for item in done.quarantined}
    assert all(reason.startswith("exact duplicate of ") for reason in quarantined.values())
    found = [chest_xray.parse(PurePosixPath(name)) for name in [*table["image_id"], *quarantined]]
    counts = {}
    for parsed in found:
        key = (
            chest_xray.CARD.tasks["binary"].class_of(parsed.class_name),
            parsed.columns["official_split"],
        )
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("normal", "train"): 400,
        ("normal", "test"): 58,
        ("pneumonia", "train"): 1019,
        ("pneumonia", "test"): 100,
    }
    assert summary.minority_classes == ["normal"]
    assert summary.positive_class == "pneumonia"
    assert summary.completeness.startswith("partial")


@_needs("breakhis")
def test_real_histology(tmp_path):
    study, done = _ingested("breakhis", tmp_path, **{"split.group_by": "slide"})
    manifest, summary = done.manifest, done.summary
    assert (summary.images, summary.quarantined) == (118, 0)
    assert manifest.table["slide"].nunique() == 14
    assert manifest.table["accession"].nunique() < 14
    assert set(manifest.table["magnification"]) == {"100X"}
    assert summary.positive_class == "malignant"
    split, split_summary = splits.run(
        config.load_study(study.name, config.read_params(ROOT), {"split.folds": 3}, tmp_path)
    )
    assert split_summary.patients == manifest.table["accession"].nunique()
    twin = manifest.table.loc[manifest.table["slide"].str.contains("21998AB|21998CD"), "image_id"]
    assert manifest.table.set_index("image_id").loc[twin, "slide"].nunique() == 2
    for repeat, fold in split.rounds():
        rows = split.round(repeat, fold).set_index("image_id")
        assert rows.loc[twin, "part"].nunique() == 1, (
            "one number, two tumour types: never on two sides by default"
        )
