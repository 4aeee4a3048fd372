"""Logit adjustment: the model is told in training how frequent each class is."""

from dataclasses import dataclass

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Trains on $z_c + \tau \log \pi_c$ and scores by plain $z_c$.

    $\pi_c$ is the share of class $c$. The training rows stay as they are.

    Should tie in ranking: with a linear head on fixed features it is the baseline with another
    intercept. It loses at threshold 0.5 where probabilities must be right.

    Attributes:
        strength: $\tau$, no unit. Published: 1.

    Reference: Menon et al. 2021, https://arxiv.org/abs/2007.07314
    """

    strength: float = parameter(1.0, low=0.0, high=2.0, neutral=0.0)

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """Offsets from int (num_classes,) draws per class; none counts as one."""
        counts = np.maximum(plan_counts, 1)
        shares = counts / np.sum(plan_counts)
        offsets = self.strength * np.log(shares)
        neutral = Objective.neutral(len(plan_counts))
        return neutral.replace(offsets=offsets)
