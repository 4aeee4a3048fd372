"""Random oversampling: images of the rare classes are shown to the model several times."""

from dataclasses import dataclass

from equipoise.strategies import _samplers, base
from equipoise.strategies.base import Plan, TrainRows, option, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Images are repeated at random until class $c$ has $n_c + t (n - n_c)$ of them.

    $n$ is the size of the largest class, or `target_count`; a class that has more stays as it is.

    Should tie with `class_weight` of the same strength: an image that is shown twice counts twice.

    Attributes:
        target_fraction: $t$, the part of the gap to $n$ that is filled. Published: 1, which makes the
            classes equally frequent.
        target_count: $n$ in images per class, in place of the size of the largest class.

    Reference: Buda, Maki, Mazurowski 2018, https://arxiv.org/abs/1710.05381; imbalanced-learn
    RandomOverSampler draws the same rows.
    """

    target_fraction: float = parameter(1.0, low=0.0, high=1.0, neutral=0.0)
    target_count: int | None = option(low=1)

    def plan(self, rows: TrainRows) -> Plan:
        """Draw with replacement, train rows only."""
        counts = rows.counts
        wanted = self.target_count or counts.max()
        target = {}
        for label, count in enumerate(counts):
            if count:
                gap = max(wanted - count, 0)
                target[label] = round(count + self.target_fraction * gap)
        return _samplers.drawn_again(rows, target)
