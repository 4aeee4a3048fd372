"""Grad-CAM against the closed form and finite differences, on drawn opacities, and through `explain`."""

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from conftest import REPO
from equipoise import cli
from equipoise.compare import card, gradcam, results
from equipoise.compare.report.mistakes import mistakes
from equipoise.core import config, documents, files, images, records
from equipoise.core.errors import ConfigError, DataError, EquipoiseError
from equipoise.embed import backbones
from equipoise.embed.embedder import PIPELINE, Embedder
from equipoise.ingest.datasets import phantom
from equipoise.registry import models
from equipoise.scenario import artifact
from equipoise.scenario.finetuning import network
from equipoise.scenario.heads import head, rows
from equipoise.service import predictor as model
from equipoise.strategies import base
from fabricate import made


def a_head(num_features: int, classes: int = 2, seed: int = 0) -> head.Head:
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.choice(num_features, num_features // 2, replace=False))
    standardiser = rows.Standardiser(
        kept, rng.normal(size=len(kept)), rng.uniform(0.5, 2, len(kept))
    )
    coefficients = rng.normal(size=(len(kept), classes))
    if classes == 2:
        coefficients[:, 0] = 0
    return head.Head(standardiser, coefficients, rng.normal(size=classes), 0.0)


def built(name: str, size_px: int, classes: int = 2):
    plain = backbones.build(name, "random", size_px)
    solved = a_head(plain.output_shape[-1], classes)
    return plain, solved, network.with_head(plain, solved)


def noise(size_px: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (count, size_px, size_px, 3)).astype(np.float32)


CASES = [
    (name, 64 if name == "densenet201" else 224, 2)
    for name in ("densenet201", "mobilenetv2", "vgg16")
] + [("vgg16", 64, 3)]


@pytest.mark.parametrize(("name", "size_px", "classes"), CASES)
def test_on_the_last_map_it_is_grad_cam_in_closed_form(name, size_px, classes):
    # Behind average pooling and a linear head Grad-CAM is CAM (Zhou et al. 2016): no derivative is needed.
    import keras

    side = 2 if size_px == 64 else gradcam.PLACES  # 64 px for speed
    plain, solved, whole = built(name, size_px, classes)
    pooling = [
        layer for layer in plain.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)
    ]
    image = noise(size_px)
    maps = keras.Model(plain.input, pooling[0].input)(image).numpy()[0].astype(float)
    cam = gradcam.GradCam(whole, places=side)
    for label in range(classes):
        weights = np.zeros(maps.shape[-1])
        columns = solved.coefficients
        rivals = np.delete(columns, label, axis=1).mean(axis=1)
        weights[solved.standardiser.kept] = (columns[:, label] - rivals) / solved.standardiser.scale
        expected = np.maximum(maps @ weights, 0)
        found = cam.heat_map(image[0], label, side, side)
        assert expected.any() == found.any()
        np.testing.assert_allclose(found, expected / max(expected.max(), 1e-300), atol=1e-4)


