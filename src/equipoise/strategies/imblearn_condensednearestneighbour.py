"""Condensed nearest neighbour: keeps the majority images that one nearest neighbour needs to sort the rest.

Should lose with noisy labels: it keeps the images near the boundary, mislabelled ones first, and few others.
Reference: Hart 1968, https://doi.org/10.1109/TIT.1968.1054155; imbalanced-learn CondensedNearestNeighbour.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("CondensedNearestNeighbour", __name__)
