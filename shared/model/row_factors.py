"""Low-rank factors of their own for each row of a batch, as documents that are learnt side by side need them.

With model.lora.rows every symbol matrix has one more column, the first: the number of the factors that a row reads,
which a batch may be cut and shared out with. A matrix with factors is an `Adapted`, which only `linear` reads, so
nothing of one row reaches another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.model.manifest import ADAPTER_A, ADAPTER_B
from shared.ops import Array, Ops
from shared.ops.wrapped_ops import WrappedOps
from shared.spec import ModelSpec, Spec


@dataclass(frozen=True)
class Adapted:
    """A matrix [out, in] with the scaled factors A [B, rank, in] and B [B, out, rank] of the rows of a batch."""

    weight: Array
    a: Array
    b: Array

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.weight.shape
        return shape


class RowOps(WrappedOps):
    """Operations in which a matrix may be `Adapted`."""

    def linear(self, x: Array, weight: Array | Adapted) -> Array:
        if not isinstance(weight, Adapted):
            return self.ops.linear(x, weight)
        y = self.ops.linear(x, weight.weight)
        rows = x.reshape((weight.a.shape[0], -1, x.shape[-1]))
        added = rows @ self.ops.transpose(weight.a) @ self.ops.transpose(weight.b)
        return y + added.reshape(y.shape)

    def leaky_relu_squared_mlp(self, x: Array, up: Array, down: Array, negative_slope: float) -> Array:
        hidden = self.linear(x, up)
        above, below = self.ops.relu(hidden), negative_slope * self.ops.relu(-hidden)
        return self.linear(above * above + below * below, down)


def with_row_factors(
    ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array
) -> tuple[Ops, Mapping[str, Array], Array]:
    """(operations, parameters, symbols [B, T]) of a pass over x [B, 1 + T]; without model.lora.rows as given."""
    lora = spec.model.lora
    if not lora.rows:
        return ops, params, x
    index, dtype, adapted = x[:, 0], spec.training.dtype, {}
    for name, value in params.items():
        if name.endswith((ADAPTER_A, ADAPTER_B)):
            continue
        stem = name.removesuffix(".weight")
        if f"{stem}{ADAPTER_A}" in params:
            a, b = (_of_rows(ops, params[f"{stem}{factor}"], index, dtype) for factor in (ADAPTER_A, ADAPTER_B))
            value = Adapted(value, a, (lora.alpha / lora.rank) * b)
        adapted[name] = value
    return RowOps(ops), adapted, x[:, 1:]


def symbols_of(model: ModelSpec, x: Array) -> Array:
    """The symbols [B, T] of what a model with or without model.lora.rows is given."""
    return x[:, 1:] if model.lora.rows else x


def _of_rows(ops: Ops, factors: Array, index: Array, dtype: str) -> Array:
    """The factors [B, ...] of rows of numbers `index` [B], of factors [R, ...]."""
    rows, *sides = factors.shape
    return ops.embedding(factors.reshape((rows, -1)), index, dtype).reshape((index.shape[0], *sides))
