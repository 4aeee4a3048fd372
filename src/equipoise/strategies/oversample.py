"""Random oversampling: repeat images of the smaller classes."""

from dataclasses import dataclass
from typing import Any, ClassVar

from equipoise.strategies import _samplers, base
from equipoise.strategies.base import Plan, TrainRows


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Repeats images at random until class $c$ has $n_c + t (n_{max} - n_c)$ of them. $t=0$ is the baseline exactly.

    Attributes:
        target_fraction: $t$ in 0..1, the part of the gap to the largest class that is filled. Published: 1 (1:1).

    Reference: Buda, Maki, Mazurowski 2018, https://arxiv.org/abs/1710.05381; imbalanced-learn RandomOverSampler.
    """

    target_fraction: float = 1.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"target_fraction": 0.0}

    def plan(self, rows: TrainRows) -> Plan:
        """Draw with replacement, train rows only."""
        counts = rows.counts
        target = {
            label: round(count + self.target_fraction * (counts.max() - count))
            for label, count in enumerate(counts)
            if count
        }
        return _samplers.resampled(rows, target, "over_sampling", "RandomOverSampler")

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$t$ in 0..1."""
        return {"target_fraction": trial.suggest_float("target_fraction", 0.0, 1.0)}
