"""The MLP with its squared leaky relu inside the matrix products, for GPUs with a tensor memory accelerator (Hopper).

Definition: shared.ops.protocol, `leaky_relu_squared_mlp`. With r(z) = leaky_relu(z) and its slope s(z):

    z = x up';  a = r(z)^2;  y = a down'
    grad_z = 2 r(z) s(z) (grad_y down)

The activation is element by element between two products. As a kernel of its own it reads z and writes a, and in the
backward pass reads z and grad_a and writes grad_z: as many bytes as the products themselves. Here the product of which
it is a function applies it to the tile that it holds in registers.

The products that it is no part of are torch's. Both operators are opaque, so that torch.compile keeps them in its
graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from cuda_train.kernels.launch_shape import num_programs

# A tile of the result, a step along the inner dimension, and the tiles that share a part of the left matrix in cache:
# the fastest of those tried on an H200, as are the warps of the forward and of the backward pass.
BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER, GROUP_ROWS = 128, 128, 64, 8
NUM_WARPS, NUM_STAGES = (4, 8), 4
# GPUs with the accelerator; on others the descriptors would be emulated, slowly.
LEAST_CAPABILITY = (9, 0)


@triton.jit
def _product_kernel(  # type: ignore[no-untyped-def]
    left,  # descriptor of [R, K]
    right,  # descriptor of [N, K], or of [K, N] for the backward pass
    z,  # descriptor of [R, N]: written in the forward pass, read in the backward pass
    result,  # descriptor of [R, N], written
    rows,
    columns: tl.constexpr,
    inner: tl.constexpr,
    negative_slope: tl.constexpr,
    backward: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_inner: tl.constexpr,
    group_rows: tl.constexpr,
):
    across: tl.constexpr = (columns + block_columns - 1) // block_columns
    down = tl.cdiv(rows, block_rows)
    in_group = group_rows * across
    dtype = result.dtype
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        group = tile // in_group
        first = group * group_rows
        height = min(down - first, group_rows)
        row = (first + (tile % in_group) % height) * block_rows
        column = ((tile % in_group) // height) * block_columns
        total = tl.zeros((block_rows, block_columns), tl.float32)
        for start in range(0, inner, block_inner):
            a = left.load([row, start])
            if backward:
                total = tl.dot(a, right.load([start, column]), total)
            else:
                total = tl.dot(a, right.load([column, start]).T, total)
        if backward:
            hidden = z.load([row, column]).to(tl.float32)
            slope = tl.where(hidden > 0.0, 2.0, 2.0 * negative_slope * negative_slope)
            result.store([row, column], (total * hidden * slope).to(dtype))
        else:
            stored = total.to(dtype)
            z.store([row, column], stored)
            hidden = stored.to(tl.float32)
            hidden = tl.where(hidden > 0.0, hidden, negative_slope * hidden)
            result.store([row, column], (hidden * hidden).to(dtype))


@torch.library.custom_op("bytetwin::squared_mlp", mutates_args=())
def _squared_mlp(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y [R, D], z [R, F], a [R, F]) of contiguous x [R, D], up [F, D], down [D, F], all of one dtype."""
    z = x.new_empty((x.shape[0], up.shape[0]))
    a = torch.empty_like(z)
    _launch(x, up, z, a, negative_slope, backward=False)
    return a @ down.T, z, a


@_squared_mlp.register_fake
def _(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = x.new_empty((x.shape[0], up.shape[0]))
    return x.new_empty((x.shape[0], down.shape[0])), z, torch.empty_like(z)


@torch.library.custom_op("bytetwin::squared_mlp_backward", mutates_args=())
def _squared_mlp_backward(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    z: torch.Tensor,
    a: torch.Tensor,
    grad_y: torch.Tensor,
    negative_slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, up and down."""
    grad_z = torch.empty_like(z)
    _launch(grad_y, down, z, grad_z, negative_slope, backward=True)
    return grad_z @ up, grad_z.T @ x, grad_y.T @ a


@_squared_mlp_backward.register_fake
def _(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    z: torch.Tensor,
    a: torch.Tensor,
    grad_y: torch.Tensor,
    negative_slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(up), torch.empty_like(down)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, up, down, ctx.negative_slope = inputs
    ctx.save_for_backward(x, up, down, output[1], output[2])


def _gradient(ctx: Any, grad_y: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
    """z and a never leave this module, so only y has a gradient."""
    grads = _squared_mlp_backward(*ctx.saved_tensors, grad_y.contiguous(), ctx.negative_slope)
    return (*grads, None)


_squared_mlp.register_autograd(_gradient, setup_context=_keep_for_backward)


def can_fuse(x: torch.Tensor, up: torch.Tensor) -> bool:
    """Whether the kernels serve x [..., D] and up [F, D]: descriptors want rows of a multiple of 16 bytes.

    Not in Triton's interpreter: it multiplies no bfloat16 matrices. Tests call the operator with float32.
    """
    return x.dtype == torch.bfloat16 and not any(size % 8 for size in up.shape)


def serves(device: torch.device) -> bool:
    """Whether the kernels serve a device, which must be there."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def squared_mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float) -> torch.Tensor:
    """y [..., D] of x [..., D], up [F, D] and down [D, F], all bfloat16 (`can_fuse`)."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y, _, _ = _squared_mlp(rows, up.contiguous(), down.contiguous(), negative_slope)
    return y.reshape((*x.shape[:-1], down.shape[0]))


def _launch(
    left: torch.Tensor, right: torch.Tensor, z: torch.Tensor, result: torch.Tensor, slope: float, *, backward: bool
) -> None:
    if not left.numel():
        return
    inner, columns = left.shape[1], z.shape[1]
    tile = [BLOCK_ROWS, BLOCK_COLUMNS]
    right_tile = [BLOCK_INNER, BLOCK_COLUMNS] if backward else [BLOCK_COLUMNS, BLOCK_INNER]
    described = (
        TensorDescriptor.from_tensor(left, [BLOCK_ROWS, BLOCK_INNER]),
        TensorDescriptor.from_tensor(right, right_tile),
        TensorDescriptor.from_tensor(z, tile),
        TensorDescriptor.from_tensor(result, tile),
    )
    tiles = triton.cdiv(left.shape[0], BLOCK_ROWS) * triton.cdiv(columns, BLOCK_COLUMNS)
    blocks = {"block_rows": BLOCK_ROWS, "block_columns": BLOCK_COLUMNS, "block_inner": BLOCK_INNER}
    _product_kernel[(min(tiles, num_programs(left.device, 1)),)](
        *described,
        left.shape[0],
        columns,
        inner,
        slope,
        backward,
        **blocks,
        group_rows=GROUP_ROWS,
        num_warps=NUM_WARPS[backward],
        num_stages=NUM_STAGES,
    )
