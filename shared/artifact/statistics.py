"""Statistics of the inputs of each matrix of a model, for quantisers that weigh errors by them.

They come from the forward pass itself, run on any engine's `Ops` with a wrapper around it that knows the parameters:
a layer that a loop runs several times counts every time, and a tied table counts both as a table and as a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shared.model import forward, parameter_manifest
from shared.model.adapters import with_adapters
from shared.model.manifest import ADAPTER_A, ADAPTER_B
from shared.ops import Array, Ops, WrappedOps
from shared.quantisers import InputStatistics
from shared.spec import Spec


def input_statistics(
    ops: Ops, spec: Spec, weights: Mapping[str, NDArray[np.float32]], batches: Iterable[NDArray[np.int32]]
) -> dict[str, InputStatistics]:
    """Statistics of all matrices of a spec's model over batches of symbols [B, T], by name, one batch at a time.

    X'X of a batch is made on the device in float32, whose rounding of 1e-6 is far below the noise of a calibration
    text, and added up in float64. Not counted is the product of a factored tied table with its transposed projection.
    Empty are the statistics of a decoder's experts and of their router, which are multiplied by patch and by position
    separately. The factors of an adapter read the inputs of their matrix: A the same, B what A makes of them.
    """
    params = {name: ops.asarray(value) for name, value in weights.items()}
    # Adapted matrices are arrays of their own, so they are made here, where they still have a name.
    params = dict(with_adapters(ops, spec.model, params))
    watching = StatisticsOps(ops, params)
    for x in batches:
        forward(cast(Ops, watching), spec, params, ops.asarray(x))
    found = {}
    for parameter in parameter_manifest(spec):
        if parameter.quantisation != "control" and len(parameter.shape) >= 2:
            name = parameter.name
            base = name.replace(ADAPTER_A, ".weight").replace(ADAPTER_B, ".weight")
            statistics = watching.sums_of(base).statistics()
            if name.endswith(ADAPTER_B) and statistics.gram is not None:
                a = weights[name.replace(ADAPTER_B, ADAPTER_A)].astype(np.float64)
                statistics = InputStatistics(statistics.rows, _symmetric(a @ statistics.gram @ a.T))
            found[name] = statistics
    return found


class StatisticsOps(WrappedOps):
    """Adds up the inputs of the parameters while a forward pass runs on the wrapped operations."""

    def __init__(self, ops: Ops, params: Mapping[str, Array]) -> None:
        super().__init__(ops, params)
        self._sums: dict[str, _Sums] = {}
        # q, k and v read one input: its product with itself is made once.
        self._last: tuple[Array, NDArray[np.float64]] | None = None

    def sums_of(self, name: str) -> _Sums:
        """The sums of one parameter, so far."""
        return self._sums.setdefault(name, _Sums())

    def linear(self, x: Array, weight: Array) -> Array:
        self._add_input(x, weight)
        return self.ops.linear(x, weight)

    def leaky_relu_squared_mlp(self, x: Array, up: Array, down: Array, negative_slope: float) -> Array:
        self._add_input(x, up)
        hidden = self.ops.linear(x, up)
        above, below = self.ops.relu(hidden), negative_slope * self.ops.relu(-hidden)
        self._add_input(above * above + below * below, down)
        return self.ops.leaky_relu_squared_mlp(x, up, down, negative_slope)

    def embedding(self, weight: Array, index: Array, dtype: str) -> Array:
        if (name := self.name_of(weight)) is not None:
            reads = np.bincount(self.ops.to_numpy(index).reshape(-1), minlength=weight.shape[0])
            self.sums_of(name).reads = reads + (before if (before := self.sums_of(name).reads) is not None else 0)
        return self.ops.embedding(weight, index, dtype)

    def _add_input(self, x: Array, weight: Array) -> None:
        """x [B, ..., in] is about to be multiplied by a weight; without a batch it is not an activation."""
        if (name := self.name_of(weight)) is None:
            return
        sums = self.sums_of(name)
        sums.is_whole = sums.is_whole and len(x.shape) > 2
        if not sums.is_whole:
            return
        if self._last is None or self._last[0] is not x:
            rows = self.ops.transpose(self.ops.cast(x, "float32").reshape((-1, x.shape[-1])))
            self._last = x, self.ops.to_numpy(self.ops.linear(rows, rows)).astype(np.float64)
        sums.rows += int(np.prod(x.shape[:-1]))
        sums.gram = self._last[1] + (sums.gram if sums.gram is not None else 0.0)


@dataclass
class _Sums:
    """Sums for one parameter. `is_whole`: all of its products are of whole inputs."""

    rows: int = 0
    gram: NDArray[np.float64] | None = None
    reads: NDArray[np.int64] | None = None
    is_whole: bool = True

    def statistics(self) -> InputStatistics:
        """The statistics of these sums."""
        if self.gram is None or not self.is_whole:
            return InputStatistics(reads=self.reads)
        return InputStatistics(self.rows, _symmetric(self.gram), self.reads)


def _symmetric(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix made exactly symmetric, which a product is except for its rounding."""
    return np.asarray((gram + gram.T) / 2)
