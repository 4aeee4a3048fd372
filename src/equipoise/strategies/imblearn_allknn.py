"""All k-NN: leaves out frequent-class images that their nearest neighbours contradict."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """First the nearest neighbour must agree, then two, then three.

    Should lose where the classes overlap by nature: the hard cases go, and the boundary moves
    into the majority.

    Reference: Tomek 1976, https://doi.org/10.1109/TSMC.1976.4309523; imbalanced-learn AllKNN.
    """

    SAMPLER: ClassVar[str] = "AllKNN"
