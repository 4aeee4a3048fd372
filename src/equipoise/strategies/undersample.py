"""Random undersampling: images of the frequent classes are left out."""

from dataclasses import dataclass

from equipoise.strategies import _samplers, base
from equipoise.strategies.base import Plan, TrainRows, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Keeps $n_c - t (n_c - n_{min})$ images of class $c$, chosen at random.

    Should lose with few patients: it throws information away.

    Attributes:
        target_fraction: $t$, the part of the surplus over the smallest class that is left out.
            Published: 1, which makes the classes equally frequent.

    Reference: Buda, Maki, Mazurowski 2018, https://arxiv.org/abs/1710.05381; imbalanced-learn
    RandomUnderSampler keeps the same rows.
    """

    target_fraction: float = parameter(1.0, low=0.0, high=1.0, neutral=0.0)

    def plan(self, rows: TrainRows) -> Plan:
        """Draw without replacement, train rows only."""
        counts = rows.counts
        smallest = counts[counts > 0].min()
        target = {}
        for label, count in enumerate(counts):
            if count:
                target[label] = round(count - self.target_fraction * (count - smallest))
        return _samplers.left_over(rows, target)
