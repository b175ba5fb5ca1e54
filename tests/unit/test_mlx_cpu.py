"""What the MLX engine does only on a CPU: its BLAS, its kernels, its memory, its compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_train import blas, device
from mlx_train.cpu_attention import can_chunk, causal_attention
from mlx_train.cpu_math import exp2, tanh
from mlx_train.cpu_ops import MLXCPUOps
from mlx_train.engine import TrainingEngine
from mlx_train.plain_ops import MLXOps
from shared.microbatch import activation_bytes_per_row
from shared.model import random_weights
from shared.ops import NumpyOps
from shared.spec import Spec, spec_from_dict
from shared.tolerances import GRADIENT_REL, MEMORY_ESTIMATE_FACTOR, OPERATION_REL, POLYNOMIAL_REL

import mlx.core as mx  # isort: skip  # after mlx_train, which loads the BLAS

pytestmark = pytest.mark.skipif(device.on_gpu(), reason="MLX runs on a GPU here")
has_openblas = pytest.mark.skipif(not blas.load_openblas(), reason="no OpenBLAS for MLX on this machine")

ROOT = Path(__file__).resolve().parents[2]
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def in_new_process(code: str, **environment: str) -> str:
    """Standard output of Python code that runs in a process of its own, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()


plain_and_compiled = pytest.mark.parametrize("transform", [lambda function: function, mx.compile])


def evaluate(function: Callable, x: np.ndarray) -> np.ndarray:
    return np.array(function(mx.array(x)))


@plain_and_compiled
def test_exp2_over_its_whole_range(transform: Callable):
    edges = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 126.0, -126.0, 1e-38, -1e-38, 1e-45], np.float32)
    halves = np.arange(-252, 252, dtype=np.float32) / 2
    beside = np.concatenate([np.nextafter(halves, np.float32(-126)), np.nextafter(halves, np.float32(126))])
    y = np.concatenate([np.linspace(-126, 126, 400_001).astype(np.float32), edges, halves, beside])
    expected = np.exp2(y.astype(np.float64))
    assert np.abs(evaluate(transform(exp2), y) / expected - 1).max() <= POLYNOMIAL_REL
    whole = np.arange(-126, 127, dtype=np.float32)
    assert (evaluate(transform(exp2), whole) == np.exp2(whole)).all()


@plain_and_compiled
def test_exp2_is_exactly_zero_below_its_range(transform: Callable):
    below = np.array([np.nextafter(np.float32(-126), np.float32(-127)), -127, -1e4, -1e30, -3e38, -np.inf], np.float32)
    assert evaluate(transform(exp2), below).tolist() == [0.0] * len(below)


@plain_and_compiled
def test_tanh_over_all_of_float32(transform: Callable):
    sizes = np.logspace(-37, 38, 200_001).astype(np.float32)
    dense = np.linspace(0, 20, 200_001).astype(np.float32)
    u = np.concatenate([sizes, dense, [SMALLEST_NORMAL, 1e-45, 3.4e38, np.inf, 0.0]]).astype(np.float32)
    for values in (u, -u):
        actual, expected = evaluate(transform(tanh), values), np.tanh(values.astype(np.float64))
        assert (np.abs(actual - expected) <= POLYNOMIAL_REL * np.abs(expected) + SMALLEST_NORMAL).all()
        assert np.abs(actual).max() == 1.0


@plain_and_compiled
@pytest.mark.parametrize("function", [exp2, tanh])
def test_what_is_not_a_number_stays_so(transform: Callable, function: Callable):
    actual = evaluate(transform(function), np.array([np.nan, 0.5], np.float32))
    assert np.isnan(actual).tolist() == [True, False]


def reference_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, float]:
    """The oracle's result [B, T, H, C] and the largest score in magnitude."""
    ops = NumpyOps()
    share = q.shape[2] // k.shape[2]
    scores = np.einsum("bthc,bshc->bhts", q.astype(float), np.repeat(k.astype(float), share, axis=2))
    return ops.attention(*map(ops.asarray, (q, k, v))), float(np.abs(scores).max()) / q.shape[-1] ** 0.5


@pytest.mark.parametrize(
    ("time", "heads", "groups"),
    [
        *(
            (time, heads, groups)
            for time in (32, 50, 127, 128, 256)
            for heads, groups in ((1, 1), (4, 4), (6, 2), (4, 1))
        ),
        (512, 6, 2),
        (1024, 2, 1),
    ],
)
def test_attention_against_the_oracle(time: int, heads: int, groups: int):
    assert can_chunk(time)
    q, k, v = normal(1, 2, time, heads, 8), normal(2, 2, time, groups, 8), normal(3, 2, time, groups, 8)
    expected, _ = reference_attention(q, k, v)
    actual = np.array(causal_attention(*map(mx.array, (q, k, v))))
    assert np.abs(actual - expected).max() <= OPERATION_REL * np.abs(expected).max()


