"""Exported models answer as the served ones; onnxruntime is the judge of the ONNX files."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from equipoise import cli
from equipoise.core.config import load_study
from equipoise.core.documents import Calibration, ServedModel
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest
from equipoise.embed import imported
from equipoise.scenario import artifact
from equipoise.scenario.finetuning import network
from equipoise.scenario.heads.head import HEAD, Head
from equipoise.scenario.heads.rows import Standardiser
from equipoise.service.answers import Answers
from equipoise.service.predictor import Predictor
from equipoise.use import model_export

MODEL = "models:/equipoise-demo@challenger"
SIZE_PX = 32


def head(features: np.ndarray, num_classes: int) -> Head:
    """A head with weights of the size that fitted ones have, for features like these."""
    rng = np.random.default_rng(4)
    kept = np.arange(1, features.shape[1])  # the first feature counts as dead
    coefficients = rng.normal(size=(len(kept), num_classes))
    coefficients[:, 0] = 0.0
    scale = features.std(axis=0)[1:] + 0.1
    standardiser = Standardiser(kept, features.mean(axis=0)[1:], scale)
    return Head(standardiser, coefficients, np.zeros(num_classes), 0.0)


def described(folder: Path, classes: list[str], **changes) -> ServedModel:
    """model.json of a small model with a calibrator that moves every probability."""
    fields = {
        "backbone": "tiny",
        "weights": "random",
        "weights_digest": "0" * 64,
        "image_size_px": SIZE_PX,
        "pipeline": "pillow-rgb8/antialias-bilinear/1",
        "num_features": 6,
        "classes": classes,
        "positive_class": classes[-1],
        "calibrator": Calibration(slope=0.6, biases=[0.0, 0.4, -0.3][: len(classes)], reason=""),
        "threshold": 0.6 if len(classes) == 2 else None,
        "evidence": "made for a test",
    }
    description = ServedModel(**(fields | changes))
    description.write(folder / "model.json")
    return description


def image_model(folder: Path, classes: list[str]) -> Path:
    """A small network with what tripped the export: flipped channels, a bias, two slices, float64 at the end."""
    folder.mkdir()
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3), name="pixels")
    scaled = keras.applications.vgg16.preprocess_input(pixels)
    grown = keras.layers.Conv2D(6, 5, strides=3, activation="relu")(scaled * 0.01)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(grown))
    backbone = keras.Model(pixels, pooled)
    solved = head(np.asarray(backbone(pictures(40)), dtype=float), len(classes))
    network.with_head(backbone, solved).save(folder / "model.keras")
    described(folder, classes)
    return folder


def vector_model(folder: Path, classes: list[str]) -> Path:
    folder.mkdir()
    described(folder, classes, weights=imported.WEIGHTS, pipeline=imported.WEIGHTS)
    head(vectors(40).astype(float), len(classes)).save(folder / HEAD)
    return folder


def run_onnx(file: Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file))
    (given,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {given.name: inputs})))


def pictures(number: int) -> np.ndarray:
    rng = np.random.default_rng(9)
    flat = rng.integers(0, 256, size=(number, 1, 1, 3)) + np.zeros((1, SIZE_PX, SIZE_PX, 1))
    noise = rng.normal(scale=20, size=(number, SIZE_PX, SIZE_PX, 3))
    return np.clip(flat + noise, 0, 255).astype(np.float32)


def vectors(number: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(number, 6)).astype(np.float32)


@pytest.mark.parametrize("classes", [["clear", "opacity"], ["a", "b", "c"]], ids=len)
@pytest.mark.parametrize("layout", ["onnx", "saved_model"])
def test_pixels_are_answered_as_they_are_served(tmp_path, layout, classes):
    parts = image_model(tmp_path / "parts", classes)
    lines = model_export._export(parts, "a model", layout, tmp_path / "out")
    file = tmp_path / "out" / model_export.FILES[layout]
    inputs = pictures(40)
    if layout == "onnx":
        written = run_onnx(file, inputs)
    else:
        loaded = tf.saved_model.load(str(file))
        written = {name: value.numpy() for name, value in loaded.serve(inputs).items()}
    served = Predictor(parts).answers(list(inputs))
    for output, prefix in (("calibrated", "prob"), ("raw", "raw")):
        expected = served[[f"{prefix}_{name}" for name in classes]].to_numpy()
        np.testing.assert_allclose(written[output], expected, atol=1e-4, rtol=0)
    assert np.array_equal(written["label"], served["label"])
    assert len(set(served["label"])) > 1
    assert np.abs(written["raw"] - written["calibrated"]).max() > 0.01
    assert str(file) in lines[0]


def test_vectors_are_answered_without_a_picture(tmp_path):
    parts = vector_model(tmp_path / "parts", ["benign", "malignant"])
    model_export._export(parts, "a model", "onnx", tmp_path / "out")
    inputs = vectors(50)
    written = run_onnx(tmp_path / "out/model.onnx", inputs)
    answers = Answers.of(ServedModel.read(parts / "model.json"))
    expected = answers.table(Head.load(parts / HEAD).logits(inputs))
    np.testing.assert_allclose(written["calibrated"][:, 1], expected["prob_malignant"], atol=1e-6)
    assert np.array_equal(written["label"], expected["label"])


def test_the_file_says_what_goes_in_and_what_comes_out(tmp_path):
    parts = image_model(tmp_path / "parts", ["clear", "opacity"])
    model_export._export(parts, "models:/equipoise-demo/3", "onnx", tmp_path / "out")
    note = json.loads((tmp_path / "out/export.json").read_text())
    model = onnx.load(tmp_path / "out/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (given,) = model.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert (given.name, shape) == ("pixels", ["batch", SIZE_PX, SIZE_PX, 3])
    assert note["opset"] == model.opset_import[0].version
    assert note["source"] == "models:/equipoise-demo/3"
    assert note["largest_difference"] < 1e-6
    props = {item.key: item.value for item in model.metadata_props}
    assert set(props) == set(note)
    assert json.loads(props["classes"]) == note["classes"] == ["clear", "opacity"]
    assert float(props["threshold"]) == 0.6


# --- the verb -------------------------------------------------------------------------------------


def test_a_registered_version_is_exported(workspace, capfd):
    assert cli.main(["--root", str(workspace), "export", "--layout", "onnx", "--model", MODEL]) == 0
    said = capfd.readouterr()
    assert "input pixels: float32 (batch, 48, 48, 3), RGB 0..255" in said.out
    assert said.err == ""
    folder = workspace / "exports/equipoise-demo/onnx-version1"
    study = load_study("demo", root=workspace)
    scenario = json.loads((workspace / "reports/demo/comparison.json").read_text())["winners"][
        "vgg16"
    ]
    parts = artifact.save(study, "vgg16", study.result_path("vgg16", scenario), folder / "parts")
    predictor = Predictor(parts)
    table = Manifest.read(study.manifest_path).table
    pixels = predictor.pixels([study.raw / path for path in table["path"][:12]])
    written = run_onnx(folder / "model.onnx", np.stack(pixels))
    expected = predictor.answers(pixels)["prob_opacity"]
    np.testing.assert_allclose(written["calibrated"][:, 1], expected, atol=1e-4)
    again = ["--root", str(workspace), "export", "--layout", "onnx", "--model", MODEL]
    assert cli.main(again) == 1
    assert "never replaces anything" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layout", "onnx"], "writes one model"),
        (["--layout", "onnx", "--study", "demo"], "writes one model"),
        (["--layout", "onnx", "--model", MODEL, "--study", "demo"], "writes one model"),
        (["--layout", "saved_model", "--model", MODEL, "--copy"], "without --copy"),
        (["--layout", "csv"], "name one with --study"),
        (["--layout", "csv", "--study", "demo", "--model", MODEL], "no --model"),
        (["--layout", "onnx", "--model", "models:/equipoise-demo/77"], "There is no models:/"),
        (["--layout", "onnx", "--model", "mlartifacts"], "name the folder to make with --to"),
        (
            ["--layout", "onnx", "--study", "demo", "--backbone", "vgg16", "--scenario", "focal"],
            "holds no model. Run `equipoise scenario`",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(workspace, capsys, options, said):
    assert cli.main(["--root", str(workspace), "export", *options]) in (1, 2)
    assert said in capsys.readouterr().err


def test_without_the_packages_it_says_what_to_install(workspace, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else there(name)
    )
    study = load_study("demo", root=workspace)
    with pytest.raises(ConfigError, match=r"lacks tf2onnx. Run `pip install 'equipoise\[onnx\]'`"):
        model_export.export_result(study, "vgg16", "baseline", "onnx")


def test_a_network_that_answers_something_else_is_not_left_behind(tmp_path, monkeypatch):
    parts = vector_model(tmp_path / "parts", ["benign", "malignant"])

    def other(file, name, inputs):
        half = np.full((len(inputs), 2), 0.5)
        return {"raw": half, "calibrated": half}

    monkeypatch.setattr(model_export, "_run_onnx", other)
    with pytest.raises(DataError, match="so nothing was written"):
        model_export._export(parts, "a model", "onnx", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]


def test_an_operation_that_onnx_lacks_is_a_sentence(tmp_path, monkeypatch):
    parts = image_model(tmp_path / "parts", ["a", "b", "c"])
    monkeypatch.setattr(tf, "argmax", lambda values, axis: tf.bitcast(values[:, 0], tf.int64))
    with pytest.raises(DataError, match=r"Bitcast.*Try --layout saved_model"):
        model_export._export(parts, "a model", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layer_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    parts = vector_model(tmp_path / "parts", ["benign", "malignant"])

    def refuse(*_, **__):
        raise NotImplementedError("no such operation\nin onnx")

    monkeypatch.setattr(keras.Model, "export", refuse)
    with pytest.raises(DataError, match=r"as onnx \(NotImplementedError: no such operation\)"):
        model_export._export(parts, "a model", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
