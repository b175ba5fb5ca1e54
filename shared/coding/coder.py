"""Symbols to bytes and back with the distributions of a model (docs/coding.md).

The encoder has all symbols and computes whole windows; the decoder steps. Window by window, position by position,
stream by stream: that is the order of the intervals in the payload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.stream import Int32
from shared.coding.intervals import ESCAPES, OFFSETS, Intervals, interval_bits, intervals_of, stops_of
from shared.coding.range_coder import RangeDecoder, RangeEncoder
from shared.coding.streams import Streams
from shared.engine.protocol import Scorer, Stepper
from shared.scoring.windows import Window

Progress = Callable[[int, int], None]


@dataclass
class Coded:
    """`payload` stands for the symbols. `nats` is -ln p of all of them in float64; `escapes` steps had another offset,
    each of which cost `escape_bits`."""

    escape_bits: int
    payload: bytes = b""
    nats: float = 0.0
    escapes: int = 0

    @property
    def escape_bytes(self) -> float:
        """What the escapes take of the payload."""
        return self.escapes * self.escape_bits / 8


def encode(
    scorer: Scorer, symbols: Int32, streams: Streams, tolerance: float, progress: Progress | None = None
) -> Coded:
    """Code symbols [num_symbols]; `tolerance` is what the decoder's cumulative probabilities may be off."""
    coded, coder, rows = Coded(interval_bits(scorer.spec.vocabulary.size)), RangeEncoder(), streams.cut(symbols)
    for window in streams.windows():
        encode_window(coded, coder, scorer, window, rows, streams.lengths, tolerance)
        if progress is not None:
            progress(sum(min(length, window.count_stop) for length in streams.lengths), streams.num_symbols)
    coded.payload = coder.finish()
    return coded


def encode_window(
    coded: Coded,
    coder: RangeEncoder,
    scorer: Scorer,
    window: Window,
    rows: Int32,
    lengths: list[int],
    tolerance: float,
) -> None:
    """Add the symbols that a window counts of each stream of rows [R, T], of which the first `lengths` are text."""
    found = []
    for row, length in zip(rows, lengths, strict=True):
        count = min(window.count_stop, length) - window.count_start
        if count > 0:
            found.append(_row_intervals(coded, scorer, window, row, count, tolerance))
    first_escape = (1 << coded.escape_bits) - ESCAPES
    for position in range(window.count_stop - window.count_start):
        for intervals in found:
            if position < len(intervals):
                start, size, escape = intervals[position]
                if escape:
                    coder.encode(first_escape + escape - 1, 1, coded.escape_bits)
                coder.encode(start, size, coded.escape_bits)


def _row_intervals(
    coded: Coded, scorer: Scorer, window: Window, row: Int32, count: int, tolerance: float
) -> list[list[int]]:
    """(start, size, escape) of the first `count` symbols that a window counts of a stream; adds them to `coded`."""
    first = window.count_start - window.start
    x = np.zeros((1, scorer.spec.model.seq_len), np.int32)
    x[0, : first + count] = row[window.start : window.count_start + count]
    log_probs, symbols = scorer.log_probs(x)[0, first : first + count], x[0, first : first + count]
    intervals: Intervals = intervals_of(log_probs, symbols, tolerance)
    coded.nats -= float(np.take_along_axis(log_probs, symbols[:, None].astype(np.int64), axis=1).sum())
    coded.escapes += int(np.count_nonzero(intervals.escapes))
    triples: list[list[int]] = np.stack([intervals.starts, intervals.sizes, intervals.escapes], axis=1).tolist()
    return triples


def decode(scorer: Scorer, payload: bytes, streams: Streams, progress: Progress | None = None) -> Int32:
    """The symbols [num_symbols] of a payload. One that is damaged gives other symbols."""
    coder, stepper, lengths = RangeDecoder(payload), scorer.stepper(streams.count), streams.lengths
    # Grows with what is decoded: a hostile file may claim any number of symbols.
    rows = np.zeros((streams.count, 0), np.int32)
    for window in streams.windows():
        block = decode_window(coder, stepper, window, rows[:, window.start :], lengths)
        rows = np.concatenate([rows, block], axis=1)
        if progress is not None:
            progress(sum(min(length, window.count_stop) for length in lengths), streams.num_symbols)
    return np.concatenate([row[:length] for row, length in zip(rows, lengths, strict=True)])


def decode_window(coder: RangeDecoder, stepper: Stepper, window: Window, known: Int32, lengths: list[int]) -> Int32:
    """The symbols [R, n] that a window counts of each stream, behind those that are known of it [R, T0]; of streams
    that end before, zeros."""
    block = np.zeros((len(known), window.count_stop - window.count_start), np.int32)
    log_probs = stepper.start(known)
    for position in range(block.shape[1]):
        active = sum(length > window.count_start + position for length in lengths)
        _decode_step(coder, log_probs[:active], block[:active, position])
        if position + 1 < block.shape[1]:
            log_probs = stepper.advance(block[:, position])
    return block


def _decode_step(coder: RangeDecoder, log_probs: np.ndarray, symbols: Int32) -> None:
    """Read one symbol for each row of ln p [R, V] into symbols [R]."""
    bits = interval_bits(log_probs.shape[1])
    usual, first_escape = stops_of(log_probs), (1 << bits) - ESCAPES
    for row, stops in enumerate(usual):
        slot = coder.slot(bits)
        if slot >= first_escape:
            coder.consume(slot, 1, bits)
            stops = stops_of(log_probs[row], OFFSETS[slot - first_escape + 1])
            # Only damage puts one escape behind another.
            slot = min(coder.slot(bits), first_escape - 1)
        symbol = int(stops.searchsorted(slot, side="right"))
        start = int(stops[symbol - 1]) if symbol else 0
        coder.consume(start, int(stops[symbol]) - start, bits)
        symbols[row] = symbol
