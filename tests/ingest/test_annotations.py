"""Own images with a table that names classes, patients and sides, in the forms that published sets have."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import REPO
from equipoise.core import config, dicom
from equipoise.core.errors import ConfigError, DataError
from equipoise.ingest import annotations
from equipoise.ingest import stage as ingest
from equipoise.ingest.summary import summary_text
from equipoise.split import stage as splits


def _study(tmp_path, files, text, **settings):
    """A study of drawn images and a table, `ingest.<name>` as given."""
    rng = np.random.default_rng(4)
    for name in files:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    (tmp_path / "mine/table.csv").write_text(text, encoding="utf-8")
    changes = {
        "ingest.dataset": "folder",
        "ingest.raw": "mine",
        "ingest.pseudonymise": False,
        "ingest.table": "table.csv",
    }
    for name, value in settings.items():
        changes[f"ingest.{name}"] = value
    return config.load_study("chest_xray", config.read_params(REPO), changes, tmp_path)


def _column(done, name):
    return done.manifest.table.set_index("image_id")[name].to_dict()


def _reasons(done):
    return {item.image_id: item.reason for item in done.quarantined}


# --- the tables of published sets -----------------------------------------------------------------


def test_ham10000_ids_without_ending_in_two_folders(tmp_path):
    files = ["part_1/ISIC_1.jpg", "part_1/ISIC_2.jpg", "part_2/ISIC_3.jpg", "part_2/ISIC_4.jpg"]
    table = (
        "lesion_id,image_id,dx,dx_type,age\n"
        "HAM_1,ISIC_1,nv,histo,80.0\nHAM_1,ISIC_2,nv,histo,80.0\n"
        "HAM_2,ISIC_3,mel,histo,\nHAM_3,ISIC_5,bkl,histo,60.0\n"
    )
    columns = {"file": "table.csv", "image": "image_id", "label": "dx", "patient": "lesion_id"}
    study = _study(tmp_path, files, table, table=columns, columns=["age"], positive_class="mel")
    with pytest.raises(DataError, match="names the class bkl in 1 row, none of which has a file"):
        ingest.run(study)
    study = _study(
        tmp_path,
        files,
        table.replace("bkl", "mel"),
        table=columns,
        columns=["age"],
        positive_class="mel",
    )
    done = ingest.run(study)
    assert done.manifest.classes == ("nv", "mel")
    assert _column(done, "class_name") == {
        "part_1/ISIC_1.jpg": "nv",
        "part_1/ISIC_2.jpg": "nv",
        "part_2/ISIC_3.jpg": "mel",
    }
    assert list(_column(done, "patient_id").values()) == ["HAM_1", "HAM_1", "HAM_2"]
    assert _column(done, "age")["part_1/ISIC_1.jpg"] == "80.0", "text, as it stands there"
    assert _reasons(done) == {
        "part_2/ISIC_4.jpg": "not recognised: ingest.table has no row for this file"
    }
    shown = summary_text(done.summary, done.quarantined, done.remarks)
    assert "3 rows of table.csv matched by name, as 'ISIC_1' is part_1/ISIC_1.jpg" in shown
    assert "no file for 1 row of table.csv, the first: ISIC_5" in shown
    assert "no row in table.csv for 1 file, the first: part_2/ISIC_4.jpg" in shown


def test_aptos_numbers_as_classes_and_no_patients(tmp_path):
    files = [f"train_images/{number:012x}.png" for number in range(6)]
    rows = [f"{number:012x},{number % 3}" for number in range(6)]
    columns = {"file": "table.csv", "image": "id_code", "label": "diagnosis"}
    study = _study(
        tmp_path, files, "id_code,diagnosis\n" + "\n".join(rows), table=columns, positive_class="2"
    )
    done = ingest.run(study)
    assert done.manifest.classes == ("0", "1", "2")
    assert done.summary.patient_ids is False
    assert done.summary.patients == 6


def test_a_column_patient_id_is_used_where_no_other_is_named(tmp_path):
    columns = {"file": "table.csv", "label": "dx"}
    text = "image,dx,Patient_ID\na/1.png,x,p1\na/2.png,y,p1\n"
    done = ingest.run(_study(tmp_path, FILES[:2], text, table=columns, positive_class="x"))
    assert (done.summary.patient_ids, done.summary.patients) == (True, 1)
    columns["patient"] = "person"
    study = _study(tmp_path, FILES[:2], text, table=columns, positive_class="x")
    with pytest.raises(
        DataError, match=r"lacks the column\(s\) person.*without patient every image counts"
    ):
        ingest.run(study)


def test_padchest_lists_of_one_label(tmp_path):
    files = [f"{number}.png" for number in range(4)]
    rows = [f"{number},\"['{'normal' if number % 2 else 'effusion'}']\"" for number in range(4)]
    columns = {"file": "table.csv", "image": "ImageID", "label": "Labels"}
    text = "ImageID,Labels\n" + "\n".join(rows) + "\n"
    done = ingest.run(_study(tmp_path, files, text, table=columns, positive_class="effusion"))
    assert done.manifest.classes == ("normal", "effusion")
    assert not any("mean one class" in remark for remark in done.remarks)
    text = text.replace("['effusion']", "['effusion', 'mass']", 1)
    study = _study(tmp_path, files, text, table=columns, positive_class="effusion")
    with pytest.raises(DataError, match="several labels in one cell in 1 of 4 rows"):
        ingest.run(study)


def test_files_are_asked_once_whether_they_are_dicom(tmp_path, monkeypatch):
    files = [f"{name}/{number}.png" for name in "xy" for number in range(5)]
    fields = ["PatientSex", "PatientAge", "KVP", "Rows"]
    study = _study(tmp_path, files, "image\nx/0.png\n", columns=fields, positive_class="x")
    asked = []
    monkeypatch.setattr(dicom, "is_dicom_file", lambda path: bool(asked.append(path)))
    with pytest.raises(DataError, match="lacks the column"):
        annotations.read_annotations(study.raw, study.settings.ingest, files)
    assert len(asked) <= 2 * len(files), "not once more for each column"


def test_isic_one_column_for_each_class(tmp_path):
    files = [f"images/ISIC_{number}.jpg" for number in range(5)]
    frame = pd.DataFrame(
        {
            "image": [f"ISIC_{number}" for number in range(5)],
            "MEL": [1.0, 0.0, 0.0, 0.0, 0.0],
            "NV": [0.0, 1.0, 1.0, 0.0, 0.0],
            "BCC": [0.0, 0.0, 0.0, 1.0, 0.0],
        }
    )
    columns = {"file": "table.csv", "label": ["MEL", "nv"]}
    study = _study(tmp_path, files, frame.to_csv(index=False), table=columns, positive_class="MEL")
    done = ingest.run(study)
    assert done.manifest.classes == ("nv", "MEL"), "as the settings spell them"
    assert list(_column(done, "class_name").values()) == ["MEL", "nv", "nv"]
    assert set(_reasons(done).values()) == {
        "not recognised: ingest.table gives this file no MEL or nv"
    }
    frame.loc[2, "MEL"] = 1.0
    study = _study(tmp_path, files, frame.to_csv(index=False), table=columns, positive_class="MEL")
    with pytest.raises(
        DataError,
        match="1 row more than one of the classes MEL, nv, the first on line 4: MEL and nv",
    ):
        ingest.run(study)
    text = frame.to_csv(index=False).replace("ISIC_1,0.0", "ISIC_1,0.7")
    study = _study(tmp_path, files, text, table=columns, positive_class="MEL")
    with pytest.raises(DataError, match=r"Column MEL of table\.csv says '0\.7'"):
        ingest.run(study)


def test_nih_several_labels_in_one_cell_are_no_class(tmp_path):
    files = [f"images_001/{number}.png" for number in range(4)]
    rows = ["0.png,Effusion,1", "1.png,No Finding,2", "2.png,Effusion|Mass,3", "3.png,Mass,4"]
    columns = {
        "file": "table.csv",
        "image": "Image Index",
        "label": "Finding Labels",
        "patient": "Patient ID",
    }
    header = "Image Index,Finding Labels,Patient ID\n"
    study = _study(tmp_path, files, header + "\n".join(rows), table=columns, positive_class="Mass")
    with pytest.raises(
        DataError, match=r"several labels in one cell in 1 of 4 rows, most often 'Effusion\|Mass'"
    ):
        ingest.run(study)
    chosen = [row + "," + label for row, label in zip(rows, ["", "no", "yes", "yes"])]
    header = "Image Index,Finding Labels,Patient ID,mass\n"
    columns["label"] = "mass"
    study = _study(tmp_path, files, header + "\n".join(chosen), table=columns, positive_class="yes")
    done = ingest.run(study)
    assert list(_column(done, "class_name").values()) == ["no", "yes", "yes"]
    assert _reasons(done) == {
        "images_001/0.png": "not recognised: ingest.table gives this file no mass"
    }


@pytest.mark.parametrize("label", ["Effusion, Mass", "Effusion; Mass", "Effusion/Mass"])
def test_a_list_of_labels_is_known_by_its_parts(tmp_path, label):
    rows = [
        "0.png;Effusion",
        f"1.png;{json.dumps(label)}",
        "2.png;Mass",
        '3.png;"carcinoma, in situ"',
    ]
    columns = {"file": "table.csv", "label": "dx"}
    files = [f"{number}.png" for number in range(4)]
    study = _study(
        tmp_path, files, "image;dx\n" + "\n".join(rows), table=columns, positive_class="Mass"
    )
    with pytest.raises(DataError, match="several labels in one cell in 1 of 4 rows"):
        ingest.run(study)
    study = _study(
        tmp_path,
        files,
        "image;dx\n" + "\n".join(rows[::2] + rows[3:]),
        table=columns,
        positive_class="Mass",
    )
    assert "carcinoma, in situ" in ingest.run(study).manifest.classes


def test_rsna_several_boxes_of_one_image_are_one_row(tmp_path):
    rows = ["p1,10,20,1", "p1,30,40,1", "p2,,,0", "p3,,,0"]
    columns = {"file": "table.csv", "image": "patientId", "label": "Target", "patient": "patientId"}
    files = [f"stage_2/p{number}.png" for number in (1, 2, 3)]
    text = "patientId,x,y,Target\n" + "\n".join(rows)
    done = ingest.run(_study(tmp_path, files, text, table=columns, positive_class="1"))
    assert list(_column(done, "class_name").values()) == ["1", "0", "0"]
    assert "table.csv names 3 images in 4 rows, which say the same of it" in done.remarks
    unlike = text.replace("p1,30,40,1", "p1,30,40,0") + "\np3,1,2,1"
    study = _study(tmp_path, files, unlike, table=columns, positive_class="1")
    with pytest.raises(
        DataError, match="more than one row for p1, with Target '1' and '0'; so it is with 1 more"
    ):
        ingest.run(study)
    study = _study(tmp_path, files, text, table=columns, positive_class="1", columns=["x"])
    with pytest.raises(DataError, match="more than one row for p1, with x '10' and '30'"):
        ingest.run(study)


def test_chexpert_paths_that_begin_higher_up(tmp_path):
    files = [f"train/patient{number}/study1/view1_frontal.jpg" for number in range(4)]
    rows = [f"CheXpert-v1.0-small/{file},{number % 2}.0" for number, file in enumerate(files)]
    columns = {"file": "table.csv", "image": "Path", "label": "Edema"}
    study = _study(
        tmp_path, files, "Path,Edema\n" + "\n".join(rows), table=columns, positive_class="1.0"
    )
    assert ingest.run(study).summary.images == 4


# --- sides ----------------------------------------------------------------------------------------


def _sided(tmp_path, words, **settings):
    files = [f"{number}.png" for number in range(len(words))]
    rows = [
        f"{file},{number % 2},p{number},{word}"
        for number, (file, word) in enumerate(zip(files, words))
    ]
    columns = {"file": "table.csv", "label": "dx", "split": "set"}
    text = "image,dx,patient_id,set\n" + "\n".join(rows)
    return _study(tmp_path, files, text, table=columns, positive_class="1", **settings)


def test_sides_of_a_table_become_the_official_split(tmp_path):
    words = ["Train"] * 6 + ["TRAIN ", "val"] * 3 + ["testing"] * 4
    study = _sided(tmp_path, words)
    done = ingest.run(study)
    assert list(done.manifest.table["official_split"].value_counts()) == [12, 4]
    official = config.load_study(
        study.name, config.read_params(REPO), {"split.scheme": "official"}, tmp_path
    )
    made, _ = splits.run(official)
    in_test = made.table.loc[made.table["part"] == "test", "image_id"]
    assert sorted(set(in_test)) == [f"{number}.png" for number in (12, 13, 14, 15)]


def test_a_side_that_is_no_word_for_one_is_refused_and_a_missing_one_is_none(tmp_path):
    with pytest.raises(
        DataError, match=r"Column set of table\.csv says 'left' in 1 row\. Expected are train, val"
    ):
        ingest.run(_sided(tmp_path, ["train", "left", "test"]))
    done = ingest.run(_sided(tmp_path, ["train", "n/a", "test"]))
    assert list(done.manifest.table["official_split"]) == ["train", "", "test"]


# --- ids ------------------------------------------------------------------------------------------


IDS = "image,patient_id\na/1.png,0001\na/2.png,1\nb/1.png,2\nb/2.png,nan\n"
FILES = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]


def test_one_patient_in_two_spellings_is_an_error_until_it_is_decided(tmp_path):
    with pytest.raises(
        DataError,
        match=r"In column patient_id of table\.csv, 1 patient is written .*'0001' and '1'",
    ):
        ingest.run(_study(tmp_path, FILES, IDS, positive_class="b"))
    assert not (tmp_path / "data/manifest").exists()
    study = _study(tmp_path, FILES, IDS, positive_class="b", aliases={"1": "0001"})
    done = ingest.run(study)
    assert list(_column(done, "patient_id").values()) == ["0001", "0001", "2"]
    assert _reasons(done) == {
        "b/2.png": "not recognised: ingest.table gives this file no patient_id"
    }
    assert "0001" not in json.dumps(done.manifest.meta), "ids of people stay out of what is kept"
    decided_again = _study(tmp_path, FILES, IDS, positive_class="b", aliases={"0001": "1"})
    assert done.manifest.meta["settings"] == study.settings.sections("ingest")
    assert done.manifest.meta["settings"] != decided_again.settings.sections("ingest")


def test_aliases_mean_what_is_written(tmp_path):
    _, aliases = config.parse_override("ingest.aliases={0012: 12, 7: 0007}")
    study = _study(tmp_path, FILES, IDS, aliases=aliases)
    assert study.settings.ingest.aliases == {"0012": "12", "7": "0007"}


def test_settings_of_the_table_that_cannot_be_used_are_said(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no key 'ingest\.table\.lable'.*Did you mean 'ingest\.table\.label'"
    ):
        _study(tmp_path, FILES, IDS, table={"file": "table.csv", "lable": "dx"})
    study = _study(
        tmp_path,
        FILES,
        IDS.replace("patient_id", "who"),
        table={"file": "table.csv"},
        aliases={"1": "0001"},
        positive_class="b",
    )
    with pytest.raises(ConfigError, match=r"ingest\.table has no column of them"):
        ingest.run(study)
    study = _study(tmp_path, FILES, IDS, table=None, aliases={"1": "0001"}, positive_class="b")
    with pytest.raises(
        ConfigError, match=r"ingest\.aliases speaks of ingest\.table, which is null"
    ):
        ingest.run(study)


# --- rows and files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            "image,patient_id\n1,p1\n",
            r"names '1', which fits 2 files: a/1\.png, b/1\.png \(1 such row\)",
        ),
        (
            "image,patient_id\na/1,p1\na/1.jpg,p2\n",
            r"'a/1' and 'a/1\.jpg', which both fit the file a/1\.png",
        ),
        (
            "image,patient_id\nx1,p1\nx2,p2\n",
            r"None of the 2 images that table\.csv names .*says 'x1', the first file is 'a/1\.png'",
        ),
        ("image,patient_id\n,p1\n", "names no image: it has no rows below its header"),
        ("image,patient_id\n", "names no image: it has no rows below its header"),
    ],
)
def test_rows_that_fit_no_file_or_several_are_refused(tmp_path, table, text):
    study = _study(tmp_path, FILES, table, positive_class="b")
    with pytest.raises(DataError, match=text):
        ingest.run(study)


def test_rows_without_an_image_are_counted(tmp_path):
    table = IDS.replace("0001", "1") + ",p9\n,p10\n,,\n"
    done = ingest.run(_study(tmp_path, FILES, table, positive_class="b"))
    assert "2 rows of table.csv left out: column image is empty" in done.remarks


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            "image,patient_id,dx\n1.png,p1,x\n2.png,p2,\n",
            r"has to name at least two classes; found: x\.",
        ),
        (
            "image,patient_id,dx\n" + "\n".join(f"{n}.png,p{n},age {n}" for n in range(101)),
            "holds 101 different values, as 'age 0', 'age 1', 'age 10', and 98 more",
        ),
    ],
)
def test_a_column_that_holds_no_classes_is_refused(tmp_path, table, text):
    columns = {"file": "table.csv", "label": "dx"}
    study = _study(tmp_path, ["1.png", "2.png"], table, table=columns, positive_class="x")
    with pytest.raises(DataError, match=text):
        ingest.run(study)


@pytest.mark.parametrize(
    ("yes", "no"),
    [("1.00", "0.00"), ('"1,0"', '"0,0"'), ("TRUE", "FALSE"), ("WAHR", "FALSCH"), ("oui", "non")],
)
def test_flags_of_other_programs_and_languages(tmp_path, yes, no):
    text = f"image,mel,nv\na/1.png,{yes},{no}\na/2.png,{no},{yes}\n"
    columns = {"file": "table.csv", "label": ["mel", "nv"]}
    done = ingest.run(_study(tmp_path, FILES[:2], text, table=columns, positive_class="mel"))
    assert list(_column(done, "class_name").values()) == ["mel", "nv"]


def test_a_class_of_which_no_row_has_a_file_is_refused(tmp_path):
    text = "image,dx\na/1.png,x\na/2.png,y\nTotal,2\n"
    columns = {"file": "table.csv", "label": "dx"}
    study = _study(tmp_path, FILES[:2], text, table=columns, positive_class="x")
    with pytest.raises(DataError, match=r"names the class 2 in 1 row, .* the first: 'Total'"):
        ingest.run(study)


def test_a_selection_keeps_a_value_in_any_spelling(tmp_path):
    text = "image,2,sex,age\na/1.png,x,M,50\na/2.png,y,m ,50.0\nb/1.png,x,F,50\nb/2.png,y,M,60\n"
    columns = {"file": "table.csv", "label": 2}
    settings = {"columns": ["sex", "age"], "only": {"sex": "m", "age": 50}}
    study = _study(tmp_path, FILES[:4], text, table=columns, positive_class="x", **settings)
    done = ingest.run(study)
    assert list(done.manifest.table["image_id"]) == ["a/1.png", "a/2.png"]
    assert done.summary.not_selected == 2


def test_labels_that_folders_contradict_are_said(tmp_path):
    files = ["x/1.png", "x/2.png", "y/3.png", "y/4.png"]
    text = "image,dx\n1.png,x\n2.png,y\n3.png,y\n4.png,x\n"
    columns = {"file": "table.csv", "label": "dx"}
    done = ingest.run(_study(tmp_path, files, text, table=columns, positive_class="x"))
    assert list(_column(done, "class_name").values()) == ["x", "y", "y", "x"]
    assert any(
        "2 files in a folder called like another class than table.csv gives" in remark
        and "the first: x/2.png (y), y/4.png (x)" in remark
        for remark in done.remarks
    )


def test_an_error_tells_by_which_encoding_the_table_was_read(tmp_path):
    text = "image,dx\na/1.png,рак\na/2.png,норма\n"
    columns = {"file": "table.csv", "label": "dx"}
    study = _study(tmp_path, FILES[:2], text, table=columns, positive_class="рак")
    (study.raw / "table.csv").write_bytes(text.encode("cp1251"))
    with pytest.raises(
        ConfigError, match=r"There is no class 'рак'.*read as Windows-1252.*save it as UTF-8"
    ):
        ingest.run(study)


def test_class_names_in_several_spellings_are_one_class_and_said(tmp_path):
    table = "image,patient_id,dx\na/1.png,p1,Mel\na/2.png,p2,mel\nb/1.png,p3, mel \nb/2.png,p4,nv\n"
    columns = {"file": "table.csv", "label": "dx"}
    done = ingest.run(_study(tmp_path, FILES, table, table=columns, positive_class="mel"))
    assert done.summary.by_class["mel"].images == 3
    assert "class names in table.csv that mean one class: 'Mel' is 'mel' (1 row)" in done.remarks


def test_patients_that_are_folders_follow_the_same_rules(tmp_path):
    files = ["a/P01/1.png", "a/p1/2.png", "b/P02/3.png", "b/unknown/4.png"]
    settings = {"table": None, "positive_class": "b", "patient_folder": "below"}
    with pytest.raises(DataError, match=r"In the folders below .*'P01' and 'p1'"):
        ingest.run(_study(tmp_path, files, "", **settings))
    done = ingest.run(_study(tmp_path, files, "", **settings, aliases={"p1": "P01"}))
    assert list(_column(done, "patient_id").values()) == ["P01", "P01", "P02"]
    assert _reasons(done) == {
        "b/unknown/4.png": "not recognised: the folder below that of the class names no patient"
    }
