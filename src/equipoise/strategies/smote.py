"""SMOTE: invents cases of the rare classes, each between two similar real cases of its class."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.strategies import base
from equipoise.strategies.base import Plan, TrainRows, parameter

#: Similar images that a case may be mixed with, as published.
_NEIGHBOURS = 5


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Adds rows of features $x + \lambda (x' - x)$, $\lambda$ uniform in 0..1.

    $x'$ is one of the 5 nearest images of the same class. Class $c$ grows to
    $n_c + t (n_{max} - n_c)$ rows.

    Should lose with many features and few images: lines between distant images cross the other
    class, and the new rows vary less than real ones.

    Attributes:
        target_fraction: $t$, the part of the gap to the largest class that is filled. Published: 1,
            which makes the classes equally frequent.
        PROBE_ONLY: Why there is no fine-tuning.

    Reference: Chawla et al. 2002, https://doi.org/10.1613/jair.953; imbalanced-learn SMOTE makes
    the same rows at $t=1$.
    """

    PROBE_ONLY: ClassVar[str] = "trains on mixed features, of which there is no picture"

    target_fraction: float = parameter(1.0, low=0.0, high=1.0, neutral=0.0)

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, then the mixed draws: the first of a full set that stays the same."""
        counts = rows.counts
        largest = counts.max()
        images = np.arange(len(rows.labels))
        unmixed = np.zeros(len(images))
        draws = [np.stack([images, images, unmixed])]
        for label in np.flatnonzero(counts).tolist():
            gap = largest - counts[label]
            wanted = round(self.target_fraction * gap)
            if not wanted:
                continue
            make = partial(_mixed, rows, label, gap)
            full_set = rows.once(f"smote {label}", make)
            draws.append(full_set[:, :wanted])
        row, partner, mix = np.concatenate(draws, axis=1)
        return Plan.of(row, partner=partner, mix=mix)


def _mixed(rows: TrainRows, label: int, number: int, features: np.ndarray) -> np.ndarray:
    """Draw `number` mixed rows of a class as imbalanced-learn draws them.

    Returns:
        Row, partner and mix of each, float (3, number).
    """
    # Imported late, like the samplers: most strategies need no neighbours.
    from sklearn.neighbors import NearestNeighbors

    members = np.flatnonzero(rows.labels == label)
    if len(members) < 2:
        raise TrialFailed(
            f"SMOTE needs 2 images of a class to mix; "
            f"of {rows.counts.tolist()} one has a single image."
        )
    points = features[members]
    neighbours = min(_NEIGHBOURS, len(members) - 1)
    # One more is asked for, because the nearest to an image is the image.
    nearest = NearestNeighbors(n_neighbors=neighbours + 1)
    nearest.fit(points)
    neighbours_of = nearest.kneighbors(points, return_distance=False)[:, 1:]
    random = np.random.RandomState(rows.seed % 2**32)
    drawn = random.randint(0, neighbours_of.size, number)
    member, neighbour = np.divmod(drawn, neighbours)
    partner = neighbours_of[member, neighbour]
    mix = random.uniform(size=number)
    return np.stack([members[member], members[partner], mix])
