"""Both sides have the same intervals although their distributions differ by rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.coding.intervals import ESCAPES, OFFSETS, interval_bits, intervals_of, stops_of
from shared.errors import RunError
from shared.tolerances import CODING_CUMULATIVE_ABS
from tests.implementations import examples, seeds


def near_borders(rng: np.random.Generator, vocab_size: int, share: float) -> np.ndarray:
    """ln p [V] of which cumulative probabilities lie on half slots, where rounding decides, or just beside."""
    scale = (1 << interval_bits(vocab_size)) - vocab_size - ESCAPES
    cumulative = np.sort(rng.random(vocab_size - 1) ** rng.choice([1, 8]))
    is_near = rng.random(vocab_size - 1) < share
    cumulative[is_near] = (np.floor(cumulative[is_near] * scale) + rng.choice([0.5, 0.25, 0.75], is_near.sum())) / scale
    probs = np.maximum(np.diff(np.sort(cumulative), prepend=0.0, append=1.0), 1e-300)
    found: np.ndarray = np.log(probs / probs.sum())
    return found


@examples
@given(seeds, st.sampled_from([2, 5, 256]), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_decoder_that_rounds_otherwise_finds_every_symbol(seed: int, vocab_size: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    log_probs = np.stack([near_borders(rng, vocab_size, share) for _ in range(vocab_size)])
    symbols = np.arange(vocab_size)
    found = intervals_of(log_probs, symbols, CODING_CUMULATIVE_ABS)
    slots = 1 << interval_bits(vocab_size)
    assert (found.sizes >= 1).all() and (found.starts >= 0).all()
    assert (found.starts + found.sizes <= slots - ESCAPES).all()
    # A hundredth of the tolerance in every probability, all on one side up to a random symbol.
    error = CODING_CUMULATIVE_ABS / 2 * rng.choice([-1.0, 1.0])
    for symbol in rng.integers(0, vocab_size, 20):
        moved = log_probs[symbol] + error * (np.arange(vocab_size) <= rng.integers(0, vocab_size))
        stops = stops_of(moved, OFFSETS[found.escapes[symbol]])
        first, last = found.starts[symbol], found.starts[symbol] + found.sizes[symbol] - 1
        assert stops.searchsorted(first, side="right") == stops.searchsorted(last, side="right") == symbol
        assert (stops[symbol - 1] if symbol else 0) == first and stops[symbol] == last + 1
    if share == 1.0 and vocab_size == 256:
        assert found.escapes.any(), "no border was close to a slot's: nothing was tried"


def test_without_the_tolerance_they_would_differ() -> None:
    log_probs = near_borders(np.random.default_rng(0), 256, 1.0)
    moved = stops_of(log_probs + 1e-13), stops_of(log_probs - 1e-13)
    assert (moved[0] != moved[1]).any()


def test_every_symbol_costs_what_its_probability_says() -> None:
    log_probs = near_borders(np.random.default_rng(1), 256, 0.0)
    found = intervals_of(np.broadcast_to(log_probs, (256, 256)), np.arange(256), CODING_CUMULATIVE_ABS)
    shares, probs = found.sizes / (1 << interval_bits(256)), np.exp(log_probs)
    assert (probs * np.log(probs / shares)).sum() < 2 * 2.0**-14


@pytest.mark.parametrize("wrong", [np.full(4, np.nan), np.log([0.5, 0.5, 0.5, 0.5]), np.full(4, -np.inf)])
def test_a_distribution_that_is_none_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(RunError, match="do not add up to 1"):
        intervals_of(np.stack([np.log(np.full(4, 0.25)), wrong]), np.zeros(2, np.int64), CODING_CUMULATIVE_ABS)
