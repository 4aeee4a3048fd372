"""Repeated editing: leaves out frequent-class images that neighbours contradict, repeatedly."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """Edited nearest neighbours, until nothing changes any more.

    Should lose where the classes overlap by nature, more than one round does: each round eats
    into the next layer.

    Reference: Tomek 1976, https://doi.org/10.1109/TSMC.1976.4309523; imbalanced-learn
    RepeatedEditedNearestNeighbours.
    """

    SAMPLER: ClassVar[str] = "RepeatedEditedNearestNeighbours"
