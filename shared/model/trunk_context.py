"""What the layers of the trunk read beside their input: documents, value embeddings, the first layer's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.model.documents import position_documents
from shared.ops import Array, Ops
from shared.spec import Spec


@dataclass
class TrunkContext:
    """Made anew for each forward pass. `documents` is int32 [B, N], `value_embeds` [B, N, G * C]; the first layer
    leaves its values [B, N, G, C] in `first_values` when a later one wants them."""

    documents: Array | None = None
    value_embeds: Array | None = None
    first_values: Array | None = None


def trunk_context(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> TrunkContext:
    """The context of symbols x [B, T]: entry i of each array depends on patches < i only."""
    return TrunkContext(position_documents(ops, spec, x), _value_embeds(ops, spec, params, x))


def _value_embeds(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array | None:
    """W concat(E[x[(i - 1) P]], ..., E[x[iP - 1]]) for position i, zero for position 0: [B, N, G * C]."""
    dim, patch_size = spec.model.attention.value_embed_dim, spec.model.patch_size
    if dim == 0:
        return None
    batch, time = x.shape
    rows = ops.embedding(params["value_embed.weight"], x, spec.training.dtype)
    values = ops.linear(
        rows.reshape((batch, time // patch_size, patch_size * dim)), params["value_embed.value_proj.weight"]
    )
    return ops.concatenate([0.0 * values[:, :1], values[:, :-1]], axis=1)
