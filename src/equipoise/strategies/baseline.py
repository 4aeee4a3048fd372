"""Nothing but the penalty that every scenario tunes: the arm all others are measured against."""

from dataclasses import dataclass

from equipoise.strategies import base


@dataclass(frozen=True)
class Strategy(base.Strategy):
    """Every train image once, plain cross-entropy.

    Loses to the others where the operating point, not the ranking, is what is wrong and nobody moves the threshold.
    """
