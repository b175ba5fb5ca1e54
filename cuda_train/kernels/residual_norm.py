"""A residual sum, its mix with the trunk's input and its norm as one Triton kernel forward and one backward.

Definition: shared.ops.protocol, `residual_norm`. For each row, with or without `added` and `mix`:

    s = mix[0] (x + added) + mix[1] first;  n = s / sqrt(mean(s^2) + eps)
    ds = grad_s + (grad_n - n mean(grad_n n)) / sqrt(mean(s^2) + eps)
    grad_x = grad_added = mix[0] ds;  grad_first = mix[1] ds
    grad_mix[0] = sum over rows of ds (x + added);  grad_mix[1] = sum over rows of ds first

A gain's gradient is a sum over all rows. Left to torch's compiler it is a kernel of its own, which reads every operand
of ds again; here each program adds up the rows it has in registers anyway, and leaves one partial sum.

Both kernels are opaque operators with a fake implementation, so that torch.compile keeps them in its graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cuda_train.kernels.launch_shape import num_programs

# A row is held in registers whole, so its length is bounded.
MAX_DIM = 4096
# Numbers of one array that a program works on at a time, and its warps. A mix's gradient also holds two sums over rows,
# so it has half as many warps with twice as many numbers each: the fastest of those tried on an H200.
BLOCK_NUMBERS = 4096
NUM_WARPS, NUM_WARPS_OF_SUMS = 8, 4
PROGRAMS_PER_PROCESSOR = 8


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x,  # [R, D]
    added,  # [R, D] or nothing
    first,  # [R, D] or nothing
    mix,  # [2, D] float32 or nothing
    total,  # [R, D], written
    normalised,  # [R, D], written, or nothing
    scales,  # [R] float32, written: 1 / sqrt(mean(s^2) + eps)
    num_rows,
    eps,
    dim: tl.constexpr,
    has_added: tl.constexpr,
    has_mix: tl.constexpr,
    normalises: tl.constexpr,
    block_rows: tl.constexpr,
    block_dim: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block_dim)
    in_dim = column < dim
    inside = (row < num_rows)[:, None] & in_dim[None, :]
    offsets = row[:, None] * dim + column[None, :]
    s = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if has_added:
        s += tl.load(added + offsets, mask=inside, other=0.0).to(tl.float32)
    if has_mix:
        keep = tl.load(mix + column, mask=in_dim, other=0.0)[None, :]
        again = tl.load(mix + dim + column, mask=in_dim, other=0.0)[None, :]
        s = keep * s + again * tl.load(first + offsets, mask=inside, other=0.0).to(tl.float32)
    # The norm is that of the sum as it is stored.
    stored = s.to(total.dtype.element_ty, fp_downcast_rounding="rtne")
    s = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(s * s, axis=1) / dim + eps)
    tl.store(total + offsets, stored, mask=inside)
    if normalises:
        result = (s * scale[:, None]).to(total.dtype.element_ty, fp_downcast_rounding="rtne")
        tl.store(normalised + offsets, result, mask=inside)
    tl.store(scales + row, scale, mask=row < num_rows)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    x,  # [R, D]; without a mix the stored sum
    added,  # [R, D] or nothing
    first,  # [R, D] or nothing
    mix,  # [2, D] float32 or nothing
    scales,  # [R] float32
    grad_total,  # [R, D]
    grad_normalised,  # [R, D]; where nothing is normalised times the scale of its row already
    grad_x,  # [R, D], written
    grad_first,  # [R, D], written with a mix
    grad_mix,  # [programs, 2, D] float32, written with a mix
    num_rows,
    dim: tl.constexpr,
    has_added: tl.constexpr,
    has_mix: tl.constexpr,
    normalises: tl.constexpr,
    block_rows: tl.constexpr,
    block_dim: tl.constexpr,
):
    column = tl.arange(0, block_dim)
    in_dim = column < dim
    out_dtype = grad_x.dtype.element_ty
    if has_mix:
        keep = tl.load(mix + column, mask=in_dim, other=0.0)[None, :]
        again = tl.load(mix + dim + column, mask=in_dim, other=0.0)[None, :]
        grad_keep = tl.zeros((block_rows, block_dim), tl.float32)
        grad_again = tl.zeros((block_rows, block_dim), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, block_rows), tl.num_programs(0)):
        row = (block * block_rows + tl.arange(0, block_rows)).to(tl.int64)
        inside = (row < num_rows)[:, None] & in_dim[None, :]
        offsets = row[:, None] * dim + column[None, :]
        scale = tl.load(scales + row, mask=row < num_rows, other=0.0)[:, None]
        entered = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        if has_added:
            entered += tl.load(added + offsets, mask=inside, other=0.0).to(tl.float32)
        s = entered
        if has_mix:
            mixed_in = tl.load(first + offsets, mask=inside, other=0.0).to(tl.float32)
            s = keep * entered + again * mixed_in
            s = s.to(out_dtype, fp_downcast_rounding="rtne").to(tl.float32)
        normalised = s * scale
        grad_n = tl.load(grad_normalised + offsets, mask=inside, other=0.0).to(tl.float32)
        along = tl.sum(grad_n * normalised, axis=1)[:, None] / dim
        grad = tl.load(grad_total + offsets, mask=inside, other=0.0).to(tl.float32)
        through = grad_n - normalised * along
        grad += scale * through if normalises else through
        if has_mix:
            grad_keep += grad * entered
            grad_again += grad * mixed_in
            into_first = (again * grad).to(out_dtype, fp_downcast_rounding="rtne")
            tl.store(grad_first + offsets, into_first, mask=inside)
            grad = keep * grad
        tl.store(grad_x + offsets, grad.to(out_dtype, fp_downcast_rounding="rtne"), mask=inside)
    if has_mix:
        partial = grad_mix + tl.program_id(0) * 2 * dim + column
        tl.store(partial, tl.sum(grad_keep, axis=0), mask=in_dim)
        tl.store(partial + dim, tl.sum(grad_again, axis=0), mask=in_dim)


@torch.library.custom_op("bytetwin::residual_norm", mutates_args=())
def _residual_norm(
    x: torch.Tensor, added: torch.Tensor | None, first: torch.Tensor | None, mix: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(s, n, 1 / sqrt(mean(s^2) + eps) [R] float32) of contiguous x, added and first [R, D] and mix [2, D] float32."""
    normalised = torch.empty_like(x)
    total, scales = sums(x, added, first, mix, eps, normalised)
    return total, normalised, scales


