"""Class weights: mistakes on the smaller classes cost more."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""$w_c \propto n_c^{-a}$; the training rows stay as they are. $a=0$ is the baseline exactly.

    Attributes:
        exponent: $a$ in 0..1.5, no unit. Published: 1, which is scikit-learn's "balanced", $w_c = N / (C n_c)$.

    Reference: King and Zeng 2001, https://doi.org/10.1093/oxfordjournals.pan.a004868; sklearn compute_class_weight.
    """

    exponent: float = 1.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"exponent": 0.0}

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """Weights from the draws per class after the plan."""
        return Objective.neutral(len(plan_counts)).replace(
            weights=base.inverse_frequency(plan_counts, self.exponent)
        )

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$a$ in 0..1.5."""
        return {"exponent": trial.suggest_float("exponent", 0.0, 1.5)}
