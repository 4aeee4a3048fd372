"""The one pass: each distinct picture and view once, resumable, believed only by digest; weights with clear errors."""

import json

import numpy as np
import pytest

from conftest import REPO
from equipoise import backbones, config, features, head, images, ingest, network
from equipoise.datasets import phantom
from equipoise.errors import ConfigError, DataError


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = config.read_params(REPO)
    demo = params["studies"]["demo"]
    demo["phantom"] |= {"patients": 20, "size_px": 40, "opacity_patient_fraction": 0.3}
    demo["embed"] |= {"image_size_px": 32, "views": 2, "batch_size": 8}
    study = config.load_study("demo", params)
    phantom.draw(study.raw, study.settings.phantom.model_dump())
    ingest.run(study)
    return study


def passes(study) -> int:
    return features.run(study, "vgg16")["passes_now"]


def test_each_picture_and_view_once_then_nothing(study):
    manifest = features.Manifest.read(study.manifest_path)
    minority = int((manifest.table["label"] == 1).sum())
    expected = len(manifest.table) + 2 * minority
    first = features.run(study, "vgg16")
    assert first["passes"] == first["passes_now"] == expected
    assert passes(study) == 0
    store = features.FeatureStore.open(study.features_path("vgg16"))
    assert store.matrix.shape == (expected, 512)
    assert not store.matrix.flags.writeable


def test_features_equal_keras_on_the_same_pixels(study):
    import keras
    import tensorflow as tf

    features.run(study, "vgg16")
    store = features.FeatureStore.open(study.features_path("vgg16"))
    row = features.Manifest.read(study.manifest_path).table.iloc[3]
    pixels = tf.image.resize(images.decode(study.raw / row["path"]), (32, 32), antialias=True)[None]
    keras.utils.set_random_seed(0)
    oracle = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    value = oracle(keras.applications.vgg16.preprocess_input(tf.identity(pixels)), training=False).numpy()[0]
    np.testing.assert_allclose(store.matrix[store.rows([row["sha256"]], [0])[0]], value, rtol=1e-4, atol=1e-6)


def test_new_image_costs_only_itself(study):
    before = passes(study)
    assert before > 0
    row = features.Manifest.read(study.manifest_path).table.iloc[0]
    pixels = 255 - images.decode(study.raw / row["path"])
    from PIL import Image

    Image.fromarray(pixels).save(study.raw / "clear/patient9000_0.png")
    ingest.run(study)
    assert passes(study) == 1


def test_killed_pass_goes_on_where_it_was(study, monkeypatch):
    monkeypatch.setattr(features, "_SHARD_ROWS", 8)
    real, calls = features.Embedder.features, []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as killed:
        killed.setattr(features.Embedder, "features", dies)
        with pytest.raises(KeyboardInterrupt):
            passes(study)
    again = features.run(study, "vgg16")
    assert again["passes_now"] == again["passes"] - 3 * 8
    undisturbed = (study.features_path("vgg16") / "features.npy").read_bytes()
    for path in (study.raw.parent.parent / "cache/features").rglob("*"):
        if path.is_file():
            path.unlink()
    features.run(study, "vgg16")
    assert (study.features_path("vgg16") / "features.npy").read_bytes() == undisturbed


def test_flipped_bit_redoes_only_its_piece(study, monkeypatch):
    monkeypatch.setattr(features, "_SHARD_ROWS", 8)
    passes(study)
    piece = sorted(study.raw.parent.parent.glob("cache/features/*/*.npy"))[0]
    data = bytearray(piece.read_bytes())
    data[-3] ^= 1
    piece.write_bytes(bytes(data))
    rows = len(json.loads(piece.with_suffix(".json").read_text())["rows"])
    assert passes(study) == rows


def test_changed_file_is_noticed(study):
    row = features.Manifest.read(study.manifest_path).table.iloc[0]
    path = study.raw / row["path"]
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="is not the file that ingest read"):
        passes(study)


def test_missing_view_says_which_setting(study):
    features.run(study, "vgg16")
    store = features.FeatureStore.open(study.features_path("vgg16"))
    with pytest.raises(DataError, match=r"embed\.views"):
        store.rows([features.Manifest.read(study.manifest_path).table["sha256"].iloc[0]], [7])


@pytest.mark.parametrize("name", sorted(backbones.TABLE))
def test_every_backbone_is_flat_repeatable_and_holds_a_head(name):
    first = backbones.build(name, "random", 32)
    assert backbones.weights_digest(first) == backbones.weights_digest(backbones.build(name, "random", 32))
    assert not [layer for layer in first.layers if hasattr(layer, "layers")]
    last = [layer for layer in first.layers if layer.name.startswith(backbones.load_row(name).last_block)]
    assert any(layer.trainable_weights for layer in last)
    width = first.output_shape[-1]
    rng = np.random.default_rng(0)
    batch = rng.uniform(0, 255, (6, 32, 32, 3)).astype("float32")
    values = features.Embedder(first, 32).features(batch)
    standardiser = head.Standardiser.fit(values)
    coefficients = np.stack([np.zeros(len(standardiser.kept)), rng.normal(size=len(standardiser.kept))], axis=1)
    solved = head.Head(standardiser, coefficients, np.array([0.0, 0.3]), 0.0)
    whole = network.with_head(first, solved)
    # Traced like `embed` traces: run op by op, rounding differs, and untrained features blow it up.
    np.testing.assert_allclose(features.Embedder(whole, 32).features(batch), solved.logits(values), atol=1e-6)
    back = network.head_of(whole, standardiser)
    np.testing.assert_allclose(back.coefficients, coefficients, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(back.logits(values), solved.logits(values), atol=1e-6)
    assert whole.get_layer("logits").kernel.shape[0] == width


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'densenet201'"):
        backbones.load_row("densenet121")


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch, tmp_path):
    import keras

    def offline(*_, **__):
        raise Exception("URL fetch failure on https://example.org: None -- no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(DataError) as caught:
        backbones.build("densenet201", "imagenet", 32)
    text = str(caught.value)
    for part in (
        "74,836,368 bytes",
        "c13680b51ded0fb44dff2d8f86ac8bb1",
        "https://storage",
        "embed.weights",
        "weights/",
    ):
        assert part in text


def test_weights_by_path(tmp_path):
    wrong = tmp_path / "wrong.h5"
    backbones.build("mobilenetv2", "random", 32).save_weights(tmp_path / "right.weights.h5")
    built = backbones.build("mobilenetv2", str(tmp_path / "right.weights.h5"), 32)
    assert backbones.weights_digest(built) == backbones.weights_digest(backbones.build("mobilenetv2", "random", 32))
    with pytest.raises(DataError, match="no such file"):
        backbones.build("vgg16", str(wrong), 32)
    wrong.write_bytes(b"not weights")
    with pytest.raises(DataError, match="does not fit VGG16"):
        backbones.build("vgg16", str(wrong), 32)


def test_real_weights_beat_random_ones():
    path = REPO / "../shared/data/weights/mobilenetv2_1.00_224_notop.h5"
    if not path.is_file():
        pytest.skip("the MobileNetV2 weights are not on this machine")
    model = backbones.build("mobilenetv2", str(path), 96)
    assert backbones.weights_digest(model) != backbones.weights_digest(backbones.build("mobilenetv2", "random", 96))
