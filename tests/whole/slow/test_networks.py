"""All networks of keras.applications, built one by one: what is listed of them, and their last blocks."""

import sys
from pathlib import Path

import keras
import pytest

from equipoise.embed import applications, blocks, cut

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))
import networks

NAMES = sorted(applications.names())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_listed_is_what_keras_says_and_the_last_block_is_a_part_with_the_last_convolution(
    name,
):
    listed = applications.seen(name)
    model, answers = networks.built(name)
    assert networks.seen(model, answers, listed.images_per_second) == listed
    assert answers.address.endswith(f"/{answers.file}")
    block = blocks.last_block(model)
    trained = {id(weight) for layer in block for weight in model.get_layer(layer).weights}
    assert 0 < len(trained) < len(model.weights)
    convolutions = [layer for layer in model.layers if "Conv" in type(layer).__name__]
    assert convolutions[-1].name in block
    crossing = cut.tensors(model, cut.boundary(model, block))
    upper = keras.Model(crossing, model.output)
    assert {id(weight) for weight in upper.weights} == trained
    keras.backend.clear_session()
