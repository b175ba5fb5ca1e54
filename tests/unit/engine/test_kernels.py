"""The GPU forms of operations, without a GPU: Triton kernels in Triton's interpreter, the rest on the CPU."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_train.ops import make_ops
from cuda_train.plain_ops import ROTATION_POSITIONS, SHORT_SEQUENCE, TorchOps, short_attention
from shared.engine.package import create_engine
from shared.model import random_weights
from shared.ops import NumpyOps
from shared.spec import load_spec
from shared.tolerances import BF16_OPERATION_REL, GRADIENT_REL, NATS_ABS, OPERATION_REL
from tests.implementations import examples, seeds
from tests.processes import run_python
from tests.triton_interpreter import compile_kernels, needs_triton

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """Logits [..., V], targets [...] and the gradient [...] of the nats."""

    logits: np.ndarray
    targets: np.ndarray
    grad: np.ndarray
    softcap: float
    dtype: str = "float32"

    def rounded(self) -> Case:
        """The same with the logits as the dtype holds them."""
        logits = torch.from_numpy(self.logits).to(getattr(torch, self.dtype)).float().numpy()
        return Case(logits, self.targets, self.grad, self.softcap, self.dtype)


def made_case(seed: int, shape: tuple[int, ...], scale: float, softcap: float = 30.0, dtype: str = "float32") -> Case:
    rng = np.random.default_rng([seed, *shape])
    logits = (scale * rng.standard_normal(shape)).astype(np.float32)
    targets = rng.integers(0, shape[-1], shape[:-1]).astype(np.int32)
    return Case(logits, targets, rng.standard_normal(shape[:-1]).astype(np.float32), softcap, dtype).rounded()


# What the interpreter's process does ---------------------------------------------------------------------------


def leaves(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.from_numpy(case.logits).to(getattr(torch, case.dtype)).requires_grad_(True)
    return logits, torch.from_numpy(case.targets), torch.from_numpy(case.grad)


def run_fused(case: Case, how: str = "plain") -> tuple[np.ndarray, np.ndarray]:
    """(nats, gradient of the logits) by the kernels."""
    from cuda_train.kernels import softcapped_cross_entropy as kernel

    logits, targets, grad = leaves(case)
    function = kernel.softcapped_cross_entropy
    if how == "compiled":
        function = torch.compile(function, backend="aot_eager", fullgraph=True)
    given = logits
    if how == "strided":  # the same values, every other column of a wider array
        given = torch.stack([logits, logits + 1.0], dim=-1)[..., 0]
        targets = targets.long()
    nats = function(given, targets, case.softcap)
    (grad_logits,) = torch.autograd.grad(nats, logits, grad)
    assert nats.dtype == torch.float32 and grad_logits.dtype == logits.dtype
    return nats.detach().numpy(), grad_logits.float().numpy()


def check_registration() -> dict[str, str]:
    """What torch finds out about the two operators: schema, autograd, fake implementation, compilation."""
    from cuda_train.kernels import softcapped_cross_entropy as kernel

    logits, targets, grad = leaves(made_case(0, (5, 7), 1.0))
    _, log_sums = kernel._softcapped_cross_entropy(logits.detach(), targets, 30.0)
    return torch.library.opcheck(kernel._softcapped_cross_entropy, (logits, targets, 30.0)) | {
        f"backward {name}": result
        for name, result in torch.library.opcheck(
            kernel._softcapped_cross_entropy_backward, (logits.detach(), targets, log_sums, grad, 30.0)
        ).items()
    }


def engine_gradients(fused: bool) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the tiny preset by the torch engine."""
    import cuda_train.engine
    from cuda_train.fused_ops import FusedTorchOps

    with pytest.MonkeyPatch.context() as patch:
        made = FusedTorchOps if fused else TorchOps
        patch.setattr(cuda_train.engine, "make_ops", lambda: made(torch.device("cpu")))
        engine: Any = create_engine("torch", load_spec("tiny", ["training.compile=false"]))
    engine.initialise(random_weights(engine.spec, 3))
    return engine.gradients(np.random.default_rng(0).integers(0, 256, (4, 64)).astype(np.int32))


# The tests -----------------------------------------------------------------------------------------------------