@pytest.mark.parametrize("time", [1, 31, 129, 192, 384, 640])
def test_other_lengths_fall_back(time: int):
    assert not can_chunk(time)
    q, k, v = normal(1, 1, time, 4, 8), normal(2, 1, time, 2, 8), normal(3, 1, time, 2, 8)
    expected, _ = reference_attention(q, k, v)
    actual = np.array(MLXCPUOps().attention(*map(mx.array, (q, k, v))))
    assert np.abs(actual - expected).max() <= OPERATION_REL * np.abs(expected).max()


@pytest.mark.parametrize("time", [48, 128, 256, 384, 1024])
@pytest.mark.parametrize("scale", [30.0, 100.0, 1000.0])
def test_attention_with_huge_scores(time: int, scale: float):
    q, k, v = normal(1, 1, time, 4, 16, scale=scale), normal(2, 1, time, 2, 16), normal(3, 1, time, 2, 16)
    expected, largest = reference_attention(q, k, v)
    assert largest > 3 * scale, "such scores overflow exp unless a maximum is subtracted"
    actual = np.array(MLXCPUOps().attention(*map(mx.array, (q, k, v))))
    # A score is rounded in proportion to its size, and the softmax passes that on.
    assert np.abs(actual - expected).max() <= OPERATION_REL * np.abs(expected).max() * largest / 10


