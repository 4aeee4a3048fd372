"""Which scenario is put forward on each backbone, and which backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from equipoise.compare.wording import BASELINE, number
from equipoise.core.documents import ScenarioRow


class Winners(NamedTuple):
    """backbone -> its winning scenario, and the backbone whose winner is put forward."""

    by_backbone: dict[str, str]
    challenger: str


@dataclass(frozen=True)
class Rule:
    """How a winner is chosen.

    Attributes:
        in_folds: Whether every patient was tested in folds; else there is one test part.
        primary: Name of the endpoint that was judged.
        primary_sign: 1 where a higher number of it is better, -1 where a lower one is.
        inner_sign: The same for the inner score.
    """

    in_folds: bool
    primary: str
    primary_sign: int
    inner_sign: int

    def claim(self, row: ScenarioRow) -> float:
        """By how much a rival is better at least: the low end of its interval."""
        delta = row.delta[self.primary]
        end = delta.low if self.primary_sign > 0 else delta.high
        return self.primary_sign * number(end)

    def inner_score(self, row: ScenarioRow) -> float:
        """The score of the search, higher is better."""
        if row.inner_score is None:  # nothing was searched; it loses to any score
            return -np.inf
        return self.inner_sign * row.inner_score


def choose_winners(rows: Mapping[str, Mapping[str, ScenarioRow]], rule: Rule) -> Winners:
    """Of each backbone the baseline, unless scenarios are better.

    In folds the one with the highest low end wins. With one test part the best inner score among them does, for the
    files of a search hold no standard error of an inner score beside another scenario's.

    Args:
        rows: backbone -> scenario -> its row.
        rule: How it is chosen.
    """
    winners = {}
    for backbone, of_backbone in rows.items():
        scores = {}
        for scenario, row in of_backbone.items():
            if row.verdict == "better":
                scores[scenario] = rule.claim(row) if rule.in_folds else rule.inner_score(row)
        winners[backbone] = max(scores, key=scores.__getitem__, default=BASELINE)
    winning_scores = {}
    for backbone, winner in winners.items():
        winning_scores[backbone] = rule.inner_score(rows[backbone][winner])
    challenger = max(winning_scores, key=winning_scores.__getitem__)
    return Winners(winners, challenger)