@_residual_norm.register_fake
def _(
    x: torch.Tensor, added: torch.Tensor | None, first: torch.Tensor | None, mix: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scales = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    return torch.empty_like(x), torch.empty_like(x), scales


@torch.library.custom_op("bytetwin::residual_norm_backward", mutates_args=())
def _residual_norm_backward(
    x: torch.Tensor,
    added: torch.Tensor | None,
    first: torch.Tensor | None,
    mix: torch.Tensor | None,
    scales: torch.Tensor,
    grad_total: torch.Tensor,
    grad_normalised: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gradient of x and of added [R, D], of first [R, D], of mix [2, D] float32); the last two are empty without
    a mix, and then x is the sum as it was stored."""
    return gradients(x, added, first, mix, scales, grad_total, grad_normalised, normalises=True)


@_residual_norm_backward.register_fake
def _(
    x: torch.Tensor,
    added: torch.Tensor | None,
    first: torch.Tensor | None,
    mix: torch.Tensor | None,
    scales: torch.Tensor,
    grad_total: torch.Tensor,
    grad_normalised: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if mix is None:
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    return torch.empty_like(x), torch.empty_like(x), torch.empty_like(mix)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, added, first, mix, _ = inputs
    total, _, scales = output
    ctx.has_added = added is not None
    if mix is None:
        ctx.save_for_backward(total, None, None, None, scales)
    else:
        ctx.save_for_backward(x, added, first, mix, scales)


def _gradient(ctx: Any, grad_total: torch.Tensor, grad_normalised: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
    x, added, first, mix, scales = ctx.saved_tensors
    grads = (grad_total.contiguous(), grad_normalised.contiguous())
    grad_x, grad_first, grad_mix = _residual_norm_backward(x, added, first, mix, scales, *grads)
    grad_added = grad_x if ctx.has_added else None
    return (grad_x, grad_added, None, None, None) if mix is None else (grad_x, grad_added, grad_first, grad_mix, None)


_residual_norm.register_autograd(_gradient, setup_context=_keep_for_backward)


def can_fuse(x: torch.Tensor) -> bool:
    """Whether the kernels take rows of this dtype and width."""
    return x.dtype in (torch.float32, torch.bfloat16) and x.shape[-1] <= MAX_DIM


def residual_norm(
    x: torch.Tensor, added: torch.Tensor | None, first: torch.Tensor | None, mix: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, n) of x, added and first [..., D] (float32 or bfloat16, `can_fuse`) and mix [2, D] float32."""
    mix = None if mix is None else mix.contiguous()
    total, normalised, _ = _residual_norm(as_rows(x), as_rows(added), as_rows(first), mix, eps)
    return total.reshape(x.shape), normalised.reshape(x.shape)


def sums(
    x: torch.Tensor,
    added: torch.Tensor | None,
    first: torch.Tensor | None,
    mix: torch.Tensor | None,
    eps: float,
    normalised: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, 1 / sqrt(mean(s^2) + eps) [R] float32) by the forward kernel, which writes n where it is given a place."""
    total, scales = torch.empty_like(x), torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if x.numel():
        blocks = _blocks(x, added, mix, normalised is not None)
        grid = (triton.cdiv(x.shape[0], blocks["block_rows"]),)
        _forward_kernel[grid](x, added, first, mix, total, normalised, scales, x.shape[0], eps, **blocks)
    return total, scales


def gradients(
    x: torch.Tensor,
    added: torch.Tensor | None,
    first: torch.Tensor | None,
    mix: torch.Tensor | None,
    scales: torch.Tensor,
    grad_total: torch.Tensor,
    grad_normalised: torch.Tensor,
    *,
    normalises: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `_residual_norm_backward` gives. Where n was not written, `grad_normalised` is times `scales` already."""
    grad_x, programs = torch.empty_like(x), num_programs(x.device, PROGRAMS_PER_PROCESSOR)
    if mix is None:
        grad_first, grad_mix = x.new_empty(0), x.new_empty(0)
    else:
        grad_first = torch.empty_like(x)
        grad_mix = torch.zeros((programs, *mix.shape), dtype=torch.float32, device=x.device)
    if x.numel():
        blocks = _blocks(x, added, mix, normalises)
        blocks["num_warps"] = NUM_WARPS if mix is None else NUM_WARPS_OF_SUMS
        arguments = (x, added, first, mix, scales, grad_total, grad_normalised, grad_x, grad_first, grad_mix)
        _backward_kernel[(programs,)](*arguments, x.shape[0], **blocks)
    return grad_x, grad_first, grad_mix if mix is None else grad_mix.sum(dim=0)


def as_rows(values: torch.Tensor | None) -> torch.Tensor | None:
    """Contiguous [R, D] of [..., D]."""
    return None if values is None else values.reshape(-1, values.shape[-1]).contiguous()


def _blocks(x: torch.Tensor, added: torch.Tensor | None, mix: torch.Tensor | None, normalises: bool) -> dict[str, Any]:
    """Keyword arguments of a kernel for x [R, D]: whole rows, several at a time."""
    block_dim = triton.next_power_of_2(x.shape[1])
    block_rows = max(1, BLOCK_NUMBERS // block_dim)
    shape = {"dim": x.shape[1], "block_rows": block_rows, "block_dim": block_dim}
    given = {"has_added": added is not None, "has_mix": mix is not None, "normalises": normalises}
    return {**shape, **given, "num_warps": NUM_WARPS}
