"""Sketches of texts, with which one text is found in another without reading either again.

A document is folded first: ASCII white space is dropped and ASCII capitals become small letters, so a copy that
differs in those alone is the same. A sketch holds a hash of every folded document and, of all windows of
`WINDOW_BYTES` folded bytes, those whose hash is small. So the content chooses, and two texts choose the same windows.
Texts of different `level` are compared at the higher one, because what it keeps is part of what a lower one keeps.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WINDOW_BYTES = 64
# A level keeps one window in 2^level: 8 bytes for every 128 bytes of text, until MAX_WINDOWS are full (268 MB).
BASE_LEVEL = 7
MAX_WINDOWS = 1 << 25
# Folded text that is hashed at once, and in how many windows, so that they stay in a core's cache.
CHUNK_BYTES = 1 << 20
BLOCK_WINDOWS = 1 << 14
# Odd, so that no power of it loses bits modulo 2^64.
MULTIPLIER = 0x9E3779B97F4A7C15

UInt64 = npt.NDArray[np.uint64]
UInt32 = npt.NDArray[np.uint32]

_SMALL_LETTERS = bytes(range(256)).lower()
_WHITE_SPACE = b" \t\n\v\f\r"


@dataclass(frozen=True)
class Sketch:
    """The documents of a text in order, and the windows that `level` keeps of them.

    `documents` [D] uint64 are hashes of the folded documents, `num_bytes` [D] uint32 their folded bytes (4 GB stands
    for more), `counts` [D] uint32 the windows kept of each; `windows` [sum of counts] uint64 are these, document after
    document, each once in a document.
    """

    level: int
    documents: UInt64
    num_bytes: UInt32
    counts: UInt32
    windows: UInt64

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """The document of every window: [W] int64."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def part(self, first: int, count: int) -> Sketch:
        """The sketch of the documents [first, first + count)."""
        stop = first + count
        begin, end = int(self.counts[:first].sum()), int(self.counts[:stop].sum())
        counts, windows = self.counts[first:stop], self.windows[begin:end]
        return Sketch(self.level, self.documents[first:stop], self.num_bytes[first:stop], counts, windows)

    def at_level(self, level: int) -> Sketch:
        """The sketch with the windows that a level keeps, which is not below its own."""
        assert level >= self.level
        if level == self.level:
            return self
        kept = self.windows < _limit(level)
        counts = np.bincount(self.owners[kept], minlength=len(self.counts)).astype(np.uint32)
        return Sketch(level, self.documents, self.num_bytes, counts, self.windows[kept])


class SketchBuilder:
    """Takes documents one after the other, each in pieces; their sketch does not depend on how they are cut."""

    def __init__(self, level: int = BASE_LEVEL, max_windows: int = MAX_WINDOWS) -> None:
        """The level rises from `level` on until what it keeps is no more than `max_windows`."""
        self._level = level
        self._max_windows = max_windows
        self._documents = bytearray()
        self._num_bytes = array("I")
        self._counts: list[UInt32] = []
        self._windows: list[UInt64] = []
        self._num_windows = 0
        # Folded text that is not hashed yet, where finished documents end in it, and the document still open: its
        # windows so far, its bytes, its hash.
        self._text = bytearray()
        self._ends: list[int] = []
        self._open_windows = np.empty(0, np.uint64)
        self._open_bytes = 0
        self._digest = _new_digest()

    def write(self, piece: bytes | memoryview) -> None:
        """Append a piece of the open document."""
        folded = fold(bytes(piece))
        self._text += folded
        self._open_bytes += len(folded)
        self._digest.update(folded)
        if len(self._text) >= CHUNK_BYTES:
            self._hash_text()

    def end_document(self) -> None:
        """End the open document; the next piece begins another."""
        self._documents += self._digest.digest()
        self._num_bytes.append(min(self._open_bytes, 0xFFFFFFFF))
        self._ends.append(len(self._text))
        self._open_bytes, self._digest = 0, _new_digest()

    def finish(self) -> Sketch:
        """The sketch of all documents that have ended."""
        self._hash_text()
        return Sketch(
            self._level,
            np.frombuffer(bytes(self._documents), "<u8").astype(np.uint64),
            np.array(self._num_bytes, np.uint32),
            _joined(self._counts, np.uint32),
            _joined(self._windows, np.uint64),
        )

    def _hash_text(self) -> None:
        """Sample the windows of the text so far; keep its end, where later windows may begin."""
        text, ends = np.frombuffer(bytes(self._text), np.uint8), np.array([*self._ends, len(self._text)])
        hashes, starts = _sampled_windows(text, _limit(self._level))
        # Documents are counted from the one that was open at the start of this text; the last is open now.
        owners = np.searchsorted(ends, starts, side="right")
        inside = starts + WINDOW_BYTES <= ends[owners]
        hashes = np.concatenate([self._open_windows, hashes[inside]])
        owners = np.concatenate([np.zeros(len(self._open_windows), np.int64), owners[inside]])
        hashes, owners = _distinct(hashes, owners)
        finished = len(self._ends)
        self._open_windows = hashes[owners == finished]
        hashes, owners = hashes[owners < finished], owners[owners < finished]
        self._counts.append(np.bincount(owners, minlength=finished).astype(np.uint32))
        self._windows.append(hashes)
        self._num_windows += len(hashes)
        self._text = bytearray(text[max(int(ends[finished - 1]) if finished else 0, len(text) - WINDOW_BYTES + 1) :])
        self._ends = []
        while self._num_windows > self._max_windows:
            self._raise_level()

    def _raise_level(self) -> None:
        """Keep half of the windows."""
        self._level += 1
        counts, windows = _joined(self._counts, np.uint32), _joined(self._windows, np.uint64)
        kept = windows < _limit(self._level)
        owners = np.repeat(np.arange(len(counts)), counts)
        self._counts = [np.bincount(owners[kept], minlength=len(counts)).astype(np.uint32)]
        self._windows = [windows[kept]]
        self._num_windows = int(kept.sum())
        self._open_windows = self._open_windows[self._open_windows < _limit(self._level)]


