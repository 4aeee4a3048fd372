"""Class-balanced weights: rare classes count more, but less so the more images they have."""

from dataclasses import dataclass

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""A class weighs one over its effective number of images.

    $w_c \propto (1-\beta) / (1-\beta^{n_c})$ with mean 1 over the draws; the training rows stay as
    they are. As $\beta$ nears 1 the weights become those of `class_weight`.

    Should lose, as class weights do, where the threshold is moved anyway. With hundreds of images
    per class a $\beta$ up to 0.99 does nothing.

    Attributes:
        log10_one_minus_beta: $\log_{10}(1-\beta)$, no unit. Published: -4, so $\beta = 0.9999$.

    Reference: Cui et al. 2019, https://arxiv.org/abs/1901.05555
    """

    log10_one_minus_beta: float = parameter(-4.0, low=-5.0, high=-2.0, neutral=0.0)

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """Weights from int (num_classes,) draws per class; none counts as one."""
        rest = 10**self.log10_one_minus_beta
        counts = np.maximum(plan_counts, 1)
        effective = 1 - (1 - rest) ** counts
        weights = base.mean_one(rest / effective, plan_counts)
        neutral = Objective.neutral(len(plan_counts))
        return neutral.replace(weights=weights)
