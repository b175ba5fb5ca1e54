"""The half of a block that is an MLP, from the residual sum on, without its norm ever being written.

Definition: shared.ops.protocol, `normed_mlp`. A norm is a factor for each row, c = 1 / sqrt(mean(s^2) + eps), and a
product keeps it: with s = x + added and n = c s,

    z = n up' = c (s up');  a = r(z)^2;  y = a down'
    grad_up = grad_z' n = (c grad_z)' s
    h = (c grad_z) up = c grad_n;  grad_x = grad_added = grad_s + h - n mean(h n)

So the products read s, the factor is applied to the tiles that they hold (cuda_train.kernels.squared_mlp), and neither
n nor grad_n is needed: two arrays less are written and one less is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch

from cuda_train.kernels import residual_norm
from cuda_train.kernels.squared_mlp import hidden, hidden_gradient, no_hidden


@torch.library.custom_op("bytetwin::normed_mlp", mutates_args=())
def _normed_mlp(
    x: torch.Tensor, added: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(s, y [R, D], c [R] float32, z, a [R, F]) of contiguous x and added [R, D], up [F, D] and down [D, F], all of one
    dtype; z is empty without a negative slope."""
    total, scales = residual_norm.sums(x, added, None, None, eps, None)
    z, a = hidden(total, up, scales, negative_slope)
    return total, a @ down.T, scales, z, a


@_normed_mlp.register_fake
def _(
    x: torch.Tensor, added: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    scales = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    return torch.empty_like(x), torch.empty_like(x), scales, *no_hidden(x, up, negative_slope)


@torch.library.custom_op("bytetwin::normed_mlp_backward", mutates_args=())
def _normed_mlp_backward(
    total: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    scales: torch.Tensor,
    z: torch.Tensor,
    a: torch.Tensor,
    grad_total: torch.Tensor,
    grad_y: torch.Tensor,
    negative_slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x (and of what was added), up and down."""
    grad_z = hidden_gradient(grad_y, down, z, a, scales, negative_slope)
    grad_x, _, _ = residual_norm.gradients(total, None, None, None, scales, grad_total, grad_z @ up, normalises=False)
    return grad_x, grad_z.T @ total, grad_y.T @ a


@_normed_mlp_backward.register_fake
def _(
    total: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    scales: torch.Tensor,
    z: torch.Tensor,
    a: torch.Tensor,
    grad_total: torch.Tensor,
    grad_y: torch.Tensor,
    negative_slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(total), torch.empty_like(up), torch.empty_like(down)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, _, up, down, ctx.negative_slope, _ = inputs
    total, _, scales, z, a = output
    ctx.save_for_backward(total, up, down, scales, z, a)


def _gradient(ctx: Any, grad_total: torch.Tensor, grad_y: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
    """The factors, z and a never leave this module, so only s and y have gradients."""
    grads = grad_total.contiguous(), grad_y.contiguous()
    grad_x, grad_up, grad_down = _normed_mlp_backward(*ctx.saved_tensors, *grads, ctx.negative_slope)
    return grad_x, grad_x, grad_up, grad_down, None, None


_normed_mlp.register_autograd(_gradient, setup_context=_keep_for_backward)


def normed_mlp(
    x: torch.Tensor, added: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, y) [..., D] of x and added [..., D], up [F, D] and down [D, F], all bfloat16 (`can_fuse` of both)."""
    rows = residual_norm.as_rows(x), residual_norm.as_rows(added)
    total, y, *_ = _normed_mlp(*rows, up.contiguous(), down.contiguous(), negative_slope, eps)
    return total.reshape(x.shape), y.reshape(x.shape)
