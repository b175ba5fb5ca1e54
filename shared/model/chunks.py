"""Parts that the recurrent mixers share: short convolutions, decays, and the layout of a sequence in chunks.

A recurrence over N positions is computed chunk by chunk (docs/techniques.md 7): matrix products inside a chunk of L,
and a loop over chunks that carries the state. Decays stay logarithms, never positive, until the exponential of a sum of
them is taken: nothing overflows, and no small factor is divided by another.
"""

from __future__ import annotations

from shared.model.layer import Layer
from shared.model.manifest import CONV_WIDTH
from shared.ops import Array, Ops

# Positions in a chunk, a power of two. Any other gives the same function.
CHUNK = 32


def short_convolution(ops: Ops, x: Array, taps: Array) -> Array:
    """silu(sum_i taps[i] x[t - i]) for x [B, N, F] and taps [4, F], per feature; x is 0 before position 0."""
    taps = ops.cast_like(taps, x)
    total = taps[0] * x
    batch, _, width = x.shape
    for back in range(1, CONV_WIDTH):
        total = total + taps[back] * ops.delayed(x, ops.broadcast_to(0.0 * x[:, :1], (batch, back, width)))
    return silu(ops, total)


def silu(ops: Ops, x: Array) -> Array:
    """x sigmoid(x)."""
    return x * ops.sigmoid(x)


def step_and_log_decay(layer: Layer, u_BND: Array) -> tuple[Array, Array]:
    """(d, ln a) of every head, float32 [B, N, H]: d = softplus(W u + b) and a = exp(-d exp(A)), so ln a < 0."""
    logits_BNH = layer.ops.cast(layer.linear(f"{layer.shape.mixer}.step_proj", u_BND), "float32")
    step_BNH = layer.ops.softplus(logits_BNH + layer.control(f"{layer.shape.mixer}.step_bias"))
    return step_BNH, -1.0 * (step_BNH * layer.ops.exp(layer.control(f"{layer.shape.mixer}.log_rate")))


def chunk_size(positions: int, largest: int = CHUNK) -> int:
    """The chunk for a sequence: `largest`, or for shorter ones the next power of two."""
    # A compiler may hold the length as a symbol; range wants a number, as the loop over chunks does.
    positions, size = len(range(positions)), 1
    while size < min(positions, largest):
        size *= 2
    return size


def in_chunks(ops: Ops, x: Array, size: int) -> Array:
    """x [B, N, H, F] as [B, K, H, L, F], padded at the end with zeros to a whole chunk."""
    batch, positions, heads, width = x.shape
    missing = -positions % size
    if missing:
        x = ops.concatenate([x, 0.0 * x[:, :missing]], axis=1)
    count = (positions + missing) // size
    # Only the last two axes can be exchanged: [L, H F] -> [H F, L] -> [H, F, L] -> [H, L, F].
    columns = ops.transpose(x.reshape((batch, count, size, heads * width)))
    return ops.transpose(columns.reshape((batch, count, heads, width, size)))


def out_of_chunks(ops: Ops, y: Array, positions: int) -> Array:
    """y [B, K, H, L, F] as [B, N, H, F], without the padding at the end."""
    batch, count, heads, size, width = y.shape
    rows = ops.transpose(ops.transpose(y).reshape((batch, count, heads * width, size)))
    return rows.reshape((batch, count * size, heads, width))[:, :positions]


def decay_matrix(ops: Ops, log_decay: Array) -> Array:
    """M[i, j] = a[j + 1] ... a[i] for j <= i, else 0, of ln a [..., L, 1]: [..., L, L].

    Each logarithm is a sum of its own, not a difference of two sums from the start of the chunk, which would lose
    digits after a strong decay.
    """
    size = log_decay.shape[-2]
    rows = ops.broadcast_to(log_decay, (*log_decay.shape[:-1], size))
    return ops.lower_triangle(ops.exp(ops.running_sum(ops.lower_triangle(rows, -1), axis=-2)))
