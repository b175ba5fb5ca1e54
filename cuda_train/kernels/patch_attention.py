"""Attention inside short sequences, the patches of a local decoder, from one joined product: one kernel each way.

Definition: shared.ops.protocol, `self_attention` without rotation. A row of `joined` holds the H query heads, the H key
heads and the H value heads of one position, C numbers each. For the rows q[i], k[j], v[j] of one head of a patch, with
r(x) = 1 / sqrt(mean(x^2) + eps), the head's gain g and j <= i:

    u[i, j] = r(q[i]) r(k[j]) q[i].k[j] / sqrt(C);  p[i] = softmax(g u[i]);  y[i] = sum over j of p[i, j] v[j]
    e[i, j] = p[i, j] (grad_y[i].v[j] - sum over l of p[i, l] grad_y[i].v[l]);  grad_g = sum over all of e u
    a[i, j] = g e[i, j] r(q[i]) r(k[j]) / sqrt(C)
    grad_v[j] = sum over i of p[i, j] grad_y[i]
    grad_q[i] = z - r(q[i])^2 (z.q[i]) / C q[i] with z = sum over j of a[i, j] k[j]; z.q[i] = g sum over j of e u
    grad_k[j] = z - r(k[j])^2 (z.k[j]) / C k[j] with z = sum over i of a[i, j] q[i]

A program of one warp holds all positions of a few heads in registers, so each array is read or written once and the
sums over C need no barrier. The loops over pairs of positions are unrolled, which bounds the length of a patch.

Both kernels are opaque operators with a fake implementation, so that torch.compile keeps them in its graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cuda_train.kernels.launch_shape import num_programs

# With 16 positions the backward kernel takes a minute to compile.
MAX_POSITIONS, MAX_HEAD_DIM = 8, 128
# Numbers of one array that a program holds, all positions of its heads together: 32 for each thread of its warp.
BLOCK_NUMBERS = 1024
NUM_WARPS = 1
# Of the backward kernel, whose registers let 8 to 12 programs share a multiprocessor at a time.
PROGRAMS_PER_PROCESSOR = 48


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    joined,  # [S, P, 3 H C]
    gain,  # [H] float32
    y,  # [S, P, H C], written
    num_patches,
    eps,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    positions: tl.constexpr,
    block_patches: tl.constexpr,
    block_heads: tl.constexpr,
    block_dim: tl.constexpr,
):
    width: tl.constexpr = heads * head_dim
    head_blocks: tl.constexpr = (heads + block_heads - 1) // block_heads
    item = tl.arange(0, block_patches * block_heads)
    head = tl.program_id(0) % head_blocks * block_heads + item % block_heads
    patch = (tl.program_id(0) // head_blocks).to(tl.int64) * block_patches + item // block_heads
    column = tl.arange(0, block_dim)
    in_items = (patch < num_patches) & (head < heads)
    inside = in_items[:, None] & (column < head_dim)[None, :]
    within = (head * head_dim)[:, None] + column[None, :]
    start = joined + (patch * (positions * 3 * width))[:, None] + within
    result = y + (patch * (positions * width))[:, None] + within
    queries = _rows(start, inside, positions, 3 * width)
    keys = _rows(start + width, inside, positions, 3 * width)
    values = _rows(start + 2 * width, inside, positions, 3 * width)
    key_scales = _scales(keys, eps, positions, head_dim)
    query_scales = _scales(queries, eps, positions, head_dim)
    gains = tl.load(gain + head, mask=in_items, other=0.0)
    for i in tl.static_range(positions):
        scores = ()
        for j in tl.static_range(i + 1):
            unit = _dot(queries[i], keys[j]) * (query_scales[i] * key_scales[j] * head_dim**-0.5)
            scores = _with(scores, gains * unit)
        shares = _softmax(scores, i + 1)
        total = shares[0][:, None] * values[0].to(tl.float32)
        for j in tl.static_range(1, i + 1):
            total += shares[j][:, None] * values[j].to(tl.float32)
        tl.store(result + i * width, total.to(y.dtype.element_ty, fp_downcast_rounding="rtne"), mask=inside)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    joined,  # [S, P, 3 H C]
    gain,  # [H] float32
    grad_y,  # [S, P, H C]
    grad_joined,  # [S, P, 3 H C], written
    grad_gain,  # [programs, head blocks, block_heads] float32, written
    num_patches,
    eps,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    positions: tl.constexpr,
    block_patches: tl.constexpr,
    block_heads: tl.constexpr,
    block_dim: tl.constexpr,
):
    width: tl.constexpr = heads * head_dim
    head_blocks: tl.constexpr = (heads + block_heads - 1) // block_heads
    dtype: tl.constexpr = grad_joined.dtype.element_ty
    item = tl.arange(0, block_patches * block_heads)
    head = tl.program_id(0) % head_blocks * block_heads + item % block_heads
    column = tl.arange(0, block_dim)
    within = (head * head_dim)[:, None] + column[None, :]
    gains = tl.load(gain + head, mask=head < heads, other=0.0)
    sums = tl.zeros((block_patches * block_heads,), tl.float32)
    first, programs = tl.program_id(0) // head_blocks, tl.num_programs(0) // head_blocks
    for block in range(first, tl.cdiv(num_patches, block_patches), programs):
        patch = (block * block_patches + item // block_heads).to(tl.int64)
        in_items = (patch < num_patches) & (head < heads)
        inside = in_items[:, None] & (column < head_dim)[None, :]
        offsets = (patch * (positions * 3 * width))[:, None] + within
        queries = _rows(joined + offsets, inside, positions, 3 * width)
        keys = _rows(joined + offsets + width, inside, positions, 3 * width)
        values = _rows(joined + offsets + 2 * width, inside, positions, 3 * width)
        grads = _rows(grad_y + (patch * (positions * width))[:, None] + within, inside, positions, width)
        key_scales = _scales(keys, eps, positions, head_dim)
        query_scales = _scales(queries, eps, positions, head_dim)
        # p and a, row after row: that of i begins after i (i + 1) / 2 others.
        all_shares, factors = (), ()
        for i in tl.static_range(positions):
            units, scores, slopes = (), (), ()
            for j in tl.static_range(i + 1):
                unit = _dot(queries[i], keys[j]) * (query_scales[i] * key_scales[j] * head_dim**-0.5)
                units, scores = _with(units, unit), _with(scores, gains * unit)
            shares = _softmax(scores, i + 1)
            mean = tl.zeros_like(sums)
            for j in tl.static_range(i + 1):
                slope = _dot(grads[i], values[j])
                slopes, mean = _with(slopes, slope), mean + shares[j] * slope
            along, grad = tl.zeros_like(sums), tl.zeros_like(within).to(tl.float32)
            for j in tl.static_range(i + 1):
                grad_score = shares[j] * (slopes[j] - mean)
                along += grad_score * units[j]
                factor = gains * grad_score * (query_scales[i] * key_scales[j] * head_dim**-0.5)
                factors = _with(factors, factor)
                grad += factor[:, None] * keys[j].to(tl.float32)
            all_shares += shares
            sums += tl.where(in_items, along, 0.0)
            grad = _less_along(grad, gains * along, queries[i], query_scales[i], head_dim)
            to_query = grad_joined + offsets + i * 3 * width
            tl.store(to_query, grad.to(dtype, fp_downcast_rounding="rtne"), mask=inside)
        for j in tl.static_range(positions):
            grad, grad_value = tl.zeros_like(within).to(tl.float32), tl.zeros_like(within).to(tl.float32)
            for i in tl.static_range(j, positions):
                grad += factors[i * (i + 1) // 2 + j][:, None] * queries[i].to(tl.float32)
                grad_value += all_shares[i * (i + 1) // 2 + j][:, None] * grads[i].to(tl.float32)
            grad = _less_along(grad, _dot(grad, keys[j]), keys[j], key_scales[j], head_dim)
            to_key = grad_joined + offsets + (3 * j + 1) * width
            tl.store(to_key, grad.to(dtype, fp_downcast_rounding="rtne"), mask=inside)
            tl.store(to_key + width, grad_value.to(dtype, fp_downcast_rounding="rtne"), mask=inside)
    by_head = tl.sum(tl.reshape(sums, (block_patches, block_heads)), axis=0)
    tl.store(grad_gain + tl.program_id(0) * block_heads + tl.arange(0, block_heads), by_head)


@triton.jit
def _rows(start, inside, positions: tl.constexpr, stride: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = ()
    for p in tl.static_range(positions):
        rows = _with(rows, tl.load(start + p * stride, mask=inside, other=0.0))
    return rows


@triton.jit
def _with(entries, entry):  # type: ignore[no-untyped-def]
    entries += (entry,)
    return entries


@triton.jit
def _dot(x, y):  # type: ignore[no-untyped-def]
    return tl.sum(x.to(tl.float32) * y.to(tl.float32), axis=1)


@triton.jit
def _scales(rows, eps, positions: tl.constexpr, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    scales = ()
    for p in tl.static_range(positions):
        scales = _with(scales, tl.rsqrt(_dot(rows[p], rows[p]) / head_dim + eps))
    return scales


@triton.jit
def _softmax(scores, count: tl.constexpr):  # type: ignore[no-untyped-def]
    largest = scores[0]
    for j in tl.static_range(1, count):
        largest = tl.maximum(largest, scores[j])
    total, exponentials, shares = tl.zeros_like(largest), (), ()
    for j in tl.static_range(count):
        exponential = tl.exp(scores[j] - largest)
        total, exponentials = total + exponential, _with(exponentials, exponential)
    for j in tl.static_range(count):
        shares = _with(shares, exponentials[j] / total)
    return shares


@triton.jit
def _less_along(grad, along, x, scale, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    # The gradient through the norm of x with the scale r(x), where `along` is grad.x.
    return grad - (scale * scale * along / head_dim)[:, None] * x.to(tl.float32)


@torch.library.custom_op("bytetwin::patch_attention", mutates_args=())
def _patch_attention(joined: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """y [S, P, H C] of contiguous joined [S, P, 3 H C] and gain [H] float32."""
    y = _result(joined)
    if joined.numel():
        blocks = _blocks(joined, gain)
        programs = triton.cdiv(joined.shape[0], blocks["block_patches"]) * _head_blocks(blocks)
        _forward_kernel[(programs,)](joined, gain, y, joined.shape[0], eps, **blocks)
    return y


@_patch_attention.register_fake
def _(joined: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return _result(joined)


@torch.library.custom_op("bytetwin::patch_attention_backward", mutates_args=())
def _patch_attention_backward(
    joined: torch.Tensor, gain: torch.Tensor, grad_y: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of joined and of gain, the second in float32."""
    grad_joined, blocks = torch.empty_like(joined), _blocks(joined, gain)
    programs, head_blocks = num_programs(joined.device, PROGRAMS_PER_PROCESSOR), _head_blocks(blocks)
    sums = (programs, head_blocks * blocks["block_heads"])
    grad_gain = torch.zeros(sums, dtype=torch.float32, device=joined.device)
    if joined.numel():
        arguments = (joined, gain, grad_y, grad_joined, grad_gain, joined.shape[0], eps)
        _backward_kernel[(programs * head_blocks,)](*arguments, **blocks)
    return grad_joined, grad_gain.sum(dim=0)[: gain.shape[0]].contiguous()