def fold(text: bytes) -> bytes:
    """The text without ASCII white space, its ASCII capitals made small."""
    return text.translate(_SMALL_LETTERS, _WHITE_SPACE)


def sketch_documents(documents: Iterable[bytes]) -> Sketch:
    """The sketch of whole documents."""
    builder = SketchBuilder()
    for document in documents:
        builder.write(document)
        builder.end_document()
    return builder.finish()


def known(hashes: UInt64, among: UInt64) -> npt.NDArray[np.bool_]:
    """Whether each of `hashes` [n] is one of `among` [m], for m far above n: [n] bool."""
    if len(hashes) == 0 or len(among) == 0:
        return np.zeros(len(hashes), bool)
    # Most of the many are sorted out by a table of some of their bits, so that only a few need sorting. The low bits:
    # the high ones of a sampled window are zero.
    mask = np.uint64((1 << max(16, min(24, len(hashes).bit_length() + 4))) - 1)
    table = np.zeros(int(mask) + 1, bool)
    table[hashes & mask] = True
    return np.isin(hashes, among[table[among & mask]])


def run_hashes(symbols: np.ndarray, length: int) -> UInt64:
    """A hash of symbols[i : i + length] for every i: uint64 [T - length + 1] of integers [T], `length` a power of two.

    The polynomial sum of (symbol + 1) * M^(length - k) modulo 2^64, by doubling the length.
    """
    assert length > 0 and length & (length - 1) == 0
    hashes = (symbols.astype(np.uint64) + np.uint64(1)) * np.uint64(MULTIPLIER)
    size = 1
    while size < length:
        power = np.uint64(pow(MULTIPLIER, size, 1 << 64))
        hashes = hashes[: len(hashes) - size] * power + hashes[size:] if len(hashes) > size else hashes[:0]
        size *= 2
    return hashes


def _limit(level: int) -> np.uint64:
    """Hashes below it are kept at a level."""
    return np.uint64(1 << (64 - level))


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8)


def _sampled_windows(text: npt.NDArray[np.uint8], limit: np.uint64) -> tuple[UInt64, npt.NDArray[np.int64]]:
    """Hashes below the limit among those of the windows of a text, and where each window begins."""
    hashes, starts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for begin in range(0, len(text) - WINDOW_BYTES + 1, BLOCK_WINDOWS):
        block = run_hashes(text[begin : begin + BLOCK_WINDOWS + WINDOW_BYTES - 1], WINDOW_BYTES)
        kept = np.flatnonzero(block < limit)
        hashes.append(block[kept])
        starts.append(kept + begin)
    return np.concatenate(hashes), np.concatenate(starts)


def _distinct(hashes: UInt64, owners: npt.NDArray[np.int64]) -> tuple[UInt64, npt.NDArray[np.int64]]:
    """Each pair of a hash and its owner once, in order of the owners."""
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    first = np.ones(len(hashes), bool)
    first[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[first], owners[first]


def _joined(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    """Arrays one after the other, of this type even if there are none."""
    return np.concatenate([np.empty(0, dtype), *parts])
