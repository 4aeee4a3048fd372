"""Focal loss: spend the gradient on the cases the model still gets wrong."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""$-(1-p_y)^\gamma \log p_y$; the training rows stay as they are. $\gamma=0$ is cross-entropy exactly.

    Attributes:
        gamma: Focusing exponent, >= 0, no unit. The paper's best value is 2.0.

    Reference: Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """

    gamma: float = 2.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"gamma": 0.0}

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """The exponent; int (num_classes,) draws per class after the plan do not matter here."""
        return Objective.neutral(len(plan_counts)).replace(focusing=self.gamma)

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        r"""$\gamma$ in 0..5."""
        return {"gamma": trial.suggest_float("gamma", 0.0, 5.0)}
