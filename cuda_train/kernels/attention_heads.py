"""Queries, keys and values from one joined product: norm of each head, rotation and gain, as one kernel each way.

Definition: shared.ops.protocol, `attention_inputs`. A row of `joined` holds the H query heads, the G key heads and the
G value heads of one position, C numbers each. For a query or key head x = (x1, x2), with s = 1 / sqrt(mean(x^2) + eps),
n = s x and the gain g of the query head (1 for keys):

    out1 = g (n1 cos + n2 sin);  out2 = g (n2 cos - n1 sin)
    m1 = d1 cos - d2 sin;  m2 = d1 sin + d2 cos;  m.n = sum(m1 n1 + m2 n2)
    grad_x = s g (m - n m.n / C);  grad_g = sum over rows of m.n

because a rotation leaves products as they are. Value heads stay where they are, as a view of `joined`; the backward
kernel copies their gradient, so that it lands in the one array that the joined product's backward pass reads.

Both kernels are opaque operators with a fake implementation, so that torch.compile keeps them in its graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cuda_train.kernels.launch_shape import num_programs

# Numbers of half heads that a program works on at a time: with one warp the sums over a head need no barrier. The
# fastest of those tried on an H200. Of one position there may be more; with more than so many for a warp its registers
# would overflow.
BLOCK_NUMBERS, WARP_NUMBERS = 512, 2048
PROGRAMS_PER_PROCESSOR = 16
MAX_HEADS, MAX_HEAD_DIM = 64, 256


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    joined,  # [R, (H + 2 G) C]
    gain,  # [H] float32
    cosines,  # [T, C / 2] float32
    sines,  # [T, C / 2] float32
    q,  # [R, H, C], written
    k,  # [R, G, C], written
    num_rows,
    time,
    eps,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    block_rows: tl.constexpr,
    block_heads: tl.constexpr,
    block_half: tl.constexpr,
):
    item = tl.arange(0, block_rows * block_heads)
    head = item % block_heads
    row = tl.program_id(0).to(tl.int64) * block_rows + item // block_heads
    column = tl.arange(0, block_half)
    in_half = (column < half)[None, :]
    in_rows = row < num_rows
    is_query = in_rows & (head < heads)
    is_key = in_rows & (head >= heads) & (head < heads + kv_heads)
    inside = (is_query | is_key)[:, None] & in_half
    start = (row * (heads + 2 * kv_heads) + head) * (2 * half)
    offsets = start[:, None] + column[None, :]
    x1 = tl.load(joined + offsets, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(joined + offsets + half, mask=inside, other=0.0).to(tl.float32)
    angle = (row % time)[:, None] * half + column[None, :]
    cosine = tl.load(cosines + angle, mask=inside, other=1.0)
    sine = tl.load(sines + angle, mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, axis=1) / (2 * half) + eps)
    scale = (scale * tl.load(gain + head, mask=is_query, other=1.0))[:, None]
    out1 = (scale * (x1 * cosine + x2 * sine)).to(q.dtype.element_ty, fp_downcast_rounding="rtne")
    out2 = (scale * (x2 * cosine - x1 * sine)).to(q.dtype.element_ty, fp_downcast_rounding="rtne")
    to_q = ((row * heads + head) * (2 * half))[:, None] + column[None, :]
    tl.store(q + to_q, out1, mask=is_query[:, None] & in_half)
    tl.store(q + to_q + half, out2, mask=is_query[:, None] & in_half)
    to_k = ((row * kv_heads + head - heads) * (2 * half))[:, None] + column[None, :]
    tl.store(k + to_k, out1, mask=is_key[:, None] & in_half)
    tl.store(k + to_k + half, out2, mask=is_key[:, None] & in_half)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    joined,  # [R, (H + 2 G) C]
    gain,  # [H] float32
    cosines,  # [T, C / 2] float32
    sines,  # [T, C / 2] float32
    grad_q,  # [R, H, C]
    grad_k,  # [R, G, C]
    grad_v,  # [R, G, C]
    grad_joined,  # [R, (H + 2 G) C], written
    grad_gain,  # [programs, block_heads] float32, written
    num_rows,
    time,
    eps,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    block_rows: tl.constexpr,
    block_heads: tl.constexpr,
    block_half: tl.constexpr,
):
    item = tl.arange(0, block_rows * block_heads)
    head = item % block_heads
    column = tl.arange(0, block_half)
    in_half = (column < half)[None, :]
    sums = tl.zeros((block_rows * block_heads,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, block_rows), tl.num_programs(0)):
        row = (block * block_rows + item // block_heads).to(tl.int64)
        in_rows = row < num_rows
        is_query = in_rows & (head < heads)
        is_key = in_rows & (head >= heads) & (head < heads + kv_heads)
        is_value = in_rows & (head >= heads + kv_heads) & (head < heads + 2 * kv_heads)
        turned = (is_query | is_key)[:, None] & in_half
        inside = (is_query | is_key | is_value)[:, None] & in_half
        start = (row * (heads + 2 * kv_heads) + head) * (2 * half)
        offsets = start[:, None] + column[None, :]
        x1 = tl.load(joined + offsets, mask=turned, other=0.0).to(tl.float32)
        x2 = tl.load(joined + offsets + half, mask=turned, other=0.0).to(tl.float32)
        angle = (row % time)[:, None] * half + column[None, :]
        cosine = tl.load(cosines + angle, mask=turned, other=1.0)
        sine = tl.load(sines + angle, mask=turned, other=0.0)
        # Each mask selects the heads of one array; the others give zero.
        from_q = ((row * heads + head) * (2 * half))[:, None] + column[None, :]
        from_k = ((row * kv_heads + head - heads) * (2 * half))[:, None] + column[None, :]
        from_v = from_k - kv_heads * 2 * half
        d1 = tl.load(grad_q + from_q, mask=is_query[:, None] & in_half, other=0.0).to(tl.float32)
        d2 = tl.load(grad_q + from_q + half, mask=is_query[:, None] & in_half, other=0.0).to(tl.float32)
        d1 += tl.load(grad_k + from_k, mask=is_key[:, None] & in_half, other=0.0).to(tl.float32)
        d2 += tl.load(grad_k + from_k + half, mask=is_key[:, None] & in_half, other=0.0).to(tl.float32)
        d1 += tl.load(grad_v + from_v, mask=is_value[:, None] & in_half, other=0.0).to(tl.float32)
        d2 += tl.load(grad_v + from_v + half, mask=is_value[:, None] & in_half, other=0.0).to(tl.float32)
        m1, m2 = d1 * cosine - d2 * sine, d1 * sine + d2 * cosine
        scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, axis=1) / (2 * half) + eps)
        n1, n2 = scale[:, None] * x1, scale[:, None] * x2
        along = tl.sum(m1 * n1 + m2 * n2, axis=1)
        sums += tl.where(is_query, along, 0.0)
        factor = tl.where(is_value, 1.0, scale * tl.load(gain + head, mask=is_query, other=1.0))[:, None]
        mean = along[:, None] / (2 * half)
        out1 = (factor * (m1 - n1 * mean)).to(grad_joined.dtype.element_ty, fp_downcast_rounding="rtne")
        out2 = (factor * (m2 - n2 * mean)).to(grad_joined.dtype.element_ty, fp_downcast_rounding="rtne")
        tl.store(grad_joined + offsets, out1, mask=inside)
        tl.store(grad_joined + offsets + half, out2, mask=inside)
    by_head = tl.sum(tl.reshape(sums, (block_rows, block_heads)), axis=0)
    tl.store(grad_gain + tl.program_id(0) * block_heads + tl.arange(0, block_heads), by_head)


@torch.library.custom_op("bytetwin::attention_heads", mutates_args=())
def _attention_heads(
    joined: torch.Tensor,
    gain: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    kv_heads: int,
    time: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [R, H, C] and k [R, G, C] of contiguous joined [R, (H + 2 G) C], gain [H], cosines and sines [T, C / 2]."""
    q, k = _results(joined, gain, cosines, kv_heads)
    if joined.numel():
        blocks = _blocks(gain.shape[0], kv_heads, gain.shape[0] + kv_heads, cosines.shape[-1])
        grid = (triton.cdiv(joined.shape[0], blocks["block_rows"]),)
        arguments = (joined, gain, cosines, sines, q, k, joined.shape[0], time, eps)
        _forward_kernel[grid](*arguments, **blocks)
    return q, k


