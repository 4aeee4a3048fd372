"""Class weights: a mistake on a rare class costs more than one on a frequent class."""

from dataclasses import dataclass

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""An image of class $c$ weighs $w_c \propto n_c^{-a}$; the training rows stay as they are.

    Should lose where the threshold is moved anyway: the ranking hardly changes.

    Attributes:
        exponent: $a$, no unit. Published: 1, scikit-learn's "balanced", $w_c = N / (C n_c)$.

    Reference: King and Zeng 2001, https://doi.org/10.1093/oxfordjournals.pan.a004868; scikit-learn
    compute_class_weight.
    """

    exponent: float = parameter(1.0, low=0.0, high=1.5, neutral=0.0)

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """Weights from int (num_classes,) draws per class after the plan."""
        weights = base.inverse_frequency(plan_counts, self.exponent)
        neutral = Objective.neutral(len(plan_counts))
        return neutral.replace(weights=weights)
