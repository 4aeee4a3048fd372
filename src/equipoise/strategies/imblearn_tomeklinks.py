"""Tomek links: leaves out majority images that are mutual nearest neighbours with an image of another class.

Should tie with the baseline: few images are linked; it loses where those few are the only hard cases.
Reference: Tomek 1976, https://doi.org/10.1109/TSMC.1976.4309452; imbalanced-learn TomekLinks.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("TomekLinks", __name__)
