"""What MLX needs of a machine without a GPU: a BLAS of its own, and a compiler or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_train import blas, device
from shared.tolerances import OPERATION_REL
from tests.processes import run_python

pytestmark = [pytest.mark.slow, pytest.mark.skipif(device.on_gpu(), reason="MLX runs on a GPU here")]
has_openblas = pytest.mark.skipif(not blas.load_openblas(), reason="no OpenBLAS for MLX on this machine")


def in_new_process(code: str, **environment: str) -> str:
    """What Python code prints in a process of its own, warnings being errors."""
    return run_python(code, PYTHONWARNINGS="error", **environment).strip()


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
from shared.engine.package import create_engine
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
    assert ("no g++" in device.device_name()) == (not device.compiles())
