"""Targeted augmentation with class weights: copies of the rare images, costlier mistakes."""

from dataclasses import dataclass

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import VIEWS, Objective, Plan, TrainRows, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Adds $k$ augmented views of every minority image, then weighs with $w_c \propto n_c^{-a}$.

    The counts $n_c$ include the views, so the two never correct twice for the same imbalance.

    Should lose where a view does not look like another image of its class.

    Attributes:
        exponent: $a$, no unit. Published: 1.
        copies: $k$, at most K as `embed.views` says. Published for BreakHis: 5.

    Reference: that of the two it joins, `class_weight` and `augment`.
    """

    exponent: float = parameter(1.0, low=0.0, high=1.5, neutral=0.0)
    copies: int = parameter(5, low=0, high=VIEWS, neutral=0)

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, minority images $k$ times more."""
        return base.with_copies(rows, self.copies)

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """Weights from int (num_classes,) draws per class after the plan, views included."""
        weights = base.inverse_frequency(plan_counts, self.exponent)
        neutral = Objective.neutral(len(plan_counts))
        return neutral.replace(weights=weights)
