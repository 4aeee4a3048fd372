"""The last block is one rule on the graph: a real cut, not the whole network, with the last convolution in it."""

import keras
import numpy as np
import pytest

from equipoise.embed import blocks, cut

#: A network of each family, at a small size it accepts, a layer its block begins with, one just below.
FAMILIES = {
    "VGG16": (32, "block5_conv1", "block4_conv3"),
    "DenseNet121": (32, "conv5_block1_0_bn", "pool4_conv"),
    "ResNet50": (32, "conv5_block1_1_conv", "conv4_block6_3_conv"),
    "MobileNetV2": (32, "block_13_depthwise", "block_13_expand"),
    "MobileNetV3Small": (32, "expanded_conv_8_depthwise", "expanded_conv_8_expand"),
    "EfficientNetB0": (32, "block6a_dwconv", "block6a_expand_conv"),
    "ConvNeXtTiny": (
        32,
        "convnext_tiny_downsampling_block_2",
        "convnext_tiny_stage_2_block_8_layer_scale",
    ),
    "Xception": (71, "block14_sepconv1", "block13_sepconv2"),
}


def built(name, size_px):
    constructor = getattr(keras.applications, name)
    return constructor(
        include_top=False, weights=None, input_shape=(size_px, size_px, 3), pooling="avg"
    )


def last_convolution(model):
    maps = [layer for layer in model.layers if "Conv" in type(layer).__name__]
    return maps[-1].name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_block_is_computed_from_the_tensors_that_cross_into_it(name):
    size_px, first, below = FAMILIES[name]
    model = built(name, size_px)
    block = blocks.last_block(model)
    assert first in block
    assert last_convolution(model) in block
    trained = {id(weight) for layer in block for weight in model.get_layer(layer).weights}
    assert 0 < len(trained) < len(model.weights)
    crossing = cut.tensors(model, cut.boundary(model, block))
    lower = keras.Model(model.input, crossing)
    upper = keras.Model(crossing, model.output)
    assert below not in {layer.name for layer in upper.layers}
    assert {id(weight) for weight in upper.weights} == trained
    images = np.random.default_rng(0).uniform(0, 255, (2, size_px, size_px, 3)).astype("float32")
    np.testing.assert_array_equal(upper(lower(images)), model(images))
    # Building models of parts changes nothing for who asks next.
    assert blocks.last_block(model) == block


def test_the_block_does_not_depend_on_the_size():
    # At 32 px the coarsest map is one place, as is what squeeze-and-excitation averages.
    small, large = (blocks.last_block(built("MobileNetV3Small", size_px)) for size_px in (32, 224))
    assert small == large


def test_without_strides_it_is_the_last_layer_with_a_matrix():
    tokens = keras.Input((9, 8))
    mixed = keras.layers.Dense(8, name="mixer")(tokens)
    mixed = keras.layers.Dense(8, name="last")(mixed)
    normal = keras.layers.LayerNormalization(name="norm")(mixed)
    pooled = keras.layers.GlobalAveragePooling1D(name="pool")(normal)
    model = keras.Model(tokens, pooled)
    block = blocks.last_block(model)
    assert block == ("last", "norm")
    crossing = cut.tensors(model, cut.boundary(model, block))
    assert [tensor.shape for tensor in crossing] == [(None, 9, 8)]


def test_a_layer_that_hides_its_convolutions_is_known_by_its_shape():
    @keras.saving.register_keras_serializable("test")
    class Stage(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.conv = keras.layers.Conv2D(4, 3, strides=2, padding="same")

        def call(self, inputs):
            return self.conv(inputs)

    pixels = keras.Input((32, 32, 3))
    first = Stage(name="first")(pixels)
    last = Stage(name="last")(first)
    pooled = keras.layers.GlobalAveragePooling2D()(last)
    assert blocks.last_block(keras.Model(pixels, pooled)) == ("last",)