def test_on_small_images_the_map_is_the_logits_loss_as_places_fade():
    import keras

    _, _, whole = built("vgg16", 64)
    layer = whole.get_layer("block4_conv3")
    image, step = noise(64), 1e-3
    maps = keras.Model(whole.input, layer.output)(image).numpy()
    rest = keras.Model(layer.output, whole.output)
    faded = np.repeat(maps, 128, axis=0)
    for place in range(64):
        faded[place, place // 8, place % 8] *= 1 + step
        faded[64 + place, place // 8, place % 8] *= 1 - step
    logits = rest.predict(faded, verbose=0)[:, 1]
    expected = np.maximum((logits[:64] - logits[64:]) / (2 * step), 0).reshape(8, 8)
    found = gradcam.GradCam(whole).heat_map(image[0], 1, 8, 8)
    # ReLU and max pooling bend within the step at a place or two.
    close = np.isclose(found, expected / expected.max(), atol=0.02)
    assert close.sum() >= 57
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97


def test_one_trace_serves_every_image_and_the_same_map_comes_twice():
    _, _, whole = built("vgg16", 64)
    cam, pictures = gradcam.GradCam(whole), noise(64, 3)
    first = [cam.heat_map(picture, label, 30, 20) for picture in pictures for label in (0, 1)]
    again = [cam.heat_map(picture, label, 30, 20) for picture in pictures for label in (0, 1)]
    assert cam.trace.experimental_get_tracing_count() == 1
    assert all(np.array_equal(one, other) for one, other in zip(first, again))
    for heat in first:
        assert heat.shape == (20, 30)
        assert heat.dtype == np.float32
        assert heat.min() >= 0
        assert heat.max() == 1


def test_a_class_that_nothing_speaks_for_gets_an_empty_map():
    plain = backbones.build("vgg16", "random", 64)
    solved = a_head(plain.output_shape[-1])
    against = head.Head(solved.standardiser, -np.abs(solved.coefficients), solved.intercepts, 0.0)
    cam = gradcam.GradCam(network.with_head(backbones.build("vgg16", "random", 224), against))
    assert not cam.heat_map(noise(224)[0], 1, 12, 10).any()
    assert cam.heat_map(noise(224)[0], 0, 12, 10).max() == 1


def test_frozen_and_mixed_precision_networks_have_maps_too():
    plain = backbones.build("vgg16", "random", 64, "/mixed-bfloat16")
    plain.trainable = False
    heat = gradcam.GradCam(network.with_head(plain, a_head(512))).heat_map(noise(64)[0], 1, 9, 9)
    assert np.isfinite(heat).all()
    assert heat.max() == 1


def test_the_map_points_at_the_planted_opacity_where_the_classifier_is_right(tmp_path):
    settings = config.load_study(
        "demo", made.params() | {"studies": config.read_params(REPO)["studies"]}
    )
    changes = {
        "patients": 110,
        "mean_images_per_patient": 2.0,
        "opacity_patient_fraction": 0.5,
        "opacity_contrast": 0.4,
    }
    settings = settings.settings.phantom.model_copy(update=changes)
    phantom.draw(tmp_path / "raw", settings)
    paths = [
        path
        for path in sorted((tmp_path / "raw").rglob("*_[0-9].png"))
        if "patient99" not in path.name
    ]
    numbers = np.array([[int(part) for part in path.stem[7:].split("_")] for path in paths])
    labels = np.array([path.parent.name == "opacity" for path in paths]).astype(int)
    train = numbers[:, 0] % 2 == 0
    plain = backbones.build("vgg16", "random", 64)
    embedder = Embedder(plain, 64)
    resized = np.stack([embedder.load(path) for path in paths])
    features = np.concatenate([embedder.features(batch) for batch in np.array_split(resized, 8)])
    solved = head.fit(
        *(features[train], labels[train], np.ones(train.sum()), base.Objective.neutral(2)),
        *(0.1, rows.Standardiser.fit(features[train])),
    )
    logits = solved.logits(features)[:, 1] - solved.logits(features)[:, 0]
    assert roc_auc_score(labels[~train], logits[~train]) > 0.8
    cam = gradcam.GradCam(network.with_head(plain, solved))
    y, x = (np.mgrid[0:64, 0:64] + 0.5) / 64
    gains, sides = [], []
    for place in np.flatnonzero(~train & (labels == 1) & (logits > 0)):
        heat = cam.heat_map(resized[place], 1, 64, 64)
        centre, height, radius = phantom.opacity_centre(*numbers[place], settings)
        disc, mirrored = (
            (x - at) ** 2 + (y - height) ** 2 <= radius**2 for at in (centre, 1 - centre)
        )
        gains.append(heat[disc].sum() / heat.sum() - disc.mean())
        sides.append((heat[disc].sum() - heat[mirrored].sum()) / heat.sum())
    assert len(gains) >= 30
    # The mass in the disc against its share of the area, and against the same disc in the other lung.
    for found in (gains, sides):
        assert stats.ttest_1samp(found, 0, alternative="greater").pvalue < 1e-4, np.mean(found)
    assert np.mean(gains) > 0.02


# --- explain ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> model.Predictor:
    folder = tmp_path_factory.mktemp("model")
    _, _, whole = built("mobilenetv2", 64)
    whole.save(folder / "model.keras")
    description = described_model("clear", "o$pacity", threshold=0.25)
    description.write(folder / "model.json")
    return model.Predictor(folder)


@pytest.fixture
def served(predictor, monkeypatch, tmp_path):
    class Loaded:
        metadata = None

        def unwrap_python_model(self):
            return self

    loaded = Loaded()
    loaded.predictor = predictor
    monkeypatch.setattr(models, "load", lambda uri, root: loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("{}")
    Image.fromarray(noise(64)[0].astype(np.uint8)).resize((90, 50)).save("film.png")
    return loaded


def test_explain_draws_what_predict_decides(served, capsys):
    assert cli.main(["explain", "film.png", "--model", "m", "-o", "deep/out.png"]) == 0
    row = served.predictor.predict([Path("film.png")]).iloc[0]
    said = capsys.readouterr().out
    assert (
        f"decision: {row['decision']}; calibrated probability of o$pacity: {row['prob_o$pacity']:.3f}"
        in said
    )
    assert "(threshold 0.250)" in said
    assert f"map: what speaks for {row['decision']}" in said
    assert images.decode(Path("deep/out.png")).std() > 10


def test_explained_map_is_of_the_image_and_the_class(served):
    found = {
        name: served.predictor.explain(Path("film.png"), name) for name in served.predictor.classes
    }
    for name, explained in found.items():
        assert explained.pixels.shape == (50, 90, 3)
        assert explained.heat.shape == (50, 90)
        assert f"for {name}" in explained.text
    assert not np.array_equal(found["clear"].heat, found["o$pacity"].heat)
    coloured = gradcam.overlay(found["clear"].pixels, np.zeros((50, 90), np.float32))
    assert np.array_equal(coloured, found["clear"].pixels)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["params.yaml"], 1, "not an image"),
        (["nowhere.png"], 1, "No such file"),
        (["film.png", "--class", "opacity"], 2, "Did you mean 'o$pacity'"),
        (["film.png", "-o", "out.gif"], 2, "PNG"),
        (["film.png", "-o", "."], 2, "PNG"),
    ],
)
def test_explain_refuses_in_a_sentence_and_leaves_nothing(served, capsys, words, code, said):
    before = sorted(path.name for path in Path().iterdir())
    assert cli.main(["explain", "--model", "m", *words]) == code
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == before


