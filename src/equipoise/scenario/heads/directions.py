"""Directions that the heads of a fold share, and what rows score along them.

Each of F folds collects directions of its own. The scores of a direction are kept, so that whatever
happens within the directions reads one number per row and direction. The matrix itself is read
for gradients and for the scores of new directions, by products with few rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from equipoise.scenario.heads.rows import blocks, scratch

#: Directions that are kept at most.
MOST_DIRECTIONS = 80

#: Directions that are there from the start, those of the largest eigenvalues: their scores are columns
#: of the matrix.
_FIRST_DIRECTIONS = 16

#: A direction whose part outside the others is shorter than this share of the longest new one is left out.
_INDEPENDENT = 0.1

#: A candidate of unit length whose part outside the directions is shorter than this lies within them.
_LEAST_LENGTH = 1e-3

#: Rows of a product that OpenBLAS takes at a time: seven take longer than eight.
_ROWS_AT_A_TIME = 8


class Directions:
    """Directions of F folds.

    The first direction is the intercept. Those of a fold are orthonormal, and followed by zeros.

    Attributes:
        rows: int (F, num_used), rows that a head of the fold may weigh; others, which weigh 0, fill up.
        count: int (F,), how many directions there are.
    """

    def __init__(
        self, matrix: np.ndarray, is_used: np.ndarray, scratch_folder: Path | None = None
    ) -> None:
        """Begin with the intercept and the directions of the largest eigenvalues.

        Args:
            matrix: (num_rows, num_parameters), by ascending eigenvalues; the last column is ones.
            is_used: bool (F, num_rows), rows that a head of the fold may weigh.
            scratch_folder: Where scores of many rows lie, see `rows.scratch`.
        """
        num_folds, _ = is_used.shape
        _, num_parameters = matrix.shape
        self._matrix = matrix
        num_used = is_used.sum(axis=1).max()
        used_first = np.argsort(
            ~is_used,
            axis=1,
            kind="stable",
        )
        self.rows = used_first[:, :num_used]
        num_first = min(1 + _FIRST_DIRECTIONS, num_parameters)
        self.count = np.full(num_folds, num_first)
        shape = (num_folds, MOST_DIRECTIONS, num_parameters)
        self._vectors = np.zeros(shape, matrix.dtype)
        self._tables = []
        for fold in range(num_folds):
            table = scratch((num_used, MOST_DIRECTIONS), matrix.dtype, scratch_folder)
            # A direction is a row, so that its scores lie side by side.
            self._tables.append(table.reshape(MOST_DIRECTIONS, num_used))
            self._begin(fold, num_first)

    def _begin(self, fold: int, num_first: int) -> None:
        """The last columns of the matrix, from right to left."""
        _, num_parameters = self._matrix.shape
        columns = np.arange(num_parameters)
        first = columns[::-1][:num_first]
        self._vectors[fold, columns[:num_first], first] = 1
        table = self._tables[fold]
        table[num_first:] = 0
        rows = self.rows[fold]
        for block in blocks(len(rows)):
            of_block = rows[block, None]
            scores = self._matrix[of_block, first]
            table[:num_first, block] = scores.T

    @property
    def width(self) -> int:
        """m, directions of the fold that has most."""
        return int(self.count.max())

    @property
    def vectors(self) -> np.ndarray:
        """(F, m, num_parameters)."""
        return self._vectors[:, : self.width]

    @property
    def tables(self) -> list[np.ndarray]:
        """Scores of the directions: F times (m, num_used)."""
        return [table[: self.width] for table in self._tables]

    def parameters(self, coefficients: np.ndarray) -> np.ndarray:
        """Heads (F, k, at least m) in the columns of the matrix, (F, k, num_parameters)."""
        return self._rounded(coefficients) @ self.vectors

    def scores(self, coefficients: np.ndarray) -> np.ndarray:
        """Scores (F, k, num_used) of heads (F, k, at least m)."""
        rounded = self._rounded(coefficients)
        scores = map(np.matmul, rounded, self.tables)
        return np.stack(list(scores))

    def gradient(self, slope: np.ndarray) -> np.ndarray:
        """Gradient along the directions, (F, k, m), of slopes in the scores, (F, k, num_used)."""
        turned = [table.T for table in self.tables]
        gradient = map(np.matmul, slope, turned)
        return np.stack(list(gradient))

    def whole_gradient(self, slope: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Gradient in the columns of the matrix, (F, k, num_parameters); 0 of what is not chosen.

        Args:
            slope: (F, k, num_used), slopes in the scores.
            chosen: bool (F, k).
        """
        num_rows, num_parameters = self._matrix.shape
        folds, places = np.nonzero(chosen)
        slopes = _filled(len(folds), num_rows, slope.dtype)
        for of_head, fold, place in zip(slopes, folds, places):
            rows = self.rows[fold]
            of_head[rows] = slope[fold, place]
        total = np.zeros((len(slopes), num_parameters), slope.dtype)
        for block in blocks(num_rows):
            part = self._matrix[block]
            total += slopes[:, block] @ part
        shape = (*chosen.shape, num_parameters)
        gradient = np.zeros(shape, slope.dtype)
        gradient[chosen] = total[: len(folds)]
        return gradient

    def is_full(self, num_candidates: int) -> np.ndarray:
        """Folds that may have no room for so many more, bool (F,)."""
        return self.count + num_candidates > MOST_DIRECTIONS

    def add(self, candidates: np.ndarray) -> None:
        """Take up what is new in vectors (F, k, num_parameters)."""
        new = _independent(candidates, self.vectors)
        is_new = new.any(axis=2)
        folds, places = np.nonzero(is_new)
        num_rows, num_parameters = self._matrix.shape
        vectors = _filled(len(folds), num_parameters, new.dtype)
        vectors[: len(folds)] = new[folds, places]
        scores = np.empty((len(vectors), num_rows), new.dtype)
        for block in blocks(num_rows):
            # Three fifths of the time of `vectors @ part.T` with AVX-512, about as much without.
            part = self._matrix[block] @ vectors.T
            scores[:, block] = part.T
        for fold, vector, of_vector in zip(folds, vectors, scores):
            at = self.count[fold]
            rows = self.rows[fold]
            self._vectors[fold, at] = vector
            self._tables[fold][at] = of_vector[rows]
            self.count[fold] += 1

    def turn(self, fold: int, rotation: np.ndarray) -> None:
        """Put combinations of the directions of a fold in place of them, orthonormal (m of the fold, fewer)."""
        before, after = rotation.shape
        vectors = self._vectors[fold]
        table = self._tables[fold]
        for of_directions in (vectors, table):
            turned = rotation.T @ of_directions[:before]
            of_directions[:after] = turned
            of_directions[after:] = 0
        self.count[fold] = after

    def _rounded(self, coefficients: np.ndarray) -> np.ndarray:
        """Of the directions there are, as exact as the matrix."""
        there = coefficients[..., : self.width]
        return there.astype(self._matrix.dtype)


