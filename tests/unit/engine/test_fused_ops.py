"""Operations with Triton kernels against the same operations composed, in Triton's interpreter."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cuda_train.plain_ops import TorchOps
from shared.tolerances import BF16_OPERATION_REL, GRADIENT_REL, OPERATION_REL
from tests.triton_interpreter import compile_kernels, needs_triton

CPU = torch.device("cpu")
EPS = 1e-6
Arrays = list[np.ndarray]


def residual(ops: Any, x: Any, added: Any, first: Any, mix: Any) -> tuple[Any, ...]:
    return tuple(ops.residual_norm(x, added, first, mix, EPS))


def heads(ops: Any, x: Any, q: Any, k: Any, v: Any, gain: Any) -> tuple[Any, ...]:
    return tuple(ops.attention_inputs(x, (q, k, v), gain, q.shape[0] // gain.shape[0], 1e4, EPS))


def gained(ops: Any, x: Any, up: Any, down: Any, gain: Any) -> tuple[Any, ...]:
    return ops.gained_linear(x, down.T, gain.repeat(3)), ops.gained_mlp(x, up, down, 0.5, gain)


OPERATIONS: dict[str, Callable[..., tuple[Any, ...]]] = {"residual": residual, "heads": heads, "gained": gained}


def run_both(name: str, seed: int, shapes: list[Any], weights: int, dtype: str) -> list[tuple[str, Arrays, Arrays]]:
    """(what, composed in float64, fused) of results and gradients. None for a shape leaves an argument out; the last
    `weights` arguments stay float32."""
    from cuda_train.fused_ops import FusedTorchOps

    generator = torch.Generator().manual_seed(seed)
    values = [None if shape is None else torch.randn(shape, generator=generator) for shape in shapes]
    activations = len(shapes) - weights
    given = [
        value if value is None or index >= activations else value.to(getattr(torch, dtype)).float()
        for index, value in enumerate(values)
    ]
    found: list[Arrays] = []
    slopes: list[Arrays] = []
    for ops in (_Exact(CPU), FusedTorchOps(CPU)):
        wide = type(ops) is _Exact
        leaves = [None if value is None else value.clone().requires_grad_(True) for value in given]
        cast = [
            leaf if leaf is None or index >= activations else leaf.to(getattr(torch, dtype))
            for index, leaf in enumerate(leaves)
        ]
        if wide:
            cast = [None if leaf is None else leaf.double() for leaf in leaves]
        results = OPERATIONS[name](ops, *cast)
        assert wide or {result.dtype for result in results} == {getattr(torch, dtype)}
        weigh = torch.Generator().manual_seed(seed + 1)
        loss = sum((torch.randn(result.shape, generator=weigh) * result).sum() for result in results)
        grads = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])
        found.append([result.detach().double().numpy() for result in results])
        slopes.append([grad.double().numpy() for grad in grads])
    return [("result", *found), ("gradient", *slopes)]


class _Exact(TorchOps):
    """The composed operations in float64."""

    def rope(self, x: torch.Tensor, base: float) -> torch.Tensor:
        return torch.from_numpy(_rope(x, base)) if not x.requires_grad else _RopeInFloat64.apply(x, base)


def _rope(x: torch.Tensor, base: float, sign: float = 1.0) -> np.ndarray:
    from shared.ops import NumpyOps

    values = x.detach().numpy()
    if sign > 0:
        return NumpyOps().rope(values, base)
    half = values.shape[-1] // 2
    back = NumpyOps().rope(np.concatenate([values[..., :half], -values[..., half:]], axis=-1), base)
    return np.concatenate([back[..., :half], -back[..., half:]], axis=-1)


class _RopeInFloat64(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: float) -> torch.Tensor:
        ctx.base = base
        return torch.from_numpy(_rope(x, base))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(_rope(grad, ctx.base, sign=-1.0)), None


def check(interpreter: ProcessPoolExecutor, name: str, shapes: list[Any], weights: int, dtype: str) -> None:
    for what, exact, fused in interpreter.submit(run_both, name, 3, shapes, weights, dtype).result():
        for index, (one, other) in enumerate(zip(exact, fused, strict=True)):
            rel = (OPERATION_REL if what == "result" else GRADIENT_REL) if dtype == "float32" else BF16_OPERATION_REL
            assert np.linalg.norm(one - other) <= rel * np.linalg.norm(one), f"{what} {index}"


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 7, 20), (2, 5, 384)])
@pytest.mark.parametrize(("has_added", "has_mix"), [(True, False), (False, True), (True, True)])
def test_a_residual_sum_with_its_norm(
    interpreter: ProcessPoolExecutor, has_added: bool, has_mix: bool, shape: tuple[int, ...], dtype: str
):
    added, first, mix = shape if has_added else None, shape if has_mix else None, (2, shape[-1]) if has_mix else None
    check(interpreter, "residual", [shape, added, first, mix], 1, dtype)


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "groups", "width"), [(1, 1, 2), (4, 2, 8), (6, 3, 12), (5, 5, 64)])
def test_heads_of_one_joined_product(interpreter: ProcessPoolExecutor, heads: int, groups: int, width: int, dtype: str):
    weights = [(count * width, 6) for count in (heads, groups, groups)]
    check(interpreter, "heads", [(2, 5, 6), *weights, (heads,)], 4, dtype)


@needs_triton
def test_heads_of_any_size_fit_the_registers_of_their_warps():
    from cuda_train.kernels import attention_heads as kernels

    for read, half in itertools.product(range(1, kernels.MAX_HEADS + 1), range(1, kernels.MAX_HEAD_DIM // 2 + 1)):
        blocks = kernels._blocks(read, 0, read, half)
        numbers = blocks["block_rows"] * blocks["block_heads"] * blocks["block_half"]
        assert read * half <= numbers <= kernels.WARP_NUMBERS * blocks["num_warps"]


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gains_in_the_weights(interpreter: ProcessPoolExecutor, dtype: str):
    check(interpreter, "gained", [(2, 3, 4), (12, 4), (4, 12), (4,)], 3, dtype)


def run_mlp(slope: float, pieces: int, normed: bool) -> list[tuple[Arrays, Arrays]]:
    """(in float64, by the kernels) of the results and of the gradients. In float32, because Triton's interpreter
    multiplies no bfloat16 matrices, and in tiles smaller than the arrays."""
    from cuda_train.kernels import squared_mlp
    from cuda_train.kernels.normed_mlp import normed_mlp

    generator = torch.Generator().manual_seed(5)
    rows = 1 + normed
    values = [torch.randn(shape, generator=generator) for shape in ((3, 13, 24), (3, 13, 24), (40, 24), (24, 40))]
    weigh = torch.randn((rows, *values[0].shape), generator=generator)
    exact = [value.double().requires_grad_(True) for value in values[2 - rows :]]
    leaves = [value.requires_grad_(True) for value in values[2 - rows :]]
    plain = TorchOps(CPU)
    if normed:
        expected = plain.normed_mlp(*exact, slope, torch.ones(24).double(), 1.0, EPS)
    else:
        expected = (plain.leaky_relu_squared_mlp(*exact, slope),)
    with pytest.MonkeyPatch.context() as patch:
        tiles = squared_mlp.Tiles(rows=16, columns=32, inner=16, group_rows=2, pieces=pieces)
        for name in ("FORWARD", "BACKWARD"):
            patch.setattr(squared_mlp, name, tiles)
        found = normed_mlp(*leaves, slope, EPS) if normed else (squared_mlp.squared_mlp(*leaves, slope),)
        grads = torch.autograd.grad((weigh * torch.stack(found)).sum(), leaves)
    exact_grads = torch.autograd.grad((weigh * torch.stack(expected)).sum(), exact)
    pairs = [(expected, found), (exact_grads, grads)]
    return [tuple([each.detach().double().numpy() for each in side] for side in pair) for pair in pairs]  # type: ignore


@needs_triton
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("slope", "pieces"), [(0.0, 1), (0.5, 2), (0.0, 4)])
def test_an_mlp_with_its_activation_in_the_products(
    interpreter: ProcessPoolExecutor, slope: float, pieces: int, normed: bool
):
    for exact, fused in interpreter.submit(run_mlp, slope, pieces, normed).result():
        for one, other in zip(exact, fused, strict=True):
            assert np.linalg.norm(one - other) <= GRADIENT_REL * np.linalg.norm(one)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda x: x,
    "every other number": lambda x: torch.stack([x, x + 1.0], dim=-1)[..., 0],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "behind another": lambda x: torch.cat([x[:1] + 1.0, x])[1:],
}


def in_all_layouts() -> dict[str, dict[str, list[Any]]]:
    """By kernel and layout of its inputs: results, and the gradients of the inputs from gradients that are one number
    expanded, but for those of the plain layout."""
    from cuda_train.kernels import attention_heads, patch_attention, residual_norm, softcapped_cross_entropy

    tables, targets = torch.randn(2, 3, 4), torch.tensor([[0, 6, 3], [2, 2, 5]])
    forms: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
        "residual": (lambda *x: residual_norm.residual_norm(*x, EPS), [(2, 3, 20)] * 3 + [(2, 20)]),
        "heads": (lambda *x: attention_heads.attention_heads(*x, *tables, 1, EPS), [(2, 3, 32), (2,)]),
        "patches": (lambda *x: [patch_attention.patch_attention(*x, EPS)], [(3, 2, 24), (2,)]),
        "loss": (lambda x: [softcapped_cross_entropy.softcapped_cross_entropy(x, targets, 30.0)], [(2, 3, 7)]),
    }
    found: dict[str, dict[str, list[Any]]] = {}
    for name, (form, shapes) in forms.items():
        leaves = [torch.randn(shape).requires_grad_() for shape in shapes]
        for layout, laid_out in LAYOUTS.items():
            results = form(*map(laid_out, leaves))
            slopes = [torch.full((), 1.5).expand(result.shape) for result in results]
            slopes = [slope.contiguous() for slope in slopes] if layout == "plain" else slopes
            grads = torch.autograd.grad(results, leaves, slopes)
            found.setdefault(name, {})[layout] = [each.tolist() for each in (*results, *grads)]
    return found


@needs_triton
def test_the_kernels_read_values_in_any_layout(interpreter: ProcessPoolExecutor):
    for name, by_layout in interpreter.submit(in_all_layouts).result().items():
        for layout, values in by_layout.items():
            assert values == by_layout["plain"], f"{name}, {layout}"


def test_what_the_mlp_kernels_serve():
    from cuda_train.kernels import squared_mlp

    up = torch.empty(40, 24)
    assert squared_mlp.can_fuse(torch.empty(2, 24, dtype=torch.bfloat16), up)
    assert not squared_mlp.can_fuse(torch.empty(2, 24), up)
    assert not squared_mlp.can_fuse(torch.empty(2, 20, dtype=torch.bfloat16), torch.empty(40, 20))
    assert not squared_mlp.serves(CPU)


@pytest.mark.parametrize(
    ("major", "shared_kb", "serves"), [(9, 228, True), (10, 228, True), (8, 164, False), (12, 100, False)]
)
def test_which_gpus_the_mlp_kernels_serve(monkeypatch: pytest.MonkeyPatch, major: int, shared_kb: int, serves: bool):
    from cuda_train.kernels import squared_mlp

    found = SimpleNamespace(major=major, minor=0, shared_memory_per_multiprocessor=shared_kb << 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    assert squared_mlp.serves(torch.device("cuda")) == serves


def check_registrations() -> dict[str, str]:
    """What torch finds out about the operators: schema, autograd, fake implementation, compilation."""
    from cuda_train.kernels import attention_heads, normed_mlp, patch_attention, residual_norm, squared_mlp

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape).requires_grad_(True)

    table = torch.rand(2, 3, 4)
    cases: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "sum": (residual_norm._residual_norm, (rand(6, 8), rand(6, 8), None, None, EPS)),
        "mix": (residual_norm._residual_norm, (rand(6, 8), None, rand(6, 8), rand(2, 8), EPS)),
        "mlp": (squared_mlp._squared_mlp, (rand(6, 8), rand(16, 8), rand(8, 16), 0.5)),
        "relu": (squared_mlp._squared_mlp, (rand(6, 8), rand(16, 8), rand(8, 16), 0.0)),
        "normed": (normed_mlp._normed_mlp, (rand(6, 8), rand(6, 8), rand(16, 8), rand(8, 16), 0.5, EPS)),
        # Its gradient is that of a function around it.
        "heads": (attention_heads._attention_heads, (torch.rand(6, 32), torch.rand(2), *table, 1, 3, EPS)),
        "patches": (patch_attention._patch_attention, (rand(3, 2, 24), rand(2), EPS)),
    }
    return {
        f"{case} {name}": result
        for case, (operator, arguments) in cases.items()
        for name, result in torch.library.opcheck(operator, arguments).items()
    }


def heads_and_gradients(backend: str | None) -> list[Any]:
    """What `attention_heads` gives, with gradients, as it is or compiled."""
    from cuda_train.kernels.attention_heads import attention_heads

    def form(joined: torch.Tensor, gain: torch.Tensor) -> list[torch.Tensor]:
        return [x * x for x in attention_heads(2.0 * joined, gain, *torch.ones(2, 3, 4), 1, EPS)]

    inputs = [(1.0 + torch.arange(count)).reshape(shape) for count, shape in ((2 * 3 * 32, (2, 3, 32)), (2, (2,)))]
    leaves = [value.requires_grad_() for value in inputs]
    results = (form if backend is None else torch.compile(form, backend=backend, fullgraph=True))(*leaves)
    return [x.tolist() for x in (*results, *torch.autograd.grad(sum(x.sum() for x in results), leaves))]


@pytest.mark.slow
@needs_triton
def test_heads_of_which_one_is_a_view_can_be_compiled(interpreter: ProcessPoolExecutor):
    plain, compiled = (interpreter.submit(heads_and_gradients, backend).result() for backend in (None, "aot_eager"))
    assert plain == compiled


@pytest.mark.slow
@needs_triton
def test_torch_accepts_the_registrations(interpreter: ProcessPoolExecutor):
    results = interpreter.submit(check_registrations).result()
    assert len(results) >= 12 and set(results.values()) == {"SUCCESS"}


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cuda_train.kernels import attention_heads, patch_attention, residual_norm, squared_mlp


def compiles(function, constants, array, architecture):
    number = {"num_rows": "i32", "num_patches": "i32", "time": "i32", "eps": "fp32"}
    float32 = ("mix", "scales", "grad_mix", "gain", "cosines", "sines", "grad_gain")
    signature = {
        name: "constexpr" if name in constants else number.get(name, "*fp32" if name in float32 else array)
        for name in function.arg_names
    }
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(function, signature, places), target=GPUTarget("cuda", architecture, 32))
    assert len(compiled.asm["cubin"]) > 1000


heads = {"heads": 8, "kv_heads": 4, "half": 32, "block_rows": 4, "block_heads": 16, "block_half": 32}
patches = {"heads": 4, "head_dim": 64, "positions": 4, "block_patches": 1, "block_heads": 4, "block_dim": 64}
rows = {"dim": 512, "block_rows": 4, "block_dim": 512}
for target in (("*bf16", 90), ("*fp32", 80)):
    mixes = {"has_mix": True, "normalises": True}
    sums = {"has_added": True, "has_mix": False, "normalises": False}
    for absent in ({"added": None, "has_added": False} | mixes, {"has_added": True} | mixes, sums):
        for function in (residual_norm._forward_kernel, residual_norm._backward_kernel):
            compiles(function, rows | absent, *target)
    compiles(attention_heads._forward_kernel, heads, *target)
    compiles(attention_heads._backward_kernel, heads, *target)
    compiles(patch_attention._forward_kernel, patches, *target)
    compiles(patch_attention._backward_kernel, patches, *target)


# Each program takes 1 KiB more of it.
for backward, tiles in ((False, squared_mlp.FORWARD), (True, squared_mlp.BACKWARD)):
    function, across = squared_mlp._product_kernel, [tiles.inner, tiles.columns]
    described = {"left": [tiles.rows, tiles.inner], "right": across if backward else across[::-1]}
    piece = tiles.columns // tiles.pieces
    described |= dict.fromkeys(["kept", "result"], [tiles.rows, piece])
    signature = {name: f"tensordesc<bf16{shape}>" for name, shape in described.items()}
    signature |= {"rows": "i32", "scales": "*fp32"}
    sizes = {"columns": 1024, "inner": 512, "negative_slope": 0.5, "backward": backward, "group_rows": 8}
    sizes |= {"block_rows": tiles.rows, "block_columns": tiles.columns, "block_inner": tiles.inner, "piece": piece}
    places = {(function.arg_names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(function, {name: signature.get(name, "constexpr") for name in function.arg_names}, places)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    needs = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared
    assert tiles.per_processor * (needs + 1024) <= squared_mlp.LEAST_SHARED_BYTES, (tiles, needs)
"""


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_for_gpus(tmp_path: Path):
    compile_kernels(COMPILE, tmp_path)


