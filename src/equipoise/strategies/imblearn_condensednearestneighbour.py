"""Condensed nearest neighbour: keeps the few frequent-class images that tell the others apart."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """One nearest neighbour among the kept images sorts the rest.

    Should lose with noisy labels: it keeps the images near the boundary, mislabelled ones
    first, and few others. It takes minutes per plan at the full width of the features.

    Reference: Hart 1968, https://doi.org/10.1109/TIT.1968.1054155; imbalanced-learn
    CondensedNearestNeighbour.
    """

    SAMPLER: ClassVar[str] = "CondensedNearestNeighbour"
