"""Which folders are published sides and which are classes: recognised, or described and refused."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equipoise.core import config, yaml_text
from equipoise.core.errors import ConfigError, DataError
from equipoise.ingest import layouts, leftovers
from equipoise.ingest import stage as ingest

ROOT = Path(__file__).resolve().parents[2]


def _layout(paths, positive_class):
    folders = [layouts.folders_of(path) for path in paths]
    sides = layouts.find_sides(folders)
    inside = [sides.without(names) for names in folders]
    return sides, layouts.find_classes(inside, positive_class, [], layouts.Place("raw"))


def _read(paths, positive_class):
    """Path -> (class, side)."""
    sides, classes = _layout(paths, positive_class)
    read = {}
    for path in paths:
        folders = layouts.folders_of(path)
        read[path] = (classes.of(sides.without(folders)), sides.of(folders))
    return read


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "TEST"),
        ("Train_set", "Test_set"),
        ("trainset", "testset"),
        ("training data", "Testing Data"),
        ("TrainImages", "TestImages"),
        ("ISIC_train", "ISIC_test"),
        ("val", "test"),
        ("dev", "eval"),
        ("valid", "Holdout"),
        ("1_train", "3_test"),
        ("train_80", "test_20"),
        ("train2019", "test2020"),
        ("trainval", "test"),
        ("train_val", "test"),
        ("Trainingsdaten", "Testdaten"),
        ("entrainement", "test"),
        ("entrenamiento", "prueba"),
        ("训练集", "测试集"),
        ("学習", "テスト"),
        ("обучение", "тест"),
        ("eğitim", "test"),
        ("treningowy", "testowy"),
        ("a. Training Set", "b. Testing Set"),
        ("(a) train", "(b) test"),
        ("Train and Validation Set", "Test Set"),
    ],
)
@pytest.mark.parametrize(
    "form",
    ["{side}/{name}/1.png", "{name}/{side}/1.png", "set/data/{side}/{name}/p/1.png"],
    ids=["above", "below", "inside"],
)
def test_sides_are_told_by_their_names_above_and_below_the_classes(train, test, form):
    sides = {train: "train", test: "test"}
    expected = {}
    for side in sides:
        for name in ("glioma", "notumor"):
            expected[form.format(side=side, name=name)] = (name, sides[side])
    assert _read(list(expected), "glioma") == expected


def test_images_in_no_side_are_counted():
    paths = ["a/train/1.png", "a/test/1.png", "b/1.png", "b/2.png"]
    assert {side for _, side in _read(paths, "b").values()} == {"train", "test", ""}
    folders = [layouts.folders_of(path) for path in paths]
    told = layouts.find_sides(folders).remarks(folders)
    assert told == ["published sides: train as train, test as test, 2 images in none of them"]


def test_evaluation_beside_test_is_validation():
    assert layouts.sides_of(["train", "eval", "test"]) == {
        "train": "train",
        "eval": "train",
        "test": "test",
    }


def test_numbers_of_folds_are_no_numbers_of_parts():
    assert layouts.sides_of(["train1", "train2", "test"]) == {
        "train1": "train",
        "train2": "train",
        "test": "test",
    }
    assert layouts.sides_of(["train1", "test1", "train2", "test2"]) == {}


@pytest.mark.parametrize("names", [["healthy", "sick"], ["train", "masks"], ["testis", "lung"]])
def test_other_folders_are_no_sides(names):
    assert layouts.sides_of(names) == {}


def test_a_folder_beside_the_sides_is_refused_with_its_count_and_the_way_out():
    paths = ["train/a/1.png", "test/a/2.png", "train/b/3.png", "more/4.png", "more/x/5.png"]
    with pytest.raises(DataError) as error:
        _layout(paths, "b")
    assert "test and train look like published sides" in str(error.value)
    assert "beside them lie more (2 images)" in str(error.value)
    assert "ingest.skip: [more/]" in str(error.value)


@pytest.mark.parametrize(
    ("paths", "pattern"),
    [
        (["set/train/a/1.png", "set/test/a/1.png", "set/set/train/a/1.png"], "set/set/"),
        (["train/a/1.png", "test/a/1.png", "train/a/more/1.png", "more/1.png"], "/more/"),
        (["train/a/1.png", "test/a/1.png", "#2/1.png"], "#2/"),
    ],
)
def test_the_pattern_that_an_error_names_leaves_out_this_folder_and_no_other(paths, pattern):
    with pytest.raises(DataError) as error:
        _layout(paths, "a")
    setting = re.search(r"ingest\.skip: (\[.*?\])", str(error.value))[1]
    (read,) = yaml_text.parse(f"skip: {setting}", "the error")["skip"]
    assert read == pattern
    left = [path for path in paths if not leftovers.fits(path, read)]
    assert len(left) == len(paths) - 1
    layouts.find_sides([layouts.folders_of(path) for path in left])


def test_folders_that_hold_classes_once_more_are_named_as_a_pattern():
    paths = [f"{top}{name}/{n}.png" for top in ("", "again/") for name in "ab" for n in (1, 2)]
    with pytest.raises(DataError, match=r"leave them out with ingest\.skip: \[again/\]"):
        _layout(paths, "b")


def test_where_a_table_names_the_classes_names_of_sides_may_hold_anything():
    names = ["Calc-Training_P_1_LEFT_CC", "Calc-Test_P_2_RIGHT_MLO", "Calc-Training_P_3_LEFT_MLO"]
    folders = [(name, "1.3.6", "1.3.7") for name in names]
    with pytest.raises(DataError, match="name a published side and something else"):
        layouts.find_sides(folders)
    folders.append(("extra",))
    sides = layouts.find_sides(folders, name_classes=False)
    assert [sides.of(names) for names in folders] == ["train", "test", "train", ""]
    assert "1 image in none of them" in sides.remarks(folders)[0]


def test_a_folder_that_only_looks_like_a_side_is_said():
    paths = [f"{top}/{name}/1.png" for top in ("tarin", "test") for name in "ab"]
    _, classes = _layout(paths, "b")
    assert any(
        "test may be a published side, but beside it lie tarin" in r for r in classes.remarks
    )


@pytest.mark.parametrize("name", ["test", "unlabelled", "Pred"])
def test_a_folder_whose_images_have_no_label_is_asked_about(name):
    paths = [f"{folder}/{n}.png" for folder in ("a", "b", name) for n in (1, 2)]
    _, classes = _layout(paths, "b")
    expected = f"{name} (2 images) counts as a class: where its images have no label"
    assert any(remark.startswith(expected) for remark in classes.remarks)
    _, meant = _layout(paths, name)
    assert not meant.remarks


def test_a_side_that_lacks_a_class_is_said():
    paths = ["train/a/1.png", "train/b/1.png", "test/b/1.png"]
    folders = [layouts.folders_of(path) for path in paths]
    sides, classes = _layout(paths, "b")
    told = layouts.remarks_on_sides(folders, sides, classes)
    assert told == ["the published test side holds no image of a"]


def test_names_that_hold_side_and_class_are_refused():
    paths = [f"{side}_{name}/1.png" for side in ("train", "test") for name in ("sick", "well")]
    with pytest.raises(DataError, match="name a published side and something else"):
        _layout(paths, "train_sick")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("part{part}/{name}/1.png", "below 3 folders"),
        ("archive/{name}/{part}.png", "below 1 folder"),
        ("p{part}/site/{name}/1.png", "below 3 folders"),
    ],
)
def test_classes_are_on_the_level_of_the_positive_class(form, told):
    paths = [form.format(part=part, name=name) for part in range(3) for name in ("0", "1")]
    _, classes = _layout(paths, "1")
    assert classes.names == ["0", "1"]
    assert any(told in remark for remark in classes.remarks)


def test_folders_that_all_hold_the_same_ones_are_asked_about():
    names = ("glioma", "notumor")
    paths = [f"{lot}/{name}/1.png" for lot in ("lot A", "lot B") for name in names]
    question = "folders below lot A and lot B are glioma and notumor: are those the classes?"
    _, chosen = _layout(paths, "lot A")
    assert any(question in remark for remark in chosen.remarks)
    for positive_class in (None, "gliomas"):
        with pytest.raises(ConfigError, match=r"are those the classes\?"):
            _layout(paths, positive_class)
    _, meant = _layout(paths, "glioma")
    assert meant.names == ["glioma", "notumor"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("NORMAL", "normal"),
        ("NORMAL", "NORMAL "),
        (unicodedata.normalize("NFC", "Mélanome"), unicodedata.normalize("NFD", "Mélanome")),
        ("Große Zelle", "GROSSE ZELLE"),
        ("Viral Pneumonia", "viral_pneumonia"),
        ("grade 1", "grade  1\u200b"),
    ],
)
def test_names_that_differ_in_case_blanks_or_accents_are_one_class(one, other):
    paths = [f"train/{one}/{n}.png" for n in range(3)]
    paths += [f"test/{other}/{n}.png" for n in range(2)]
    paths += [f"{side}/sick/{n}.png" for side in ("train", "test") for n in range(2)]
    for asked in (one, other):
        _, classes = _layout(paths, asked)
        assert len(classes.names) == 2
        assert classes.positive == layouts.spelled(one), "the spelling of most images is shown"
        assert any("counted as one class" in remark for remark in classes.remarks)
    assert {classes.of((name,)) for name in (one, other)} == {classes.positive}


@pytest.mark.parametrize(
    "paths",
    [
        ["a/1.png", "b/1.png", "a/2.png", "b/2.png", "old/a/1.png", "old/b/1.png"],
        ["a/1.png", "b/1.png", "test/a/1.png", "test/b/1.png"],
        ["train/images/a/1.png", "train/images/b/1.png", "test/a/1.png", "test/b/1.png"],
    ],
)
def test_classes_on_several_levels_are_refused(paths):
    with pytest.raises(DataError, match=r"\(2 images\)\. (Leave out|Bring all of them)"):
        _layout(paths, "b")


@pytest.mark.parametrize("of_test", [["images"], ["unknown"], ["as", "bs"]])
def test_sides_without_a_common_class_are_refused(of_test):
    paths = ["train/a/1.png", "train/b/1.png", *(f"test/{name}/1.png" for name in of_test)]
    folders = [layouts.folders_of(path) for path in paths]
    with pytest.raises(
        DataError, match="No class is on both published sides: the train side holds a and b"
    ):
        layouts.refuse_unlike_sides(folders, *_layout(paths, "b"))
    shared = ["test/a/2.png", *paths]
    folders = [layouts.folders_of(path) for path in shared]
    layouts.refuse_unlike_sides(folders, *_layout(shared, "b"))


def test_a_class_is_found_whatever_the_form_of_its_accents():
    decomposed = unicodedata.normalize("NFD", "Mélanome")
    _, classes = _layout([f"{decomposed}/1.png", "naevus/1.png"], "Mélanome")
    assert classes.positive == unicodedata.normalize("NFC", "Mélanome")
    assert not classes.remarks


def test_a_patient_who_is_called_like_a_class_is_none():
    paths = [f"{patient}/{name}/x.png" for patient in range(9) for name in ("0", "1")]
    _, classes = _layout(paths, "1")
    assert classes.names == ["0", "1"]
    assert any("folders called 1 lie on 2 levels" in remark for remark in classes.remarks)


@pytest.mark.parametrize("nested", [("sick", "well"), ("sick",)])
def test_a_folder_inside_one_of_its_own_name_adds_no_class(nested):
    paths = [
        f"{name}/{name}/1.png" if name in nested else f"{name}/1.png" for name in ("sick", "well")
    ]
    read = _read(paths, "sick")
    assert [name for name, _ in read.values()] == ["sick", "well"]


def test_a_name_of_patients_in_several_folders_is_asked_about():
    folders = [(f"P{p}", f"visit{v}", name) for p in (1, 2) for v in (1, 2) for name in "ab"]
    remarks = layouts.remarks_on_shared_names(folders, 2, "above")
    assert remarks[0].startswith("2 names of patients in several folders, as visit1 in P1 and P2")
    assert layouts.remarks_on_shared_names([(p, c) for p in "12" for c in "ab"], 1, "above") == []


@pytest.mark.parametrize(
    ("paths", "found"),
    [(["sick/1.png"], "sick"), (["1.png"], "none"), (["all/sick/1.png"], "sick")],
)
def test_fewer_than_two_classes_are_refused(paths, found):
    with pytest.raises(DataError, match=f"at least two; found: {found}"):
        _layout(paths, "sick")


# --- whole folders --------------------------------------------------------------------------------


def _own(tmp_path, files, **overrides):
    rng = np.random.default_rng(8)
    for name in files:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    settings = {
        "ingest.dataset": "folder",
        "ingest.raw": "mine",
        "ingest.positive_class": "sick",
        "ingest.pseudonymise": False,
    }
    settings.update({f"ingest.{name}": value for name, value in overrides.items()})
    return config.load_study("chest_xray", config.read_params(ROOT), settings, tmp_path)


def _counts(done):
    return {name: count.images for name, count in done.summary.by_class.items()}


def test_too_few_classes_say_what_else_lies_there(tmp_path):
    study = _own(tmp_path, ["well/1.png", "masks/1.png"])
    (study.raw / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"found: well \(1 image and 2 other files: .*1 in folders of masks.*1 \.nii\.gz.*ingest\.keep",
    ):
        ingest.run(study)


def test_a_test_side_without_labels_is_no_class(tmp_path):
    names = ["train/well/1.png", "train/sick/1.png", "test/images/1.png"]
    with pytest.raises(DataError, match=r"ingest\.skip: \[test/\]"):
        ingest.run(_own(tmp_path, names))


@pytest.mark.parametrize("name", ["~", "null", "True", "0x10", "+1", "no", "4", "a: b"])
def test_names_that_an_error_offers_can_be_pasted(tmp_path, name):
    study = _own(tmp_path, [f"{name}/1.png", "well/1.png"], positive_class=None)
    with pytest.raises(ConfigError) as error:
        ingest.run(study)
    written = re.search(r"to one of (.*?)\. Sens", str(error.value))[1]
    names = yaml_text.parse(f"names: [{written}]", "the error")["names"]
    studies = [_own(tmp_path, [], positive_class=one) for one in names]
    read = [study.settings.ingest.positive_class for study in studies]
    assert sorted(read) == sorted([name, "well"])


def test_folders_without_an_image_are_no_classes_and_are_named(tmp_path):
    study = _own(tmp_path, ["well/1.png", "sick/1.png"])
    for name in ("New folder", "results", "@eaDir", "$RECYCLE.BIN", "sick/empty"):
        (study.raw / name).mkdir(parents=True)
    (study.raw / "results" / "x.txt").write_text("x")
    done = ingest.run(study)
    assert _counts(done) == {"well": 1, "sick": 1}
    assert "folders without an image, which are no classes: New folder, results, sick/empty" in (
        done.remarks
    )
    with pytest.raises(ConfigError, match="The folder results is there and holds no image"):
        ingest.run(_own(tmp_path, [], positive_class="Results"))


def test_patients_as_folders_are_asked_about_and_then_kept_together(tmp_path):
    below = [f"{name}/p{p}/{n}.png" for name in ("well", "sick") for p in range(4) for n in (0, 1)]
    done = ingest.run(_own(tmp_path, below))
    assert done.summary.patients == 16
    assert any("set ingest.patient_folder: below" in remark for remark in done.remarks)
    done = ingest.run(_own(tmp_path, [], patient_folder="below"))
    assert (done.summary.patients, done.summary.patient_ids) == (4, True)
    assert not any("patient_folder" in remark for remark in done.remarks)


def test_patients_may_lie_above_the_classes(tmp_path):
    above = [f"{p}/{name}/{n}.png" for name in ("well", "sick") for p in range(9) for n in (0, 1)]
    done = ingest.run(_own(tmp_path, above))
    assert any("set ingest.patient_folder: above" in remark for remark in done.remarks)
    done = ingest.run(_own(tmp_path, ["well/loose.png"], patient_folder="above"))
    assert done.summary.patients == 9
    reasons = {item.image_id: item.reason for item in done.quarantined}
    assert reasons == {"well/loose.png": "not recognised: the file lies in no class folder"}


def test_patients_may_be_folders_where_a_table_names_neither_them_nor_classes(tmp_path):
    paths = [f"{name}/p{p}/1.png" for name in ("well", "sick") for p in (1, 2)]
    table = {"file": "t.csv"}
    study = _own(tmp_path, paths, patient_folder="below", table=table, columns=["age"])
    rows = "".join(f"{path},40\n" for path in paths)
    (study.raw / "t.csv").write_text(f"image,age\n{rows}")
    done = ingest.run(study)
    assert (done.summary.patients, done.summary.patient_ids) == (2, True)
    labels = {"file": "t.csv", "label": "age"}
    (study.raw / "t.csv").write_text(f"image,age\n{rows.replace(',40', ',41', 1)}")
    study = _own(tmp_path, [], patient_folder="below", table=labels, positive_class="41")
    with pytest.raises(ConfigError, match="Name the column of patient ids, too"):
        ingest.run(study)


def test_a_table_and_a_folder_cannot_both_name_the_patient(tmp_path):
    study = _own(tmp_path, ["well/p/1.png", "sick/p/1.png"], patient_folder="below", table="t.csv")
    (study.raw / "t.csv").write_text("image,patient_id\nwell/p/1.png,p\n")
    with pytest.raises(ConfigError, match="both say who the patient is"):
        ingest.run(study)


# --- links ----------------------------------------------------------------------------------------


def test_a_link_that_leads_to_itself_is_no_folder(tmp_path):
    study = _own(tmp_path, ["well/1.png", "sick/1.png"])
    (study.raw / "sick" / "self.png").symlink_to("self.png")
    done = ingest.run(study)
    assert done.summary.left_out == {leftovers.BROKEN_LINKS: 1}


def test_linked_folders_are_followed_and_said(tmp_path):
    study = _own(tmp_path, ["well/1.png", "well/2.png", "sick/1.png"])
    (study.raw / "sick").rename(tmp_path / "sick elsewhere")
    (study.raw / "sick").symlink_to(tmp_path / "sick elsewhere")
    done = ingest.run(study)
    assert _counts(done) == {"well": 2, "sick": 1}
    assert any("linked folders followed: 1" in remark for remark in done.remarks)


def test_a_circle_of_links_is_refused_by_its_name(tmp_path):
    study = _own(tmp_path, ["well/1.png", "sick/1.png"])
    (study.raw / "sick" / "again").symlink_to(study.raw)
    with pytest.raises(DataError, match=r"sick/again leads back to .*mine, in which it lies"):
        ingest.run(study)


def test_two_links_that_lead_to_each_other_are_refused(tmp_path):
    study = _own(tmp_path, ["well/1.png", "sick/1.png"])
    (study.raw / "well" / "next").symlink_to(study.raw / "sick")
    (study.raw / "sick" / "next").symlink_to(study.raw / "well")
    with pytest.raises(DataError, match="a circle without end"):
        ingest.run(study)
