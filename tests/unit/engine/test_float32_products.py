"""`training.float32_products`: both engines multiply as the spec says, and facts say how it was done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import cuda_train.engine
from mlx_train import device as mlx_device
from mlx_train import float32_products
from shared.engine.device_facts import multiplied
from shared.engine.package import create_engine, engine_package
from shared.engine.state import EngineState
from shared.engine.synthetic import synthetic_start
from shared.errors import RunError
from shared.preflight import ask_rows
from shared.preflight.function_rows import causality_row, gradients_row, parity_row
from shared.preflight.question import Question
from shared.runs.run_directory import check_same_training
from shared.scoring.gradient_check import check_spec_gradients
from shared.spec import Spec, load_spec, spec_id
from shared.spec.reduced import reduced_spec
from tests.processes import run_python

import mlx.core as mx  # isort: skip  # after mlx_train, which loads the BLAS

CUDA_GPU = {"device_name": "NVIDIA H200", "free_memory": 5 * 10**9, "total_memory": 8 * 10**9}
MAC_GPU = {"device_name": "Apple M5", "max_recommended_working_set_size": 8 * 10**9}

# What C code of the process reads, MLX among it.
SHOW_VARIABLE = """
import ctypes, sys
from shared.engine.package import create_engine
from shared.spec import load_spec
create_engine("mlx", load_spec("tiny", sys.argv[1:]))
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(getenv(b"MLX_ENABLE_TF32").decode())
"""


def tiny(products: str) -> Spec:
    return load_spec("tiny", ["training.compile=false", f"training.float32_products={products}"])


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no MLX engine has chosen yet."""
    monkeypatch.setattr(float32_products, "_chosen", None)
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    yield


def rounded(x: np.ndarray, *, truncate: bool) -> np.ndarray:
    """float32 values cut to the 10 bits after the point that TF32 keeps."""
    bits = x.view(np.uint32) + np.uint32(0 if truncate else 1 << 12)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def test_a_product_shows_how_it_was_made() -> None:
    assert multiplied(lambda a, b: a @ b) == "float32"
    for truncate in (False, True):
        product = lambda a, b, cut=truncate: rounded(a, truncate=cut) @ rounded(b, truncate=cut)  # noqa: E731
        assert multiplied(product) == "tf32"


@pytest.mark.parametrize("engine", ["mlx", "torch"])
def test_a_cpu_multiplies_exactly_whatever_the_spec_says(engine: str, undecided: None) -> None:
    for products in ("fast", "exact", "fast"):
        create_engine(engine, tiny(products))
        facts = engine_package(engine).device_facts()
        assert facts.kind == "gpu" or facts.float32_products == "float32"


@pytest.mark.parametrize(("words", "expected"), [([], "0"), (["training.float32_products=fast"], "1")])
def test_mlx_reads_what_the_spec_says_and_not_the_shell(words: list[str], expected: str) -> None:
    of_shell = "0" if expected == "1" else "1"
    assert run_python(SHOW_VARIABLE, *words, MLX_ENABLE_TF32=of_shell) == f"{expected}\n"


@pytest.mark.parametrize(("first", "then"), [("exact", "fast"), ("fast", "exact")])
def test_mlx_on_a_gpu_refuses_to_change_its_mind(
    first: Any, then: Any, undecided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_device, "on_gpu", lambda: True)
    mlx_device.use_float32_products(first)
    mlx_device.use_float32_products(first)
    with pytest.raises(RunError) as raised:
        mlx_device.use_float32_products(then)
    assert str(raised.value) == (
        f"training.float32_products = '{then}': this process already multiplies '{first}', which MLX cannot change; "
        "give specs that differ in it a process each"
    )


def test_mlx_facts_before_any_engine_settle_on_exact(undecided: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_device, "on_gpu", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: MAC_GPU | CUDA_GPU)
    assert mlx_device.device_facts().float32_products == "float32"
    with pytest.raises(RunError, match="already multiplies 'exact'"):
        mlx_device.use_float32_products("fast")


@pytest.mark.parametrize(
    ("metal", "info", "name", "free"),
    [(True, MAC_GPU, "Apple M5 (Metal)", 8 * 10**9), (False, CUDA_GPU, "NVIDIA H200 (CUDA)", 5 * 10**9)],
)
def test_only_a_mac_is_called_metal(
    metal: bool, info: dict[str, Any], name: str, free: int, undecided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_device, "on_gpu", lambda: True)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    facts = mlx_device.device_facts()
    assert (facts.kind, facts.names, facts.driver) == ("gpu", (name,), name.rsplit("(")[1][:-1])
    assert (facts.free_bytes, facts.total_bytes) == (free, 8 * 10**9)


def test_torch_engines_of_one_process_keep_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    engines = {products: create_engine("torch", tiny(products)) for products in ("exact", "fast")}
    monkeypatch.setattr(cuda_train.engine.device, "use_float32_products", used.append)
    x = np.zeros((8, 64), np.int32)
    for call in ("gradients", "score", "log_probs"):
        for products, engine in engines.items():
            engine.initialise(synthetic_start(engine.spec))
            getattr(engine, call)(x)
            assert used[-1] == products, call
    assert set(used) == {"exact", "fast"}


@pytest.mark.parametrize(("gpu", "products", "expected"), [(True, "fast", "high"), (True, "exact", "highest")])
def test_what_torch_is_told(gpu: bool, products: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_train.engine.device, "on_gpu", lambda: gpu)
    try:
        cuda_train.engine.device.use_float32_products(products)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision("highest")


def test_checks_of_engines_against_each_other_are_exact() -> None:
    small, notes = reduced_spec(tiny("fast"), 2)
    assert small.training.float32_products == "exact" and "training.float32_products fast -> exact" in notes


def test_preflight_multiplies_exactly_but_in_the_step_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows share one process, in which MLX multiplies in one way; a step is measured in a process of its own."""
    made: list[str] = []
    original = EngineState.__init__

    def recorded(self: EngineState, spec: Spec, *arguments: Any) -> None:
        made.append(spec.training.float32_products)
        original(self, spec, *arguments)

    monkeypatch.setattr(EngineState, "__init__", recorded)
    monkeypatch.setattr(ask_rows, "measure_step", lambda *request: None)
    context = ask_rows.prepare(Question(tiny("fast"), "torch", 1))
    for row in (parity_row, causality_row, gradients_row):
        assert row(context).verdict == "go"
    assert set(made) == {"exact"}
    made.clear()
    check_spec_gradients(tiny("fast"), "torch")
    assert set(made) == {"fast"}


def test_it_rounds_otherwise_so_a_run_keeps_it_and_it_is_no_part_of_the_model() -> None:
    with pytest.raises(RunError, match=r"was started with training.float32_products = 'exact', now it is 'fast'"):
        check_same_training(tiny("exact"), tiny("fast"), "run")
    assert spec_id(tiny("exact")) == spec_id(tiny("fast"))
