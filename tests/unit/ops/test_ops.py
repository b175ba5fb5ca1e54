"""Every operation of all three implementations against its definition, written out naively."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_train.cpu_ops import MLXCPUOps
from mlx_train.device import on_gpu
from shared.ops import NumpyOps, Ops
from shared.tolerances import OPERATION_REL
from tests.implementations import ENGINES, OPS, assert_close, every_implementation, examples, normal, run, seeds, sizes


def naive_log_softmax(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return values - np.log(sum(math.exp(value) for value in values))


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, documents: Any) -> np.ndarray:
    """One query at a time over the list of positions it may read."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        group = h * k.shape[2] // q.shape[2]
        read = [s for s in range(t + 1) if window == 0 or s > t - window]
        read = [s for s in read if documents is None or documents[b, s] == documents[b, t]]
        scores = np.array([q[b, t, h] @ k[b, s, group] / np.sqrt(q.shape[-1]) for s in read])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ v[b, read, group]
    return out


def naive_rope(x: np.ndarray, base: float) -> np.ndarray:
    """Each pair (i, i + C/2) as a complex number turned by -t * base^(-2i/C)."""
    x = x.astype(np.float64)
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for t in range(x.shape[1]):
        for i in range(half):
            turned = (x[:, t, :, i] + 1j * x[:, t, :, i + half]) * np.exp(-1j * t * base ** (-2 * i / x.shape[-1]))
            out[:, t, :, i], out[:, t, :, i + half] = turned.real, turned.imag
    return out


def test_all_implementations_have_every_method_of_the_protocol():
    methods = {name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert len(methods) >= 19
    for name, ops in OPS.items():
        assert ops.name == name
        for method in methods:
            assert (
                list(inspect.signature(getattr(ops, method)).parameters)
                == list(inspect.signature(getattr(Ops, method)).parameters)[1:]
            ), f"{name}.{method}"


@every_implementation
@examples
@given(shape=st.lists(sizes, min_size=0, max_size=3), seed=seeds)
def test_values_survive_the_device(name: str, shape: list[int], seed: int):
    floats = normal(seed, *shape)
    back = run(name, lambda ops: ops.asarray(floats))
    assert back.dtype == (np.float64 if name == "numpy" else np.float32) and (back == floats).all()
    integers = (floats * 1000).astype(np.int32)
    back = run(name, lambda ops: ops.asarray(integers))
    assert back.dtype.kind == "i" and (back == integers).all()
    wide = run(name, lambda ops: ops.asarray(floats.astype(np.float64)))
    assert (wide == floats).all()


def test_a_host_copy_does_not_change_with_the_device_array():
    for ops in OPS.values():
        source = normal(0, 3)
        on_device = ops.asarray(source)
        source[:] = 0
        kept = ops.to_numpy(on_device).copy()
        assert np.abs(kept).min() > 0, ops.name


@pytest.mark.parametrize("name", ENGINES)
def test_casting(name: str):
    ops = OPS[name]
    x = normal(1, 5, 3)
    narrow = ops.cast(ops.asarray(x), "bfloat16")
    rounded = ops.to_numpy(narrow)
    assert rounded.dtype == np.float32
    # bfloat16 keeps the upper half of the bits, rounded half to even.
    bits = x.view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    assert (rounded == (bits & 0xFFFF0000).view(np.float32)).all()
    wide = ops.asarray(x)
    assert ops.cast_like(wide, narrow).dtype == narrow.dtype
    assert ops.cast_like(narrow, wide).dtype == wide.dtype == ops.cast(narrow, "float32").dtype
    linear = ops.linear(narrow, ops.asarray(normal(2, 4, 3)))
    assert linear.dtype == narrow.dtype
    assert ops.embedding(wide, ops.asarray(np.array([1, 0])), "bfloat16").dtype == narrow.dtype
    assert ops.rms_norm(narrow, 1e-6).dtype == narrow.dtype
    heads = narrow.reshape((1, 3, 1, 5))[..., :4]
    assert ops.rope(heads, 1e4).dtype == narrow.dtype
    assert ops.attention(heads, heads, heads).dtype == narrow.dtype
    assert ops.leaky_relu_squared_mlp(
        narrow, ops.asarray(normal(2, 4, 3)), ops.asarray(normal(3, 3, 4)), 0.5
    ).dtype == (narrow.dtype)
    logits = ops.softcapped_log_softmax(narrow, 30.0)
    assert logits.dtype == wide.dtype
    assert ops.softcapped_cross_entropy(narrow, ops.asarray(np.zeros(5, np.int32)), 30.0).dtype == wide.dtype


def test_the_oracle_ignores_dtypes():
    ops = NumpyOps()
    x = ops.asarray(normal(1, 4))
    assert ops.cast(x, "bfloat16") is x and ops.cast_like(x, x) is x


@every_implementation
@examples
@given(batch=sizes, time=sizes, rows=sizes, columns=sizes, seed=seeds)
def test_linear(name: str, batch: int, time: int, rows: int, columns: int, seed: int):
    x, weight = normal(seed, batch, time, columns), normal(seed + 1, rows, columns)
    expected = [
        [[sum(map(float, row * vector)) for row in weight] for vector in vectors] for vectors in x.astype(float)
    ]
    assert_close(name, run(name, lambda ops: ops.linear(ops.asarray(x), ops.asarray(weight))), expected)


@every_implementation
@examples
@given(vocab=sizes, dim=sizes, shape=st.lists(sizes, min_size=1, max_size=2), seed=seeds)
def test_embedding(name: str, vocab: int, dim: int, shape: list[int], seed: int):
    weight = normal(seed, vocab, dim)
    index = np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)
    expected = np.array([weight[i] for i in index.ravel()]).reshape(*shape, dim)
    actual = run(name, lambda ops: ops.embedding(ops.asarray(weight), ops.asarray(index), "float32"))
    assert (actual == expected).all() and actual.shape == expected.shape


