"""Rows of a feature file that stay on disk, blocks of them, and their standardisation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import TrialFailed

#: Features or rows converted to float64 at a time.
_BLOCK = 256


#: Rows in memory at a time. Copies of more lie in files without a name, which the system pages.
_BLOCK_ROWS = 8192


_SCRATCH = Path("data/cache")


def blocks(rows: int) -> list[slice]:
    """Slices that cover that many rows, each of what may lie in memory."""
    return [slice(start, min(start + _BLOCK_ROWS, rows)) for start in range(0, rows, _BLOCK_ROWS)]


def scratch(shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """An empty matrix: in memory when it is one block, else in a file that goes with the last who holds it."""
    if shape[0] <= _BLOCK_ROWS:
        return np.empty(shape, dtype)
    _SCRATCH.mkdir(
        parents=True, exist_ok=True
    )  # not the system's temporary folder, which may itself be memory
    with tempfile.TemporaryFile(dir=_SCRATCH) as file:
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape))


@dataclass(frozen=True)
class Rows:
    """Chosen rows of a matrix, read, and standardised if wanted, only where they are indexed.

    Attributes:
        matrix: (any, num_features), as a rule a memory map.
        chosen: int (num_rows,).
        standardiser: Applied to what is read; None reads raw features.
        dtype: Of what is read.
    """

    matrix: np.ndarray | Rows
    chosen: np.ndarray
    dtype: Any
    standardiser: Standardiser | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(num_rows, num_features)."""
        return len(self.chosen), self.matrix.shape[1] if self.standardiser is None else len(
            self.standardiser.kept
        )

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = self.matrix[self.chosen[rows]]
        return found if self.standardiser is None else self.standardiser.apply(found, self.dtype)


@dataclass(frozen=True)
class Standardiser:
    """Zero mean and unit spread per feature, fitted on unresampled train rows; dead features are left out.

    Attributes:
        kept: int (num_kept,), the features used.
        mean: float64 (num_kept,).
        scale: float64 (num_kept,), standard deviations.
    """

    kept: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray | Rows) -> Standardiser:
        """Fit on float (num_rows, num_features).

        A feature is dead when its spread is below 1e-4 of the median spread, or below float32's resolution at its mean:
        262 of 1,920 features of an untrained DenseNet201 are constant.
        """
        mean = _column_totals(features) / len(features)
        spread = np.sqrt(_column_totals(features, mean) / len(features))
        alive = spread[spread > 0]
        floor = 1e-4 * np.median(alive) if alive.size else np.inf
        kept = np.flatnonzero(spread > np.maximum(floor, np.finfo(np.float32).eps * np.abs(mean)))
        if kept.size == 0:
            raise TrialFailed(
                "Every feature is the same for all train images, so nothing can be learned. Check weights and images."
            )
        return cls(kept, mean[kept], spread[kept])

    def apply(self, features: np.ndarray | Rows, dtype: Any = np.float64) -> np.ndarray:
        """Standardise float (num_rows, num_features) to (num_rows, num_kept)."""
        # In float64 whatever comes out: features of an untrained network vary by 1e-13 of their size.
        # Column by column, as numpy lays out chosen columns: products of the other layout round differently.
        standardised = np.empty((len(features), len(self.kept)), dtype, order="F")
        for start in range(0, len(features), _BLOCK):
            rows = slice(start, start + _BLOCK)
            standardised[rows] = (features[rows][:, self.kept] - self.mean) / self.scale
        return standardised


def _column_totals(features: np.ndarray | Rows, mean: np.ndarray | None = None) -> np.ndarray:
    """Sum of each feature, or of its squared distance to its mean, in float64: (num_features,)."""
    totals = np.zeros(features.shape[1])
    pieces = np.array_split(
        np.arange(len(totals)), -(-len(totals) // _BLOCK)
    )  # never one column: it sums differently
    for rows in blocks(len(features)):
        part = features[rows]
        for piece in pieces:
            columns = slice(piece[0], piece[-1] + 1)
            values = part[:, columns].astype(np.float64)
            totals[columns] += (values if mean is None else (values - mean[columns]) ** 2).sum(
                axis=0
            )
    return totals
