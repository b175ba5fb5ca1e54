"""FlashAttention 4 (`flash-attn-4`) as an operator that torch.compile does not look into (docs/techniques.md 9.11).

torch has a hook of its own for it, which unpacks two values from a function that returns five in 4.0.0b36. Both call
the two functions below, which are not documented; only what comes first in what they return is read here.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

MODULE = "flash_attn.cute.interface"


def flash_attention_4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of q [B, T, H, C] over k and v [B, T, G, C], in bfloat16: [B, T, H, C]."""
    result: torch.Tensor = _attend(q, k, v)[0]
    return result


@torch.library.custom_op("bytetwin::flash_attention_4", mutates_args=())
def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention, logarithms [B, H, T] of the sums that its weights were divided by, float32)."""
    arrays = [x.contiguous() for x in (q, k, v)]
    result, sums, *_ = importlib.import_module(MODULE)._flash_attn_fwd(*arrays, causal=True, return_lse=True)
    return result.contiguous(), sums.contiguous()


@_attend.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=torch.float32)


@torch.library.custom_op("bytetwin::flash_attention_4_backward", mutates_args=())
def _attend_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, result: torch.Tensor, sums: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    arrays = [x.contiguous() for x in (q, k, v, result, grad)]
    dq, dk, dv, *_ = importlib.import_module(MODULE)._flash_attn_bwd(*arrays, sums, causal=True)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@_attend_backward.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, result: torch.Tensor, sums: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _attend_backward(*ctx.saved_tensors, grad)
    return found


_attend.register_autograd(_gradients, setup_context=_keep)