@pytest.mark.parametrize("time", [32, 128, 256, 512, 384])
def test_attention_cannot_see_later_keys_and_values(time: int):
    q, k, v = normal(1, 1, time, 4, 8), normal(2, 1, time, 2, 8), normal(3, 1, time, 2, 8)
    before = np.array(MLXCPUOps().attention(*map(mx.array, (q, k, v))))
    for place in (1, time // 2 - 1, time // 2, time // 2 + 1, time - 1):
        later_k, later_v = k.copy(), v.copy()
        later_k[:, place:], later_v[:, place:] = normal(4, time - place, 1, 8), 1e4
        after = np.array(MLXCPUOps().attention(*map(mx.array, (q, later_k, later_v))))
        assert (after[:, :place] == before[:, :place]).all(), f"a position before {place} sees it"
        assert np.abs(after - before)[:, place:].max() > 1.0, "or this test could not fail"


TARGETS = np.random.default_rng(0).integers(0, 260, (3, 7)).astype(np.int32)
FUNCTIONS: dict[str, tuple[Callable, list[np.ndarray]]] = {
    "cross entropy": (
        lambda ops, z: ops.softcapped_cross_entropy(z, mx.array(TARGETS), 30.0),
        [normal(1, 3, 7, 260, scale=5.0)],
    ),
    "cross entropy, saturated": (
        lambda ops, z: ops.softcapped_cross_entropy(z, mx.array(TARGETS), 15.0),
        [normal(1, 3, 7, 260, scale=40.0)],
    ),
    "cross entropy, largest unshifted cap": (
        lambda ops, z: ops.softcapped_cross_entropy(z, mx.array(TARGETS), 60.0),
        [normal(1, 3, 7, 260, scale=50.0)],
    ),
    "rms_norm": (lambda ops, x: ops.rms_norm(x, 1e-6), [normal(2, 2, 5, 4, 24)]),
    "rms_norm, near eps": (lambda ops, x: ops.rms_norm(x, 1e-6), [normal(2, 2, 5, 24, scale=1e-3)]),
    "rope": (lambda ops, x: ops.rope(x, 1e4), [normal(3, 2, 40, 3, 16)]),
    "leaky relu squared": (
        lambda ops, x, up, down: ops.leaky_relu_squared_mlp(x, up, down, 0.5),
        [normal(4, 2, 5, 16), normal(5, 48, 16), normal(6, 16, 48)],
    ),
    "leaky relu squared, no slope": (
        lambda ops, x, up, down: ops.leaky_relu_squared_mlp(x, up, down, 0.0),
        [normal(4, 2, 5, 16), normal(5, 48, 16), normal(6, 16, 48)],
    ),
    "attention": (
        lambda ops, q, k, v: ops.attention(q, k, v),
        [normal(7, 1, 256, 4, 8, scale=5.0), normal(8, 1, 256, 2, 8), normal(9, 1, 256, 2, 8)],
    ),
    "attention, 1024": (
        lambda ops, q, k, v: ops.attention(q, k, v),
        [normal(7, 1, 1024, 2, 8), normal(8, 1, 1024, 1, 8), normal(9, 1, 1024, 1, 8)],
    ),
}


@pytest.mark.parametrize(
    ("case", "transform"),
    [
        *((case, lambda function: function) for case in FUNCTIONS),
        ("cross entropy", mx.compile),
        ("attention", mx.compile),
    ],
)
def test_hand_written_gradients_are_those_of_mlx(case: str, transform: Callable):
    function, values = FUNCTIONS[case]
    arguments = [mx.array(value) for value in values]
    weights = mx.array(normal(11, *function(MLXOps(), *arguments).shape))
    results = []
    for ops in (MLXCPUOps(), MLXOps()):
        differentiate = mx.value_and_grad(lambda arrays, ops=ops: mx.sum(function(ops, *arrays) * weights))
        results.append(transform(differentiate)(arguments))
    (value, grads), (expected_value, expected) = results
    terms = float(mx.sum(mx.abs(function(MLXOps(), *arguments) * weights)).item())
    assert abs(value.item() - expected_value.item()) <= OPERATION_REL * terms
    for grad, other in zip(grads, expected, strict=True):
        assert mx.linalg.norm((grad - other).reshape(-1)).item() <= (
            GRADIENT_REL * mx.linalg.norm(other.reshape(-1)).item()
        )


@pytest.mark.parametrize("case", list(FUNCTIONS))
def test_bfloat16_takes_the_plain_operations_and_keeps_its_type(case: str):
    function, values = FUNCTIONS[case]
    arguments = [mx.array(value).astype(mx.bfloat16) for value in values]
    actual, plain = function(MLXCPUOps(), *arguments), function(MLXOps(), *arguments)
    assert actual.dtype == (mx.float32 if case.startswith("cross entropy") else mx.bfloat16) == plain.dtype
    grads = mx.grad(lambda arrays: mx.sum(function(MLXCPUOps(), *arrays)))(arguments)
    assert all(grad.dtype == mx.bfloat16 and mx.all(mx.isfinite(grad)).item() for grad in grads)


def memory_spec(seq_len: int, patch_size: int, dim: int, layers: int, decoder: dict, compiled: bool) -> Spec:
    return spec_from_dict(
        {
            "name": "memory",
            "model": {
                "num_layers": layers,
                "model_dim": dim,
                "num_heads": 4,
                "num_kv_heads": 2,
                "seq_len": seq_len,
                "patch_size": patch_size,
                "decoder": decoder,
            },
            "training": {
                "steps": 1,
                "batch_symbols": seq_len * len(device.compute_streams()),
                "compile": compiled,
            },
        }
    )


AUTOREGRESSIVE = {"kind": "autoregressive", "dim": 64, "num_layers": 2, "num_heads": 2, "mlp_dim": 128}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("seq_len", "patch_size", "dim", "layers", "decoder"),
    [
        (512, 1, 128, 2, {"kind": "linear"}),
        (1024, 1, 64, 1, {"kind": "linear"}),
        (384, 1, 128, 3, {"kind": "linear"}),
        (1024, 4, 128, 3, AUTOREGRESSIVE),
        (1024, 4, 128, 2, {"kind": "mlp", "dim": 128}),
        (1024, 4, 128, 2, {"kind": "linear"}),
    ],
)
def test_the_estimated_memory_is_an_upper_bound_and_not_far_off(
    seq_len: int, patch_size: int, dim: int, layers: int, decoder: dict, compiled: bool
):
    spec = memory_spec(seq_len, patch_size, dim, layers, decoder, compiled)
    engine = TrainingEngine(spec)
    engine.initialise(random_weights(spec, 0))
    rows = len(engine.streams)
    x = np.random.default_rng(0).integers(0, 256, (rows, seq_len)).astype(np.int32)
    _, grads = engine.gradients(x)  # compiles
    gradient_bytes = sum(grad.nbytes for grad in grads.values())
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    engine.gradients(x)
    used = mx.get_peak_memory() - before - rows * gradient_bytes
    estimate = rows * activation_bytes_per_row(spec)
    assert used <= estimate <= MEMORY_ESTIMATE_FACTOR * used, f"{estimate / used:.2f}"


@has_openblas
def test_torch_keeps_its_own_blas():
    """With OpenBLAS loaded globally, torch's batched products crash."""
    code = """
import mlx_train
import torch
import mlx.core as mx, numpy as np
rng = np.random.default_rng(0)
a, b = (rng.standard_normal((8, 64, 96)).astype(np.float32) for _ in range(2))
exact = a.astype(float) @ b.astype(float).swapaxes(1, 2)
by_torch = torch.from_numpy(a) @ torch.from_numpy(b).transpose(1, 2)
by_mlx = mx.array(a) @ mx.array(b).swapaxes(1, 2)
torch.linalg.inv(torch.eye(50) + 0.01 * torch.from_numpy(a[0, :50, :50]))
print(np.abs(by_torch.numpy() - exact).max(), np.abs(np.array(by_mlx) - exact).max())
"""
    errors = [float(word) for word in in_new_process(code).split()]
    assert len(errors) == 2 and max(errors) < OPERATION_REL * 96


