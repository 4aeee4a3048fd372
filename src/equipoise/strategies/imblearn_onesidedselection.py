"""One-sided selection: keeps frequent-class images near the boundary, but none that blur it."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """A condensed majority, from which the Tomek links are taken out.

    Should lose with few images: it discards most of the easy majority, which a linear head
    could have used.

    Reference: Kubat, Matwin 1997 (ICML, Addressing the curse of imbalanced training sets);
    imbalanced-learn OneSidedSelection.
    """

    SAMPLER: ClassVar[str] = "OneSidedSelection"
