"""One linear head: fitted in float64 to a tight gradient, applied, saved and read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equipoise.core.errors import TrialFailed
from equipoise.core.files import write_arrays
from equipoise.scenario.heads import newton, newton_cg
from equipoise.scenario.heads.kept import Arrays, Kept, key_of
from equipoise.scenario.heads.rows import Features, Rows, Standardiser, blocks, read_if_one_block
from equipoise.scenario.heads.solver import roughly
from equipoise.strategies.base import Objective

#: Name of the file of a head in a model folder.
HEAD = "head.npz"
#: Norm of the preconditioned gradient at which a final fit counts as solved.
FINAL_TOLERANCE = 1e-8

#: The same of the head that Newton's steps begin near: closer costs more than it spares.
_ROUGH_TOLERANCE = 1e-3


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
    kept: Kept | None = None,
) -> Head:
    """Fit one head in float64 to a tight gradient.

    It depends on the rows that are drawn, and on nothing that was searched: remedies and seeds that
    draw the same rows have the same head to the last bit, and a fit that is kept serves them all.

    Args:
        features: float32 (num_rows, num_features), raw; rows may be augmented views.
        labels: int (num_rows,).
        draws: float (num_rows,), how often the plan draws each row; rows with 0 are left out.
        objective: Weights, focusing and offsets.
        l2: Penalty.
        standardiser: Fitted on the unresampled train rows.
        kept: Where fits are kept and read back; None keeps nothing.

    Raises:
        TrialFailed: When the objective is not a finite number.
    """
    used = np.flatnonzero(draws > 0)
    used_labels = labels[used]
    task = _Task(
        rows=Rows(features, used, np.float64, standardiser),
        labels=used_labels,
        weights=draws[used] * objective.weights[used_labels],
        objective=objective,
        l2=l2,
    )
    solved = task.solved() if kept is None else kept.arrays(task.key(), task.solved)
    return Head(
        standardiser,
        coefficients=solved["coefficients"],
        intercepts=solved["intercepts"],
        gradient_norm=float(solved["gradient_norm"]),
    )


@dataclass(frozen=True)
class _Task:
    """What a final fit is made of.

    Attributes:
        rows: float64 (num_used, num_kept), standardised where they are read.
        labels: int (num_used,).
        weights: float (num_used,), draws times the weight of the class.
        objective: Focusing and offsets are read.
        l2: Penalty.
    """

    rows: Rows
    labels: np.ndarray
    weights: np.ndarray
    objective: Objective
    l2: float

    def key(self) -> str:
        """Digest of everything that the fit depends on."""
        return key_of(
            "fit",
            self.rows,
            labels=self.labels,
            weights=self.weights,
            focusing=self.objective.focusing,
            offsets=self.objective.offsets,
            l2=self.l2,
        )

    def solved(self) -> Arrays:
        """Coefficients (num_kept, C), intercepts (C,) and the norm of the gradient.

        Raises:
            TrialFailed: When the objective is not a finite number.
        """
        solved = self._by_newton() if len(self.objective.weights) == 2 else None
        if solved is None:
            solved = self._by_conjugate_gradients()
        if not np.isfinite(solved["objective"]):
            raise TrialFailed("The final fit diverged: its objective is not a finite number.")
        return solved

    def _by_newton(self) -> Arrays | None:
        """None where the steps did not end."""
        # Few rows are standardised once for the rough head and for the steps.
        rows = read_if_one_block(self.rows)
        minimum = newton.minimise(
            rows,
            self.labels,
            self.weights,
            self.objective,
            self.l2,
            FINAL_TOLERANCE,
            start=self._rough_scores(rows),
        )
        if minimum is None:
            return None
        zeros = np.zeros_like(minimum.coefficients)
        return {
            "coefficients": np.column_stack([zeros, minimum.coefficients]),
            "intercepts": np.array([0.0, minimum.intercept]),
            "gradient_norm": np.array(minimum.decrement),
            "objective": np.array(minimum.objective),
        }

    def _rough_scores(self, rows: Features) -> np.ndarray:
        """Scores of the standardised rows by a head near the optimum, float64 (num_used,)."""
        parameters = roughly(
            rows, self.labels, self.weights, self.objective, self.l2, _ROUGH_TOLERANCE
        )
        scores = np.empty(len(rows))
        for block in blocks(len(scores)):
            scores[block] = (rows[block] @ parameters[:-1] + parameters[-1])[:, 0]
        return scores

    def _by_conjugate_gradients(self) -> Arrays:
        """For more than two classes, whose Hessian is C - 1 times as wide, and where Cholesky did not do."""
        minimum = newton_cg.minimise(
            self.rows,
            self.labels,
            self.weights,
            self.objective,
            self.l2,
            FINAL_TOLERANCE,
        )
        return {
            "coefficients": minimum.coefficients,
            "intercepts": minimum.intercepts,
            "gradient_norm": np.array(minimum.decrement),
            "objective": np.array(minimum.objective),
        }
