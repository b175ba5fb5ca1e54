"""Intervals come back, in about as many bytes as their sizes say."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from shared.coding.range_coder import RangeDecoder, RangeEncoder
from tests.implementations import examples


@st.composite
def codes(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """(bits, intervals): whole ranges, single slots, slots at either end, where carries run."""
    bits = draw(st.sampled_from([1, 5, 22, 32]))
    slots = 1 << bits

    def interval(start: int) -> st.SearchStrategy[tuple[int, int]]:
        most = slots - start
        sizes = st.one_of(st.just(1), st.just(most), st.integers(1, most))
        return st.tuples(st.just(start), sizes)

    starts = st.one_of(st.just(0), st.just(slots - 1), st.integers(0, slots - 1))
    return bits, draw(st.lists(starts.flatmap(interval), max_size=60))


@examples
@given(codes(), st.integers(1, 30))
def test_intervals_come_back(code: tuple[int, list[tuple[int, int]]], times: int) -> None:
    bits, intervals = code
    intervals = intervals * times
    encoder = RangeEncoder()
    for start, size in intervals:
        encoder.encode(start, size, bits)
    content = encoder.finish()
    decoder = RangeDecoder(content)
    for start, size in intervals:
        assert start <= decoder.slot(bits) < start + size
        decoder.consume(start, size, bits)
    ideal_bytes = sum(bits - math.log2(size) for _, size in intervals) / 8
    assert ideal_bytes - 5 <= len(content) <= ideal_bytes + 1.01


def test_a_decoder_of_anything_stays_within_its_slots() -> None:
    for content in (b"", b"\xff" * 40, bytes(range(256))):
        decoder = RangeDecoder(content)
        for _ in range(200):
            slot = decoder.slot(22)
            assert 0 <= slot < 1 << 22
            decoder.consume(slot, 1, 22)
