"""Random undersampling: images of the frequent classes are left out."""

from dataclasses import dataclass

from equipoise.strategies import _samplers, base
from equipoise.strategies.base import Plan, TrainRows, option, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Keeps $n_c - t (n_c - n)$ images of class $c$, chosen at random.

    $n$ is the size of the smallest class, or `target_count`; a class that has fewer stays as it is.

    Should lose with few patients: it throws information away.

    Attributes:
        target_fraction: $t$, the part of the surplus over $n$ that is left out. Published: 1, which
            makes the classes equally frequent.
        target_count: $n$ in images per class, in place of the size of the smallest class.

    Reference: Buda, Maki, Mazurowski 2018, https://arxiv.org/abs/1710.05381; imbalanced-learn
    RandomUnderSampler keeps the same rows.
    """

    target_fraction: float = parameter(1.0, low=0.0, high=1.0, neutral=0.0)
    target_count: int | None = option(low=1)

    def plan(self, rows: TrainRows) -> Plan:
        """Draw without replacement, train rows only."""
        counts = rows.counts
        wanted = self.target_count or counts[counts > 0].min()
        target = {}
        for label, count in enumerate(counts):
            if count:
                surplus = max(count - wanted, 0)
                target[label] = round(count - self.target_fraction * surplus)
        return _samplers.left_over(rows, target)
