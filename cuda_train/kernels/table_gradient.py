"""The gradient of a table's rows as a product with a one-hot matrix that is never written, for a table of few rows.

    grad_table[v] = sum over reads n with index[n] = v of values[n]

A program holds the sums of a block of rows and columns in registers. For each step of reads it loads their values,
makes the tile of the one-hot matrix in registers too, and multiplies. The reads are shared out among programs, whose
sums are added in a fixed order: there are no atomics.

Values are loaded once for each block of rows, so a block has as many rows as registers hold: all bytes. The few rows
beyond the blocks are those of special symbols, which occur rarely. Another kernel looks for them, and loads no values
but theirs.

The operator is opaque, so that torch.compile keeps it in its graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from cuda_train.kernels.launch_shape import num_programs

# Sums of a program: 256 x 128 in float32 are 128 registers of each thread.
BLOCK_ROWS, BLOCK_COLUMNS = 256, 128
# Reads of a step, and steps whose values are loaded ahead.
BLOCK_READS, NUM_STAGES = 64, 4
# Up to so many rows beyond the blocks are looked for, in so many reads at a time.
RARE_ROWS, LOOKED_THROUGH = 16, 512
RARE_PROGRAMS_PER_PROCESSOR = 8


@triton.jit
def _dense_kernel(  # type: ignore[no-untyped-def]
    numbers,  # [V] int32: 0 ... V - 1
    index,  # [N] integers
    values,  # [N, D]
    sums,  # [splits, rows, D] float32, written
    num_reads,
    steps,  # of one split, at least 1
    num_rows: tl.constexpr,
    dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_reads: tl.constexpr,
):
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    split, in_dim = tl.program_id(2), column < dim
    # Loaded, because Triton builds the one-hot tile in the layout of a product's left operand only from what was
    # loaded: a tile made from tl.arange goes through shared memory.
    symbol = tl.load(numbers + row, mask=row < num_rows, other=-1)
    read = tl.arange(0, block_reads)
    offsets = read[:, None] * dim + column[None, :]
    # Selected in the dtype itself: to convert truth values takes more instructions than to compare.
    one, zero = tl.full((), 1.0, values.dtype.element_ty), tl.full((), 0.0, values.dtype.element_ty)
    total = tl.zeros((block_rows, block_columns), tl.float32)
    # If the loop could be skipped, ptxas would wait for each product.
    tl.assume(steps > 0)
    for step in range(steps):
        start = (split * steps + step).to(tl.int64) * block_reads
        inside = read < num_reads - start
        # What is beyond the end reads row 0, with values of zero.
        found = tl.load(index + start + read, mask=inside, other=0).to(tl.int32)
        tile = tl.load(values + start * dim + offsets, mask=inside[:, None] & in_dim[None, :], other=0.0)
        total = tl.dot(tl.where(found[None, :] == symbol[:, None], one, zero), tile, total)
    inside = (row < num_rows)[:, None] & in_dim[None, :]
    tl.store(sums + (split * num_rows + row[:, None]) * dim + column[None, :], total, mask=inside)


@triton.jit
def _rare_kernel(  # type: ignore[no-untyped-def]
    index,  # [N] integers
    values,  # [N, D]
    sums,  # [programs, rows, D] float32, written
    num_reads,
    first_row,
    num_rows: tl.constexpr,
    dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_reads: tl.constexpr,
    looked_through: tl.constexpr,
):
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    row, in_dim = tl.arange(0, block_rows), column < dim
    ahead, read = tl.arange(0, looked_through), tl.arange(0, block_reads)
    offsets = read[:, None] * dim + column[None, :]
    one, zero = tl.full((), 1.0, values.dtype.element_ty), tl.full((), 0.0, values.dtype.element_ty)
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for part in range(tl.program_id(1).to(tl.int64), tl.cdiv(num_reads, looked_through), tl.num_programs(1)):
        first = part * looked_through
        seen = tl.load(index + first + ahead, mask=ahead < num_reads - first, other=0)
        if tl.max(seen, axis=0) >= first_row:
            for step in range(looked_through // block_reads):
                start = first + step * block_reads
                found = tl.load(index + start + read, mask=read < num_reads - start, other=0).to(tl.int32) - first_row
                rare = (found >= 0)[:, None] & in_dim[None, :]
                tile = tl.load(values + start * dim + offsets, mask=rare, other=0.0)
                total = tl.dot(tl.where(found[None, :] == row[:, None], one, zero), tile, total)
    inside = (row < num_rows)[:, None] & in_dim[None, :]
    tl.store(sums + (tl.program_id(1) * num_rows + row[:, None]) * dim + column[None, :], total, mask=inside)


@torch.library.custom_op("bytetwin::table_gradients", mutates_args=())
def _table_gradients(indexes: Sequence[torch.Tensor], values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Gradients [K, V, D] in float32 of the rows of K tables by contiguous indexes [N] and values [N, D].

    One operator for all, because torch's compiler makes a copy of an argument for each operator that reads it.
    """
    grads = values.new_empty((len(indexes), num_rows, values.shape[1]), dtype=torch.float32)
    for index, grad in zip(indexes, grads.unbind(0), strict=True):
        _write_gradient(index, values, grad)
    return grads


