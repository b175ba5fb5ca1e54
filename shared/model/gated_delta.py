"""The gated delta rule as a mixer of the trunk, computed in chunks (docs/techniques.md 7.2)."""

from __future__ import annotations

from shared.model import chunks
from shared.model.layer import Layer
from shared.ops import Array, Ops


def gated_delta(layer: Layer, u_BND: Array) -> Array:
    """The mixer's output [B, N, D] of the block's normalised input u; row i depends on rows <= i.

    Every query head has keys and values of its own. The scan is computed in float32 whatever u is.
    """
    ops, heads, width = layer.ops, layer.shape.num_heads, layer.shape.head_dim
    batch, positions, _ = u_BND.shape
    projected = [layer.linear(f"gated_delta.{name}_proj", u_BND) for name in ("q", "k", "v")]
    mixed = chunks.short_convolution(ops, ops.concatenate(projected, axis=-1), layer.control("gated_delta.conv"))
    qkv = ops.cast(mixed, "float32").reshape((batch, positions, 3 * heads, width))
    q_BNHC, k_BNHC, v_BNHC = (qkv[:, :, part * heads : (part + 1) * heads] for part in range(3))
    # rms(k) is k / |k| times sqrt(C).
    q_BNHC, k_BNHC = layer.rms_norm(q_BNHC), layer.rms_norm(k_BNHC) * width**-0.5
    _, log_decay_BNH = chunks.step_and_log_decay(layer, u_BND)
    strength_BNH = ops.sigmoid(ops.cast(layer.linear("gated_delta.strength_proj", u_BND), "float32"))
    y_BNHC = ops.recurrent(delta_scan, delta_step, (q_BNHC, k_BNHC, v_BNHC, log_decay_BNH, strength_BNH))
    y = ops.cast_like(y_BNHC.reshape((batch, positions, heads * width)), u_BND)
    y = y * chunks.silu(ops, layer.linear("gated_delta.z_proj", u_BND))
    return layer.linear("gated_delta.o_proj", y)


def delta_scan(
    ops: Ops,
    q_BNHS: Array,
    k_BNHS: Array,
    v_BNHC: Array,
    log_decay_BNH: Array,
    strength_BNH: Array,
    largest_chunk: int = chunks.CHUNK,
) -> Array:
    """y[t] = S[t] q[t] with S[t] = a[t] S[t-1] (I - s[t] k[t] k[t]') + s[t] v[t] k[t]' from S = 0: [B, N, H, C].

    ln a is `log_decay` and s `strength`; |k| at most 1 and s in (0, 1).

    With w[t] = s[t] (v[t] - a[t] S[t-1] k[t]) it is S[t] = a[t] S[t-1] + w[t] k[t]', and inside a chunk the w are
    the solution of a triangular system: w[i] = s[i] (v[i] - a[1..i] S k[i] - sum_{j < i} a[j+1..i] (k[j] k[i]) w[j])
    for the state S before the chunk.
    """
    positions = q_BNHS.shape[1]
    size = chunks.chunk_size(positions, largest_chunk)
    q_BKHLS, k_BKHLS, v_BKHLC = (chunks.in_chunks(ops, x, size) for x in (q_BNHS, k_BNHS, v_BNHC))
    log_decay, strength = (chunks.in_chunks(ops, x[..., None], size) for x in (log_decay_BNH, strength_BNH))
    decays_BKHLL = chunks.decay_matrix(ops, log_decay)
    from_start = ops.exp(ops.running_sum(log_decay, axis=-2))
    k_BKHSL = ops.transpose(k_BKHLS)
    solve_BKHLL = unit_lower_inverse(ops, ops.lower_triangle(strength * decays_BKHLL * (k_BKHLS @ k_BKHSL), -1))
    own_BKHLC, read_BKHLS = solve_BKHLL @ (strength * v_BKHLC), solve_BKHLL @ (strength * from_start * k_BKHLS)
    to_end_BKHSL = k_BKHSL * decays_BKHLL[..., -1:, :]
    written_BKHLC, states = _carried(ops, own_BKHLC, read_BKHLS, to_end_BKHSL, from_start[..., -1:, :])
    y_BKHLC = (decays_BKHLL * (q_BKHLS @ k_BKHSL)) @ written_BKHLC
    if states is not None:
        y_BKHLC = y_BKHLC + from_start * (q_BKHLS @ states)
    return chunks.out_of_chunks(ops, y_BKHLC, positions)


def delta_step(
    ops: Ops, state: Array | None, q_BHS: Array, k_BHS: Array, v_BHC: Array, log_decay_BH: Array, strength_BH: Array
) -> tuple[Array, Array]:
    """(S[t] [B, H, C, S], y[t] [B, H, C]) of one position, from S[t-1] or None for 0: see `delta_scan`."""
    strength_BH1 = strength_BH[..., None]
    if state is None:
        state = (strength_BH1 * v_BHC)[..., None] * k_BHS[:, :, None]
    else:
        state = ops.exp(log_decay_BH)[..., None, None] * state
        written_BHC = strength_BH1 * (v_BHC - (state @ k_BHS[..., None])[..., 0])
        state = state + written_BHC[..., None] * k_BHS[:, :, None]
    return state, (state @ q_BHS[..., None])[..., 0]


def unit_lower_inverse(ops: Ops, x: Array) -> Array:
    """The inverse of I + x for strictly lower triangular x [..., L, L], L a power of two.

    By halves: the inverse of [[P, 0], [Q, R]] is [[p, 0], [-r Q p, r]] with the inverses p and r of P and R, which are
    computed together. No power of x occurs: these grow large where keys are alike.
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


def _carried(ops: Ops, own_BKHLC: Array, read_BKHLS: Array, k_BKHSL: Array, decay: Array) -> tuple[Array, Array | None]:
    """(all w [B, K, H, L, C], the transposed state before each chunk [B, K, H, S, C]); None for a single chunk, whose
    state is 0.

    In a chunk w = own - read S'; then S' becomes decay S' + k w, with keys decayed to its end.
    """
    count = own_BKHLC.shape[1]
    if count == 1:
        return own_BKHLC, None
    written = [own_BKHLC[:, :1]]
    # Zeros in the shape of a state, without a product.
    states = [0.0 * (k_BKHSL[:, :1, :, :, :1] * own_BKHLC[:, :1, :, :1])]
    for chunk in range(1, count):
        before = slice(chunk - 1, chunk)
        states.append(decay[:, before] * states[-1] + k_BKHSL[:, before] @ written[-1])
        here = slice(chunk, chunk + 1)
        written.append(own_BKHLC[:, here] - read_BKHLS[:, here] @ states[-1])
    return ops.concatenate(written, axis=1), ops.concatenate(states, axis=1)
