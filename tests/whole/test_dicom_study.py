"""A study of DICOM films, from the raw folder to a registered model that answers to DICOM bytes."""

import shutil
from pathlib import Path

import imagecodecs
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient

from conftest import REPO
from equipoise import cli
from equipoise.core.records import Manifest
from fabricate.dicom import JPEG_2000, JPEG_LOSSLESS, PLAIN, WHITE, dicom_bytes

SIZE_PX = 64
PATIENTS = 36
NAME = "equipoise-films"
PACKINGS = (PLAIN, JPEG_2000, JPEG_LOSSLESS)


def _film(seed: int, is_sick: bool) -> np.ndarray:
    """12 bits of grey, uint16 (SIZE_PX, SIZE_PX): a chest of its own exposure, with or without a disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / SIZE_PX
    film = 0.35 + 0.25 * np.cos(6 * x + rng.normal()) * np.sin(5 * y) + rng.normal(0, 0.05)
    if is_sick:
        film += 0.3 * (np.hypot(x - rng.uniform(0.3, 0.7), y - 0.5) < 0.18)
    film += rng.normal(0, 0.03, film.shape)
    return np.rint(film.clip(0, 1) * WHITE).astype(np.uint16)


def _draw(raw) -> None:
    """Films of every packing and of both photometric interpretations, some of several frames."""
    for patient in range(PATIENTS):
        is_sick = patient % 3 == 0
        folder = raw / ("sick" if is_sick else "well")
        folder.mkdir(parents=True, exist_ok=True)
        film = _film(patient, is_sick)
        frames = [film]
        photometric = "MONOCHROME2"
        if patient % 4 == 1:
            photometric = "MONOCHROME1"
            frames = [WHITE - film]
        if patient % 10 == 5:
            frames.append(np.zeros_like(film))
        content = dicom_bytes(
            frames,
            PACKINGS[patient % 3],
            PhotometricInterpretation=photometric,
            PatientID=f"P{patient}",
            PatientName="Doe^Jane",
            ViewPosition="PA",
        )
        (folder / f"{patient:03d}.dcm").write_bytes(content)
    (raw / "sick" / "nobody.dcm").write_bytes(dicom_bytes(_film(900, True)))


def _params() -> dict:
    params = yaml.safe_load((REPO / "params.yaml").read_text(encoding="utf-8"))
    params["run"] = {
        "studies": ["films"],
        "backbones": ["mobilenetv2"],
        "scenarios": ["baseline", "class_weight"],
    }
    films = {section: {} for section in params["studies"]["demo"]}
    films["ingest"] = {"dataset": "folder", "positive_class": "sick"}
    films["split"] = {"folds": 2, "repeats": 1}
    films["embed"] = {"weights": "random", "image_size_px": SIZE_PX, "views": 0}
    films["tune"] = {"trials": 3, "inner_folds": 2, "batch_trials": 3, "gain_resamples": 20}
    films["calibrate"] = {"min_patients": 3}
    films["compare"] = {"resamples": 100, "permutations": 20}
    params["studies"] = {"films": films}
    return params


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A root in which every stage has run and the winner is registered."""
    folder = tmp_path_factory.mktemp("films")
    shutil.copy(REPO / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(_params(), sort_keys=False))
    _draw(folder / "data/raw/films")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EQUIPOISE_KEY", str(tmp_path_factory.mktemp("keys") / "key"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        backbone = ("--backbone", "mobilenetv2")
        for verb, *options in (
            ("ingest",),
            ("split",),
            ("embed", *backbone),
            ("scenario", *backbone, "--scenario", "baseline"),
            ("scenario", *backbone, "--scenario", "class_weight"),
            ("compare",),
            ("register",),
        ):
            assert cli.main([verb, "--study", "films", *options]) == 0, verb
        yield folder


@pytest.fixture(scope="module")
def model(films):
    return mlflow.pyfunc.load_model(f"models:/{NAME}@challenger")


def test_the_manifest_has_one_white_and_hides_the_patients(films):
    manifest = Manifest.read(films / "data/manifest/films.parquet")
    assert len(manifest.table) == PATIENTS
    assert manifest.grey_scale.white == WHITE
    assert manifest.table["patient_id"].nunique() == PATIENTS
    assert not manifest.table["patient_id"].str.match(r"P\d").any()
    assert set(manifest.table["view"]) == {"PA"}
    quarantined = pd.read_csv(films / "data/manifest/films.quarantine.csv")
    assert len(quarantined) == 1
    assert "PatientID" in quarantined["reason"].iloc[0]
    everything = b"".join(path.read_bytes() for path in films.rglob("manifest/*"))
    assert b"Doe" not in everything


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_film_as_png_and_as_dicom_gets_one_answer(model, packing):
    new = [_film(seed, is_sick=seed % 2 == 0) for seed in range(500, 506)]
    as_png = [imagecodecs.png_encode(film) for film in new]
    as_dicom = [dicom_bytes(film, packing) for film in new]
    inverted = [
        dicom_bytes(WHITE - film, packing, PhotometricInterpretation="MONOCHROME1") for film in new
    ]
    answers = [
        model.predict(pd.DataFrame({"image": contents}))["prob_sick"].to_numpy()
        for contents in (as_png, as_dicom, inverted)
    ]
    assert answers[0].std() > 1e-3
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    np.testing.assert_allclose(answers[2], answers[0], atol=1e-5)


def test_predict_reads_a_folder_of_dicom_and_says_what_is_odd(films, tmp_path):
    film = _film(700, True)
    (tmp_path / "a.dcm").write_bytes(dicom_bytes([film, film], BurnedInAnnotation="YES"))
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(film))
    (tmp_path / "c.png").write_bytes(imagecodecs.png_encode(film * 16))
    out = tmp_path / "answers.csv"
    model = f"models:/{NAME}@challenger"
    cli.main(["predict", "--model", model, "--out", str(out), str(tmp_path)])
    table = pd.read_csv(out).set_index("image").rename(index=lambda path: path[-5:])
    assert table.loc["a.dcm", "flags"] == "frames burned-in"
    assert table.loc["a.dcm", "prob_sick"] == pytest.approx(
        table.loc["b.png", "prob_sick"], abs=1e-5
    )
    assert "white is 4,095" in table.loc["c.png", "error"]


def test_the_version_brings_the_scale_and_what_reads_dicom(model):
    version = MlflowClient().get_model_version_by_alias(NAME, "challenger")
    place = f"{version.tags['equipoise.folder']}/registered.json"
    kept = mlflow.artifacts.load_dict(f"runs:/{version.run_id}/{place}")
    assert kept["served_difference"] < 1e-5
    assert model.unwrap_python_model().predictor.embedder.scale.white == WHITE
    requirements = Path(mlflow.pyfunc.get_model_dependencies(version.source))
    named = {line.split("==")[0] for line in requirements.read_text().splitlines()}
    assert {"pydicom", "pylibjpeg", "tifffile", "imagecodecs"} <= named
