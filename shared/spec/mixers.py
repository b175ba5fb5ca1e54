"""The mixer of positions in each layer of the trunk (docs/techniques.md 7)."""

from __future__ import annotations

from typing import Literal

from shared.spec.attention import AttentionSpec
from shared.spec.base import require, require_all

MixerKind = Literal["attention", "mamba2", "gated_delta"]

MIXERS_DESCRIPTION = (
    "what each layer of the trunk mixes positions with; empty is attention everywhere. The others carry a state S "
    "[C, K] per query head over the window, zero at first. mamba2: S[t] = a S[t-1] + (d x[t]) outer B[t] and "
    "y = S[t] C[t] + D x[t], with K = state_dim; B and C are shared by the query heads of one key/value head. "
    "gated_delta: S[t] = a S[t-1] (I - s k k') + s v k' and y = S[t] q, with K = head_dim, |k| = 1, |q| = sqrt(K), "
    "s = sigmoid(W u[t]). d = softplus(W u[t] + b) and a = exp(-d exp(A)), u the block's normalised input; x, B, C, "
    "q, k, v are silu(a causal convolution over 4 positions of a projection of u); y is gated by silu(W u[t]). "
    "Learned per head: A, b, D"
)


def check_mixers(mixers: tuple[MixerKind, ...], num_layers: int, attention: AttentionSpec) -> None:
    """Raise ValueError for mixers of other layers, or for add-ons on layers that are not attention."""
    allowed = f"empty or one mixer for each of the {num_layers} layers (model.num_layers)"
    require(len(mixers) in (0, num_layers), "model.mixers", list(mixers), allowed)
    stateful = [layer for layer, mixer in enumerate(mixers) if mixer != "attention"]
    if not stateful:
        return
    # Layers from the last one down to the last that is not attention.
    attention_at_end = num_layers - 1 - stateful[-1]
    only_later = f"at most {attention_at_end}, as layer {stateful[-1]} of model.mixers is no attention"
    no_attention, none_left = len(stateful) == num_layers, "0, as model.mixers has no attention"
    require_all(
        attention,
        "model.attention",
        (not attention.document_mask, "document_mask", "false, as the state of model.mixers crosses documents"),
        (attention.output_gate == "none", "output_gate", "'none', as model.mixers has layers with gates of their own"),
        (attention.xsa_layers <= attention_at_end, "xsa_layers", only_later),
        (attention.value_embed_layers <= attention_at_end, "value_embed_layers", only_later),
        (
            not attention.value_residual or (0 not in stateful and len(stateful) < num_layers - 1),
            "value_residual",
            "false, unless the first layer of model.mixers and a later one are attention",
        ),
        (not attention.window or not no_attention, "window", none_left),
        (not attention.ntk_positions or not no_attention, "ntk_positions", none_left),
    )
