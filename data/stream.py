"""The interface of a split of a dataset to its readers: one long stream of symbols.

`data.byte_stream` and `data.token_stream` are the two kinds. Legend: T symbols of a read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data.sketch import Sketch
from shared.errors import DataError
from shared.spec import VocabularySpec

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
# Gives the sketch of a split; it gets the documents in case the sketch has to be made.
MakeSketch = Callable[[Iterable[bytes]], Sketch]


class TrainingText(Protocol):
    """Symbols that can be read at any position, with what describes the text they come from."""

    @property
    def name(self) -> str:
        """Dataset and split."""

    @property
    def sha256(self) -> str:
        """Hash of the text with its document boundaries, hexadecimal."""

    @property
    def vocabulary(self) -> VocabularySpec: ...

    @property
    def num_symbols(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Bytes of text as the dataset's manifest records them."""

    @property
    def num_documents(self) -> int: ...

    def read(self, start: int, count: int) -> Int32:
        """Symbols [start, start + count) as int32 `[T]`. Raises IndexError outside the text."""

    def sketch(self) -> Sketch:
        """The sketch of the text, to find it in another one or another one in it."""


class SymbolStream(TrainingText, Protocol):
    """A split of a dataset, seen through a vocabulary. Positions count symbols from 0."""

    def byte_counts(self, start: int, count: int) -> Int64:
        """Bytes of text per symbol of [start, start + count), int64 `[T]`; a document start has none."""

    def document_ids(self, start: int, count: int) -> Int64:
        """Index of each symbol's document, from 0 in order of appearance, int64 `[T]`."""

    def documents(self) -> Iterator[bytes]:
        """The bytes of every document in order."""

    def text_bytes(self) -> bytes:
        """The whole text, the documents one after the other."""

    def sample_documents(self, max_symbols: int, seed: int) -> SymbolStream:
        """Whole documents drawn by `seed`, in stream order, at most `max_symbols` in all, the last drawn one cut.

        Raises DataError if none fits.
        """


class JoinedShards:
    """Several arrays of one type (memory-mapped shards) read as one.

    With `size` no item may reach it: a model's table of symbols ends there, and not every framework looks.
    """

    def __init__(self, shards: Sequence[npt.NDArray[Any]], size: int | None = None) -> None:
        # As plain arrays, because slices of memory maps are made in Python.
        self._shards = [np.asarray(shard) for shard in shards]
        self._names = [str(getattr(shard, "filename", f"shard {index}")) for index, shard in enumerate(shards)]
        self._size = size
        # A list, because a search in a short array takes longer than one in a list.
        self._starts = list(accumulate((len(shard) for shard in self._shards), initial=0))
        self.length = self._starts[-1]

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """Items [start, start + count) as `[count]`, gathered across shards. Raises DataError for one that is too
        large, naming its shard and position."""
        stop = start + count
        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"items [{start}, {stop}) of {self.length}")
        pieces = []
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            offset = start - self._starts[index]
            piece = self._shards[index][offset : offset + stop - start]
            if self._size is not None and piece.max() >= self._size:
                found = int(np.argmax(piece >= self._size))
                raise DataError(
                    f"{self._names[index]}: symbol {piece[found]} at position {offset + found} is outside the "
                    f"vocabulary of {self._size}; `bytetwin data verify` checks a dataset"
                )
            pieces.append(piece)
            start += len(piece)
            index += 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self._shards[0][:0]


def document_ids(document_starts: Int64, start: int, count: int) -> Int64:
    """Index of the document that each symbol of [start, start + count) belongs to, int64 `[T]`."""
    inside = np.searchsorted(document_starts, (start, start + count), side="right")
    begins = np.zeros(count, dtype=np.int64)
    first = int(inside[0])
    boundaries = np.asarray(document_starts[first : int(inside[1])]) - start
    begins[boundaries[boundaries < count]] = 1
    return np.cumsum(begins) + (first - 1)


def draw_documents(lengths: Int64, max_symbols: int, seed: int) -> tuple[Int64, int]:
    """(documents drawn by `seed` until `max_symbols` are full, symbols of the last one that find room).

    `lengths`: symbols of every document, int64 `[num_documents]`, together more than `max_symbols`.
    """
    order = random_permutation(len(lengths), (seed,))
    totals = np.cumsum(lengths[order])
    last = int(np.searchsorted(totals, max_symbols, side="left"))
    return order[: last + 1], max_symbols - (int(totals[last - 1]) if last else 0)


def random_permutation(length: int, key: Sequence[int]) -> Int64:
    """A permutation of range(length) determined by `key`, int64 `[length]`.

    It sorts raw PCG64 output, which NumPy promises never to change; its shuffles carry no such promise.
    """
    return np.argsort(random_bits(length, key), kind="stable")


def random_bits(length: int, key: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Uniform uint64 `[length]`: the raw PCG64 output of the stream keyed by `key` (non-negative integers)."""
    return np.random.PCG64(np.random.SeedSequence(list(key))).random_raw(length)
