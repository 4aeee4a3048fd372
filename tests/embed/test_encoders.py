"""Networks of a .keras file or of KerasHub: the numbers of the original, flat, and no code of the file is run."""

import importlib
import sys

import keras
import numpy as np
import pytest

from equipoise.compare import gradcam
from equipoise.core.errors import ConfigError, DataError
from equipoise.embed import backbones, blocks, embedder, encoders, passes, shards
from equipoise.scenario.finetuning import network
from equipoise.scenario.heads import head, rows

layers = keras.layers
SIZE_PX = 32


def images(size_px=SIZE_PX):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (3, size_px, size_px, 3)).astype("float32")


def redrawn(model, seed=0):
    """The model with other weights than those it starts with, also in its normalisation."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [(value + rng.uniform(0.05, 0.4, value.shape)).astype("f") for value in model.get_weights()]
    )
    return model


def nested(size=None):
    """As transfer learning leaves them: models within a model, and names that are ours too."""
    inner = keras.Sequential(
        [layers.Conv2D(6, 3, strides=2, name="logits"), layers.BatchNormalization()], name="stem"
    )
    picture = keras.Input((None, None, 3), name="picture")
    base = keras.Model(
        picture, layers.Conv2D(8, 3, strides=2, name="pixels")(inner(picture)), name="base"
    )
    pixels = keras.Input((size, size, 3), name="pixels")
    scaled = pixels / 127.5 - 1
    mapped = base(scaled)
    mapped = layers.ReLU(name="features")(mapped + 0.5)
    return redrawn(keras.Model(pixels, mapped))


def vector():
    return redrawn(
        keras.Sequential(
            [
                keras.Input((SIZE_PX, SIZE_PX, 3)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(4, 3, strides=4),
                layers.Flatten(),
                layers.Dense(5),
            ]
        )
    )


def tokens():
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    patches = layers.Reshape((16, 7))(
        layers.Conv2D(7, 8, strides=8)(layers.Rescaling(1 / 255)(pixels))
    )
    return redrawn(keras.Model(pixels, layers.MultiHeadAttention(2, 4)(patches, patches)))


def saved(model, folder, name="encoder.keras"):
    model.save(folder / name)
    return name


@pytest.mark.parametrize(("model", "axes"), [(nested, (1, 2)), (vector, ()), (tokens, (1,))])
def test_features_are_what_the_file_gives_pooled(model, axes, tmp_path):
    original = model()
    expected = original(images(), training=False).numpy().mean(axis=axes)
    built = backbones.build("mine", saved(original, tmp_path), SIZE_PX, root=tmp_path)
    values = embedder.Embedder(built, SIZE_PX).features(images())
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert not [layer for layer in built.layers if isinstance(layer, keras.Model)]
    trained = blocks.last_block(built)
    assert 0 < len(trained) < sum(bool(layer.weights) for layer in built.layers)


def test_the_digest_of_the_file_is_part_of_the_key_and_a_changed_file_is_refused(tmp_path):
    # The same weights behind another scaling: weights alone would not tell.
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    conv = layers.Conv2D(4, 3)
    outputs = [conv(layers.Rescaling(scale)(pixels)) for scale in (1 / 255, 1 / 127.5)]
    parts, digests = [], []
    for output in outputs:
        saved(keras.Model(pixels, output), tmp_path)
        parts.append(encoders.pipeline_part("encoder.keras", tmp_path))
        network = backbones.build("mine", "encoder.keras", SIZE_PX, parts[-1], tmp_path)
        digests.append(backbones.weights_digest(network))
    assert digests[0] == digests[1]
    assert parts[0] != parts[1]
    with pytest.raises(DataError, match=r"encoder\.keras has changed since it made the features"):
        backbones.build("mine", "encoder.keras", SIZE_PX, f"words{parts[0]}", tmp_path)
    assert encoders.pipeline_part("imagenet", tmp_path) == ""


def test_mixed_precision_reaches_the_layers_of_the_file(tmp_path):
    built = backbones.build("mine", saved(nested(), tmp_path), SIZE_PX, "/mixed-bfloat16", tmp_path)
    assert built.get_layer("encoder_base_stem_logits").compute_dtype == "bfloat16"
    assert built.output.dtype == "float32"


def test_a_worker_has_the_same_network_without_the_file(tmp_path):
    built = backbones.build("mine", saved(nested(), tmp_path), SIZE_PX, root=tmp_path)
    key = shards.NetworkKey("mine", backbones.weights_digest(built), SIZE_PX, "words")
    path = shards.network_path(tmp_path, key)
    passes._save_network(built, path)
    (tmp_path / "encoder.keras").unlink()
    here = embedder.Embedder(built, SIZE_PX).features(images())
    there = passes._worker_embedder(key, tmp_path).features(images())
    np.testing.assert_array_equal(here, there)
    path.write_bytes(b"damaged")
    passes._worker_embedder.cache_clear()
    with pytest.raises(DataError, match="is damaged"):
        passes._worker_embedder(key, tmp_path)


def test_it_is_served_in_safe_mode_and_mapped(tmp_path):
    built = backbones.build("mine", saved(nested(), tmp_path), SIZE_PX, root=tmp_path)
    values = embedder.Embedder(built, SIZE_PX).features(images())
    standardiser = rows.Standardiser.fit(values)
    coefficients = np.stack([np.zeros(8), np.linspace(-1, 1, 8)], axis=1)
    solved = head.Head(standardiser, coefficients, np.zeros(2), 0.0)
    network.with_head(built, solved).save(tmp_path / "model.keras")
    served = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    logits = embedder.Embedder(served, SIZE_PX).features(images())
    np.testing.assert_allclose(logits, solved.logits(values), atol=1e-6)
    heat = gradcam.GradCam(served).heat_map(images()[0], 1, 10, 8)
    assert heat.shape == (8, 10)
    assert heat.max() == 1


def test_tokens_have_no_places_to_map(tmp_path):
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    flat = layers.Dense(5)(layers.Flatten()(pixels))
    built = backbones.build(
        "mine", saved(keras.Model(pixels, flat), tmp_path), SIZE_PX, root=tmp_path
    )
    with pytest.raises(DataError, match="no feature map with places"):
        gradcam.GradCam(built)


# --- what is refused -------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("test_encoders")
class OwnLayer(layers.Layer):
    def call(self, inputs):
        return inputs


@keras.saving.register_keras_serializable("test_encoders")
class OwnModel(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(4, 3)

    def call(self, inputs):
        return self.conv(inputs)


def of_layer(layer, shape=(SIZE_PX, SIZE_PX, 3)):
    pixels = keras.Input(shape)
    return keras.Model(pixels, layers.Conv2D(4, 3)(layer(pixels)))


def with_two_inputs():
    first, second = keras.Input((SIZE_PX, SIZE_PX, 3)), keras.Input((SIZE_PX, SIZE_PX, 3))
    return keras.Model([first, second], layers.Conv2D(4, 3)(first + second))


def with_two_outputs():
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    return keras.Model(pixels, [layers.Conv2D(4, 3)(pixels), layers.Conv2D(4, 3)(pixels)])


def with_a_shared_layer():
    shared = layers.Conv2D(3, 3, name="twice")
    return of_layer(lambda pixels: shared(shared(pixels)))


def with_code_of_its_own():
    model = OwnModel()
    model(images())
    return model


REFUSED = [
    (lambda: of_layer(layers.Lambda(lambda x: x)), DataError, "cannot be loaded.*no Lambda"),
    (lambda: of_layer(OwnLayer()), DataError, "cannot be loaded.*no class of your own"),
    (with_code_of_its_own, DataError, "no class of your own|code of its own"),
    (lambda: of_layer(layers.ReLU(), (48, 48, 3)), ConfigError, "image_size_px: 48"),
    (lambda: of_layer(layers.ReLU(), (48, 32, 3)), ConfigError, "Squares are expected"),
    (
        lambda: of_layer(layers.ReLU(), (32, 32, 1)),
        DataError,
        r"takes \[\(32, 32, 1\)\]; one picture",
    ),
    (with_two_inputs, DataError, "one picture"),
    (with_two_outputs, DataError, "several outputs"),
    (with_a_shared_layer, DataError, "the layer twice twice"),
]


@pytest.mark.parametrize(("model", "error", "text"), REFUSED)
def test_what_cannot_be_an_encoder_is_refused_with_a_sentence(
    model, error, text, tmp_path, monkeypatch
):
    name = saved(model(), tmp_path)
    # Who loads a file does not have the classes of who saved it.
    monkeypatch.setattr(keras.src.saving.object_registration, "GLOBAL_CUSTOM_OBJECTS", {})
    with pytest.raises(error, match=text) as caught:
        backbones.build("mine", name, SIZE_PX, root=tmp_path)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_a_file_that_is_none(content, tmp_path):
    if content is not None:
        (tmp_path / "encoder.keras").write_bytes(content)
    expected = "there is no such file" if content is None else "cannot be loaded"
    with pytest.raises(DataError, match=expected):
        backbones.build("mine", "encoder.keras", SIZE_PX, root=tmp_path)


# --- KerasHub --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A small ResNet of KerasHub as `save_to_preset` leaves it, with and without its scaling."""
    hub = importlib.import_module("keras_hub")
    folder = tmp_path_factory.mktemp("hub")
    backbone = redrawn(
        hub.models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 12],
            stackwise_num_blocks=[1, 1],
            stackwise_num_strides=[1, 2],
            block_type="basic_block",
        )
    )
    converter = hub.layers.ResNetImageConverter(
        image_size=(64, 64), scale=[0.01, 0.02, 0.03], offset=[-0.5, 0.0, 0.5]
    )
    backbone.save_to_preset(str(folder / "scaled"))
    converter.save_to_preset(str(folder / "scaled"))
    backbone.save_to_preset(str(folder / "bare"))
    return folder, backbone