def test_explain_refuses_models_of_others(served, capsys):
    del served.predictor
    assert cli.main(["explain", "film.png", "--model", "m"]) == 2
    assert "no model of Equipoise" in capsys.readouterr().err


def test_explain_names_the_unknown_class_and_the_bad_bytes(predictor):
    with pytest.raises(ConfigError, match="no class 'x'"):
        predictor.explain(noise(64)[0].astype(np.uint8), "x")
    with pytest.raises(DataError, match="cannot identify image file"):
        predictor.explain(b"text")
    assert issubclass(DataError, EquipoiseError)


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_importable_without_tensorflow():
    code = "import sys; from equipoise.compare.report import mistakes; assert 'tensorflow' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, check=True, env={"PYTHONPATH": str(REPO / "src")}
    )


def test_the_most_confident_mistakes_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path)
    result = a_result(study)
    wrong, tested = card.wrongly_decided(result.predictions)
    winners = {made.BACKBONE: "baseline"}
    rng = np.random.default_rng(0)
    pictures = {
        name: rng.integers(0, 256, (300, 200, 3), dtype=np.uint8)
        for name in wrong["image_id"].head(3)
    }
    manifest = records.Manifest.read(study.manifest_path)
    for name, pixels in pictures.items():
        path = study.raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        manifest.table.loc[manifest.table["image_id"] == name, "sha256"] = files.file_digest(path)
    manifest.write(study.manifest_path)
    _plain, _solved, whole = built("vgg16", 64)
    described_model().write(study.result_path(made.BACKBONE, "baseline") / "model/model.json")
    monkeypatch.setattr(artifact, "assemble", lambda *_: whole)
    study = config.load_study("made", made.params(compare={"mistakes": 3}))
    drawn = mistakes(study, winners, [result])
    assert [entry.image_id for entry in drawn.entries] == list(pictures)
    assert f"{len(wrong)} of {tested} test images" in drawn.note
    for entry, row in zip(drawn.entries, wrong.itertuples()):
        assert entry.truth == manifest.classes[row.truth]
        assert entry.decided == manifest.classes[row.decided]
        for uri in (entry.picture, entry.overlay):
            assert images.decode(base64.b64decode(uri.split(",")[1])).shape == (224, 149, 3)
        assert len(entry.picture) + len(entry.overlay) < 60_000
    one, other, _ = sorted(study.raw.rglob("*.png"))
    one.write_bytes(b"another")
    changed = mistakes(study, winners, [result])
    assert changed.entries == []
    assert "1 of 3 originals in data/raw/made have changed since" in changed.note
    other.unlink()
    missing = mistakes(study, winners, [result])
    assert "The originals are not in data/raw/made (No such file or directory)." in missing.note
    assert other.name not in missing.note  # with hashed ids a file's name is a secret


