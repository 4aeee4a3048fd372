"""Cuts a backbone in two where its last block begins: below the cut nothing is trained, so it is computed once.

What flows through the cut (activations) is to fine-tuning what features are to a head. The operations
of a network are numbered in the order in which Keras computes them, because Keras makes up some of
their names anew in every process.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

#: Part of a pipeline that ends at a cut.
_TEXT = re.compile(r"/cut-(\d+(?:\+\d+)*)")


def boundary(network: Any, block: Collection[str]) -> tuple[int, ...]:
    """Find what the layers of a block, and all that comes after them, read from below.

    Args:
        network: Flat keras.Model.
        block: Names of the layers of the block.

    Returns:
        Numbers of the operations whose outputs flow through the cut, in order; one for most networks.
        Empty where the block reads the pixels themselves.
    """
    made_by = {}
    above: set[int] = set()
    read: set[int] = set()
    for number, operation in enumerate(network.operations):
        made_by[id(operation.output)] = number
        parents = [made_by[id(tensor)] for tensor in _inputs(operation)]
        if operation.name in block or above.intersection(parents):
            above.add(number)
            read.update(parents)
    return tuple(sorted(read - above))


def _inputs(operation: Any) -> Iterator[Any]:
    """The tensors that an operation reads; none of an input layer."""
    import keras

    if not isinstance(operation, keras.layers.InputLayer):
        yield from keras.tree.flatten(operation.input)


def text_of(numbers: tuple[int, ...]) -> str:
    """The cut as a part of a pipeline.

    >>> text_of((14,)), text_of((14, 20))
    ('/cut-14', '/cut-14+20')
    """
    return "/cut-" + "+".join(map(str, numbers))


def of_pipeline(pipeline: str) -> tuple[int, ...]:
    """The cut that a pipeline names; empty where it leads to features.

    >>> of_pipeline("pillow-rgb8/1" + text_of((14, 20)) + "/stored-float16")
    (14, 20)
    """
    match = _TEXT.search(pipeline)
    if match is None:
        return ()
    return tuple(int(number) for number in match[1].split("+"))


def tensors(network: Any, numbers: tuple[int, ...]) -> list[Any]:
    """The symbolic tensors that flow through a cut, each (None, ...)."""
    operations = network.operations
    return [operations[number].output for number in numbers]


def joined(network: Any, numbers: tuple[int, ...]) -> Any:
    """What flows through a cut as one symbolic tensor (None, width)."""
    import keras

    flat = [keras.layers.Flatten()(tensor) for tensor in tensors(network, numbers)]
    if len(flat) == 1:
        return flat[0]
    return keras.layers.Concatenate()(flat)
