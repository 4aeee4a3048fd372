"""Targeted augmentation: augmented views of the minority images join the training rows."""

from dataclasses import dataclass
from typing import Any, ClassVar

from equipoise.strategies import base
from equipoise.strategies.base import Plan, TrainRows


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Adds $k$ augmented views of every minority image. $k=0$ is the baseline exactly.

    Attributes:
        copies: $k$ in 0..K, K as `embed.views` says. Published for BreakHis: 5.

    Reference: Shorten and Khoshgoftaar 2019, https://doi.org/10.1186/s40537-019-0197-0
    """

    copies: int = 5

    NEUTRAL: ClassVar[dict[str, Any]] = {"copies": 0}
    NEEDS_VIEWS: ClassVar[bool] = True

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, minority images $k$ times more."""
        return base.with_copies(rows, self.copies)

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$k$ in 0..K."""
        return {"copies": trial.suggest_int("copies", 0, trial.study.user_attrs["views"])}
