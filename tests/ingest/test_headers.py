"""A folder of DICOM files: patients and columns out of the headers, hashed, and nothing left out in silence."""

import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml

from equipoise.core import config, dicom, images
from equipoise.core.errors import ConfigError, DataError
from equipoise.ingest import fingerprint, headers, originals
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import chest_xray
from equipoise.ingest.datasets.base import Dataset
from equipoise.ingest.summary import summary_text
from fabricate.dicom import JPEG_2000, WHITE, dicom_bytes, with_private_tag

ROOT = Path(__file__).resolve().parents[2]
FILM = {"Modality": "DX", "Manufacturer": "Acme", "ManufacturerModelName": "Ray 1"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_KEY", str(tmp_path.parent / f"{tmp_path.name}.key"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def _grey(seed):
    return np.random.default_rng(seed).integers(0, WHITE + 1, (32, 32)).astype(np.uint16)


def _put(root, name, content):
    path = root / "data/raw/own" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _study(root, **settings):
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    own = {section: {} for section in params["studies"]["demo"]}
    own["ingest"] = {"dataset": "folder", "positive_class": "sick"}
    own["ingest"].update(settings)
    params["studies"]["own"] = own
    return config.load_study("own", params, root=root)


def _put_patients(root):
    """Two films of each of four patients."""
    seed = 0
    for class_name, patients in (("well", ("Alder1", "Alder2")), ("sick", ("Birch1", "Birch2"))):
        for patient in patients:
            for side, view in (("L", "PA"), ("R", "LL")):
                seed += 1
                content = dicom_bytes(
                    _grey(seed), PatientID=patient, ImageLaterality=side, ViewPosition=view, **FILM
                )
                _put(root, f"{class_name}/{patient}{side}.dcm", content)


def test_patients_and_columns_come_from_the_headers(root):
    _put_patients(root)
    done = ingest.run(_study(root, pseudonymise=False))
    table = done.manifest.table.set_index("image_id")
    assert table["patient_id"].to_dict() == {
        image_id: image_id.split("/")[1][:6] for image_id in table.index
    }
    row = table.loc["sick/Birch2R.dcm"]
    assert (row["laterality"], row["view"], row["acquisition"]) == ("R", "LL", "DX Acme Ray 1")
    assert done.summary.patient_ids
    assert done.summary.patients == 4


def test_ids_are_hashed_unless_somebody_says_no(root):
    _put_patients(root)
    study = _study(root)
    done = ingest.run(study)
    assert done.manifest.table["patient_id"].nunique() == 4
    summary = study.manifest_path.with_suffix(".json").read_text(encoding="utf-8")
    for text in (done.manifest.table.to_csv(), summary):
        assert "Alder" not in text
        assert "Birch" not in text
    places = pd.read_csv(study.places_path, dtype=str).set_index("image_id")
    assert sorted(places["patient"].unique()) == ["Alder1", "Alder2", "Birch1", "Birch2"]
    assert originals.locate(study, done.manifest) == places["path"].to_dict()


def test_a_film_without_a_patient_is_left_out_where_others_have_one(root):
    _put_patients(root)
    _put(root, "sick/nobody.dcm", dicom_bytes(_grey(90)))
    _put(root, "sick/empty.dcm", dicom_bytes(_grey(91), PatientID=""))
    done = ingest.run(_study(root, pseudonymise=False))
    reasons = {item.image_id: item.reason for item in done.quarantined}
    assert sorted(reasons) == ["sick/empty.dcm", "sick/nobody.dcm"]
    assert "PatientID" in reasons["sick/nobody.dcm"]
    assert "ingest.table" in reasons["sick/nobody.dcm"]


def test_what_is_no_picture_is_left_out_for_that_and_not_for_its_patient(root):
    _put_patients(root)
    _put(root, "sick/empty.dcm", b"")
    _put(root, "sick/pointer.dcm", b"version https://git-lfs.github.com/spec/v1\n")
    done = ingest.run(_study(root, pseudonymise=False))
    reasons = {item.image_id: item.reason for item in done.quarantined}
    assert reasons["sick/empty.dcm"] == "unreadable: the file is empty"
    assert "git lfs pull" in reasons["sick/pointer.dcm"]


def _put_film_of(root, patient_id):
    """One more film, of a patient as some secretary typed it."""
    seed = sum(patient_id.encode())
    _put(root, f"sick/{seed}.dcm", dicom_bytes(_grey(seed), PatientID=patient_id))


def test_one_patient_under_two_spellings_is_refused_until_it_is_decided(root):
    _put_patients(root)
    for patient_id in ("0017", "17"):
        _put_film_of(root, patient_id)
    with pytest.raises(DataError, match=r"PatientID .* '0017' and '17'.*ingest\.aliases"):
        ingest.run(_study(root, pseudonymise=False))
    done = ingest.run(_study(root, pseudonymise=False, aliases={"17": "0017"}))
    patients = done.manifest.table["patient_id"]
    assert sorted(patients.unique()) == ["0017", "Alder1", "Alder2", "Birch1", "Birch2"]
    assert (patients == "0017").sum() == 2


def test_a_word_for_missing_is_no_patient(root):
    _put_patients(root)
    for patient_id in ("unknown", "N/A"):
        _put_film_of(root, patient_id)
    done = ingest.run(_study(root, pseudonymise=False))
    assert done.summary.patients == 4
    assert len(done.quarantined) == 2
    assert all("PatientID" in item.reason for item in done.quarantined)


def test_an_alias_of_nobody_is_refused(root):
    _put_patients(root)
    with pytest.raises(ConfigError, match="'Elm5', which is no id of PatientID"):
        ingest.run(_study(root, aliases={"Elm5": "Birch1"}))


def test_without_any_patient_every_film_counts_as_one(root):
    for number in range(4):
        _put(root, f"{'well' if number % 2 else 'sick'}/{number}.dcm", dicom_bytes(_grey(number)))
    done = ingest.run(_study(root, pseudonymise=False))
    assert not done.summary.patient_ids
    assert done.summary.patients == 4


def test_a_table_goes_before_the_headers(root):
    _put_patients(root)
    lines = ["image,patient_id,view"]
    for class_name in ("well", "sick"):
        for path in sorted((root / "data/raw/own" / class_name).iterdir()):
            lines.append(f"{class_name}/{path.name},{class_name},table's")
    _put(root, "patients.csv", "\n".join(lines).encode())
    done = ingest.run(_study(root, pseudonymise=False, table="patients.csv", columns=["view"]))
    assert set(done.manifest.table["patient_id"]) == {"well", "sick"}
    assert set(done.manifest.table["view"]) == {"table's"}
    assert set(done.manifest.table["laterality"]) == {"L", "R"}


AGED = {"PatientSex": "F", "PatientAge": "047Y", "ImageType": ["DERIVED", "PRIMARY"]}


def test_fields_of_the_headers_become_columns_by_their_names(root):
    for number in range(6):
        name = f"{'well' if number % 2 else 'sick'}/{number}"
        _put(root, f"{name}.dcm", dicom_bytes(_grey(number), PatientID=f"Elm{number}", **AGED))
    _put(root, "well/plain.png", imagecodecs.png_encode(_grey(50)))
    lines = ["image,patient_id,PatientAge"]
    for path in sorted((root / "data/raw/own").glob("*/*")):
        lines.append(f"{path.parent.name}/{path.name},{path.stem},47")
    _put(root, "people.csv", "\n".join(lines).encode())
    columns = list(AGED)
    of_headers = ingest.run(_study(root, pseudonymise=False, columns=columns)).manifest.table
    assert set(of_headers["ImageType"]) == {"DERIVED\\PRIMARY"}
    of_both = ingest.run(_study(root, pseudonymise=False, columns=columns, table="people.csv"))
    table = of_both.manifest.table.set_index("image_id")
    assert table.loc["sick/0.dcm", columns].tolist() == ["F", "47", "DERIVED\\PRIMARY"]
    assert table.loc["well/plain.png", columns].tolist() == ["", "47", ""]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("PatientName", "may name a person"),
        ("PatientBirthDate", "may name a person"),
        ("StudyInstanceUID", "may name a person"),
        ("AdditionalPatientHistory", "may name a person"),
        ("PixelData", "neither a text nor a number"),
        ("ReferencedImageSequence", "neither a text nor a number"),
        ("Patientsex", "no field of DICOM headers"),
    ],
)
def test_a_field_that_names_a_person_or_is_none_is_no_column(root, name, why):
    _put_patients(root)
    with pytest.raises(
        ConfigError, match=f"ingest.columns names '{name}', which is .*{why}.*or leave it out"
    ):
        ingest.run(_study(root, columns=[name]))


