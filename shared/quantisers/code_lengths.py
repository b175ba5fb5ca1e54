"""The bits of codes under an entropy coder: one estimate, for training (docs/techniques.md 8.7) and for filling (12.5).

A coder knows the context of a code, and how often each code occurs there. To brotli a tensor is one context. The range
coder has a context for each bin of expected magnitude, which is a product of those of a code's row and column (11.3).
"""

from __future__ import annotations

from shared.ops import Array, Ops

NUM_BINS = 112
BINS_PER_OCTAVE = 8
ZERO_BIN = 56
"""The bin of magnitude 1."""

INCREMENT = 128
ESCAPE_COUNT = 16
"""A code counts 128. One that a context has not seen is sent as an escape, which starts at 16, and eight plain bits."""

UNSEEN = ESCAPE_COUNT / 256 / INCREMENT
"""The share of an escape that each of 256 codes has, in codes."""

BITS_PER_NAT = 1.4426950408889634


def expected_bits(ops: Ops, counts: Array, start: Array | float) -> Array:
    """Bits of codes that occur `counts` [N, K] times in each of N contexts, where a coder that has seen them all gives
    each the share of counts + start, a number above 0, [N, 1] or [N, K]. A scalar."""
    seen = counts + start
    nats = ops.log(ops.sum(seen, axes=(-1,), keepdims=True)) - ops.log(seen)
    return BITS_PER_NAT * ops.sum(counts * nats)


def bin_positions(ops: Ops, by_row: Array, by_column: Array) -> Array:
    """Where the codes of a matrix lie on the scale of bins, from 0 to NUM_BINS - 1: [R, C].

    `by_row` [R, 1] and `by_column` [1, C] are sums of |code| over whole rows and columns; R may be some of the rows.
    The coder rounds what rows and columns add to quarters of an octave. This does not, because engines could round to
    different sides.
    """
    total = ops.sum(by_column)
    # A quarter of a code more, as the coder has it, so that there is a place for rows of zeros.
    nats = ops.log(4 * by_row + 1) + ops.log(4 * by_column + 1) - ops.log(16 * total + 4)
    return ops.minimum(ops.relu(ZERO_BIN + BINS_PER_OCTAVE * BITS_PER_NAT * nats), NUM_BINS - 1)


def shares_of_bins(ops: Ops, positions: Array, bins: Array) -> Array:
    """The share of each of `bins` [B], whole numbers, in positions [...]: of the two bins next to it the nearer one has
    more. [..., B]."""
    apart = positions[..., None] - bins
    return ops.relu(1.0 - ops.relu(apart) - ops.relu(-apart))
