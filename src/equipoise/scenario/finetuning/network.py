"""Backbone and head as one Keras network, and the head back out of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from equipoise.embed import cut
from equipoise.scenario.heads.head import Head
from equipoise.scenario.heads.rows import Standardiser

_HEAD_LAYER = "logits"


def with_head(backbone: Any, head: Head) -> Any:
    """Put a solved head on a backbone: standardisation and coefficients become one dense layer.

    Args:
        backbone: keras.Model, pixels -> features.
        head: The head.

    Returns:
        keras.Model from pixels to float64 logits (batch, C); its layer "logits" is the head.
    """
    import keras

    standardiser = head.standardiser
    num_features = backbone.output_shape[-1]
    num_classes = len(head.intercepts)
    kernel = np.zeros((num_features, num_classes))
    scale = standardiser.scale
    kernel[standardiser.kept] = head.coefficients / scale[:, None]
    relative_mean = standardiser.mean / scale
    shift = relative_mean @ head.coefficients
    # float64: features of an untrained network vary by 1e-13 of their size, which float32 cannot
    # subtract.
    dense = keras.layers.Dense(num_classes, dtype="float64", name=_HEAD_LAYER)
    logits = dense(backbone.output)
    network = keras.Model(backbone.input, logits, name="equipoise")
    dense.set_weights([kernel, head.intercepts - shift])
    return network


def of_vectors(name: str, head: Head, num_features: int) -> Any:
    """A network that is nothing but a solved head.

    Args:
        name: Of its input.
        head: The head.
        num_features: Length of a vector.

    Returns:
        keras.Model from float32 (batch, num_features) to float64 logits (batch, C).
    """
    import keras

    vector = keras.Input((num_features,), name=name, dtype="float32")
    exact = keras.layers.Identity(dtype="float64")(vector)
    return with_head(keras.Model(vector, exact), head)


def head_layer(network: Any) -> Any:
    """The dense layer that `with_head` added."""
    return network.get_layer(_HEAD_LAYER)


def with_head_on_standardised(backbone: Any, head: Head) -> Any:
    """Put a solved head on a backbone to be trained: one step means the same for every coefficient.

    `with_head` says the same of a picture, but its kernel is divided by the spread of the features,
    which lies between 1e-13 and 10: what is a small step for one coefficient there is none or a leap
    for another.

    Args:
        backbone: keras.Model, pixels -> features.
        head: The head.

    Returns:
        keras.Model from pixels to float64 logits (batch, C). Its last two weights are those of the
        layer "logits": coefficients and intercepts of the head.
    """
    import keras

    standardiser = head.standardiser
    exact = keras.ops.cast(backbone.output, "float64")
    kept = keras.ops.take(exact, standardiser.kept, axis=-1)
    standardised = (kept - standardiser.mean) / standardiser.scale
    num_classes = len(head.intercepts)
    dense = keras.layers.Dense(num_classes, dtype="float64", name=_HEAD_LAYER)
    network = keras.Model(backbone.input, dense(standardised), name="equipoise")
    dense.set_weights([head.coefficients, head.intercepts])
    return network


def divided(weights: list[np.ndarray], standardiser: Standardiser) -> tuple[list[np.ndarray], Head]:
    """Divide the weights of `with_head_on_standardised` into those of the backbone and the head."""
    *of_backbone, coefficients, intercepts = weights
    return of_backbone, Head(standardiser, coefficients, intercepts, gradient_norm=0.0)


def above(backbone: Any, network: Any, numbers: tuple[int, ...]) -> Any:
    """The part of a network above a cut of its backbone: a model that shares its layers.

    Args:
        backbone: keras.Model, pixels -> features.
        network: The same with a head.
        numbers: The cut, see `embed.cut`.

    Returns:
        keras.Model from a list of the activations that flow through the cut to logits.
    """
    import keras

    return keras.Model(cut.tensors(backbone, numbers), network.output)


def unfreeze(backbone: Any, names: Collection[str], freeze_batch_norm: bool) -> None:
    """Make some layers trainable, and all others not.

    Args:
        backbone: keras.Model.
        names: Of the layers.
        freeze_batch_norm: Leave batch normalisation frozen among them, also inside of layers that
            hold some.
    """
    import keras

    for layer in backbone.layers:
        layer.trainable = layer.name in names
        if not freeze_batch_norm:
            continue
        for inner in layer._flatten_layers():
            if isinstance(inner, keras.layers.BatchNormalization):
                inner.trainable = False
