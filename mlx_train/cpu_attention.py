"""Causal attention for MLX on a CPU, forward and backward by hand.

MLX's own computes the full T x T square, half of it masked, in single-threaded passes over memory. Here

- a sequence is cut into chunks; only the diagonal chunks are masked, and what lies below them is
  covered by squares that double in size (chunk i with i - 1, pairs with pairs, ...), so the upper
  half is never computed;
- all scores of a row are formed before the first exponential, so one maximum serves the diagonal and the
  squares, and their parts simply add up;
- with a column of ones next to v the same matrix product gives the row sums;
- the backward pass reuses the stored exponentials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_train.cpu_math import LN2, LOG2E, exp2

CHUNK = 128
# Shorter sequences, such as the bytes of a patch, gain nothing.
SHORTEST = 32
# Stands for minus infinity, which the arithmetic of exp2 does not take.
MASKED = -1e30


def can_chunk(time: int) -> bool:
    """Whether `causal_attention` handles sequences of this length, and faster than MLX's own."""
    # One chunk or less, or a power of two of chunks.
    return SHORTEST <= time <= CHUNK or (time % CHUNK == 0 and (time // CHUNK).bit_count() == 1)


def causal_attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """shared.ops.Ops.attention for float32 q [B, T, H, C], k and v [B, T, G, C]."""
    batch, time, heads, width = q.shape
    chunk = min(CHUNK, time)
    groups, chunks = k.shape[2], time // chunk
    share = heads // groups
    q = (q * (width**-0.5 * LOG2E)).reshape(batch, chunks, chunk, groups, share, width)
    q = q.transpose(0, 3, 1, 4, 2, 5).reshape(batch * groups, chunks, share * chunk, width)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    k, v = (x.reshape(batch * groups, time, width) for x in (k, v))
    y = _attention_core(chunk)(q, k, v)
    y = y.reshape(batch, groups, chunks, share, chunk, width).transpose(0, 2, 4, 1, 3, 5)
    return y.reshape(batch, time, heads, width)


@lru_cache(maxsize=64)
def _mask(chunk: int, copies: int) -> np.ndarray:
    """Whether a row of a diagonal chunk may see a column, `copies` heads one after the other: [R, chunk]."""
    return np.tile(np.tri(chunk, dtype=bool), (copies, 1))


def _attention_core(chunk: int) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    """y [M, n, R, C] of q [M, n, R, C] (R rows of one chunk, in powers of two), k and v [M, n * chunk, C]."""

    @mx.custom_function
    def core(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, ...]:
        count, chunks, rows, width = q.shape
        ones = mx.ones((count, k.shape[1], 1), dtype=v.dtype)
        extended = mx.concatenate([v, ones], axis=-1)
        diagonal = q @ k.reshape(count, chunks, chunk, width).swapaxes(-1, -2)
        diagonal = mx.where(mx.array(_mask(chunk, rows // chunk)), diagonal, MASKED)
        below = [q_late @ k_early.swapaxes(-1, -2) for _, q_late, k_early, _ in _levels(q, k, extended)]
        largest = mx.max(diagonal, axis=-1, keepdims=True)
        for scores in below:
            largest = _with_late(largest, mx.max(scores, axis=-1, keepdims=True), mx.maximum)
        largest = largest.reshape(count, chunks, rows, 1)
        exponentials = [exp2(diagonal - largest)]
        total = exponentials[0] @ extended.reshape(count, chunks, chunk, width + 1)
        for scores, (size, _, _, v_early) in zip(below, _levels(q, k, extended), strict=True):
            exponentials.append(exp2(scores - _late(largest, count, size)))
            total = _with_late(total, exponentials[-1] @ v_early, mx.add)
        total = total.reshape(count, chunks, rows, width + 1)
        row_sums = total[..., width:]
        return total[..., :width] / row_sums, row_sums, extended, *exponentials

    @core.vjp
    def core_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        q, k, v = primals
        y, row_sums, extended, diagonal, *below = outputs
        count, chunks, _, width = q.shape
        scaled = cotangents[0] / row_sums
        # Gradient of the unnormalised sums: the last column is that of the row sum itself.
        grad = mx.concatenate([scaled, -mx.sum(scaled * y, axis=-1, keepdims=True)], axis=-1)
        grad_scores = (grad @ extended.reshape(count, chunks, chunk, width + 1).swapaxes(-1, -2)) * diagonal
        dq = grad_scores @ k.reshape(count, chunks, chunk, width)
        dk = grad_scores.swapaxes(-1, -2) @ q
        dv = diagonal.swapaxes(-1, -2) @ scaled
        for exponential, (size, q_late, k_early, v_early) in zip(below, _levels(q, k, extended), strict=True):
            grad_scores = (_late(grad, count, size) @ v_early.swapaxes(-1, -2)) * exponential
            dq = _with_late(dq, grad_scores @ k_early, mx.add)
            dk = _add_early(dk, grad_scores.swapaxes(-1, -2) @ q_late)
            dv = _add_early(dv, exponential.swapaxes(-1, -2) @ _late(scaled, count, size))
        return dq.reshape(q.shape) * LN2, dk.reshape(k.shape) * LN2, dv.reshape(v.shape)

    return lambda q, k, v: core(q, k, v)[0]


def _levels(q: mx.array, k: mx.array, v: mx.array) -> Iterator[tuple[int, mx.array, mx.array, mx.array]]:
    """(size, late queries, early keys, early values) of each doubling square, from the smallest up."""
    count, chunks, _, width = q.shape
    chunk = k.shape[1] // chunks
    size = 1
    while size < chunks:
        pairs = chunks // (2 * size)
        early_k = k.reshape(count, pairs, 2, size * chunk, width)[:, :, 0]
        early_v = v.reshape(count, pairs, 2, size * chunk, v.shape[-1])[:, :, 0]
        yield size, _late(q, count, size), early_k, early_v
        size *= 2


def _late(x: mx.array, count: int, size: int) -> mx.array:
    """The later half of each pair of `size` chunks: x [M, n, R, C] to [M, pairs, size * R, C]."""
    _, chunks, rows, width = x.shape
    return x.reshape(count, chunks // (2 * size), 2, size * rows, width)[:, :, 1]


def _with_late(total: mx.array, part: mx.array, combine: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
    """total, combined with part [M, pairs, ...] in the later half of each pair."""
    pairs = total.reshape(part.shape[0], part.shape[1], 2, *part.shape[2:])
    return mx.concatenate([pairs[:, :, :1], combine(pairs[:, :, 1:], part[:, :, None])], axis=2)


def _add_early(total: mx.array, part: mx.array) -> mx.array:
    """total plus part [M, pairs, ...] in the earlier half of each pair."""
    pairs = total.reshape(part.shape[0], part.shape[1], 2, *part.shape[2:])
    return mx.concatenate([pairs[:, :, :1] + part[:, :, None], pairs[:, :, 1:]], axis=2)