def test_a_field_where_no_file_is_dicom_is_no_column(root):
    for number in range(4):
        name = f"{'well' if number % 2 else 'sick'}/{number}.png"
        _put(root, name, imagecodecs.png_encode(_grey(number)))
    with pytest.raises(ConfigError, match=r"PatientSex', which is a field .* no file is DICOM"):
        ingest.run(_study(root, columns=["PatientSex"]))


def test_a_published_dataset_has_the_columns_that_its_headers_have(root):
    for number in range(8):
        name = f"BACTERIA-{number}-0001" if number % 2 else f"NORMAL-{number}-0001"
        folder = "PNEUMONIA" if number % 2 else "NORMAL"
        _put(root, f"train/{folder}/{name}.dcm", dicom_bytes(_grey(number), PatientSex="M"))
    settings = {"dataset": "chest_xray", "positive_class": None}
    table = ingest.run(_study(root, columns=["PatientSex"], **settings)).manifest.table
    assert set(table["PatientSex"]) == {"M"}
    with pytest.raises(ConfigError, match="'age', which dataset 'chest_xray' does not have"):
        ingest.run(_study(root, columns=["age"], **settings))


def test_a_manifest_without_its_dicom_files_is_made_again_when_pydicom_is_there(root, monkeypatch):
    _put_patients(root)
    for number in range(4):
        name = f"{'well' if number % 2 else 'sick'}/{number}.png"
        _put(root, name, imagecodecs.png_encode(_grey(number)))
    study = _study(root)
    with monkeypatch.context() as patch:
        patch.setattr(dicom, "is_installed", lambda: False)
        patch.setattr(images, "SUFFIXES", images.SUFFIXES - dicom.SUFFIXES)
        without = ingest.run(study)
        assert without.summary.left_out == {".dcm without pydicom": 8}
        fingerprint.require_current(study, without.manifest)
    with pytest.raises(DataError, match=r"8 DICOM files could not be read.*equipoise\[dicom\]"):
        fingerprint.require_current(study, without.manifest)
    assert fingerprint.change(study, ingest.run(study).manifest) == ""


