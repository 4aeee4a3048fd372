"""NearMiss-1: keeps only the frequent-class images that look most like rare-class ones, 1:1."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """Kept are those with the smallest mean distance to their 3 nearest minority images.

    Should lose nearly always with outliers: it trains on the most ambiguous majority images
    alone.

    Reference: Mani, Zhang 2003 (ICML workshop on learning from imbalanced data sets);
    imbalanced-learn NearMiss.
    """

    SAMPLER: ClassVar[str] = "NearMiss"
