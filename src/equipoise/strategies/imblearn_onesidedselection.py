"""One-sided selection: a condensed majority, then without the Tomek links.

Should lose with few images: it discards most of the easy majority, which a linear head could have used.
Reference: Kubat, Matwin 1997 (ICML, Addressing the curse of imbalanced training sets); imbalanced-learn.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("OneSidedSelection", __name__)
