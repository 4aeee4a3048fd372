"""Neighbourhood cleaning rule: edited nearest neighbours, and majority images that mislead minority ones go too.

Should lose where the classes overlap by nature, and where class sizes are fine: it cleans, it does not balance.
Reference: Laurikkala 2001, https://doi.org/10.1007/3-540-48229-6_9; imbalanced-learn NeighbourhoodCleaningRule.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("NeighbourhoodCleaningRule", __name__)