def rows_and_gradients(ops: TorchOps, dtype: str) -> Arrays:
    """Rows of a table, some of which are never read, a decoder's context by it, and the gradients of all weights."""
    index = torch.arange(16 * 512).square().remainder(17).reshape(16, 512)
    generator = torch.Generator().manual_seed(6)
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((20, 8), (1, 8), (12, 24))]
    results = ops.embedding(weights[0], index, dtype), ops.symbol_context(*weights, index, dtype)
    loss = sum((torch.randn(result.shape, generator=generator) * result.float()).sum() for result in results)
    assert isinstance(loss, torch.Tensor)
    return [each.detach().double().numpy() for each in (*results, *torch.autograd.grad(loss, weights))]


@needs_triton
def test_gradients_of_rows_by_products():
    from cuda_train.fused_ops import FusedTorchOps

    plain, ours = (rows_and_gradients(ops, "float32") for ops in (TorchOps(CPU), FusedTorchOps(CPU)))
    assert all(np.array_equal(one, other) for one, other in zip(plain, ours, strict=True))
    narrow, ours = (rows_and_gradients(ops, "bfloat16") for ops in (TorchOps(CPU), FusedTorchOps(CPU)))
    assert all(np.array_equal(one, other) for one, other in zip(narrow[:2], ours[:2], strict=True))
    for one, other in zip(plain[2:], ours[2:], strict=True):
        assert 0 < np.linalg.norm(one - other) <= BF16_OPERATION_REL * np.linalg.norm(one)
    assert not ours[2][17:].any()