@has_openblas
def test_matrix_products_are_fast_and_right():
    """One core does 100 GFLOP/s and more with OpenBLAS, all of them 3 with the reference BLAS."""
    code = """
import time
import mlx_train, mlx.core as mx, numpy as np
a, b = (mx.array(np.random.default_rng(seed).standard_normal((1024, 1024)).astype(np.float32)) for seed in (0, 1))
best = float("inf")
for _ in range(6):
    start = time.perf_counter()
    product = a @ b
    mx.eval(product)
    best = min(best, time.perf_counter() - start)
exact = np.array(a).astype(float) @ np.array(b).astype(float)
print(2 * 1024**3 / best / 1e9, np.abs(np.array(product) - exact).max())
"""
    gflops, error = (float(word) for word in in_new_process(code).split())
    assert error < OPERATION_REL * 100
    assert gflops > 12


@has_openblas
def test_a_renamed_library_is_found_under_its_new_name():
    """The dynamic loader itself is asked: a library that is loaded needs no file."""
    code = """
import ctypes
from mlx_train import blas
name = "libsome-longer-name.so.7"
try:
    ctypes.CDLL(name)
    raise SystemExit("found before it was loaded")
except OSError:
    pass
source = blas._files_of("ngsolve-openblas", "libopenblas*.so*")[0].read_bytes()
loaded = blas._load_image(blas._set_soname(source, name))
found = ctypes.CDLL(name)
print(found.openblas_get_num_threads() >= 1, found._handle == loaded._handle)
"""
    assert in_new_process(code) == "True True"


def test_a_library_name_is_shortened_in_place():
    image = b"\0libgfortran-abc.so.5.0.0\0libgfortran-abc.so.5.0.0x\0"
    renamed = blas._shorten_name(image, "libgfortran-abc.so.5.0.0", "libgfortran.so.5")
    assert len(renamed) == len(image)
    assert renamed.startswith(b"\0libgfortran.so.5\0") and renamed.endswith(b"libgfortran-abc.so.5.0.0x\0")


@has_openblas
def test_importing_mlx_first_warns():
    code = """
import warnings
import mlx.core as mx
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mlx_train
print([str(warning.message) for warning in caught])
print((mx.ones((3, 4)) @ mx.ones((4, 2))).tolist()[0])
"""
    out = in_new_process(code)
    assert "mlx.core was imported before mlx_train" in out and out.endswith("[4.0, 4.0]")


def test_nothing_is_loaded_where_openblas_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blas, "_library", None)
    monkeypatch.setattr(blas, "_files_of", lambda distribution, pattern: [])
    assert blas.load_openblas() is False
    blas.set_blas_threads(1)
    assert blas._library is None


def test_an_unknown_distribution_has_no_files():
    assert blas._files_of("no-such-distribution", "*") == []


TRAIN_TINY = """
import numpy as np
from shared.engine import create_engine
from shared.model import random_weights
from shared.optim import step_hyperparameters
from shared.spec import load_spec
spec = load_spec("tiny")
assert spec.training.compile
engine = create_engine("mlx", spec)
engine.initialise(random_weights(spec, 0))
x = np.random.default_rng(0).integers(0, 256, (8, 64)).astype(np.int32)
print(*(engine.train_step(x, step_hyperparameters(spec, step, step / 60))()[0] for step in range(4)))
print(engine.device_name())
"""


def test_without_openblas_the_engine_still_trains():
    code = """
import importlib.metadata
original = importlib.metadata.distribution
def missing(name):
    if name == "ngsolve-openblas":
        raise importlib.metadata.PackageNotFoundError(name)
    return original(name)
importlib.metadata.distribution = missing
import mlx_train.blas
assert mlx_train.blas._library is None
"""
    losses = [float(word) for word in in_new_process(code + TRAIN_TINY).splitlines()[0].split()]
    assert losses[-1] < losses[0] - 0.5


def test_without_a_compiler_the_engine_still_trains(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    out = in_new_process(TRAIN_TINY, PATH=str(tmp_path / "bin"), TMPDIR=str(tmp_path / "tmp")).splitlines()
    losses = [float(word) for word in out[0].split()]
    assert losses[-1] < losses[0] - 0.5
    assert "no g++: MLX runs uncompiled" in out[1]
    assert list((tmp_path / "tmp").rglob("*.so")) == []
    assert ("no g++" in device.device_name()) == (not device.can_compile())
