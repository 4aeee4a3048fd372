"""Class-balanced weights: the weight of a class is one over its effective number of images."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""$w_c \propto (1-\beta) / (1-\beta^{n_c})$, mean 1 over the draws; the training rows stay as they are.

    $\beta=0$ is the baseline exactly, $\beta \to 1$ is `class_weight`. Should lose, like it, where thresholds are moved
    anyway; and with hundreds of images per class $\beta \le 0.99$ does nothing.

    Attributes:
        log10_one_minus_beta: $\log_{10}(1-\beta)$ in -5..-2. Published: -4, which is $\beta = 0.9999$.

    Reference: Cui et al. 2019, https://arxiv.org/abs/1901.05555
    """

    log10_one_minus_beta: float = -4.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"log10_one_minus_beta": 0.0}

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """Weights from int (num_classes,) draws per class after the plan; a class without draws weighs as with one."""
        rest = 10**self.log10_one_minus_beta
        weights = rest / (1 - (1 - rest) ** np.maximum(plan_counts, 1))
        return Objective.neutral(len(plan_counts)).replace(
            weights=base.mean_one(weights, plan_counts)
        )

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        r"""$\log_{10}(1-\beta)$ in -5..-2."""
        return {"log10_one_minus_beta": trial.suggest_float("log10_one_minus_beta", -5.0, -2.0)}
