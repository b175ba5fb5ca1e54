"""Attention inside patches as one kernel each way against the composed operations, in Triton's interpreter."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_train.plain_ops import SHORT_SEQUENCE, TorchOps
from shared.tolerances import BF16_OPERATION_REL, GRADIENT_REL, OPERATION_REL
from tests.implementations import examples
from tests.triton_interpreter import needs_triton

CPU = torch.device("cpu")
EPS = 1e-6
Shape = tuple[int, int, int, int]
# Of the result and of the gradients of joined and gain.
RELS = (OPERATION_REL, GRADIENT_REL, GRADIENT_REL)


def by(ops: TorchOps, joined: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """[S, P, H, C] of joined [S, P, 3 H C]: the projections take its thirds as they are."""
    thirds = torch.eye(joined.shape[2], dtype=joined.dtype).chunk(3)
    return ops.self_attention(joined, thirds, gain, 0, 1e4, EPS)


def run_both(shape: Shape, items: int, dtype: str) -> list[tuple[float, float]]:
    """(distance from float64, norm in float64) of the result and of the gradients of joined and gain.

    A program holds so many heads of patches: some of one patch, or those of several.
    """
    import triton

    from cuda_train.fused_ops import FusedTorchOps
    from cuda_train.kernels import patch_attention

    patches, positions, heads, head_dim = shape
    generator = torch.Generator().manual_seed(math.prod(shape))
    joined = torch.randn((patches, positions, 3 * heads * head_dim), generator=generator).to(getattr(torch, dtype))
    gain = torch.randn(heads, generator=generator)
    slope = torch.randn((patches, positions, heads, head_dim), generator=generator).to(joined.dtype)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        sizes = (triton.next_power_of_2(positions), triton.next_power_of_2(head_dim))
        patch.setattr(patch_attention, "BLOCK_NUMBERS", items * sizes[0] * sizes[1])
        for ops, wide in ((TorchOps(CPU), True), (FusedTorchOps(CPU), False)):
            leaves = [(each.double() if wide else each.clone()).requires_grad_(True) for each in (joined, gain)]
            y = by(ops, *leaves)
            grads = torch.autograd.grad(y, leaves, slope.to(y.dtype))
            assert [each.dtype for each in (y, *grads)] == [leaves[0].dtype, leaves[0].dtype, leaves[1].dtype]
            found.append([each.detach().double() for each in (y, *grads)])
    return [(float((one - other).norm()), float(one.norm())) for one, other in zip(*found, strict=True)]


@needs_triton
@settings(examples, max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, SHORT_SEQUENCE), st.integers(1, 3), st.integers(1, 9)),
    items=st.sampled_from([2, 4, 16]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_attention_inside_patches_like_the_definition(
    interpreter: ProcessPoolExecutor, shape: Shape, items: int, dtype: str
):
    found = interpreter.submit(run_both, shape, items, dtype).result()
    in_float32, terms = dtype == "float32", math.prod(shape) / shape[2]
    # The gain's gradient is a sum that may end near zero, of terms that are each rounded.
    for (off, norm), rel, least in zip(found, RELS, (1.0, 1.0, math.sqrt(terms)), strict=True):
        assert off <= (rel if in_float32 else BF16_OPERATION_REL) * max(least, norm)


@needs_triton
@pytest.mark.parametrize("shape", [(3, 4, 4, 64), (2, 8, 2, 64), (2, 2, 1, 128)])
def test_attention_inside_patches_of_usual_sizes(interpreter: ProcessPoolExecutor, shape: Shape):
    distances = interpreter.submit(run_both, shape, 4, "float32").result()
    for (off, norm), rel in zip(distances, RELS, strict=True):
        assert off <= rel * norm


# What the kernels leave to others, and would fail at here: x [B, T, D], heads, heads of keys, their width, rotated
# features, dtype.
OTHERS = {
    "long": (9, 2, 2, 4, 0, torch.float32),
    "wide": (3, 1, 1, 130, 0, torch.float32),
    "grouped": (3, 4, 2, 4, 0, torch.float32),
    "rotated": (3, 2, 2, 4, 2, torch.float32),
    "float64": (3, 2, 2, 4, 0, torch.float64),
}


@needs_triton
@pytest.mark.parametrize("case", list(OTHERS))
def test_what_the_kernels_do_not_serve_is_composed(case: str):
    from cuda_train.fused_ops import FusedTorchOps

    time, heads, groups, head_dim, rotated, dtype = OTHERS[case]
    x = torch.randn(2, time, 6, dtype=dtype)
    weights = [torch.randn(count * head_dim, 6, dtype=dtype) for count in (heads, groups, groups)]
    arguments = (x, weights, torch.randn(heads, dtype=dtype), rotated, 1e4, EPS)
    plain, ours = (ops.self_attention(*arguments) for ops in (TorchOps(CPU), FusedTorchOps(CPU)))
    assert torch.equal(plain, ours)
