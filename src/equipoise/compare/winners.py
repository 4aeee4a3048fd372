"""Which scenario is put forward on each backbone, and which backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from equipoise.compare.wording import BASELINE, number
from equipoise.core.documents import RoundChoice, ScenarioRow


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


class InnerGain(NamedTuple):
    """By how much a rival's inner score is better than the baseline's, and the paired standard error of that."""

    value: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether it is more than one standard error."""
        return self.value > self.standard_error


def inner_gain(
    rival: Sequence[RoundChoice], baseline: Sequence[RoundChoice], sign: int
) -> InnerGain | None:
    """The gain in the inner score, which no test row has touched.

    Both were scored on the same patients, and these were resampled alike; so the standard error is paired.

    Args:
        rival: Its choices, one per round.
        baseline: Those of the baseline.
        sign: 1 where a higher inner score is better, -1 where a lower one is.

    Returns:
        None where a round of either has no inner score, or none under resamples.
    """
    draws = _mean_draws(rival)
    baseline_draws = _mean_draws(baseline)
    if draws is None or baseline_draws is None or len(draws) != len(baseline_draws):
        return None
    gains = sign * (draws - baseline_draws)
    return InnerGain(float(gains[0]), float(np.nanstd(gains[1:], ddof=1)))


def _mean_draws(choices: Sequence[RoundChoice]) -> np.ndarray | None:
    """Inner score and its resamples, float (B + 1,), the mean over rounds."""
    rounds = []
    for choice in choices:
        if choice.score is None or choice.inner_draws is None:
            return None
        rounds.append(np.array([choice.score, *choice.inner_draws], dtype=np.float64))
    return np.mean(rounds, axis=0)


def choose_winners(
    rows: Mapping[str, Mapping[str, ScenarioRow]],
    rule: Rule,
    inner_gains: Mapping[str, Mapping[str, InnerGain | None]],
) -> Winners:
    """Of each backbone the baseline, unless scenarios are better.

    In folds the "better" one with the highest low end wins. With one test part the inner score chooses: the largest
    gain over the baseline, if it is more than one paired standard error. Test only reports there.

    Args:
        rows: backbone -> scenario -> its row.
        rule: How it is chosen.
        inner_gains: backbone -> rival -> its gain; used with one test part.
    """
    winners = {}
    for backbone, of_backbone in rows.items():
        scores = {}
        if rule.in_folds:
            for scenario, row in of_backbone.items():
                if row.verdict == "better":
                    scores[scenario] = rule.claim(row)
        else:
            for scenario, gain in inner_gains[backbone].items():
                if gain is not None and gain.is_clear:
                    scores[scenario] = gain.value
        winners[backbone] = max(scores, key=scores.__getitem__, default=BASELINE)
    winning_scores = {}
    for backbone, winner in winners.items():
        winning_scores[backbone] = rule.inner_score(rows[backbone][winner])
    challenger = max(winning_scores, key=winning_scores.__getitem__)
    return Winners(winners, challenger)
