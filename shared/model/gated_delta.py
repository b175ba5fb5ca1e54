"""The gated delta rule as a mixer of the trunk, computed in chunks (docs/techniques.md 7.2)."""

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


def gated_delta(ops: Ops, shape: BlockShape, params: Mapping[str, Array], prefix: str, u: Array, eps: float) -> Array:
    """The mixer's output [B, N, D] of the block's normalised input u [B, N, D]; row i depends on rows <= i.

    Every query head has keys and values of its own. The scan is computed in float32 whatever u is.
    """
    batch, positions, _ = u.shape
    inner = shape.num_heads * shape.head_dim
    projected = [ops.linear(u, params[f"{prefix}.{name}_proj.weight"]) for name in ("q", "k", "v")]
    mixed = short_convolution(ops, ops.concatenate(projected, axis=-1), params[f"{prefix}.conv"])
    heads = ops.cast(mixed, "float32").reshape((batch, positions, 3 * shape.num_heads, shape.head_dim))
    q, k, v = (heads[:, :, part * shape.num_heads : (part + 1) * shape.num_heads] for part in range(3))
    # rms(k) is k / |k| times sqrt(K).
    q, k = ops.rms_norm(q, eps), ops.rms_norm(k, eps) * shape.head_dim**-0.5
    _, log_decay = step_and_log_decay(ops, params, prefix, u)
    strength = ops.sigmoid(ops.cast(ops.linear(u, params[f"{prefix}.strength_proj.weight"]), "float32"))
    y = delta_scan(ops, q, k, v, log_decay, strength)
    y = ops.cast_like(y.reshape((batch, positions, inner)), u)
    y = y * silu(ops, ops.linear(u, params[f"{prefix}.z_proj.weight"]))
    return ops.linear(y, params[f"{prefix}.o_proj.weight"])


def delta_scan(
    ops: Ops, q: Array, k: Array, v: Array, log_decay: Array, strength: Array, largest_chunk: int = CHUNK
) -> Array:
    """y[t] = S[t] q[t] with S[t] = a[t] S[t-1] (I - s[t] k[t] k[t]') + s[t] v[t] k[t]' from S = 0: [B, N, H, C].

    q and k [B, N, H, K], v [B, N, H, C], ln a and s [B, N, H]; |k| at most 1 and s in (0, 1).

    With w[t] = s[t] (v[t] - a[t] S[t-1] k[t]) it is S[t] = a[t] S[t-1] + w[t] k[t]', and inside of a chunk the w are
    the solution of a triangular system: w[i] = s[i] (v[i] - a[1..i] S k[i] - sum_{j < i} a[j+1..i] (k[j] k[i]) w[j])
    for the state S before the chunk.
    """
    positions = q.shape[1]
    size = chunk_size(positions, largest_chunk)
    q, k, v = (in_chunks(ops, x, size) for x in (q, k, v))
    log_decay, strength = (in_chunks(ops, x[..., None], size) for x in (log_decay, strength))
    decays = decay_matrix(ops, log_decay)
    from_start = ops.exp(ops.running_sum(log_decay, axis=-2))
    keys = ops.transpose(k)
    solve = unit_lower_inverse(ops, ops.lower_triangle(strength * decays * (k @ keys), -1))
    own, read = solve @ (strength * v), solve @ (strength * from_start * k)
    written, states = _carried(ops, own, read, keys * decays[..., -1:, :], from_start[..., -1:, :])
    y = (decays * (q @ keys)) @ written
    if states is not None:
        y = y + from_start * (q @ states)
    return out_of_chunks(ops, y, positions)


def unit_lower_inverse(ops: Ops, x: Array) -> Array:
    """The inverse of I + x for strictly lower triangular x [..., L, L], L a power of two.

    By halves: the inverse of [[P, 0], [Q, R]] is [[p, 0], [-r Q p, r]] with the inverses p and r of P and R, which are
    computed together. No power of x occurs, as they grow large where keys are alike.
    """
    size = x.shape[-1]
    if size == 1:
        return 1.0 + x
    half = size // 2
    inverses = unit_lower_inverse(ops, ops.stack([x[..., :half, :half], x[..., half:, half:]]))
    first, last = inverses[0], inverses[1]
    corner = -1.0 * (last @ x[..., half:, :half] @ first)
    upper = ops.concatenate([first, 0.0 * corner], axis=-1)
    return ops.concatenate([upper, ops.concatenate([corner, last], axis=-1)], axis=-2)


def _carried(ops: Ops, own: Array, read: Array, keys: Array, decay: Array) -> tuple[Array, Array | None]:
    """(all w [B, K, H, L, C], the transposed state before each chunk [B, K, H, K, C]); None for a single chunk, whose
    state is 0.

    In a chunk w = own - read S'; then S' becomes decay S' + keys w, with keys [B, K, H, K, L] decayed to its end.
    """
    count = own.shape[1]
    if count == 1:
        return own, None
    written = [own[:, :1]]
    # Zeros in the shape of a state, without a product.
    states = [0.0 * (keys[:, :1, :, :, :1] * own[:, :1, :, :1])]
    for chunk in range(1, count):
        before = slice(chunk - 1, chunk)
        states.append(decay[:, before] * states[-1] + keys[:, before] @ written[-1])
        here = slice(chunk, chunk + 1)
        written.append(own[:, here] - read[:, here] @ states[-1])
    return ops.concatenate(written, axis=1), ops.concatenate(states, axis=1)
