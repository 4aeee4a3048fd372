"""NearMiss-1: keeps the majority images with the smallest mean distance to their 3 nearest minority images, 1:1.

Should lose nearly always with outliers: it trains on the most ambiguous majority images alone.
Reference: Mani, Zhang 2003 (ICML workshop on learning from imbalanced data sets); imbalanced-learn NearMiss.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("NearMiss", __name__)
