"""Class weights together with targeted augmentation of the minority."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from equipoise.strategies import base
from equipoise.strategies.base import Objective, Plan, TrainRows


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""$k$ augmented views of every minority image, then $w_c \propto n_c^{-a}$ from the counts with the views.

    So the two never correct twice for the same imbalance. $a=0, k=0$ is the baseline exactly.

    Attributes:
        exponent: $a$ in 0..1.5. Published: 1.
        copies: $k$ in 0..K. Published for BreakHis: 5.

    Reference: the two it joins, `class_weight` and `augment`.
    """

    exponent: float = 1.0
    copies: int = 5

    NEUTRAL: ClassVar[dict[str, Any]] = {"exponent": 0.0, "copies": 0}
    NEEDS_VIEWS: ClassVar[bool] = True

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, minority images $k$ times more."""
        return base.with_copies(rows, self.copies)

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """Weights from the draws per class after the plan."""
        return Objective.neutral(len(plan_counts)).replace(
            weights=base.inverse_frequency(plan_counts, self.exponent)
        )

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$a$ in 0..1.5 and $k$ in 0..K."""
        return {
            "exponent": trial.suggest_float("exponent", 0.0, 1.5),
            "copies": trial.suggest_int("copies", 0, trial.study.user_attrs["views"]),
        }
