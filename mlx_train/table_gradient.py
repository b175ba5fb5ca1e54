"""The gradient of a table's rows without atomic additions, for a GPU.

MLX's gradient of `table[index]` is a scatter that adds with atomics on Metal: rows that are read often are added up in
whatever order threads arrive, so two equal steps differ in their last bits. Here every addition has a fixed order.
"""

from __future__ import annotations

import mlx.core as mx

# Up to this many rows one product with the one-hot matrix of the index is cheaper than sorting it.
ONE_HOT_ROWS = 2048
# Most entries of that matrix, float32: 128 MB.
ONE_HOT_ENTRIES = 1 << 25
# Sorted rows are added up in blocks of this many, by one product with a matrix of this size each.
BLOCK_ROWS = 64


@mx.custom_function
def read_rows(table: mx.array, index: mx.array) -> mx.array:
    """`table[index]`: rows [..., D] of a float32 table [V, D] by an integer index [...]."""
    return table[index]


@read_rows.vjp
def _read_rows_vjp(primals: tuple[mx.array, mx.array], grad: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    table, index = primals
    flat = index.reshape(-1)
    add_up = summed_by_one_hot if fits_one_hot(table.shape[0], flat.size) else summed_by_sorting
    return add_up(flat, grad.reshape(flat.size, -1), table.shape[0]), mx.zeros_like(index)


def fits_one_hot(num_rows: int, count: int) -> bool:
    """Whether the one-hot matrix of `count` indices into a table of `num_rows` is small enough to be written out."""
    return num_rows <= ONE_HOT_ROWS and num_rows * count <= ONE_HOT_ENTRIES


def summed_by_one_hot(index: mx.array, values: mx.array, num_rows: int) -> mx.array:
    """Row v is the sum of values [N, D] where index [N] is v: [num_rows, D], as one matrix product."""
    hits = mx.arange(num_rows, dtype=index.dtype)[:, None] == index
    return hits.astype(values.dtype) @ values


def summed_by_sorting(index: mx.array, values: mx.array, num_rows: int) -> mx.array:
    """The same by sorting the index: equal ones become a run, runs are added up, and each total is written once."""
    order = mx.argsort(index)
    keys = index[order]
    sums = running_sums(keys, values[order])
    ends = mx.concatenate([keys[1:] != keys[:-1], mx.array([True])])
    # Every sum but the last of a run goes to one row more, which is dropped.
    written = mx.zeros((num_rows + 1, values.shape[1]), values.dtype)
    written[mx.where(ends, keys, num_rows)] = sums
    return written[:num_rows]


def running_sums(keys: mx.array, values: mx.array) -> mx.array:
    """Row i is the sum of the values [N, D] of its run of equal keys [N] (sorted) up to i: [N, D].

    First inside blocks of rows. Then the run that a block begins with gets what the earlier blocks hold of it, which
    is the running sum over the last rows of the blocks.
    """
    count, width = values.shape
    if count <= BLOCK_ROWS:
        return _sums_in_blocks(keys[None], values[None])[0]
    padding = -count % BLOCK_ROWS
    keys = mx.concatenate([keys, mx.broadcast_to(keys[-1:], (padding,))]).reshape(-1, BLOCK_ROWS)
    values = mx.concatenate([values, mx.zeros((padding, width), values.dtype)]).reshape(-1, BLOCK_ROWS, width)
    sums = _sums_in_blocks(keys, values)
    last_keys = keys[:-1, -1]
    earlier = running_sums(last_keys, sums[:-1, -1])
    continues = keys[1:] == last_keys[:, None]
    sums = mx.concatenate([sums[:1], sums[1:] + mx.where(continues[..., None], earlier[:, None], 0.0)])
    return sums.reshape(-1, width)[:count]


def _sums_in_blocks(keys: mx.array, values: mx.array) -> mx.array:
    """`running_sums` of each block on its own, as one matrix product: keys [blocks, rows], values [blocks, rows, D]."""
    added = mx.tril(keys[:, :, None] == keys[:, None, :])
    return added.astype(values.dtype) @ values
