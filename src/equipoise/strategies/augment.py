"""Targeted augmentation: slightly changed copies of the rare images join the training."""

from dataclasses import dataclass

from equipoise.strategies import base
from equipoise.strategies.base import VIEWS, Plan, TrainRows, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    """Adds $k$ augmented views of every image of a minority class.

    Should lose where a view does not look like another image of its class.

    Attributes:
        copies: $k$, at most K as `embed.views` says. Published for BreakHis: 5.

    Reference: Shorten and Khoshgoftaar 2019, https://doi.org/10.1186/s40537-019-0197-0
    """

    copies: int = parameter(5, low=0, high=VIEWS, neutral=0)

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, minority images $k$ times more."""
        return base.with_copies(rows, self.copies)
