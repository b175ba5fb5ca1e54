"""The MLP with its squared leaky relu inside the matrix products, for GPUs with a tensor memory accelerator (Hopper).

Definition: shared.ops.protocol, `leaky_relu_squared_mlp`. With r(z) = leaky_relu(z) and its slope s(z):

    z = x up';  a = r(z)^2;  y = a down'
    grad_z = 2 r(z) s(z) (grad_y down)

The activation is element by element between two products. As a kernel of its own it reads z and writes a, and in the
backward pass reads z and grad_a and writes grad_z: as many bytes as the products themselves. Here the product of which
it is a function applies it to the tile that it holds in registers. The backward pass reads z, and without a negative
slope a, because then r(z) = sqrt(a): z is not written at all.

The products that it is no part of are torch's. Both operators are opaque, so that torch.compile keeps them in its
graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from cuda_train.kernels.launch_shape import num_programs


@dataclass(frozen=True)
class Tiles:
    """How one pass is cut into programs."""

    rows: int = 128
    columns: int = 128
    # A step along the inner dimension.
    inner: int = 64
    # Rows of tiles that share a part of the left matrix in cache.
    group_rows: int = 8
    warps: int = 4
    # Steps whose operands are loaded ahead, and programs that share a multiprocessor, as far as its memory holds them.
    stages: int = 3
    per_processor: int = 2
    # The columns of a tile are finished in so many pieces, a power of two: each needs memory beside the operands'.
    pieces: int = 2


# The fastest of those tried on an H200; `python -m tests.bench.gpu --only tiles` tries others. Two programs of these
# fit the memory of a multiprocessor: one multiplies while the other writes its tile.
FORWARD, BACKWARD = Tiles(), Tiles(inner=32, stages=4)
# GPUs with the accelerator; on others the descriptors would be emulated, slowly. On consumer GPUs that have it a
# multiprocessor has less memory than one program needs.
LEAST_CAPABILITY, LEAST_SHARED_BYTES = (9, 0), 228 << 10


@triton.jit
def _product_kernel(  # type: ignore[no-untyped-def]
    left,  # descriptor of [R, K]
    right,  # descriptor of [N, K], or of [K, N] for the backward pass
    kept,  # descriptor of [R, N]: z, or a without a negative slope; z is written forward, either is read backward
    result,  # descriptor of [R, N], written
    scales,  # [R] float32, of each row's product, or nothing
    rows,
    columns: tl.constexpr,
    inner: tl.constexpr,
    negative_slope: tl.constexpr,
    backward: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_inner: tl.constexpr,
    group_rows: tl.constexpr,
    piece: tl.constexpr,
):
    across: tl.constexpr = (columns + block_columns - 1) // block_columns
    down = tl.cdiv(rows, block_rows)
    in_group = group_rows * across
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
        if scales is not None:
            at = row + tl.arange(0, block_rows)
            total *= tl.load(scales + at, mask=at < rows, other=0.0)[:, None]
        _finish(total, kept, result, row, column, negative_slope, backward, block_columns, piece)


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    total,
    kept,
    result,
    row,
    column,
    negative_slope: tl.constexpr,
    backward: tl.constexpr,
    width: tl.constexpr,
    piece: tl.constexpr,
):
    """Write a tile of so many columns, in pieces."""
    if width > piece:
        halves = tl.permute(tl.reshape(total, (total.shape[0], 2, width // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        _finish(left, kept, result, row, column, negative_slope, backward, width // 2, piece)
        _finish(right, kept, result, row, column + width // 2, negative_slope, backward, width // 2, piece)
    elif backward:
        hidden = kept.load([row, column]).to(tl.float32)
        if negative_slope == 0.0:
            grad = 2.0 * tl.sqrt(hidden)
        else:
            grad = tl.where(hidden > 0.0, 2.0, 2.0 * negative_slope * negative_slope) * hidden
        result.store([row, column], (total * grad).to(result.dtype))
    else:
        z = total.to(result.dtype)
        if negative_slope != 0.0:
            kept.store([row, column], z)
        hidden = z.to(tl.float32)
        hidden = tl.where(hidden > 0.0, hidden, negative_slope * hidden)
        result.store([row, column], (hidden * hidden).to(result.dtype))


@torch.library.custom_op("bytetwin::squared_mlp", mutates_args=())
def _squared_mlp(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y [R, D], z [R, F], a [R, F]) of contiguous x [R, D], up [F, D], down [D, F], all of one dtype; z is empty
    without a negative slope."""
    z, a = hidden(x, up, None, negative_slope)
    return a @ down.T, z, a


