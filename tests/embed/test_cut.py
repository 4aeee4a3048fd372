"""Cuts through drawn graphs: what is below and above them together is the whole network."""

import numpy as np
import pytest

from equipoise.embed import backbones, cut


@pytest.fixture(scope="module")
def keras():
    return backbones.load_keras()


def two_ways(keras):
    """A network whose block reads two tensors of the part below."""
    pixels = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 3, padding="same", name="first")(pixels / 255.0)
    second = keras.layers.Conv2D(5, 3, strides=2, name="second")(first)
    deep = keras.layers.Conv2D(6, 3, name="block_conv")(second)
    wide = keras.layers.Conv2D(6, 6, name="block_side")(first)
    deep, wide = (keras.layers.GlobalAveragePooling2D()(part) for part in (deep, wide))
    return keras.Model(pixels, keras.layers.Concatenate(name="joined")([deep, wide]))


@pytest.mark.parametrize(
    ("block", "read"),
    [
        ({"block_conv", "block_side"}, ["first", "second"]),
        ({"second", "block_side"}, ["first"]),
        ({"block_conv"}, ["second", "global_average_pooling2d"]),
    ],
)
def test_below_and_above_a_cut_are_the_whole_network(keras, block, read):
    network = two_ways(keras)
    numbers = cut.boundary(network, block)
    names = [network.operations[number].name.rsplit("_", 1)[0] for number in numbers]
    assert len(names) == len(read)
    shapes = [tensor.shape[1:] for tensor in cut.tensors(network, numbers)]
    below = keras.Model(network.input, cut.joined(network, numbers))
    above = keras.Model(cut.tensors(network, numbers), network.output)
    drawn = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    flat = below(drawn).numpy()
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    parts = [part.reshape(-1, *shape) for part, shape in zip(np.split(flat, ends, axis=1), shapes)]
    np.testing.assert_allclose(above(parts).numpy(), network(drawn).numpy(), rtol=1e-6)
    inside = {layer.name for layer in above.layers}
    assert block <= inside
    assert not {"first"} & inside - block


def test_a_block_of_everything_reads_the_pixels(keras):
    network = two_ways(keras)
    assert cut.boundary(network, {layer.name for layer in network.layers}) == ()


@pytest.mark.parametrize(
    ("name", "stored", "below"),
    [("vgg16", "", "block4_pool"), ("vgg16", "/stored-float16", "block4_pool")],
)
def test_a_pipeline_with_a_cut_builds_the_part_below(keras, name, stored, below):
    whole = backbones.build(name, "random", 32)
    numbers = cut.boundary(whole, {"block5_conv1"})
    assert [whole.operations[number].name for number in numbers] == [below]
    lower = backbones.build(name, "random", 32, f"pillow{cut.text_of(numbers)}{stored}")
    drawn = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = keras.Model(whole.input, whole.get_layer(below).output)(drawn).numpy()
    made = lower(drawn).numpy()
    assert made.dtype == ("float16" if stored else "float32")
    np.testing.assert_array_equal(made, expected.reshape(2, -1).astype(made.dtype))