def test_a_manifest_without_compressed_films_is_made_again_when_they_can_be_unpacked(
    root, monkeypatch
):
    _put_patients(root)
    _put(root, "sick/packed.dcm", dicom_bytes(_grey(70), JPEG_2000, PatientID="Cedar3"))
    study = _study(root, pseudonymise=False)

    def without_openjpeg(header, index, complete=pydicom.pixels.pixel_array):
        if header.file_meta.TransferSyntaxUID == JPEG_2000:
            raise RuntimeError("Unable to decompress: missing dependencies")
        return complete(header, index=index)

    with monkeypatch.context() as patch:
        patch.setattr(dicom, "unpacks_all", lambda: False)
        patch.setattr(pydicom.pixels, "pixel_array", without_openjpeg)
        without = ingest.run(study)
        assert "pip install 'equipoise[dicom]'" in without.quarantined[0].reason
        assert fingerprint.change(study, without.manifest) == ""
    assert "1 DICOM file could not be read then" in fingerprint.change(study, without.manifest)
    assert len(ingest.run(study).manifest.table) == 9


def test_findings_about_frames_and_what_may_name_a_person_are_printed(root):
    _put_patients(root)
    frames = [_grey(80), _grey(81)]
    _put(root, "sick/cine.dcm", dicom_bytes(frames, PatientID="Cedar3"))
    burned = dicom_bytes(_grey(82), PatientID="Cedar4", BurnedInAnnotation="YES")
    _put(root, "sick/burned.dcm", with_private_tag(burned))
    done = ingest.run(_study(root))
    said = summary_text(done.summary, done.quarantined)
    assert "1 with several frames, of which the first is read" in said
    assert "1 with text burned into the picture (BurnedInAnnotation)" in said
    assert "1 with private DICOM tags" in said
    assert "4,096 grey levels in 10 files of more than 8 bits: scaled by 4,095" in said


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("train/PNEUMONIA/person7_virus_12.dcm", "person7"),
        ("train/PNEUMONIA/VIRUS-1008087-0001.dcm", "1008087"),
    ],
)
def test_kermanys_names_are_read_with_the_ending_of_dicom(tmp_path, name, person):
    content = dicom_bytes(_grey(1), ViewPosition="AP", PatientID="somebody")
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    published = Dataset(chest_xray.CARD, chest_xray.parse)
    settings = config.Ingest(**config.read_params(ROOT)["defaults"]["ingest"])
    dataset = headers.add_headers(published, tmp_path, [name], settings)
    parsed = dataset.parse(Path(name))
    assert parsed.patients["person"] == person
    assert (parsed.class_name, parsed.columns["view"]) == ("virus", "AP")
