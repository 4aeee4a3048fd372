"""Features of a study and backbone, read by content digest and view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import DataError
from equipoise.core.files import read_json, read_table


@dataclass(frozen=True)
class FeatureStore:
    """Features by (sha256, view), memory-mapped.

    Attributes:
        matrix: float32 or float16 (num_rows, num_features), read-only.
        row_of: (sha256, view) -> row of the matrix.
        meta: Backbone, weights digest, size, pipeline, number of passes.
        digest: Digest of the whole store.
    """

    matrix: np.ndarray
    row_of: dict[tuple[str, int], int]
    meta: dict[str, Any]
    digest: str

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Open what `run` wrote; the matrix stays on disk."""
        meta = read_json(folder / "meta.json")
        index, _ = read_table(folder / "index.parquet")
        matrix = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        if len(matrix) != len(index):
            raise DataError(
                f"{folder} is damaged: {len(matrix)} features for {len(index)} rows. Run `equipoise embed`."
            )
        return cls(
            matrix,
            dict(zip(zip(index["sha256"], index["view"]), range(len(index)))),
            meta,
            meta["digest"],
        )

    def rows(self, sha256: Sequence[str], views: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of the matrix, int (num_images,).

        Raises:
            DataError: When a picture or a view was never embedded.
        """
        try:
            return np.array(
                [self.row_of[key] for key in zip(sha256, map(int, views))], dtype=np.int64
            )
        except KeyError as error:
            digest, view = error.args[0]
            raise DataError(
                f"No feature of picture {digest[:12]}..., view {view} ({self.meta['backbone']}). "
                f"Run `equipoise embed` again; augmented views are made as embed.views and embed.views_of say."
            ) from error
