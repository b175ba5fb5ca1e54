"""From trunk outputs to the logits of every symbol (docs/techniques.md 4.2).

The trunk output h[:, i] has seen patches < i only, so each decoder is honest by construction: the
MLP, experts and linear decoders give every symbol of patch i a distribution from h[:, i] alone; the
autoregressive one adds the earlier symbols of patch i through a causal transformer over the patch.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.adapters import with_adapters
from shared.model.block import run_block
from shared.model.embedding import tied_logits
from shared.model.layer import decoder_layer
from shared.model.ngram import decoder_ngrams
from shared.ops import Array, Ops
from shared.spec import Spec


def decode_patches(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array, x_BT: Array = None) -> Array:
    """Logits [B, T, V] before the softcap, from trunk outputs h and symbols x, which only an autoregressive decoder
    reads."""
    params = with_adapters(ops, spec.model, params)
    kind = spec.model.decoder.kind
    if kind == "autoregressive":
        logits = _autoregressive(ops, spec, params, h_BND, x_BT)
    elif kind == "mlp":
        logits = _mlp_heads(ops, spec, params, h_BND)
    elif kind == "experts":
        logits = _experts(ops, spec, params, h_BND)
    elif spec.model.tie_embeddings:
        logits = tied_logits(ops, spec, params, h_BND)
    else:
        logits = ops.linear(h_BND, params["head.weight"])
    return logits.reshape((h_BND.shape[0], h_BND.shape[1] * spec.model.patch_size, spec.vocabulary.size))


def _autoregressive(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array, x_BT: Array) -> Array:
    """z[i, p] = W[p] h[i] + rms(c[iP + p]) + position[p], blocks inside the patch, head: [B * N, P, V]."""
    condition = patch_conditions(ops, spec, params, h_BND)
    return patch_logits(ops, spec, params, condition, earlier_symbols(ops, spec, params, x_BT), 0)


def patch_conditions(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array) -> Array:
    """W[p] h[i], [B * N, P, dim]: to the decoder each patch is a sequence of its own."""
    batch, num_patches, _ = h_BND.shape
    patches = (batch * num_patches, spec.model.patch_size, spec.model.decoder.dim)
    return ops.linear(h_BND, params["decoder.cond_proj.weight"]).reshape(patches)


def earlier_symbols(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array:
    """rms(c[t]), [B, T, dim]: c[t] is E[x[t - 1]], or with a context of K symbols W_c concat(E[x[t - 1]], ...,
    E[x[t - K]]); n-grams that the decoder reads are added to it."""
    model = spec.model
    start = ops.broadcast_to(params["decoder.start"], (x_BT.shape[0], 1, model.decoder.dim))
    table, projection = params["decoder.embed.weight"], params.get("decoder.context_proj.weight")
    previous = ops.symbol_context(table, start, projection, x_BT, spec.training.dtype)
    if model.ngram.lengths_for("decoder"):
        previous = previous + decoder_ngrams(ops, spec, params, x_BT)
    return ops.rms_norm(previous, model.norm_eps)


def patch_logits(
    ops: Ops, spec: Spec, params: Mapping[str, Array], condition: Array, previous: Array, first: int
) -> Array:
    """Logits [S, L, V] of positions first ... first + L - 1 of S patches from what the trunk says of them
    [S, L, dim] and their earlier symbols, reshaped to that."""
    model = spec.model
    position = params["decoder.position"][first : first + condition.shape[1]]
    z = condition + previous.reshape(condition.shape) + ops.cast_like(position, condition)
    mlp: Array | None = None
    for index in range(model.decoder.num_layers):
        z, mlp = run_block(decoder_layer(ops, model, params, index), z, mlp)
    head = params["decoder.embed.weight"] if model.tie_embeddings else params["head.weight"]
    return ops.linear(ops.residual_norm(z, mlp, None, None, model.norm_eps)[1], head)


def _mlp_heads(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array) -> Array:
    """One head per position: W2[p] relu(W1[p] (h + e[p])), [B, N, P * V] (docs/techniques.md 4.2)."""
    positions_PD = ops.cast_like(params["decoder.position"], h_BND)
    logits = []
    for position in range(spec.model.patch_size):
        prefix = f"decoder.heads.{position}"
        hidden_BNF = ops.linear(h_BND + positions_PD[position], params[f"{prefix}.up_proj.weight"])
        logits.append(ops.linear(ops.relu(hidden_BNF), params[f"{prefix}.down_proj.weight"]))
    return ops.concatenate(logits, axis=-1)


def _experts(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array) -> Array:
    """sum over e of softmax(R z)[e] W_e z with z = h + position[p]: [B, N, P, V] (docs/techniques.md 4.2).

    Every map is linear, so W z is W h + W position[p], the first once per patch and the second once in all.
    """
    positions_PD = ops.cast_like(params["decoder.position"], h_BND)

    def of_each_position(weight: Array) -> Array:
        """W z: [B, N, P, rows of W]."""
        return ops.linear(h_BND, weight)[:, :, None] + ops.linear(positions_PD, weight)

    shares = ops.softmax(of_each_position(params["decoder.router.weight"]))
    logits = [
        shares[..., expert : expert + 1] * of_each_position(params[f"decoder.experts.{expert}.weight"])
        for expert in range(spec.model.decoder.num_experts)
    ]
    total = logits[0]
    for more in logits[1:]:
        total = total + more
    return total
