"""Embeddings from the SVD of the pointwise mutual information of neighbours (docs/techniques.md 3.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Symbols of the training text that are counted.
BIGRAM_SYMBOLS = 1 << 22
# Alphabets up to this size have their matrix decomposed as it is, larger ones by a random sketch of its range.
LARGEST_DENSE = 1024
SKETCH_MARGIN, SKETCH_PASSES = 16, 2
# Pairs counted, and rows of a sparse matrix that are written out to be multiplied, at a time.
CHUNK_PAIRS, BLOCK_ROWS = 1 << 20, 1 << 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SparseMatrix:
    """A square matrix by its entries that are not zero, sorted by row: `rows`, `columns`, `values`, each [K]."""

    size: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats

    def dense(self) -> Floats:
        """The matrix itself."""
        matrix = np.zeros((self.size, self.size))
        matrix[self.rows, self.columns] = self.values
        return matrix

    def transposed(self) -> SparseMatrix:
        """Rows and columns exchanged."""
        order = np.argsort(self.columns, kind="stable")
        return SparseMatrix(self.size, self.columns[order], self.rows[order], self.values[order])

    def times(self, x: Floats) -> Floats:
        """The product with x [size, k], in float32, some rows at a time: [size, k]."""
        product, narrow = np.zeros((self.size, x.shape[1])), x.astype(np.float32)
        for first in range(0, self.size, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, self.size)
            begin, end = np.searchsorted(self.rows, [first, last])
            block = np.zeros((last - first, self.size), np.float32)
            block[self.rows[begin:end] - first, self.columns[begin:end]] = self.values[begin:end]
            product[first:last] = block @ narrow
        return product


def mutual_information(text: NDArray[np.int32], vocab_size: int) -> SparseMatrix:
    """max(0, ln(n c[a, b] / (c[a] c[b]))) of the n pairs of neighbours (a, b) in symbols [n + 1], a in the rows.

    c[a] counts pairs that begin with a, c[b] those that end with b.
    """
    pairs, counts = _pair_counts(text.astype(np.int64), vocab_size)
    first, second = pairs // vocab_size, pairs % vocab_size
    begin = np.bincount(first, counts, vocab_size)
    end = np.bincount(second, counts, vocab_size)
    information = np.log(counts * float(counts.sum())) - np.log(begin[first] * end[second])
    kept = information > 0
    return SparseMatrix(vocab_size, first[kept], second[kept], information[kept])


def bigram_embedding(text: NDArray[np.int32], draw: Floats, std: float, generator: np.random.Generator) -> Floats:
    """A table [V, D] from a text: U sqrt(S) of its `mutual_information`, scaled to a root mean square of `std`.

    Symbols about which the text says nothing, and columns beyond the V that U has, are those of `draw` [V, D].
    """
    vocab_size, dim = draw.shape
    matrix = mutual_information(text, vocab_size)
    known = np.unique(matrix.rows)
    if not len(known):
        return draw
    left, singular = _left_vectors(matrix, min(dim, vocab_size), generator)
    features = (left * np.sqrt(singular))[known]
    table = draw.copy()
    table[known, : features.shape[1]] = features * (std / np.sqrt(np.mean(features**2)))
    return table


def _pair_counts(text: NDArray[np.int64], vocab_size: int) -> tuple[NDArray[np.int64], Floats]:
    """Pairs of neighbours that occur, as a * vocab_size + b in rising order, and how often."""
    pairs: NDArray[np.int64] = np.zeros(0, np.int64)
    counts: Floats = np.zeros(0)
    for first in range(0, len(text) - 1, CHUNK_PAIRS):
        part = text[first : first + CHUNK_PAIRS + 1]
        more, times = np.unique(part[:-1] * vocab_size + part[1:], return_counts=True)
        pairs, inverse = np.unique(np.concatenate([pairs, more]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts, times]), len(pairs)).astype(np.float64)
    return pairs, counts


def _left_vectors(matrix: SparseMatrix, count: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """(left singular vectors [V, count], singular values [count]) of the largest ones.

    Of each vector the largest entry is positive. A sketch finds the range of the matrix, sharpened by passes over
    the matrix and its transpose; what it misses are the smallest of the values asked for.
    """
    if matrix.size <= LARGEST_DENSE:
        left, singular, _ = np.linalg.svd(matrix.dense())
    else:
        transposed = matrix.transposed()
        width = min(count + SKETCH_MARGIN, matrix.size)
        basis = _orthonormal(matrix.times(generator.standard_normal((matrix.size, width))))
        for _ in range(SKETCH_PASSES):
            basis = _orthonormal(matrix.times(_orthonormal(transposed.times(basis))))
        inner, singular, _ = np.linalg.svd(transposed.times(basis).T, full_matrices=False)
        left = basis @ inner
    left, singular = left[:, :count], singular[:count]
    largest = left[np.abs(left).argmax(axis=0), np.arange(count)]
    return left * np.where(largest < 0, -1.0, 1.0), singular


def _orthonormal(x: Floats) -> Floats:
    """An orthonormal basis of the columns of x."""
    basis: Floats = np.linalg.qr(x)[0]
    return basis
