"""Random undersampling: leave images of the larger classes out."""

from dataclasses import dataclass
from typing import Any, ClassVar

from equipoise.strategies import _samplers, base
from equipoise.strategies.base import Plan, TrainRows


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Keeps $n_c - t (n_c - n_{min})$ images of class $c$ at random. $t=0$ is the baseline exactly.

    Attributes:
        target_fraction: $t$ in 0..1, the part of the surplus over the smallest class left out. Published: 1 (1:1).

    Reference: Buda, Maki, Mazurowski 2018, https://arxiv.org/abs/1710.05381; imbalanced-learn RandomUnderSampler.
    """

    target_fraction: float = 1.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"target_fraction": 0.0}

    def plan(self, rows: TrainRows) -> Plan:
        """Draw without replacement, train rows only."""
        counts = rows.counts
        smallest = counts[counts > 0].min()
        target = {
            label: round(count - self.target_fraction * (count - smallest))
            for label, count in enumerate(counts)
            if count
        }
        return _samplers.resampled(rows, target, "under_sampling", "RandomUnderSampler")

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$t$ in 0..1."""
        return {"target_fraction": trial.suggest_float("target_fraction", 0.0, 1.0)}
