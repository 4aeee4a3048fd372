"""Neighbourhood cleaning: leaves out frequent-class images that mislead about their neighbours."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """Edited nearest neighbours; majority images that outvote a minority image go too.

    Should lose where the classes overlap by nature, and where class sizes are fine: it cleans,
    it does not balance.

    Reference: Laurikkala 2001, https://doi.org/10.1007/3-540-48229-6_9; imbalanced-learn
    NeighbourhoodCleaningRule.
    """

    SAMPLER: ClassVar[str] = "NeighbourhoodCleaningRule"
