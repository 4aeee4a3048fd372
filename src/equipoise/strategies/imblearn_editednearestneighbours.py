"""Edited nearest neighbours: leaves out frequent-class images unless 3 neighbours all agree."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """Neighbours are the nearest train images in the feature space.

    Should lose where the classes overlap by nature: what it calls noise are the hard cases.

    Reference: Wilson 1972, https://doi.org/10.1109/TSMC.1972.4309137; imbalanced-learn
    EditedNearestNeighbours.
    """

    SAMPLER: ClassVar[str] = "EditedNearestNeighbours"
