"""One linear head: fitted in float64 to a tight gradient, applied, saved and read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.core.files import write_arrays
from equipoise.scenario.rows import Features, Rows, Standardiser, blocks
from equipoise.scenario.solver import Rotated, solve
from equipoise.strategies.base import Objective

#: Norm of the preconditioned gradient at which a final fit counts as solved.
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

    def logits(self, features: Features) -> np.ndarray:
        """float64 (num_rows, C) of raw features (num_rows, num_features)."""
        logits = np.empty((len(features), len(self.intercepts)))
        for rows in blocks(len(features)):
            standardised = self.standardiser.apply(features[rows])
            logits[rows] = standardised @ self.coefficients + self.intercepts
        return logits

    def save(self, path: Path) -> None:
        """Write an .npz of plain arrays."""
        write_arrays(
            path,
            kept=self.standardiser.kept,
            mean=self.standardiser.mean,
            scale=self.standardiser.scale,
            coefficients=self.coefficients,
            intercepts=self.intercepts,
            gradient_norm=np.asarray(self.gradient_norm),
        )

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as saved:
            return cls(
                standardiser=Standardiser(saved["kept"], saved["mean"], saved["scale"]),
                coefficients=saved["coefficients"],
                intercepts=saved["intercepts"],
                gradient_norm=float(saved["gradient_norm"]),
            )


def fit(
    features: Features,
    labels: np.ndarray,
    draws: np.ndarray,
    objective: Objective,
    l2: float,
    standardiser: Standardiser,
    scratch_folder: Path | None = None,
) -> Head:
    """Fit one head in float64 to a tight gradient.

    Args:
        features: float32 (num_rows, num_features), raw; rows may be augmented views.
        labels: int (num_rows,).
        draws: float (num_rows,), how often the plan draws each row; rows with 0 are left out.
        objective: Weights, focusing and offsets.
        l2: Penalty.
        standardiser: Fitted on the unresampled train rows.
        scratch_folder: Where a copy of many rows lies, see `rows.scratch`.

    Raises:
        TrialFailed: When the objective is not a finite number.
    """
    used = np.flatnonzero(draws > 0)
    used_labels = labels[used]
    rotated = Rotated.of(Rows(features, used, np.float64, standardiser), scratch_folder)
    row_weights = draws[used] * objective.weights[used_labels]
    solution = solve(
        rotated,
        used_labels,
        row_weights[:, None].astype(np.float64),
        [objective],
        np.array([l2]),
        FINAL_TOLERANCE,
    )
    if not np.isfinite(solution.objective[0]):
        raise TrialFailed("The final fit diverged: its objective is not a finite number.")
    coefficients = rotated.basis @ solution.parameters[:-1, :, 0]
    intercepts = solution.parameters[-1, :, 0]
    if coefficients.shape[1] == 1:
        coefficients = np.hstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.array([0.0, intercepts[0]])
    return Head(standardiser, coefficients, intercepts, float(solution.gradient_norm[0]))