def test_no_picture_without_originals_or_with_hashed_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path)
    result, winners = a_result(study), {made.BACKBONE: "baseline"}
    absent = mistakes(study, winners, [result])
    assert absent.entries == []
    assert "The originals are not in" in absent.note
    assert str(tmp_path) not in absent.note  # the page is read on other machines
    manifest = records.Manifest.read(study.manifest_path)
    manifest.meta["pseudonym_key"] = "0123"
    manifest.write(study.manifest_path)
    hashed = mistakes(study, winners, [result])
    assert hashed.entries == []
    assert "hashed ids" in hashed.note
    assert "The originals" not in hashed.note


def test_confidence_is_the_distance_of_the_logit_from_the_threshold():
    logits, labels = np.array([3.0, -2.0, 0.7, -0.1, 2.0]), np.array([0, 1, 0, 1, 1])
    predictions = made.predictions(logits, labels, threshold=expit(0.2))
    wrong, tested = card.wrongly_decided(predictions)
    assert tested == 5
    assert wrong["image_id"].tolist() == ["image0", "image1", "image2", "image3"]
    np.testing.assert_allclose(wrong["confidence"], [2.8, 2.2, 0.5, 0.3], atol=1e-9)
    np.testing.assert_allclose(wrong["prob"], [expit(3.0), expit(2.0), expit(0.7), expit(0.1)])


def test_mistakes_among_several_classes_are_judged_by_the_true_class():
    logits = np.array([[2.0, 0, 0], [0, 1, 0.9], [0, 0, 3]])
    predictions = made.predictions(logits, np.array([0, 2, 1]), classes=("a", "b", "c"))
    wrong, _ = card.wrongly_decided(predictions)
    assert wrong["image_id"].tolist() == ["image2", "image1"]
    assert wrong["decided"].tolist() == [2, 1]


def described_model(
    negative: str = "clear", positive: str = "opacity", threshold: float = 0.5
) -> documents.ServedModel:
    return documents.ServedModel(
        backbone=made.BACKBONE,
        weights="random",
        weights_digest="0" * 64,
        image_size_px=64,
        pipeline=PIPELINE,
        classes=[negative, positive],
        positive_class=positive,
        calibrator=documents.Calibration(slope=1.0, biases=[0.0, 0.0], reason=""),
        threshold=threshold,
        evidence="made up",
    )


def a_result(study: config.Study) -> results.Result:
    folder = made.result(study, "baseline")
    predictions = records.Predictions.read(folder / "predictions.parquet")
    return results.Result(made.BACKBONE, "baseline", {}, [], predictions, None)