@_squared_mlp.register_fake
def _(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty((x.shape[0], down.shape[0])), *no_hidden(x, up, negative_slope)


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
    grad_z = hidden_gradient(grad_y, down, z, a, None, negative_slope)
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
    found = torch.cuda.get_device_properties(device)
    has_memory = found.shared_memory_per_multiprocessor >= LEAST_SHARED_BYTES
    return (found.major, found.minor) >= LEAST_CAPABILITY and has_memory


def squared_mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float) -> torch.Tensor:
    """y [..., D] of x [..., D], up [F, D] and down [D, F], all bfloat16 (`can_fuse`)."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y, _, _ = _squared_mlp(rows, up.contiguous(), down.contiguous(), negative_slope)
    return y.reshape((*x.shape[:-1], down.shape[0]))


def no_hidden(x: torch.Tensor, up: torch.Tensor, negative_slope: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty z and a."""
    a = x.new_empty((x.shape[0], up.shape[0]))
    return torch.empty_like(a) if negative_slope else a.new_empty((0, a.shape[1])), a


def hidden(
    x: torch.Tensor, up: torch.Tensor, scales: torch.Tensor | None, negative_slope: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """z, which is empty without a negative slope, and a. With `scales` [R] float32 z is times that of its row."""
    z, a = no_hidden(x, up, negative_slope)
    _launch(x, up, z, a, scales, negative_slope, backward=False)
    return z, a


def hidden_gradient(
    grad_y: torch.Tensor,
    down: torch.Tensor,
    z: torch.Tensor,
    a: torch.Tensor,
    scales: torch.Tensor | None,
    negative_slope: float,
) -> torch.Tensor:
    """grad_z, with `scales` times that of its row."""
    grad_z = torch.empty_like(a)
    _launch(grad_y, down, z if negative_slope else a, grad_z, scales, negative_slope, backward=True)
    return grad_z


def _launch(
    left: torch.Tensor,
    right: torch.Tensor,
    kept: torch.Tensor,
    result: torch.Tensor,
    scales: torch.Tensor | None,
    slope: float,
    *,
    backward: bool,
) -> None:
    if not left.numel():
        return
    inner, columns, tiles = left.shape[1], result.shape[1], BACKWARD if backward else FORWARD
    piece = tiles.columns // tiles.pieces
    tile = [tiles.rows, piece]
    right_tile = [tiles.inner, tiles.columns] if backward else [tiles.columns, tiles.inner]
    described = (
        TensorDescriptor.from_tensor(left, [tiles.rows, tiles.inner]),
        TensorDescriptor.from_tensor(right, right_tile),
        # A descriptor cannot describe nothing: it names the result where z is not written.
        TensorDescriptor.from_tensor(kept if kept.numel() else result, tile),
        TensorDescriptor.from_tensor(result, tile),
    )
    count = triton.cdiv(left.shape[0], tiles.rows) * triton.cdiv(columns, tiles.columns)
    _product_kernel[(min(count, num_programs(left.device, tiles.per_processor)),)](
        *described,
        scales,
        left.shape[0],
        columns,
        inner,
        slope,
        backward,
        block_rows=tiles.rows,
        block_columns=tiles.columns,
        block_inner=tiles.inner,
        group_rows=tiles.group_rows,
        piece=piece,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
