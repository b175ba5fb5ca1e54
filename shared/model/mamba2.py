"""The selective state space of Mamba-2 as a mixer of the trunk, computed in chunks (docs/techniques.md 7.1)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.block_shape import BlockShape
from shared.model.chunks import (
    CHUNK,
    chunk_size,
    decay_matrix,
    in_chunks,
    out_of_chunks,
    short_convolution,
    silu,
    step_and_log_decay,
)
from shared.ops import Array, Ops


def mamba2(ops: Ops, shape: BlockShape, params: Mapping[str, Array], prefix: str, u: Array) -> Array:
    """The mixer's output [B, N, D] of the block's normalised input u [B, N, D]; row i depends on rows <= i.

    The scan is computed in float32 whatever u is.
    """
    batch, positions, _ = u.shape
    groups, heads = shape.num_kv_heads, shape.num_heads
    inner, shared = heads * shape.head_dim, groups * shape.state_dim
    projected = [ops.linear(u, params[f"{prefix}.{name}_proj.weight"]) for name in ("x", "b", "c")]
    mixed = short_convolution(ops, ops.concatenate(projected, axis=-1), params[f"{prefix}.conv"])
    mixed = ops.cast(mixed, "float32")
    x = mixed[..., :inner].reshape((batch, positions, heads, shape.head_dim))
    b = mixed[..., inner : inner + shared].reshape((batch, positions, groups, shape.state_dim))
    c = mixed[..., inner + shared :].reshape((batch, positions, groups, shape.state_dim))
    step, log_decay = step_and_log_decay(ops, params, prefix, u)
    y = selective_scan(ops, step[..., None] * x, log_decay, b, c) + params[f"{prefix}.skip"][:, None] * x
    y = ops.cast_like(y.reshape((batch, positions, inner)), u)
    y = y * silu(ops, ops.linear(u, params[f"{prefix}.z_proj.weight"]))
    return ops.linear(y, params[f"{prefix}.o_proj.weight"])


def selective_scan(ops: Ops, x: Array, log_decay: Array, b: Array, c: Array, largest_chunk: int = CHUNK) -> Array:
    """y[t] = S[t] c[t] with S[t] = a[t] S[t-1] + x[t] outer b[t] from S = 0: [B, N, H, C].

    x [B, N, H, C], ln a [B, N, H], b and c [B, N, G, S]: head h reads those of group floor(h * G / H).
    """
    batch, positions, heads, width = x.shape
    groups, state = b.shape[2], b.shape[3]
    size = chunk_size(positions, largest_chunk)
    x, log_decay = in_chunks(ops, x, size), in_chunks(ops, log_decay[..., None], size)
    b, c = in_chunks(ops, b, size), in_chunks(ops, c, size)
    count = x.shape[1]
    grouped = (batch, count, groups, heads // groups)
    decays = decay_matrix(ops, log_decay)
    scores = (c @ ops.transpose(b))[:, :, :, None] * decays.reshape((*grouped, size, size))
    inside = scores @ x.reshape((*grouped, size, width))
    if count > 1:
        # What a chunk adds to the state: each position with its decay up to the chunk's end.
        to_end = ops.transpose(decays[..., -1:, :])
        added = ops.transpose((to_end * x).reshape((*grouped, size, width))) @ b[:, :, :, None]
        from_start = ops.exp(ops.running_sum(log_decay, axis=-2))
        before = states_before(ops, added.reshape((batch, count, heads, width, state)), from_start[..., -1:, :])
        read = c[:, :, :, None] @ ops.transpose(before.reshape((*grouped, width, state)))
        inside = inside + from_start.reshape((*grouped, size, 1)) * read
    return out_of_chunks(ops, inside.reshape((batch, count, heads, size, width)), positions)


def states_before(ops: Ops, added: Array, decay: Array) -> Array:
    """The state each chunk starts with, [B, K, H, C, S]: 0, then decay[k] times the one before plus added[k].

    added [B, K, H, C, S], decay [B, K, H, 1, 1].
    """
    states = [0.0 * added[:, :1]]
    for chunk in range(added.shape[1] - 1):
        states.append(decay[:, chunk : chunk + 1] * states[-1] + added[:, chunk : chunk + 1])
    return ops.concatenate(states, axis=1)
