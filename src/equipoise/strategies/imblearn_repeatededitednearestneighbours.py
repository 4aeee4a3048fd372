"""Repeated edited nearest neighbours: edited nearest neighbours again and again until nothing changes.

Should lose where the classes overlap by nature, more than one round does: each round eats into the next layer.
Reference: Tomek 1976, https://doi.org/10.1109/TSMC.1976.4309523; imbalanced-learn.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("RepeatedEditedNearestNeighbours", __name__)
