"""Tomek links: leaves out frequent-class images that are nearly twins of a rare-class image."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """The two of a link are each other's nearest neighbour.

    Should tie with the baseline: few images are linked. It loses where those few are the only
    hard cases.

    Reference: Tomek 1976, https://doi.org/10.1109/TSMC.1976.4309452; imbalanced-learn
    TomekLinks.
    """

    SAMPLER: ClassVar[str] = "TomekLinks"