@every_implementation
@examples
@given(
    shape=st.lists(sizes, min_size=1, max_size=4),
    eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=seeds,
)
def test_rms_norm(name: str, shape: list[int], eps: float, scale: float, seed: int):
    x = normal(seed, *shape) * np.float32(scale)
    vectors = x.reshape(-1, shape[-1]).astype(float)
    expected = [v / math.sqrt(sum(v * v) / len(v) + eps) for v in vectors]
    actual = run(name, lambda ops: ops.rms_norm(ops.asarray(x), eps))
    assert_close(name, actual, np.reshape(expected, shape))


@every_implementation
@examples
@given(
    batch=sizes, time=st.integers(1, 40), heads=sizes, half=sizes, base=st.sampled_from([10.0, 500.0, 1e4]), seed=seeds
)
def test_rope(name: str, batch: int, time: int, heads: int, half: int, base: float, seed: int):
    x = normal(seed, batch, time, heads, 2 * half)
    assert_close(name, run(name, lambda ops: ops.rope(ops.asarray(x), base)), naive_rope(x, base))


@every_implementation
def test_rope_turns_by_minus_theta_and_leaves_position_zero_alone(name: str):
    x = np.zeros((1, 2, 1, 2), np.float32)
    x[..., 0] = 1.0
    actual = run(name, lambda ops: ops.rope(ops.asarray(x), 1e4))
    assert actual[0, 0, 0].tolist() == [1.0, 0.0]
    assert actual[0, 1, 0] == pytest.approx([math.cos(1.0), -math.sin(1.0)], rel=1e-6)


@every_implementation
def test_rope_far_from_the_start(name: str):
    x = normal(3, 1, 3000, 1, 8)
    assert_close(name, run(name, lambda ops: ops.rope(ops.asarray(x), 1e4)), naive_rope(x, 1e4))


