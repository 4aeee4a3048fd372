"""The last block of a network, read off its graph: what fine-tuning trains, and where the frozen part ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class BlockCut:
    """Where the last block of a flat network begins.

    Attributes:
        trained: Names of the layers of the block that have weights, in the order of the graph.
        tensors: Keras tensors that cross into the block, each once: outputs of what lies below, from
            which the whole block can be computed.
        operations: Names of all layers and operations of the block, with and without weights.
    """

    trained: tuple[str, ...]
    tensors: tuple[Any, ...]
    operations: tuple[str, ...]


class _Step(NamedTuple):
    """One operation of the graph, and the numbers of the steps that it takes its input from."""

    operation: Any
    before: list[int]


def last_block(model: Any) -> BlockCut:
    """Find the last block: what has weights at the coarsest scale, and all that follows from it.

    The scale of a layer is the product of the strides on the longest way to it, so it does not depend
    on the size of the input, and squeeze-and-excitation, which averages a map to one place, keeps the
    scale of its map. Where this would be the whole network, or where there are no strides between its
    layers (a vision transformer), the block is the last layer with a matrix of weights.

    So it is conv5 of ResNet and DenseNet, block5 of VGG, stage 3 of ConvNeXt, and in MobileNet,
    EfficientNet, Inception, NASNet and Xception what comes from the last stride on.

    Args:
        model: A flat keras.Model, pixels -> features: no layer of it is a model.

    >>> import keras
    >>> pixels = keras.Input((32, 32, 3))
    >>> coarse = keras.layers.Conv2D(4, 3, strides=2, name="down")(pixels)
    >>> mapped = keras.layers.Conv2D(4, 3, strides=2, name="last")(coarse)
    >>> pooled = keras.layers.GlobalAveragePooling2D(name="pool")(mapped)
    >>> cut = last_block(keras.Model(pixels, pooled))
    >>> cut.trained, cut.operations, cut.tensors == (coarse,)
    (('last',), ('last', 'pool'), True)
    """
    steps = _steps(model)
    scales = _scales(steps)
    matrices = [number for number, step in enumerate(steps) if _has_matrix(step.operation)]
    coarsest = max(scales[number] for number in matrices)
    if all(scales[number] == coarsest for number in matrices):
        return _cut(steps, starts=set(matrices[-1:]))
    starts = set()
    for number, step in enumerate(steps):
        if scales[number] == coarsest and _weights(step.operation):
            starts.add(number)
    return _cut(steps, starts)


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


def _cut(steps: list[_Step], starts: set[int]) -> BlockCut:
    """Cut below some steps and everything that follows from them."""
    above: set[int] = set()
    for number, step in enumerate(steps):
        if number in starts or above.intersection(step.before):
            above.add(number)
    inside = [steps[number].operation for number in sorted(above)]
    made_inside = {id(tensor) for operation in inside for tensor in _listed(operation.output)}
    crossing = {}
    for operation in inside:
        for tensor in _listed(operation.input):
            if id(tensor) not in made_inside:
                crossing[id(tensor)] = tensor
    return BlockCut(
        trained=tuple(operation.name for operation in inside if _weights(operation)),
        tensors=tuple(crossing.values()),
        operations=tuple(operation.name for operation in inside),
    )


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
