"""Edited nearest neighbours: leaves out majority images unless all their 3 nearest neighbours agree.

Should lose where the classes overlap by nature: what it calls noise are the hard cases.
Reference: Wilson 1972, https://doi.org/10.1109/TSMC.1972.4309137; imbalanced-learn EditedNearestNeighbours.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("EditedNearestNeighbours", __name__)