@every_implementation
@examples
@given(
    batch=st.integers(1, 3),
    time=st.sampled_from([*range(1, 13), 33]),
    groups=st.integers(1, 4),
    ratio=st.integers(1, 4),
    dim=sizes,
    window=st.integers(0, 7),
    several=st.booleans(),
    seed=seeds,
)
def test_attention(
    name: str, batch: int, time: int, groups: int, ratio: int, dim: int, window: int, several: bool, seed: int
):
    q = 2 * normal(seed, batch, time, groups * ratio, dim)
    k, v = normal(seed + 1, batch, time, groups, dim), normal(seed + 2, batch, time, groups, dim)
    starts = np.random.default_rng(seed).random((batch, time)) < 0.3
    documents = np.cumsum(starts, axis=1).astype(np.int32) if several else None

    def attention(ops: Ops) -> Any:
        return ops.attention(*map(ops.asarray, (q, k, v)), window, ops.asarray(documents) if several else None)

    assert_close(name, run(name, attention), naive_attention(q, k, v, window, documents))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("time", [31, 32, 48, 128, 256, 384, 512])
@pytest.mark.parametrize("sharpness", [1.0, 12.0])
def test_attention_over_long_sequences(name: str, time: int, sharpness: float):
    """Engines have kernels of their own from some length on and for scores that could overflow, MLX for lengths that
    need no mask, where one that masks nothing changes nothing."""
    q = np.float32(sharpness) * normal(1, 1, time, 4, 8)
    k, v = normal(2, 1, time, 2, 8), normal(3, 1, time, 2, 8)
    documents = (np.arange(time, dtype=np.int32) // 32)[None]
    for window, starts in ((0, None), (40, None), (0, documents), (40, documents), (time, None), (0, 0 * documents)):

        def attention(ops: Ops, window: int = window, starts: Any = starts) -> Any:
            return ops.attention(*map(ops.asarray, (q, k, v)), window, None if starts is None else ops.asarray(starts))

        # A sharp softmax passes the rounding of its scores on.
        limit = max(1.0, sharpness / 3) * OPERATION_REL
        assert_close(name, run(name, attention), run("numpy", attention), limit)


@every_implementation
@examples
@given(
    shape=st.lists(sizes, min_size=1, max_size=3),
    hidden=sizes,
    slope=st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]),
    seed=seeds,
)
def test_leaky_relu_squared_mlp(name: str, shape: list[int], hidden: int, slope: float, seed: int):
    x, up, down = normal(seed, *shape), normal(seed + 1, hidden, shape[-1]), normal(seed + 2, shape[-1], hidden)
    expected = []
    for vector in x.reshape(-1, shape[-1]).astype(float):
        z = [float(vector @ row) for row in up.astype(float)]
        phi = [value**2 if value > 0 else (slope * value) ** 2 for value in z]
        expected.append([sum(a * b for a, b in zip(row, phi, strict=True)) for row in down.astype(float)])
    actual = run(
        name,
        lambda ops: ops.leaky_relu_squared_mlp(ops.asarray(x), ops.asarray(up), ops.asarray(down), slope),
    )
    assert_close(name, actual, np.reshape(expected, shape))


@every_implementation
@examples
@given(
    shape=st.lists(sizes, min_size=1, max_size=2),
    vocab=st.integers(2, 260),
    softcap=st.sampled_from([5.0, 30.0]),
    scale=st.sampled_from([0.1, 5.0, 100.0]),
    seed=seeds,
)
def test_softcapped_losses(name: str, shape: list[int], vocab: int, softcap: float, scale: float, seed: int):
    logits = normal(seed, *shape, vocab) * np.float32(scale)
    targets = np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)
    flat = logits.reshape(-1, vocab).astype(float)
    expected = np.array([naive_log_softmax(softcap * np.tanh(row / softcap)) for row in flat])
    actual = run(name, lambda ops: ops.softcapped_log_softmax(ops.asarray(logits), softcap))
    assert_close(name, actual, expected.reshape(logits.shape))
    nats = [-expected[row, target] for row, target in enumerate(targets.ravel())]
    actual = run(name, lambda ops: ops.softcapped_cross_entropy(ops.asarray(logits), ops.asarray(targets), softcap))
    assert_close(name, actual, np.reshape(nats, shape))


