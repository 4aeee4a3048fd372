"""Backbone and head as one Keras network, and the head back out of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from equipoise.scenario.head import Head
from equipoise.scenario.rows import Standardiser


def with_head(network: Any, head: Head) -> Any:
    """Put a solved head on a backbone: standardisation and coefficients as one dense layer in float64.

    Args:
        network: keras.Model, pixels -> features.
        head: The head.

    Returns:
        keras.Model from pixels to float64 logits (batch, C); the layer "logits" is the head.
    """
    import keras

    scale = head.standardiser.scale
    coefficients = np.zeros((network.output_shape[-1], head.coefficients.shape[1]))
    coefficients[head.standardiser.kept] = head.coefficients / scale[:, None]
    shift = (head.standardiser.mean / scale) @ head.coefficients
    # float64: features of an untrained network vary by 1e-13 of their size, which float32 cannot subtract.
    dense = keras.layers.Dense(coefficients.shape[1], dtype="float64", name="logits")
    model = keras.Model(network.input, dense(network.output), name="equipoise")
    dense.set_weights([coefficients, head.intercepts - shift])
    return model


def head_of(whole: Any, standardiser: Standardiser) -> Head:
    """The tuned dense layer as a head on standardised features."""
    kernel, bias = whole.get_layer("logits").get_weights()
    coefficients = kernel[standardiser.kept] * standardiser.scale[:, None]
    intercepts = bias + (standardiser.mean / standardiser.scale) @ coefficients
    return Head(standardiser, coefficients, intercepts, 0.0)


def unfreeze(network: Any, prefixes: tuple[str, ...], freeze_batch_norm: bool) -> None:
    """Leave only layers whose name starts with a prefix trainable, batch normalisation among them only when asked."""
    for layer in network.layers:
        frozen = freeze_batch_norm and type(layer).__name__ == "BatchNormalization"
        layer.trainable = layer.name.startswith(prefixes) and not frozen
