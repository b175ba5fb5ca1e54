"""Rows of a small table whose gradient is one product of bfloat16, for a GPU (docs/techniques.md 9.11). Needs Triton.

torch adds up the gradients of rows with atomics when it compiles: rows that are read often wait for each other, and the
order of the sums is not fixed.
"""

from __future__ import annotations

from typing import Any

import torch

from cuda_train.kernels import table_gradient

# A product multiplies for each pair of a row and a read: that pays for tables of bytes, and where there is enough to
# read.
MOST_ROWS = 512
LEAST_READS = 1 << 12


def fits(table: torch.Tensor, index: torch.Tensor) -> bool:
    """Whether `read_rows` is worth it for rows of a table [V, D] by an index of any shape."""
    return table.shape[0] <= MOST_ROWS and index.numel() >= LEAST_READS


def read_rows(table: torch.Tensor, index: torch.Tensor, *, fused: bool = True) -> torch.Tensor:
    """`table[index]`: rows [..., D] of a float32 table [V, D] by an integer index [...]. The gradients of rows are
    rounded to bfloat16 before they are added up, in float32: by the kernel where it serves, unless not `fused`."""
    rows: torch.Tensor = _Rows.apply(table, index, fused and table_gradient.can_fuse(index))
    return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, index: torch.Tensor, fused: bool) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows, ctx.fused = table.shape[0], fused
        return torch.nn.functional.embedding(index, table)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (index,), (grad,) = ctx.saved_tensors, grads
        values = grad.reshape(-1, grad.shape[-1]).bfloat16()
        if ctx.fused:
            return table_gradient.table_gradient(index, values, ctx.num_rows), None, None
        # Here the one-hot matrix [V, N] is written out.
        hits = torch.arange(ctx.num_rows, device=index.device)[:, None] == index.reshape(1, -1)
        return (hits.to(values.dtype) @ values).float(), None, None