@_patch_attention_backward.register_fake
def _(joined: torch.Tensor, gain: torch.Tensor, grad_y: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(joined), torch.empty_like(gain)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    joined, gain, ctx.eps = inputs
    ctx.save_for_backward(joined, gain)


def _gradient(ctx: Any, grad_y: torch.Tensor) -> tuple[Any, ...]:
    return *_patch_attention_backward(*ctx.saved_tensors, grad_y.contiguous(), ctx.eps), None


_patch_attention.register_autograd(_gradient, setup_context=_keep_for_backward)


def can_fuse(x: torch.Tensor, head_dim: int) -> bool:
    """Whether the kernels take the heads of x [B, T, D]: its dtype, its length, their width."""
    fits = x.dtype in (torch.float32, torch.bfloat16) and head_dim <= MAX_HEAD_DIM
    return fits and x.shape[1] <= MAX_POSITIONS


def patch_attention(joined: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """y [B, T, H, C] of joined [B, T, 3 H C] (float32 or bfloat16, `can_fuse`) and gain [H] float32."""
    y = _patch_attention(joined.contiguous(), gain.contiguous(), eps)
    return y.reshape((*y.shape[:2], gain.shape[0], -1))


def _result(joined: torch.Tensor) -> torch.Tensor:
    """Empty y."""
    return joined.new_empty((*joined.shape[:2], joined.shape[2] // 3))


def _blocks(joined: torch.Tensor, gain: torch.Tensor) -> dict[str, int]:
    """Keyword arguments of a kernel: as many heads as a program holds, of one patch or of several."""
    (_, positions, width), heads = joined.shape, gain.shape[0]
    head_dim = width // (3 * heads)
    block_dim = triton.next_power_of_2(head_dim)
    items = max(1, BLOCK_NUMBERS // (triton.next_power_of_2(positions) * block_dim))
    block_heads = min(items, triton.next_power_of_2(heads))
    shape = {"heads": heads, "head_dim": head_dim, "positions": positions}
    blocks = {"block_patches": items // block_heads, "block_heads": block_heads, "block_dim": block_dim}
    return {**shape, **blocks, "num_warps": NUM_WARPS}


def _head_blocks(blocks: dict[str, int]) -> int:
    """How many programs share the heads of a patch."""
    return int(triton.cdiv(blocks["heads"], blocks["block_heads"]))
