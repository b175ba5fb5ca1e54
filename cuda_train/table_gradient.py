"""Rows of a small table whose gradient is one product of bfloat16, for a GPU (docs/techniques.md 9.11). Needs Triton.

torch adds up the gradients of rows with atomics when it compiles: rows that are read often wait for each other, and the
order of the sums is not fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from cuda_train.kernels import table_gradient

# A product multiplies for each pair of a row and a read: that pays for tables of bytes, and where there is enough to
# read.
MOST_ROWS = 512
LEAST_READS = 1 << 12


def fits(table: torch.Tensor, index: torch.Tensor, dtype: str) -> bool:
    """Whether `read_rows` is worth it for rows of a table [V, D] by an index of any shape: of bfloat16 alone, whose
    gradients are in bfloat16 anyway."""
    return dtype == "bfloat16" and table.shape[0] <= MOST_ROWS and index.numel() >= LEAST_READS


def read_rows(
    tables: Sequence[torch.Tensor], indexes: Sequence[torch.Tensor], dtype: torch.dtype, *, fused: bool = True
) -> torch.Tensor:
    """The sum of `table[index]`: rows [..., D] in `dtype` of float32 tables [V, D], each by an integer index [...] of
    its own, added up in float32. The gradients of rows are rounded to bfloat16 before they are added up, in float32: by
    the kernel where it serves, unless not `fused`."""
    if not (torch.is_grad_enabled() and any(table.requires_grad for table in tables)):
        # torch.compile would call the function's forward as it is and, by the number of arguments, without its context.
        return _sum_of_rows(tables, indexes).to(dtype)
    rows: torch.Tensor = _Rows.apply(dtype, fused and table_gradient.can_fuse(indexes[0]), *indexes, *tables)
    return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, fused: bool, *arrays: torch.Tensor) -> torch.Tensor:
        indexes, tables = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
        ctx.save_for_backward(*indexes)
        ctx.num_rows, ctx.fused = tables[0].shape[0], fused
        return _sum_of_rows(tables, indexes).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        indexes, (grad,) = ctx.saved_tensors, grads
        values = grad.reshape(-1, grad.shape[-1]).bfloat16()
        if ctx.fused:
            found = table_gradient.table_gradients(indexes, values, ctx.num_rows).unbind(0)
        else:
            found = tuple(_product(index, values, ctx.num_rows) for index in indexes)
        return (None, None, *[None] * len(indexes), *found)


def _sum_of_rows(tables: Sequence[torch.Tensor], indexes: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of `table[index]` in float32."""
    total = F.embedding(indexes[0], tables[0])
    for index, table in zip(indexes[1:], tables[1:], strict=True):
        total = total + F.embedding(index, table)
    return total


def _product(index: torch.Tensor, values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The gradient by the one-hot matrix [V, N], which is written out."""
    hits = torch.arange(num_rows, device=index.device)[:, None] == index.reshape(1, -1)
    return (hits.to(values.dtype) @ values).float()
