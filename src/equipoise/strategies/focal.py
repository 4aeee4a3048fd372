"""Focal loss: cases that the model still gets wrong count more than those it already gets right."""

from dataclasses import dataclass

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""The loss of an image is $-(1-p_y)^\gamma \log p_y$, with $\gamma=0$ cross-entropy.

    The training rows stay as they are.

    Should lose with noisy labels, and where probabilities must be right.

    Attributes:
        gamma: Focusing exponent $\gamma$, no unit. The paper's best value is 2.

    Reference: Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """

    gamma: float = parameter(2.0, low=0.0, high=5.0, neutral=0.0)

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """The exponent; int (num_classes,) draws per class after the plan do not matter here."""
        neutral = Objective.neutral(len(plan_counts))
        return neutral.replace(focusing=self.gamma)