@_table_gradients.register_fake
def _(indexes: Sequence[torch.Tensor], values: torch.Tensor, num_rows: int) -> torch.Tensor:
    return values.new_empty((len(indexes), num_rows, values.shape[1]), dtype=torch.float32)


def can_fuse(index: torch.Tensor) -> bool:
    """Whether the kernels serve reads by this index.

    Not in Triton's interpreter: it multiplies no bfloat16 matrices. Tests call `table_gradient` with float32.
    """
    return index.is_cuda


def table_gradients(indexes: Sequence[torch.Tensor], values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Gradients [K, V, D] in float32 of the V rows of K tables, each of which was read by an integer index [...], and
    whose reads have the gradients `values` [..., D], bfloat16, in all tables the same."""
    values = values.reshape(-1, values.shape[-1]).contiguous()
    return _table_gradients([index.reshape(-1).contiguous() for index in indexes], values, num_rows)


def _write_gradient(index: torch.Tensor, values: torch.Tensor, grad: torch.Tensor) -> None:
    """Write the gradient [V, D] of one table."""
    if not values.numel():
        grad.zero_()
        return
    num_rows, rest = len(grad), len(grad) % BLOCK_ROWS
    dense = num_rows - rest if num_rows > BLOCK_ROWS and rest <= RARE_ROWS else num_rows
    torch.sum(_dense_sums(index, values, dense), dim=0, out=grad[:dense])
    if dense < num_rows:
        torch.sum(_rare_sums(index, values, dense, num_rows - dense), dim=0, out=grad[dense:])


def _dense_sums(index: torch.Tensor, values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[splits, rows, D]: of each share of the reads, the sums of the first rows."""
    (reads, dim), columns = values.shape, _columns(values)
    block_rows = min(BLOCK_ROWS, max(64, triton.next_power_of_2(num_rows)))
    across, down = triton.cdiv(dim, columns), triton.cdiv(num_rows, block_rows)
    all_steps = triton.cdiv(reads, BLOCK_READS)
    steps = triton.cdiv(all_steps, max(1, num_programs(values.device, 1) // (across * down)))
    splits = triton.cdiv(all_steps, steps)
    sums = torch.empty((splits, num_rows, dim), dtype=torch.float32, device=values.device)
    _dense_kernel[(across, down, splits)](
        torch.arange(num_rows, dtype=torch.int32, device=values.device),
        index,
        values,
        sums,
        reads,
        steps,
        num_rows,
        dim,
        block_rows=block_rows,
        block_columns=columns,
        block_reads=BLOCK_READS,
        num_warps=8 if block_rows == BLOCK_ROWS else 4,
        num_stages=NUM_STAGES,
    )
    return sums


def _rare_sums(index: torch.Tensor, values: torch.Tensor, first_row: int, num_rows: int) -> torch.Tensor:
    """[programs, rows, D]: of each share of the reads, the sums of the rows from `first_row` on."""
    (reads, dim), columns = values.shape, _columns(values)
    across = triton.cdiv(dim, columns)
    programs = max(1, num_programs(values.device, RARE_PROGRAMS_PER_PROCESSOR) // across)
    programs = min(programs, triton.cdiv(reads, LOOKED_THROUGH))
    sums = torch.empty((programs, num_rows, dim), dtype=torch.float32, device=values.device)
    _rare_kernel[(across, programs)](
        index,
        values,
        sums,
        reads,
        first_row,
        num_rows,
        dim,
        block_rows=RARE_ROWS,
        block_columns=columns,
        block_reads=32,
        looked_through=LOOKED_THROUGH,
        num_warps=4,
    )
    return sums


def _columns(values: torch.Tensor) -> int:
    """Columns of a block: a product wants 16 at least."""
    return min(BLOCK_COLUMNS, max(16, triton.next_power_of_2(values.shape[1])))
