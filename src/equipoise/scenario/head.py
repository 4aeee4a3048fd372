"""Solves linear heads for plans and objectives: many at once for trials, one by one in float64 for final fits.

All heads of a search share one feature matrix $X$; a head is a column of row weights (rows left out weigh 0) with its
own focusing, offsets and $l_2$. $X$ is rotated once into the eigenbasis of its Gram matrix, where the curvature is
nearly diagonal, and a batched L-BFGS moves all heads together: one matrix product each way per step. Rows are walked in
blocks: what lies in memory is one block, the numbers per row and head, and the Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.core.files import atomic_path
from equipoise.scenario.rows import Rows, Standardiser, blocks
from equipoise.scenario.solver import Rotated, solve
from equipoise.strategies.base import Objective

FINAL_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Head:
    """A fitted linear head: logits from raw features.

    Attributes:
        standardiser: Applied first.
        coefficients: float64 (num_kept, C); for two classes column 0 is zero.
        intercepts: float64 (C,).
        gradient_norm: Of the preconditioned objective at the solution: how far from stationary it is.
    """

    standardiser: Standardiser
    coefficients: np.ndarray
    intercepts: np.ndarray
    gradient_norm: float

    def logits(self, features: np.ndarray | Rows) -> np.ndarray:
        """float64 (num_rows, C) of raw features (num_rows, num_features)."""
        logits = np.empty((len(features), len(self.intercepts)))
        for rows in blocks(len(features)):
            logits[rows] = (
                self.standardiser.apply(features[rows]) @ self.coefficients + self.intercepts
            )
        return logits

    def save(self, path: Path) -> None:
        """Write an .npz of plain arrays."""
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            fitted: dict[str, Any] = {**vars(self.standardiser), **vars(self)}
            del fitted["standardiser"]
            np.savez(handle, **fitted)

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as saved:
            standardiser = Standardiser(saved["kept"], saved["mean"], saved["scale"])
            return cls(
                standardiser,
                saved["coefficients"],
                saved["intercepts"],
                float(saved["gradient_norm"]),
            )


def fit(
    features: np.ndarray | Rows,
    labels: np.ndarray,
    draws: np.ndarray,
    objective: Objective,
    l2: float,
    standardiser: Standardiser,
) -> Head:
    """Final fit of one head in float64 to a tight gradient.

    Args:
        features: float32 (num_rows, num_features), raw; rows may be augmented views.
        labels: int (num_rows,).
        draws: int (num_rows,), how often the plan draws each row; rows with 0 are left out.
        objective: Weights, focusing, offsets.
        l2: Penalty.
        standardiser: Fitted on the unresampled train rows.

    Raises:
        TrialFailed: When the objective is not a finite number.
    """
    used = np.flatnonzero(draws > 0)
    rotated = Rotated.of(Rows(features, used, np.float64, standardiser))
    weights = (draws[used] * objective.weights[labels[used]])[:, None].astype(np.float64)
    solution = solve(rotated, labels[used], weights, [objective], np.array([l2]), FINAL_TOLERANCE)
    if not np.isfinite(solution.objective[0]):
        raise TrialFailed("The final fit diverged: its objective is not a finite number.")
    coefficients = rotated.basis @ solution.parameters[:-1, :, 0]
    intercepts = solution.parameters[-1, :, 0]
    if coefficients.shape[1] == 1:
        coefficients = np.hstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.array([0.0, intercepts[0]])
    return Head(standardiser, coefficients, intercepts, float(solution.gradient_norm[0]))
