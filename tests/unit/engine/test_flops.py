"""The operation counts against a forward pass that counts its own products."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.flops import newton_schulz_flops, scoring_flops, training_flops
from shared.model import forward, parameter_manifest, random_weights
from shared.ops import NumpyOps
from shared.optim import orthogonalise
from shared.spec import Spec
from tests.implementations import examples
from tests.techniques import BYTES, SHORT, tiny


class CountingOps(NumpyOps):
    """The oracle, adding up two operations for each multiplication of a product it makes: `matrices` by a weight,
    `attended` of activations, of which attention counts the pairs that its mask lets through."""

    def __init__(self) -> None:
        self.matrices = 0
        self.attended = 0

    def asarray(self, values: np.ndarray) -> np.ndarray:
        return self.counted(super().asarray(values))

    def counted(self, x: np.ndarray) -> np.ndarray:
        found = x.view(Counted)
        found.owner = self
        return found

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        self.matrices += 2 * x.size * weight.shape[0]
        return self.counted(super().linear(np.asarray(x), np.asarray(weight)))

    def leaky_relu_squared_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float
    ) -> np.ndarray:
        rows = x.size // x.shape[-1]
        self.matrices += 2 * rows * (up.size + down.size)
        plain = (np.asarray(values) for values in (x, up, down))
        return self.counted(super().leaky_relu_squared_mlp(*plain, negative_slope))

    def attention(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int = 0, documents: np.ndarray | None = None
    ) -> np.ndarray:
        batch, time, heads, dim = q.shape
        pairs = np.tri(time) - (np.tri(time, k=-window) if window else 0)
        self.attended += 2 * 2 * batch * heads * dim * int(pairs.sum())
        return self.counted(super().attention(q, k, v, window, documents))


def _counted(method: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The oracle's method, with a counted result: some functions of NumPy give plain arrays."""

    def call(self: CountingOps, *values: Any, **named: Any) -> np.ndarray:
        return self.counted(np.asarray(method(self, *values, **named)))

    return call


for _name, _method in vars(NumpyOps).items():
    if inspect.isfunction(_method) and _name not in vars(CountingOps):
        setattr(CountingOps, _name, _counted(_method))


class Counted(np.ndarray):
    """An array of a CountingOps, which adds up the operations of `@`. Whatever it meets is one too."""

    owner: CountingOps | None = None

    def __array_finalize__(self, source: np.ndarray | None) -> None:
        self.owner = getattr(source, "owner", None)

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        return _product(self, other)

    def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
        return _product(other, self)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    owner = getattr(left, "owner", None) or getattr(right, "owner", None)
    assert owner is not None
    product = np.asarray(left) @ np.asarray(right)
    owner.attended += 2 * product.size * left.shape[-1]
    return owner.counted(product)


def small(kind: str, patch_size: int, layers: int, context: int, tied: bool, *more: str) -> Spec:
    overrides = [
        f"model.decoder.kind={kind}",
        f"model.patch_size={patch_size}",
        f"model.num_layers={layers}",
        f"model.decoder.num_layers={layers}",
        f"model.decoder.context={context}",
    ]
    can_tie = kind == "autoregressive" or (kind == "linear" and patch_size == 1)
    return tiny(
        *SHORT, "training.batch_symbols=48", *overrides, *more, f"model.tie_embeddings={str(tied and can_tie).lower()}"
    )


@pytest.mark.slow
@settings(examples, max_examples=40)
@given(
    kind=st.sampled_from(["autoregressive", "mlp", "linear", "experts"]),
    patch_size=st.sampled_from([1, 2, 4, 12]),
    layers=st.integers(1, 3),
    context=st.integers(1, 3),
    tied=st.booleans(),
    window=st.sampled_from([0, 2, 3, 100]),
    loops=st.integers(0, 2),
)
def test_counts_are_those_of_a_forward_pass(
    kind: str, patch_size: int, layers: int, context: int, tied: bool, window: int, loops: int
) -> None:
    looped = [f"model.loop.last_layer={layers - 1}", f"model.loop.extra_loops={loops}"] if loops else []
    spec = small(kind, patch_size, layers, context, tied, f"model.attention.window={window}", *looped)
    ops = CountingOps()
    weights = {name: ops.asarray(value) for name, value in random_weights(spec, 0).items()}
    x = np.random.default_rng(0).integers(0, 256, (1, spec.model.seq_len))
    forward(ops, spec, weights, x)
    flops = training_flops(spec)
    assert flops.matrices * x.size == pytest.approx(3 * ops.matrices, rel=1e-12)
    assert flops.attention * x.size == pytest.approx(3 * ops.attended, rel=1e-12)
    assert flops.per_symbol == flops.matrices + flops.attention
    assert scoring_flops(spec) * x.size == pytest.approx(ops.matrices + ops.attended, rel=1e-12)


def test_newton_schulz_counts_its_products() -> None:
    spec, ops = tiny("optimizer.ns_steps=3"), CountingOps()
    for parameter in parameter_manifest(spec):
        if parameter.group == "matrix":
            update = ops.asarray(np.random.default_rng(0).normal(size=(1, *parameter.shape)))
            orthogonalise(ops, update, spec.optimizer.ns_steps, "float32")
    assert newton_schulz_flops(spec) == ops.attended > 0


def test_a_known_model() -> None:
    """One token per position, one layer: six operations per weight of the classic count, worked by hand."""
    spec = tiny(*BYTES, "model.num_layers=1", "model.num_kv_heads=4", "model.mlp_dim=64")
    weights = 4 * 32 * 32 + 2 * 32 * 64 + 256 * 32
    flops = training_flops(spec)
    assert flops.matrices == 6 * weights
    assert flops.attention == 3 * 2 * 2 * 32 * (64 + 1) / 2