@every_implementation
@examples
@given(shape=st.lists(sizes, min_size=2, max_size=4), seed=seeds, data=st.data())
def test_joining_and_reshaping(name: str, shape: list[int], seed: int, data: st.DataObject):
    a, b = normal(seed, *shape), normal(seed + 1, *shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    joined = run(name, lambda ops: ops.concatenate([ops.asarray(a), ops.asarray(b)], axis))
    assert (joined == np.concatenate([a, b], axis)).all()
    stacked = run(name, lambda ops: ops.stack([ops.asarray(a), ops.asarray(b)]))
    assert stacked.shape == (2, *shape) and (stacked[0] == a).all() and (stacked[1] == b).all()
    wide = run(name, lambda ops: ops.broadcast_to(ops.asarray(a[:1]), shape))
    assert wide.shape == tuple(shape) and (wide == a[:1]).all()
    flipped = run(name, lambda ops: ops.transpose(ops.asarray(a)))
    assert (flipped == np.moveaxis(a, -1, -2)).all()


@every_implementation
@examples
@given(shape=st.lists(sizes, min_size=1, max_size=4), keepdims=st.booleans(), seed=seeds, data=st.data())
def test_sum(name: str, shape: list[int], keepdims: bool, seed: int, data: st.DataObject):
    x = normal(seed, *shape)
    total = run(name, lambda ops: ops.sum(ops.asarray(x)))
    assert_close(name, total, math.fsum(map(float, x.ravel())))
    axes = data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, unique_by=lambda a: a % len(shape)))
    expected = x.astype(float)
    for axis in axes:
        expected = np.add.reduce(expected, axis, keepdims=True)
    kept = [size for axis, size in enumerate(expected.shape) if axis not in {a % len(shape) for a in axes}]
    actual = run(name, lambda ops: ops.sum(ops.asarray(x), axes=axes, keepdims=keepdims))
    assert_close(name, actual, expected if keepdims else expected.reshape(kept))


@every_implementation
@pytest.mark.parametrize("shape", [(1536, 1024), (3, 512, 1024)])
def test_long_sums_keep_their_digits(name: str, shape: tuple[int, ...]):
    # On a CPU with MLX's operations for it: those for a GPU sum over several axes at once, which only a GPU does well.
    ops = MLXCPUOps() if name == "mlx" and not on_gpu() else OPS[name]
    x = normal(5, *shape) ** 2
    exact = float(x.sum(dtype=np.float64))
    total = float(ops.to_numpy(ops.sum(ops.asarray(x))))
    assert total == pytest.approx(exact, rel=OPERATION_REL)
    if len(shape) == 3:
        matrices = ops.to_numpy(ops.sum(ops.asarray(x), axes=(-2, -1), keepdims=True))
        assert matrices.ravel() == pytest.approx(x.sum(axis=(1, 2), dtype=np.float64), rel=OPERATION_REL)


@every_implementation
@examples
@given(shape=st.lists(sizes, min_size=0, max_size=3), limit=st.floats(-2, 2, width=32), seed=seeds)
def test_element_wise(name: str, shape: list[int], limit: float, seed: int):
    x = normal(seed, *shape)
    assert (run(name, lambda ops: ops.relu(ops.asarray(x))) == np.where(x > 0, x, 0)).all()
    assert (
        run(name, lambda ops: ops.minimum(ops.asarray(x), limit)) == np.where(x < limit, x, np.float32(limit))
    ).all()
    roots = [math.sqrt(abs(float(value))) for value in np.ravel(x)]
    assert_close(name, run(name, lambda ops: ops.sqrt(ops.asarray(np.abs(x)))), np.reshape(roots, shape))
