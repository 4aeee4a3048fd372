"""Baseline: nothing is done about the imbalance. Every other strategy is measured against it."""

from dataclasses import dataclass

from equipoise.strategies import base


@dataclass(frozen=True)
class Strategy(base.Strategy):
    """Every train image once, plain cross-entropy.

    Only the penalty `l2` is searched, as in every scenario.

    Should lose where the operating point is wrong, not the ranking, and nobody moves the threshold.

    Reference: scikit-learn LogisticRegression without class weights gives the same head.
    """
