"""Backbone and head as one Keras network, and the head back out of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from equipoise.scenario.head import Head
from equipoise.scenario.rows import Standardiser

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


def head_of(network: Any, standardiser: Standardiser) -> Head:
    """Read the tuned dense layer back as a head on standardised features."""
    kernel, bias = head_layer(network).get_weights()
    scale = standardiser.scale
    used = kernel[standardiser.kept]
    coefficients = used * scale[:, None]
    relative_mean = standardiser.mean / scale
    shift = relative_mean @ coefficients
    return Head(standardiser, coefficients, bias + shift, gradient_norm=0.0)


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