@pytest.mark.parametrize("kind", ["scaled", "bare"])
def test_a_preset_on_disk_is_scaled_as_its_converter_says(preset, kind):
    folder, backbone = preset
    pixels = images()
    if kind == "scaled":
        pixels = pixels * np.array([0.01, 0.02, 0.03]) + np.array([-0.5, 0.0, 0.5])
    expected = backbone(pixels.astype("float32"), training=False).numpy().mean(axis=(1, 2))
    weights = f"keras_hub:{kind}"
    assert backbones.weights_there("hub", weights, folder)
    part = encoders.pipeline_part(weights, folder)
    built = backbones.build("hub", weights, SIZE_PX, part, folder)
    values = embedder.Embedder(built, SIZE_PX).features(images())
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert blocks.last_block(built)
    assert part.startswith("/encoder-")


def test_without_keras_hub_one_sentence_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(
        ConfigError, match=r"KerasHub is not installed. Run `pip install 'equipoise\[hub\]'`"
    ):
        backbones.build("hub", "keras_hub:resnet_18_imagenet", SIZE_PX, root=tmp_path)


def test_a_preset_that_there_is_not(tmp_path):
    with pytest.raises(DataError, match=r"KerasHub cannot load keras_hub:resnot.*save_to_preset"):
        backbones.build("hub", "keras_hub:resnot", SIZE_PX, root=tmp_path)
