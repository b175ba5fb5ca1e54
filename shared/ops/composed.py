"""Operations that are made of others: a base for every `Ops`. An engine may compute one in a form of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.ops.protocol import Array, RecurrentStep, Scan


def scaled_norm(normalised: Array, norm_scale: float) -> Array:
    """The norm of a layer with this factor on its norms; where that is 1, no operation."""
    return normalised if norm_scale == 1.0 else norm_scale * normalised


class ComposedOps:
    """Each operation by its definition in shared.ops.protocol, from the operations of the subclass."""

    def gained_linear(self: Any, x: Array, weight: Array, gain: Array) -> Array:
        return self.cast_like(gain, x) * self.linear(x, weight)

    def gained_mlp(self: Any, x: Array, up: Array, down: Array, negative_slope: float, gain: Array) -> Array:
        return self.cast_like(gain, x) * self.leaky_relu_squared_mlp(x, up, down, negative_slope)

    def residual_norm(
        self: Any, x: Array, added: Array | None, first: Array | None, mix: Array | None, eps: float
    ) -> tuple[Array, Array]:
        total = x if added is None else x + added
        if mix is not None:
            mix = self.cast_like(mix, total)
            total = mix[0] * total + mix[1] * first
        return total, self.rms_norm(total, eps)

    def embedding_sum(self: Any, weights: Sequence[Array], indexes: Sequence[Array], dtype: str) -> Array:
        total = self.embedding(weights[0], indexes[0], "float32")
        for weight, index in zip(weights[1:], indexes[1:], strict=True):
            total = total + self.embedding(weight, index, "float32")
        return self.cast(total, dtype)

    def normed_mlp(
        self: Any,
        x: Array,
        added: Array,
        up: Array,
        down: Array,
        negative_slope: float,
        gain: Array,
        norm_scale: float,
        eps: float,
    ) -> tuple[Array, Array]:
        total, normalised = self.residual_norm(x, added, None, None, eps)
        return total, self.gained_mlp(scaled_norm(normalised, norm_scale), up, down, negative_slope, gain)

    def attention_inputs(
        self: Any, x: Array, weights: Sequence[Array], gain: Array, rope_dims: int, rope_base: float, eps: float
    ) -> tuple[Array, Array, Array]:
        batch, time, _ = x.shape
        heads = gain.shape[0]
        width = weights[0].shape[0] // heads

        def projected(weight: Array) -> Array:
            return self.linear(x, weight).reshape((batch, time, weight.shape[0] // width, width))

        q, k = (self.rms_norm(projected(weight), eps) for weight in weights[:2])
        v = projected(weights[2])
        if rope_dims:
            q, k = (self._rotated(each, rope_dims, rope_base) for each in (q, k))
        return q * self.cast_like(gain, q)[:, None], k, v

    def self_attention(
        self: Any, x: Array, weights: Sequence[Array], gain: Array, rope_dims: int, rope_base: float, eps: float
    ) -> Array:
        return self.attention(*self.attention_inputs(x, weights, gain, rope_dims, rope_base, eps))

    def shift_right(self: Any, x: Array, first: Array) -> Array:
        return self.concatenate([first, x[:, :-1]], axis=1)

    def delayed(self: Any, x: Array, first: Array) -> Array:
        later = first.shape[1]
        return self.concatenate([first, x[:, :-later]], axis=1) if later < x.shape[1] else first[:, : x.shape[1]]

    def lookback(self: Any, x: Array, first: Array, count: int) -> Array:
        entries = [x]
        while len(entries) < count:
            entries.append(self.delayed(entries[-1], first))
        return self.concatenate(entries, axis=-1)

    def symbol_context(
        self: Any, table: Array, first: Array, projection: Array | None, index: Array, dtype: str
    ) -> Array:
        embedded = self.embedding(table, index, dtype)
        first = self.cast_like(first, embedded)
        previous = self.shift_right(embedded, first)
        if projection is None:
            return previous
        return self.linear(self.lookback(previous, first, projection.shape[1] // table.shape[1]), projection)

    def recurrent(self: Any, scan: Scan, step: RecurrentStep, inputs: Sequence[Array]) -> Array:
        return scan(self, *inputs)

    def _rotated(self: Any, x: Array, dims: int, base: float) -> Array:
        """RoPE on the first `dims` features of every head of x."""
        if dims == x.shape[-1]:
            return self.rope(x, base)
        return self.concatenate([self.rope(x[..., :dims], base), x[..., dims:]], axis=-1)


def symbol_context_by_tables(
    ops: Any, table: Array, first: Array, projection: Array | None, index: Array, dtype: str
) -> Array:
    """`symbol_context` as a sum of rows of tables: what the projection makes of a symbol depends on the symbol and
    how far back it is alone, so it is computed for each symbol of the table, not for each of a text.

    In float32 whatever the dtype: tables are small, and the sum is rounded once.
    """
    (symbols, width), (batch, time) = table.shape, index.shape
    if projection is None or symbols >= batch * time:
        return ComposedOps.symbol_context(ops, table, first, projection, index, dtype)
    rows = ops.concatenate([table, first[:1].reshape((1, width))], axis=0)
    before = 0 * index[:, :1] + symbols
    tables, indexes = [], []
    for end in range(width, projection.shape[1] + 1, width):
        index = ops.shift_right(index, before)
        tables.append(ops.linear(rows, projection[:, end - width : end]))
        indexes.append(index)
    return ops.embedding_sum(tables, indexes, dtype)
