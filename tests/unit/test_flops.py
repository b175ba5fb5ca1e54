"""The operation counts against a forward pass that counts its own products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.flops import newton_schulz_flops, training_flops
from shared.model import forward, parameter_manifest, random_weights
from shared.ops import NumpyOps
from shared.optim import orthogonalise
from shared.spec import Spec, load_spec


class CountingOps(NumpyOps):
    """The oracle, adding up two operations for each multiplication of a product it makes.

    Attention counts the pairs that its mask lets through, in both products.
    """

    def __init__(self) -> None:
        self.matrices = 0
        self.attended = 0

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        self.matrices += 2 * x.size * weight.shape[0]
        return super().linear(x, weight)

    def leaky_relu_squared_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float
    ) -> np.ndarray:
        rows = x.size // x.shape[-1]
        self.matrices += 2 * rows * (up.size + down.size)
        return super().leaky_relu_squared_mlp(x, up, down, negative_slope)

    def attention(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int = 0, documents: np.ndarray | None = None
    ) -> np.ndarray:
        batch, time, heads, dim = q.shape
        pairs = np.tri(time) - (np.tri(time, k=-window) if window else 0)
        self.attended += 2 * 2 * batch * heads * dim * int(pairs.sum())
        return super().attention(q, k, v, window, documents)


class Counted(np.ndarray):
    """An array that adds up the operations of its matrix products in `Counted.total`."""

    total = 0

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        Counted.total += 2 * self.size * other.shape[-1]
        return np.asarray(self).__matmul__(np.asarray(other)).view(Counted)


def small(kind: str, patch_size: int, layers: int, context: int, tied: bool, *more: str) -> Spec:
    overrides = [
        f"model.decoder.kind={kind}",
        f"model.patch_size={patch_size}",
        f"model.num_layers={layers}",
        f"model.decoder.num_layers={layers}",
        f"model.decoder.context={context}",
        "model.seq_len=48",
        "training.batch_symbols=48",
        "evaluation.batch_symbols=48",
    ]
    can_tie = kind == "autoregressive" or (kind == "linear" and patch_size == 1)
    return load_spec("tiny", [*overrides, *more, f"model.tie_embeddings={str(tied and can_tie).lower()}"])


def left_out(spec: Spec, num_symbols: int) -> int:
    """Operations that are not counted: of the experts' gate, and of their maps of the places, once in a pass."""
    decoder, patch_size, dim = spec.model.decoder, spec.model.patch_size, spec.model.model_dim
    if decoder.kind != "experts":
        return 0
    gate = decoder.num_experts * dim
    places = patch_size * decoder.num_experts * (spec.vocabulary.size + 1) * dim
    return 2 * (gate * num_symbols // patch_size + places)


@settings(max_examples=40, deadline=None)
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
    x = np.random.default_rng(0).integers(0, 256, (2, spec.model.seq_len))
    forward(ops, spec, weights, x)
    flops = training_flops(spec)
    assert flops.matrices * x.size == pytest.approx(3 * (ops.matrices - left_out(spec, x.size)), rel=1e-12)
    assert flops.attention * x.size == pytest.approx(3 * ops.attended, rel=1e-12)
    assert flops.per_symbol == flops.matrices + flops.attention


def test_newton_schulz_counts_its_products() -> None:
    spec = load_spec("tiny", ["optimizer.ns_steps=3"])
    Counted.total = 0
    for parameter in parameter_manifest(spec):
        if parameter.group == "matrix":
            update = np.random.default_rng(0).normal(size=(1, *parameter.shape)).view(Counted)
            orthogonalise(NumpyOps(), update, spec.optimizer.ns_steps, "float32")
    assert newton_schulz_flops(spec) == Counted.total > 0


def test_a_known_model() -> None:
    """One token per position, one layer: six operations per weight of the classic count, worked by hand."""
    spec = load_spec(
        "tiny",
        [
            "model.patch_size=1",
            "model.num_layers=1",
            "model.decoder.kind=linear",
            "model.model_dim=32",
            "model.num_heads=4",
            "model.num_kv_heads=4",
            "model.mlp_dim=64",
        ],
    )
    weights = 4 * 32 * 32 + 2 * 32 * 64 + 256 * 32
    flops = training_flops(spec)
    assert flops.matrices == 6 * weights
    assert flops.attention == 3 * 2 * 2 * 32 * (64 + 1) / 2
