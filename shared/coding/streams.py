"""How a text is cut into streams that are coded side by side.

A decoder knows a symbol of a window only when it has all before it, so it reads a stream one symbol at a time. Several
streams are the rows of one batch. Each starts without context, which costs a few bits, and goes by the windows of the
score (docs/techniques.md 1.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.stream import Int32
from shared.scoring.windows import Window, each_window

# A stream more cost half a byte to a byte and a half on web text (records/2026-11-26-proof.md).
SYMBOLS_PER_STREAM = 20_000
MAX_STREAMS = 16


def streams_for(num_symbols: int) -> int:
    """The number of streams that a text is cut into."""
    return max(1, min(num_symbols // SYMBOLS_PER_STREAM, MAX_STREAMS))


@dataclass(frozen=True)
class Streams:
    """`num_symbols` in `count` streams of whole strides, in windows of `seq_len` symbols that advance by `stride`. The
    last streams may have fewer symbols than the others, or none."""

    num_symbols: int
    count: int
    seq_len: int
    stride: int

    @property
    def length(self) -> int:
        """Room for the symbols of every stream."""
        return -(-self.num_symbols // (self.count * self.stride)) * self.stride

    @property
    def lengths(self) -> list[int]:
        """Symbols of each stream, none longer than the one before."""
        return [max(0, min(self.length, self.num_symbols - row * self.length)) for row in range(self.count)]

    def windows(self) -> Iterator[Window]:
        """The windows of the first stream, and of all others as far as they reach. One by one, because a hostile file
        may claim any number of symbols."""
        return each_window(self.lengths[0], self.seq_len, self.stride)

    def cut(self, symbols: Int32) -> Int32:
        """Symbols [num_symbols] as streams [count, length], padded with zeros."""
        padded = np.zeros(self.count * self.length, np.int32)
        padded[: self.num_symbols] = symbols
        return padded.reshape(self.count, self.length)
