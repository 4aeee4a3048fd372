"""SMOTE: new rows of the smaller classes on the lines between neighbouring features of the same class."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.strategies import base
from equipoise.strategies.base import Plan, TrainRows

_NEIGHBOURS = 5


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""Adds $x + \lambda (x' - x)$, $x'$ one of the 5 nearest of the same class, $\lambda$ uniform in 0..1.

    Class $c$ grows to $n_c + t (n_{max} - n_c)$ rows; $t=0$ is the baseline exactly. Should lose with many features and
    few images: lines between distant images cross the other class, and the new rows vary less than real ones.

    Attributes:
        target_fraction: $t$ in 0..1, the part of the gap to the largest class that is filled. Published: 1 (1:1).

    Reference: Chawla et al. 2002, https://doi.org/10.1613/jair.953; imbalanced-learn SMOTE, the same rows at $t=1$.
    """

    target_fraction: float = 1.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"target_fraction": 0.0}
    PROBE_ONLY: ClassVar[str] = "trains on mixed features, of which there is no picture"

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, then the mixed draws: of a full set, always the same, the first that are needed."""
        images = np.arange(len(rows.labels))
        draws = [np.stack([images, images, np.zeros(len(images))])]
        for label, gap in enumerate(rows.counts.max() - rows.counts):
            wanted = round(self.target_fraction * gap) if rows.counts[label] else 0
            if wanted:
                full = rows.once(f"smote {label}", partial(_mixed, rows, label, gap))
                draws.append(full[:, :wanted])
        row, partner, mix = np.concatenate(draws, axis=1)
        return Plan.of(row, partner=partner, mix=mix)

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$t$ in 0..1."""
        return {"target_fraction": trial.suggest_float("target_fraction", 0.0, 1.0)}


def _mixed(rows: TrainRows, label: int, number: int, features: np.ndarray) -> np.ndarray:
    """Row, partner and mix of `number` draws of a class, float (3, number), drawn as imbalanced-learn draws them."""
    from sklearn.neighbors import (
        NearestNeighbors,
    )  # late, like the samplers: most strategies need no neighbours

    own = np.flatnonzero(rows.labels == label)
    if len(own) < 2:
        raise TrialFailed(
            f"SMOTE needs 2 images of a class to mix; of {rows.counts.tolist()} one has a single image."
        )
    near = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(own) - 1) + 1).fit(features[own])
    partners = near.kneighbors(features[own], return_distance=False)[:, 1:]
    random = np.random.RandomState(rows.seed % 2**32)
    row, neighbour = np.divmod(random.randint(0, partners.size, number), partners.shape[1])
    return np.stack([own[row], own[partners[row, neighbour]], random.uniform(size=number)])
