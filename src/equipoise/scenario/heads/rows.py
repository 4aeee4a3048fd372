"""Rows of a feature file that stay on disk, blocks of them, and their standardisation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import TrialFailed

#: Rows that lie in memory at a time. Copies of more rows lie in unnamed files, which the system pages.
BLOCK_ROWS = 8192

#: Features, or rows, that are converted to float64 at a time.
CONVERSION_BLOCK = 256

#: A feature whose spread is below this share of the median spread is dead.
_DEAD_SPREAD_FRACTION = 1e-4


def blocks(num_rows: int) -> list[slice]:
    """Slices that cover the rows in order; each is small enough to lie in memory."""
    slices = []
    for start in range(0, num_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, num_rows)
        slices.append(slice(start, stop))
    return slices


def scratch(shape: tuple[int, int], dtype: Any, folder: Path | None = None) -> np.ndarray:
    """Make an empty matrix: in memory when it is one block of rows, else in an unnamed file.

    Args:
        shape: (num_rows, width).
        dtype: Of the matrix.
        folder: Where the file lies, made if needed. Left out, it is the system's temporary folder,
            which on some machines is memory itself.

    Returns:
        The matrix. Its file is gone when nothing refers to the matrix any more.
    """
    if shape[0] <= BLOCK_ROWS:
        return np.empty(shape, dtype)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        mapped = np.memmap(file, dtype, "w+", shape=shape)
    return np.asarray(mapped)


@dataclass(frozen=True)
class Rows:
    """Chosen rows of a matrix. They are read, and standardised, only where they are indexed.

    Attributes:
        matrix: (any, num_features), as a rule a memory map.
        chosen: int (num_rows,), rows of the matrix.
        dtype: Of what is read.
        standardiser: Applied to what is read; None reads raw features.
    """

    matrix: np.ndarray | Rows
    chosen: np.ndarray
    dtype: Any
    standardiser: Standardiser | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(num_rows, num_features)."""
        if self.standardiser is None:
            return len(self.chosen), self.matrix.shape[1]
        return len(self.chosen), len(self.standardiser.kept)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: Any) -> np.ndarray:
        raw = self.matrix[self.chosen[rows]]
        if self.standardiser is None:
            return raw
        return self.standardiser.apply(raw, self.dtype)


#: Features in memory, or chosen rows of a file.
Features = np.ndarray | Rows


def read_if_one_block(features: Features) -> Features:
    """Read features that are one block; more rows stay where they are."""
    return features[:] if len(features) <= BLOCK_ROWS else features


@dataclass(frozen=True)
class Standardiser:
    """Gives each feature zero mean and unit spread, as measured on unresampled train rows.

    Attributes:
        kept: int (num_kept,), the features that are used; dead ones are left out.
        mean: float64 (num_kept,).
        scale: float64 (num_kept,), standard deviations.
    """

    kept: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, features: Features) -> Standardiser:
        """Measure mean and spread of float (num_rows, num_features).

        A feature is dead when its spread is below 1e-4 of the median spread, or below float32's
        resolution at its mean. 262 of 1,920 features of an untrained DenseNet201 are constant.

        Raises:
            TrialFailed: When every feature is dead.
        """
        num_rows = len(features)
        mean = _column_totals(features) / num_rows
        spread = np.sqrt(_column_totals(features, mean) / num_rows)
        varying = spread[spread > 0]
        least_spread = np.inf
        if varying.size:
            least_spread = _DEAD_SPREAD_FRACTION * np.median(varying)
        resolution = np.finfo(np.float32).eps * np.abs(mean)
        is_alive = spread > np.maximum(least_spread, resolution)
        kept = np.flatnonzero(is_alive)
        if kept.size == 0:
            raise TrialFailed(
                "Every feature is the same for all train images, so nothing can be learned. "
                "Check weights and images."
            )
        return cls(kept, mean[kept], spread[kept])

    def apply(self, features: Features, dtype: Any = np.float64) -> np.ndarray:
        """Standardise float (num_rows, num_features) to `dtype` (num_rows, num_kept)."""
        # Column by column, as numpy lays out chosen columns: products of the other layout round
        # differently.
        num_rows = len(features)
        shape = (num_rows, len(self.kept))
        standardised = np.empty(shape, dtype, order="F")
        for start in range(0, num_rows, CONVERSION_BLOCK):
            rows = slice(start, start + CONVERSION_BLOCK)
            raw = features[rows][:, self.kept]
            # float64 whatever `dtype` is: features of an untrained network vary by 1e-13 of their
            # size, which float32 cannot subtract.
            standardised[rows] = (raw - self.mean) / self.scale
        return standardised


def _column_totals(features: Features, mean: np.ndarray | None = None) -> np.ndarray:
    """Sum each feature, or with a mean its squared distance to it: float64 (num_features,)."""
    totals = np.zeros(features.shape[1])
    column_groups = _column_groups(len(totals))
    for rows in blocks(len(features)):
        part = features[rows]
        for columns in column_groups:
            values = part[:, columns].astype(np.float64)
            if mean is not None:
                values = (values - mean[columns]) ** 2
            totals[columns] += values.sum(axis=0)
    return totals


def _column_groups(num_columns: int) -> list[slice]:
    """Slices of about equal size that cover the columns; numpy sums a single column differently."""
    num_groups = -(-num_columns // CONVERSION_BLOCK)
    columns = np.arange(num_columns)
    groups = []
    for group in np.array_split(columns, num_groups):
        stop = group[-1] + 1
        groups.append(slice(group[0], stop))
    return groups
