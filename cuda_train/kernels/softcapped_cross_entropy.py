"""Softcapped cross-entropy as one Triton kernel forward and one backward.

Definition: shared.ops.protocol, `softcapped_cross_entropy`. The plain form in cuda_train.plain_ops is its oracle. That
form makes several float32 arrays of the logits' shape, the largest of the whole model; here a row is read
once, lives in registers as float32, and leaves one number. The backward kernel reads the row again and
writes the gradient in the logits' dtype, from the saved logarithm of the row's sum:

    z = softcap tanh(x / softcap);  nats = ln sum exp(z) - z[target]
    d nats / dx = (exp(z - ln sum exp(z)) - [target]) (1 - tanh(x / softcap)^2)

Triton reads the kernels' annotations as code, so they have none but `tl.constexpr`.

Both kernels are opaque operators with a fake implementation, so that torch.compile keeps them in its graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# A row is held in registers whole, so its length is bounded; the plain form takes longer ones.
MAX_VOCAB_SIZE = 8192
# Logits one program works on: 32 for each thread of four warps.
BLOCK_LOGITS = 4096
NUM_WARPS = 4
# Below it tanh is a quotient of polynomials: one minus an exponential would lose digits.
SMALL_ANGLE = tl.constexpr(0.5)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    """tanh of float32 to a few roundings: Lambert's continued fraction for small |x| (to 1e-9), else by
    exp(-2|x|). One division serves both."""
    square = x * x
    exponential = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    small = tl.abs(x) < SMALL_ANGLE
    sign = tl.where(x < 0.0, -1.0, 1.0)
    above = tl.where(small, x * (10395.0 + square * (1260.0 + square * 21.0)), sign * (1.0 - exponential))
    below = tl.where(small, 10395.0 + square * (4725.0 + square * (210.0 + square)), 1.0 + exponential)
    return above / below


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    logits,  # [R, V] float32 or bfloat16
    targets,  # [R] int32
    nats,  # [R] float32, written
    log_sums,  # [R] float32, written: ln sum exp(z)
    num_rows,
    softcap,
    vocab_size: tl.constexpr,
    block_rows: tl.constexpr,
    block_vocab: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block_vocab)
    in_rows, in_vocab = row < num_rows, column < vocab_size
    inside = in_rows[:, None] & in_vocab[None, :]
    x = tl.load(logits + row[:, None] * vocab_size + column[None, :], mask=inside, other=0.0).to(tl.float32)
    target = tl.load(targets + row, mask=in_rows, other=0)
    z = softcap * _tanh(x / softcap)
    z = tl.where(in_vocab[None, :], z, float("-inf"))
    largest = tl.max(z, axis=1)
    total = tl.sum(tl.exp2((z - largest[:, None]) * LOG2E), axis=1)
    log_sum = largest + tl.log2(total) * LN2
    picked = tl.sum(tl.where(column[None, :] == target[:, None], z, 0.0), axis=1)
    # A target outside the vocabulary has no probability; the loop stops at what is not a number.
    known = (target >= 0) & (target < vocab_size)
    tl.store(nats + row, tl.where(known, log_sum - picked, float("nan")), mask=in_rows)
    tl.store(log_sums + row, log_sum, mask=in_rows)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    logits,  # [R, V] float32 or bfloat16
    targets,  # [R] int32
    log_sums,  # [R] float32
    grad_nats,  # [R] float32
    grad_logits,  # [R, V] in the dtype of logits, written
    num_rows,
    softcap,
    vocab_size: tl.constexpr,
    block_rows: tl.constexpr,
    block_vocab: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block_vocab)
    in_rows = row < num_rows
    inside = in_rows[:, None] & (column < vocab_size)[None, :]
    offsets = row[:, None] * vocab_size + column[None, :]
    x = tl.load(logits + offsets, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(targets + row, mask=in_rows, other=0)
    log_sum = tl.load(log_sums + row, mask=in_rows, other=0.0)
    grad = tl.load(grad_nats + row, mask=in_rows, other=0.0)
    tanh = _tanh(x / softcap)
    probability = tl.exp2((softcap * tanh - log_sum[:, None]) * LOG2E)
    at_target = tl.where(column[None, :] == target[:, None], 1.0, 0.0)
    result = grad[:, None] * (probability - at_target) * (1.0 - tanh * tanh)
    tl.store(grad_logits + offsets, result.to(grad_logits.dtype.element_ty, fp_downcast_rounding="rtne"), mask=inside)


@torch.library.custom_op("bytetwin::softcapped_cross_entropy", mutates_args=())
def _softcapped_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, softcap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(nats [R], ln sum exp z [R]), float32, of contiguous logits [R, V] and int32 targets [R]."""
    nats = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    log_sums = torch.empty_like(nats)
    if logits.numel():
        grid, blocks = _launch_shape(logits)
        _forward_kernel[grid](logits, targets, nats, log_sums, logits.shape[0], softcap, **blocks)
    return nats, log_sums


