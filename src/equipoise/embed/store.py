"""Features of a study and backbone, read by content digest and view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.documents import FeatureSummary
from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, file_digest, read_table, write_table
from equipoise.core.text import first_line


@dataclass(frozen=True)
class FeatureStore:
    """Features by (sha256, view), memory-mapped.

    Attributes:
        matrix: float32 or float16 (num_rows, num_features), read-only.
        row_of: (sha256, view) -> row of the matrix.
        summary: What `meta.json` holds: backbone, weights digest, size, pipeline, number of passes.
    """

    matrix: np.ndarray
    row_of: dict[tuple[str, int], int]
    summary: FeatureSummary

    @property
    def digest(self) -> str:
        """Digest of the whole store."""
        return self.summary.digest

    @property
    def meta(self) -> dict[str, Any]:
        """The summary as plain data."""
        return self.summary.as_dict()

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Open what `run` wrote; the matrix stays on disk.

        Raises:
            DataError: When a file is missing or damaged, or the matrix and its index differ in
                length.
        """
        summary = FeatureSummary.read(folder / "meta.json")
        index, _ = read_table(folder / "index.parquet")
        try:
            matrix = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
            keys = list(zip(index["sha256"], index["view"]))
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise DataError(
                f"{folder} is damaged: {first_line(error)}. Run `equipoise embed`."
            ) from error
        if len(matrix) != len(index):
            raise DataError(
                f"{folder} is damaged: {len(matrix)} features for {len(index)} rows. Run `equipoise embed`."
            )
        row_of = {key: row for row, key in enumerate(keys)}
        return cls(matrix, row_of, summary)

    def rows(self, sha256: Sequence[str], views: Sequence[int] | np.ndarray) -> np.ndarray:
        """Find the rows of pictures and views in the matrix.

        Args:
            sha256: Digest of each image file.
            views: View of each.

        Returns:
            int (num_images,).

        Raises:
            DataError: When a picture or a view was never embedded.
        """
        keys = zip(sha256, map(int, views))
        try:
            rows = [self.row_of[key] for key in keys]
        except KeyError as error:
            digest, view = error.args[0]
            raise DataError(
                f"No feature of picture {digest[:12]}..., view {view} ({self.summary.backbone}). Run "
                f"`equipoise embed` again; augmented views are made as embed.views and embed.views_of say."
            ) from error
        return np.array(rows, dtype=np.int64)


def write_index(folder: Path, wanted: pd.DataFrame, matrix_digest: str) -> str:
    """Write index.parquet beside a features.npy, and return the digest of the two.

    Args:
        folder: Holds features.npy.
        wanted: sha256 and view of each of its rows.
        matrix_digest: Of features.npy.
    """
    write_table(folder / "index.parquet", wanted[["sha256", "view"]], {})
    return digest_of([matrix_digest, file_digest(folder / "index.parquet")])