@_attention_heads.register_fake
def _(
    joined: torch.Tensor,
    gain: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    kv_heads: int,
    time: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _results(joined, gain, cosines, kv_heads)


@torch.library.custom_op("bytetwin::attention_heads_backward", mutates_args=())
def _attention_heads_backward(
    joined: torch.Tensor,
    gain: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    grad_q: torch.Tensor,
    grad_k: torch.Tensor,
    grad_v: torch.Tensor,
    time: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of joined and of gain, the second in float32."""
    grad_joined, heads = torch.empty_like(joined), gain.shape[0]
    kv_heads = grad_k.shape[1]
    blocks = _blocks(heads, kv_heads, heads + 2 * kv_heads, cosines.shape[-1])
    programs = num_programs(joined.device, PROGRAMS_PER_PROCESSOR)
    grad_gain = torch.zeros((programs, blocks["block_heads"]), dtype=torch.float32, device=joined.device)
    if joined.numel():
        arguments = (joined, gain, cosines, sines, grad_q, grad_k, grad_v, grad_joined, grad_gain)
        _backward_kernel[(programs,)](*arguments, joined.shape[0], time, eps, **blocks)
    return grad_joined, grad_gain.sum(dim=0)[:heads].contiguous()


@_attention_heads_backward.register_fake
def _(
    joined: torch.Tensor,
    gain: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    grad_q: torch.Tensor,
    grad_k: torch.Tensor,
    grad_v: torch.Tensor,
    time: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(joined), torch.empty_like(gain)


class _Heads(torch.autograd.Function):
    """q, k and v. Not an operator's own gradient: no operator may return v, a view of what it was given."""

    @staticmethod
    def forward(
        ctx: Any,
        joined: torch.Tensor,
        gain: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        kv_heads: int,
        time: int,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(joined, gain, cosines, sines)
        ctx.time, ctx.eps = time, eps
        q, k = _attention_heads(joined, gain, cosines, sines, kv_heads, time, eps)
        values = joined[:, -k.shape[1] * k.shape[2] :]
        return q, k, values.unflatten(1, k.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = (grad.contiguous() for grad in grads)
        grad_joined, grad_gain = _attention_heads_backward(*ctx.saved_tensors, *gradients, ctx.time, ctx.eps)
        return grad_joined, grad_gain, None, None, None, None, None


def can_fuse(x: torch.Tensor, heads: int, head_dim: int) -> bool:
    """Whether the kernels take heads of this dtype and size; `heads` counts queries, keys and values."""
    return x.dtype in (torch.float32, torch.bfloat16) and heads <= MAX_HEADS and head_dim <= MAX_HEAD_DIM


def attention_heads(
    joined: torch.Tensor, gain: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, kv_heads: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [B, T, H, C], k and v [B, T, G, C] of joined [B, T, (H + 2 G) C]; v is a view of it.

    gain [H] and the tables of the angles [T, C / 2] are float32.
    """
    batch, time, width = joined.shape
    rows = joined.reshape(-1, width).contiguous()
    found = _Heads.apply(rows, gain.contiguous(), cosines, sines, kv_heads, time, eps)
    q, k, v = (each.unflatten(0, (batch, time)) for each in found)
    return q, k, v


def _results(
    joined: torch.Tensor, gain: torch.Tensor, cosines: torch.Tensor, kv_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty q and k."""
    rows, head_dim = joined.shape[0], 2 * cosines.shape[-1]
    return joined.new_empty((rows, gain.shape[0], head_dim)), joined.new_empty((rows, kv_heads, head_dim))


def _blocks(heads: int, kv_heads: int, read: int, half: int) -> dict[str, int]:
    """Keyword arguments of a kernel that works on `read` heads of a position, several positions at a time."""
    block_heads, block_half = triton.next_power_of_2(read), triton.next_power_of_2(half)
    block_rows = max(1, BLOCK_NUMBERS // (block_heads * block_half))
    shape = {"heads": heads, "kv_heads": kv_heads, "half": half}
    blocks = {"block_rows": block_rows, "block_heads": block_heads, "block_half": block_half}
    num_warps = max(1, block_heads * block_half // WARP_NUMBERS)
    return {**shape, **blocks, "num_warps": num_warps}
