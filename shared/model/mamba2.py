"""The selective state space of Mamba-2 as a mixer of the trunk, computed in chunks (docs/techniques.md 7.1)."""

from __future__ import annotations

from shared.model import chunks
from shared.model.layer import Layer
from shared.ops import Array, Ops


def mamba2(layer: Layer, u_BND: Array) -> Array:
    """The mixer's output [B, N, D] of the block's normalised input u; row i depends on rows <= i.

    The scan is computed in float32 whatever u is.
    """
    ops, shape = layer.ops, layer.shape
    batch, positions, _ = u_BND.shape
    groups, heads = shape.num_kv_heads, shape.num_heads
    inner, shared = heads * shape.head_dim, groups * shape.state_dim
    projected = [layer.linear(f"mamba2.{name}_proj", u_BND) for name in ("x", "b", "c")]
    mixed = chunks.short_convolution(ops, ops.concatenate(projected, axis=-1), layer.control("mamba2.conv"))
    mixed = ops.cast(mixed, "float32")
    x_BNHC = mixed[..., :inner].reshape((batch, positions, heads, shape.head_dim))
    b_BNGS = mixed[..., inner : inner + shared].reshape((batch, positions, groups, shape.state_dim))
    c_BNGS = mixed[..., inner + shared :].reshape((batch, positions, groups, shape.state_dim))
    step_BNH, log_decay_BNH = chunks.step_and_log_decay(layer, u_BND)
    inputs = (step_BNH[..., None] * x_BNHC, log_decay_BNH, b_BNGS, c_BNGS)
    y_BNHC = ops.recurrent(selective_scan, selective_step, inputs)
    y_BNHC = y_BNHC + layer.control("mamba2.skip")[:, None] * x_BNHC
    y = ops.cast_like(y_BNHC.reshape((batch, positions, inner)), u_BND)
    y = y * chunks.silu(ops, layer.linear("mamba2.z_proj", u_BND))
    return layer.linear("mamba2.o_proj", y)


def selective_scan(
    ops: Ops, x_BNHC: Array, log_decay_BNH: Array, b_BNGS: Array, c_BNGS: Array, largest_chunk: int = chunks.CHUNK
) -> Array:
    """y[t] = S[t] c[t] with S[t] = a[t] S[t-1] + x[t] outer b[t] from S = 0: [B, N, H, C].

    Head h reads b and c of group floor(h * G / H).
    """
    batch, positions, heads, width = x_BNHC.shape
    groups, state = b_BNGS.shape[2], b_BNGS.shape[3]
    size = chunks.chunk_size(positions, largest_chunk)
    x_BKHLC, log_decay_BKHL1 = (
        chunks.in_chunks(ops, x_BNHC, size),
        chunks.in_chunks(ops, log_decay_BNH[..., None], size),
    )
    b_BKGLS, c_BKGLS = chunks.in_chunks(ops, b_BNGS, size), chunks.in_chunks(ops, c_BNGS, size)
    count = x_BKHLC.shape[1]
    grouped = (batch, count, groups, heads // groups)
    decays_BKHLL = chunks.decay_matrix(ops, log_decay_BKHL1)
    scores = (c_BKGLS @ ops.transpose(b_BKGLS))[:, :, :, None] * decays_BKHLL.reshape((*grouped, size, size))
    inside = scores @ x_BKHLC.reshape((*grouped, size, width))
    if count > 1:
        # What a chunk adds to the state: each position with its decay up to the chunk's end.
        to_end = ops.transpose(decays_BKHLL[..., -1:, :])
        added = ops.transpose((to_end * x_BKHLC).reshape((*grouped, size, width))) @ b_BKGLS[:, :, :, None]
        from_start = ops.exp(ops.running_sum(log_decay_BKHL1, axis=-2))
        before = states_before(ops, added.reshape((batch, count, heads, width, state)), from_start[..., -1:, :])
        read = c_BKGLS[:, :, :, None] @ ops.transpose(before.reshape((*grouped, width, state)))
        inside = inside + from_start.reshape((*grouped, size, 1)) * read
    return chunks.out_of_chunks(ops, inside.reshape((batch, count, heads, size, width)), positions)


def selective_step(
    ops: Ops, state: Array | None, x_BHC: Array, log_decay_BH: Array, b_BGS: Array, c_BGS: Array
) -> tuple[Array, Array]:
    """(S[t] [B, G, H / G, C, S], y[t] [B, H, C]) of one position, from S[t-1] or None for 0: see `selective_scan`."""
    batch, heads, width = x_BHC.shape
    grouped = (batch, b_BGS.shape[1], heads // b_BGS.shape[1])
    added = x_BHC.reshape((*grouped, width, 1)) * b_BGS[:, :, None, None]
    state = added if state is None else ops.exp(log_decay_BH).reshape((*grouped, 1, 1)) * state + added
    return state, ops.sum(state * c_BGS[:, :, None, None], axes=(-1,)).reshape((batch, heads, width))


def states_before(ops: Ops, added_BKHCS: Array, decay: Array) -> Array:
    """The state each chunk starts with, [B, K, H, C, S]: 0, then decay[k] times the one before plus added[k].

    decay [B, K, H, 1, 1].
    """
    states = [0.0 * added_BKHCS[:, :1]]
    for chunk in range(added_BKHCS.shape[1] - 1):
        states.append(decay[:, chunk : chunk + 1] * states[-1] + added_BKHCS[:, chunk : chunk + 1])
    return ops.concatenate(states, axis=1)