@_softcapped_cross_entropy.register_fake
def _(logits: torch.Tensor, targets: torch.Tensor, softcap: float) -> tuple[torch.Tensor, torch.Tensor]:
    nats = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    return nats, torch.empty_like(nats)


@torch.library.custom_op("bytetwin::softcapped_cross_entropy_backward", mutates_args=())
def _softcapped_cross_entropy_backward(
    logits: torch.Tensor, targets: torch.Tensor, log_sums: torch.Tensor, grad_nats: torch.Tensor, softcap: float
) -> torch.Tensor:
    """Gradient [R, V] in the dtype of logits, from the gradient [R] of the nats."""
    grad_logits = torch.empty_like(logits)
    if logits.numel():
        grid, blocks = _launch_shape(logits)
        arguments = (logits, targets, log_sums, grad_nats, grad_logits, logits.shape[0], softcap)
        _backward_kernel[grid](*arguments, **blocks)
    return grad_logits


@_softcapped_cross_entropy_backward.register_fake
def _(
    logits: torch.Tensor, targets: torch.Tensor, log_sums: torch.Tensor, grad_nats: torch.Tensor, softcap: float
) -> torch.Tensor:
    return torch.empty_like(logits)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets, ctx.softcap = inputs
    ctx.save_for_backward(logits, targets, output[1])


def _gradient(ctx: Any, grad_nats: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    """The logarithms of the sums never leave this module, so only the nats have a gradient."""
    logits, targets, log_sums = ctx.saved_tensors
    grad = _softcapped_cross_entropy_backward(logits, targets, log_sums, grad_nats.contiguous(), ctx.softcap)
    return grad, None, None


_softcapped_cross_entropy.register_autograd(_gradient, setup_context=_keep_for_backward)


def can_fuse(logits: torch.Tensor) -> bool:
    """Whether the kernels take logits [..., V] of this dtype and width."""
    return logits.dtype in (torch.float32, torch.bfloat16) and logits.shape[-1] <= MAX_VOCAB_SIZE


def softcapped_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, softcap: float) -> torch.Tensor:
    """Nats, float32 [...], of logits [..., V] (float32 or bfloat16, `can_fuse`) and targets [...] (integers).

    A target outside the vocabulary gives NaN.
    """
    rows = logits.reshape(-1, logits.shape[-1]).contiguous()
    nats, _ = _softcapped_cross_entropy(rows, targets.reshape(-1).to(torch.int32).contiguous(), softcap)
    return nats.reshape(targets.shape)


def _launch_shape(logits: torch.Tensor) -> tuple[tuple[int], dict[str, int]]:
    """(grid, keyword arguments of a kernel) for logits [R, V]: whole rows, several for each program."""
    num_rows, vocab_size = logits.shape
    block_vocab = triton.next_power_of_2(vocab_size)
    block_rows = max(1, BLOCK_LOGITS // block_vocab)
    blocks = {"vocab_size": vocab_size, "block_rows": block_rows, "block_vocab": block_vocab, "num_warps": NUM_WARPS}
    return (triton.cdiv(num_rows, block_rows),), blocks