def oracle(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(nats, gradient) in float64."""
    logits = case.logits.astype(np.float64)
    nats = NumpyOps().softcapped_cross_entropy(logits, case.targets, case.softcap)
    tanh = np.tanh(logits / case.softcap)
    change = np.exp(NumpyOps().softcapped_log_softmax(logits, case.softcap))
    change[(*np.indices(case.targets.shape), case.targets)] -= 1.0
    return nats, case.grad[..., None] * change * (1.0 - tanh**2)


def assert_like_oracle(case: Case, found: tuple[np.ndarray, np.ndarray]) -> None:
    nats, grad = oracle(case)
    assert found[0].shape == case.targets.shape and found[1].shape == case.logits.shape
    assert np.abs(found[0] - nats).max(initial=0.0) <= NATS_ABS * max(1.0, case.softcap / 30.0)
    # Where tanh is saturated a gradient is a difference of nearly equal numbers: small, with few digits.
    rel = GRADIENT_REL if case.dtype == "float32" else BF16_OPERATION_REL
    limit = rel * np.linalg.norm(grad) + OPERATION_REL * np.linalg.norm(case.grad)
    assert np.linalg.norm(found[1] - grad) <= limit


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 2), (4099, 2), (700, 3), (3, 5, 17), (37, 256), (2, 20, 260), (5, 1000), (9, 1024), (3, 1025), (2, 8000)],
)
def test_kernels_like_the_definition(interpreter: ProcessPoolExecutor, shape: tuple[int, ...], dtype: str):
    for scale in (0.01, 1.0, 15.0, 1000.0):
        case = made_case(1, shape, scale, dtype=dtype)
        assert_like_oracle(case, interpreter.submit(run_fused, case).result())


@pytest.mark.slow
@needs_triton
@settings(examples, max_examples=20)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    vocab_size=st.integers(2, 600),
    scale=st.floats(0.001, 300.0),
    softcap=st.floats(0.5, 100.0),
    dtype=st.sampled_from(DTYPES),
    how=st.sampled_from(["plain", "strided"]),
    seed=seeds,
)
def test_kernels_like_the_definition_everywhere(
    interpreter: ProcessPoolExecutor,
    shape: list[int],
    vocab_size: int,
    scale: float,
    softcap: float,
    dtype: str,
    how: str,
    seed: int,
):
    case = made_case(seed, (*shape[:2], vocab_size), scale, softcap, dtype)
    assert_like_oracle(case, interpreter.submit(run_fused, case, how).result())


@pytest.mark.slow
@needs_triton
def test_extreme_logits(interpreter: ProcessPoolExecutor):
    rows = np.array([[np.inf, 0, 0], [-np.inf, 0, 0], [3e38, -3e38, 1e-30], [1e-30, -1e-30, 0], [9, 9, 9]], np.float32)
    for target in range(3):
        case = Case(rows, np.full(5, target, np.int32), np.ones(5, np.float32), 30.0)
        assert_like_oracle(case, interpreter.submit(run_fused, case).result())


@pytest.mark.slow
@needs_triton
def test_what_is_not_a_number_shows(interpreter: ProcessPoolExecutor):
    rows = np.zeros((5, 9), np.float32)
    rows[1, 4] = np.nan
    targets = np.array([0, 0, -1, 9, 8], np.int32)
    nats, grad = interpreter.submit(run_fused, Case(rows, targets, np.ones(5, np.float32), 30.0)).result()
    assert np.isnan(nats).tolist() == [False, True, True, True, False]
    assert np.isnan(grad).any(axis=1).tolist() == [False, True, False, False, False]


@needs_triton
def test_no_rows_at_all(interpreter: ProcessPoolExecutor):
    nats, grad = interpreter.submit(run_fused, made_case(0, (0, 7), 1.0)).result()
    assert nats.shape == (0,) and grad.shape == (0, 7)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_stay_in_one_compiled_graph(interpreter: ProcessPoolExecutor, dtype: str):
    case = made_case(2, (3, 11, 260), 2.0, dtype=dtype)
    plain, compiled = (interpreter.submit(run_fused, case, how).result() for how in ("plain", "compiled"))
    assert (plain[0] == compiled[0]).all() and (plain[1] == compiled[1]).all()


@pytest.mark.slow
@needs_triton
def test_torch_accepts_the_registration(interpreter: ProcessPoolExecutor):
    results = interpreter.submit(check_registration).result()
    assert len(results) >= 6 and set(results.values()) == {"SUCCESS"}


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cuda_train.kernels import softcapped_cross_entropy as kernel

numbers = {"num_rows": "i32", "softcap": "fp32"}
shape = {"vocab_size": 260, "block_rows": 8, "block_vocab": 512}
for logits, architecture in (("*bf16", 90), ("*fp32", 80)):
    for function, arrays in (
        (kernel._forward_kernel, {"logits": logits, "targets": "*i32", "nats": "*fp32", "log_sums": "*fp32"}),
        (
            kernel._backward_kernel,
            {"logits": logits, "targets": "*i32", "log_sums": "*fp32", "grad_nats": "*fp32", "grad_logits": logits},
        ),
    ):
        signature = {**arrays, **numbers, **dict.fromkeys(shape, "constexpr")}
        places = {(list(signature).index(name),): value for name, value in shape.items()}
        source = ASTSource(function, signature, places)
        assert len(triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm["cubin"]) > 1000
"""


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_for_gpus(tmp_path: Path):
    compile_kernels(COMPILE, tmp_path)


@needs_triton
def test_the_engine_trains_the_same_with_the_kernels(interpreter: ProcessPoolExecutor):
    (loss, grads), (fused_loss, fused_grads) = (
        interpreter.submit(engine_gradients, fused).result() for fused in (False, True)
    )
    assert fused_loss == pytest.approx(loss, abs=NATS_ABS)
    for name, value in grads.items():
        assert np.linalg.norm(fused_grads[name] - value) <= GRADIENT_REL * np.linalg.norm(value), name


@pytest.mark.slow
def test_everything_imports_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch, cuda_train.engine, cuda_train.ops, cuda_train.plain_ops
torch.cuda.get_device_capability = lambda _: (9, 0)
assert type(cuda_train.ops.ops_for(torch.device("cuda"))) is cuda_train.plain_ops.TorchOps
"""
    run_python(code)


@pytest.mark.slow
@needs_triton
def test_the_kernels_serve_gpus_only_and_what_they_can_hold():
    code = """
import torch
from cuda_train.fused_ops import FusedTorchOps
from cuda_train.kernels import softcapped_cross_entropy as kernel
from cuda_train.ops import ops_for
from cuda_train.plain_ops import TorchOps
for capability, ops in {(7, 5): TorchOps, (8, 0): FusedTorchOps, (12, 0): FusedTorchOps}.items():
    torch.cuda.get_device_capability = lambda _: capability
    assert type(ops_for(torch.device("cuda"))) is ops
assert type(ops_for(torch.device("cpu"))) is TorchOps
fits = {dtype: kernel.can_fuse(torch.empty(1, 8192, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)}
assert all(fits.values())
assert not kernel.can_fuse(torch.empty(1, 8193)) and not kernel.can_fuse(torch.empty(1, 8, dtype=torch.float64))
"""
    run_python(code)


@examples
@given(
    batch=st.integers(1, 5),
    time=st.integers(1, SHORT_SEQUENCE),
    groups=st.integers(1, 3),
    group=st.integers(1, 3),
    width=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
)
def test_short_attention_like_the_definition(batch: int, time: int, groups: int, group: int, width: int, dtype: str):
    ops, exact = make_ops(), NumpyOps()
    rng = np.random.default_rng([batch, time, groups, group, width])
    shapes = ((batch, time, groups * group, width), *[(batch, time, groups, width)] * 2)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    tensors = [ops.cast(ops.asarray(value), dtype).requires_grad_(True) for value in values]
    y = short_attention(*tensors)
    expected = exact.attention(*(tensor.detach().double().numpy() for tensor in tensors))
    assert y.dtype == tensors[0].dtype
    rel = OPERATION_REL if dtype == "float32" else BF16_OPERATION_REL
    assert np.abs(ops.to_numpy(y) - expected).max() <= rel * max(1.0, np.abs(expected).max())
    if dtype == "float32":
        grads = torch.autograd.grad(y.square().sum(), tensors)
        others = torch.autograd.grad(ops.attention(*tensors).square().sum(), tensors)
        for grad, other in zip(grads, others, strict=True):
            assert float((grad - other).norm()) <= GRADIENT_REL * max(1.0, float(other.norm()))


def test_rotation_tables_grow_with_the_sequence():
    ops, exact = make_ops(), NumpyOps()
    for time in (1, ROTATION_POSITIONS, ROTATION_POSITIONS + 1, 3 * ROTATION_POSITIONS):
        x = np.random.default_rng(time).standard_normal((1, time, 1, 6)).astype(np.float32)
        assert np.abs(ops.to_numpy(ops.rope(ops.asarray(x), 100.0)) - exact.rope(x, 100.0)).max() <= OPERATION_REL * 5


def test_compiled_rope_takes_the_table_as_a_constant_for_any_length():
    ops: TorchOps = make_ops()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.rope(x, 1e4), backend=backend, fullgraph=True)
    for time in (8, 64, 32, 500, 100):
        x = torch.randn(2, time, 3, 16)
        assert torch.equal(compiled(x), ops.rope(x, 1e4))
    assert len(graphs) == 2  # one length, then any length
    operations = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not [name for name in operations if name in ("cos", "sin", "outer", "arange")], operations
