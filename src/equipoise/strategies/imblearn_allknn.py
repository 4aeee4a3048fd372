"""All k-NN: leaves out majority images unless their nearest one, then two, then three neighbours all agree.

Should lose where the classes overlap by nature: the hard cases go, and the boundary moves into the majority.
Reference: Tomek 1976, https://doi.org/10.1109/TSMC.1976.4309523; imbalanced-learn AllKNN.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("AllKNN", __name__)
