"""The last block of a network, read off its graph: what fine-tuning trains; `cut.py` says what it reads from below."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class _Step(NamedTuple):
    """One operation of the graph, and the numbers of the steps that it takes its input from."""

    operation: Any
    before: list[int]


def last_block(model: Any) -> tuple[str, ...]:
    """Find the last block: what has weights at the coarsest scale, and all that follows from it.

    The scale of a layer is the product of the strides on the longest way to it, so it does not depend
    on the size of the input, and squeeze-and-excitation, which averages a map to one place, keeps the
    scale of its map. Where this would be the whole network, or where there are no strides between its
    layers (a vision transformer), the block is the last layer with a matrix of weights.

    So it is conv5 of ResNet and DenseNet, block5 of VGG, stage 3 of ConvNeXt, and in MobileNet,
    EfficientNet, Inception, NASNet and Xception what comes from the last stride on.

    Args:
        model: A flat keras.Model, pixels -> features: no layer of it is a model.

    Returns:
        Names of the layers of the block that have weights, in the order of the graph.

    >>> import keras
    >>> pixels = keras.Input((32, 32, 3))
    >>> coarse = keras.layers.Conv2D(4, 3, strides=2, name="down")(pixels)
    >>> mapped = keras.layers.Conv2D(4, 3, strides=2, name="last")(coarse)
    >>> pooled = keras.layers.GlobalAveragePooling2D(name="pool")(mapped)
    >>> last_block(keras.Model(pixels, pooled))
    ('last',)
    """
    steps = _steps(model)
    scales = _scales(steps)
    matrices = [number for number, step in enumerate(steps) if _has_matrix(step.operation)]
    coarsest = max(scales[number] for number in matrices)
    if all(scales[number] == coarsest for number in matrices):
        return _with_weights_from(steps, starts=set(matrices[-1:]))
    starts = set()
    for number, step in enumerate(steps):
        if scales[number] == coarsest and _weights(step.operation):
            starts.add(number)
    return _with_weights_from(steps, starts)


def _steps(model: Any) -> list[_Step]:
    """The operations of a graph, each after those that it takes its input from."""
    steps: list[_Step] = []
    maker_of: dict[int, int] = {}
    for operation in model.operations:
        inputs = _listed(operation.input)
        before = [maker_of[id(tensor)] for tensor in inputs if id(tensor) in maker_of]
        for tensor in _listed(operation.output):
            maker_of[id(tensor)] = len(steps)
        steps.append(_Step(operation, before))
    return steps


def _scales(steps: list[_Step]) -> list[int]:
    """The product of the strides on the longest way to the output of each step."""
    scales: list[int] = []
    for operation, before in steps:
        reached = max((scales[number] for number in before), default=1)
        scales.append(reached * _stride(operation))
    return scales


def _stride(operation: Any) -> int:
    """By how much an operation shrinks the sides of a map; 1 where it averages a map to one place."""
    strides = getattr(operation, "strides", None)
    if strides is not None:
        return int(max(_listed(strides)))
    inner = getattr(operation, "layers", None)
    if inner:  # a model within the model: ConvNeXt has one before each stage
        return math.prod(_stride(layer) for layer in inner)
    # Layers of others hide their convolutions.
    side_before = max((_side(tensor) for tensor in _listed(operation.input)), default=0)
    side = _side(_listed(operation.output)[0])
    if side < 2:
        return 1
    return max(1, round(side_before / side))


def _with_weights_from(steps: list[_Step], starts: set[int]) -> tuple[str, ...]:
    """Names of the layers with weights among some steps and everything that follows from them."""
    above: set[int] = set()
    names = []
    for number, step in enumerate(steps):
        if number not in starts and not above.intersection(step.before):
            continue
        above.add(number)
        if _weights(step.operation):
            names.append(step.operation.name)
    return tuple(names)


def _weights(operation: Any) -> list[Any]:
    """The weights of a layer; none for a bare operation."""
    return list(getattr(operation, "weights", []))


def _has_matrix(operation: Any) -> bool:
    """Whether a layer holds more than numbers for each channel, as normalisation does."""
    return any(len(weight.shape) > 1 for weight in _weights(operation))


def _side(tensor: Any) -> int:
    """Smaller side of a map (batch, height, width, channels); 0 of anything else."""
    if len(tensor.shape) != 4:
        return 0
    _, height, width, _ = tensor.shape
    return min(height or 0, width or 0)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]