def _filled(num_rows: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Zeros for the rows of a product, and for up to three more: OpenBLAS takes four at a time."""
    num_missing = -num_rows % _ROWS_AT_A_TIME
    num_filled = num_rows + num_missing
    return np.zeros((num_filled, width), dtype)


def _independent(candidates: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Orthonormal directions of candidates outside the vectors.

    Args:
        candidates: (F, k, num_parameters); 0 where there is none.
        vectors: (F, m, num_parameters), orthonormal.

    Returns:
        (F, k, num_parameters); 0 where there are fewer.
    """
    tiny = np.finfo(candidates.dtype).tiny
    lengths = np.maximum(_norms(candidates), tiny)
    unit = candidates / lengths
    overlap = unit @ vectors.mT
    outside = unit - overlap @ vectors
    is_within = _norms(outside) < _LEAST_LENGTH
    outside = np.where(is_within, 0, outside)
    gram = outside @ outside.mT
    squares, axes = np.linalg.eigh(gram)
    positive = np.maximum(squares, tiny)
    longest = positive[:, -1:]
    is_long = squares > _INDEPENDENT**2 * longest
    chosen = is_long / np.sqrt(positive)
    turn = axes * chosen[:, None]
    return turn.mT.astype(outside.dtype) @ outside


def _norms(vectors: np.ndarray) -> np.ndarray:
    """(F, k, 1) of (F, k, num_parameters)."""
    squares = np.vecdot(vectors, vectors)
    return np.sqrt(squares)[..., None]


def squares(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Products of all rows of a table (m, n) with each other, (j, m, m), weighted by (j, n)."""
    _, num_rows = table.shape
    roots = np.sqrt(weights)[:, None]
    total: Any = 0
    for block in blocks(num_rows):
        scaled = table[:, block] * roots[..., block]
        total = total + scaled @ scaled.mT
    return total


def products(left: np.ndarray, weights: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of rows of (q, n) with those of (m, n), (j, q, m), weighted by (j, n)."""
    num_left, num_rows = left.shape
    num_heads = len(weights)
    num_products = num_heads * num_left
    total = np.zeros((num_products, len(right)), left.dtype)
    for block in blocks(num_rows):
        part = right[:, block]
        scaled = left[:, block] * weights[:, None, block]
        *_, size = scaled.shape
        # One product for all heads.
        of_all = scaled.reshape(-1, size)
        total += of_all @ part.T
    shape = (num_heads, num_left, len(right))
    return total.reshape(shape)
