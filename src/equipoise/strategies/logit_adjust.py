"""Logit adjustment: the class shares are added to the logits while training and left out when scoring."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Cross-entropy of $z_c + \tau \log \pi_c$; the training rows stay as they are. $\tau=0$ is the baseline exactly.

    With a linear head on fixed features it is the baseline with another intercept: it should tie in ranking, and lose
    at 0.5 where probabilities must be right.

    Attributes:
        strength: $\tau$ in 0..2, no unit. Published: 1.

    Reference: Menon et al. 2021, https://arxiv.org/abs/2007.07314
    """

    strength: float = 1.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"strength": 0.0}

    def objective(self, plan_counts: np.ndarray) -> Objective:
        r"""Offsets from int (num_classes,) draws per class after the plan; a class without draws counts as with one."""
        offsets = self.strength * np.log(np.maximum(plan_counts, 1) / np.sum(plan_counts))
        return Objective.neutral(len(plan_counts)).replace(offsets=offsets)

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        r"""$\tau$ in 0..2."""
        return {"strength": trial.suggest_float("strength", 0.0, 2.0)}
