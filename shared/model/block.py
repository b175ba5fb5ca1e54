"""One block, of the trunk or of the local decoder: attention or a recurrent mixer, and an MLP.

One after the other, or side by side in a parallel form (docs/techniques.md 3.1, 6.3, 7).
"""

from __future__ import annotations

from shared.model.attention import attend
from shared.model.gated_delta import gated_delta
from shared.model.layer import Layer
from shared.model.mamba2 import mamba2
from shared.ops import Array
from shared.ops.composed import scaled_norm

# What mixes the positions of a block in place of attention.
MIXERS = {"mamba2": mamba2, "gated_delta": gated_delta}


def run_block(
    layer: Layer, x_BTD: Array, added: Array | None = None, first: Array | None = None, mix: Array | None = None
) -> tuple[Array, Array]:
    """One pre-norm block as two summands, which the next norm adds: h = x + a * Attention(rms(x)) and m * MLP(rms(h)).

    x is `x_BTD` with what else is `added` to it, mixed with `first` where the block has a mix.
    """
    x_BTD, normalised = _entered(layer, x_BTD, added, first, mix)
    return layer.ops.normed_mlp(
        x_BTD, _mixer(layer, normalised), *_mlp_arguments(layer), layer.shape.norm_scale, layer.model.norm_eps
    )


def palm_block(layer: Layer, x_BTD: Array) -> Array:
    """x + A(rms(x)) + M(rms(x)): both read the block's input."""
    return x_BTD + attention_branch(layer, x_BTD) + mlp_branch(layer, x_BTD)


def two_lane_block(layer: Layer, lanes: tuple[Array, Array], attention_input: Array) -> tuple[Array, Array]:
    """Both lanes [B, T, D] after the block: lane k is r[k] lane k + p[0, k] A + p[1, k] M.

    A reads `attention_input`, which is lane 0 or its mix with x0; M reads lane 1.
    """
    attention = attention_branch(layer, attention_input)
    mlp = mlp_branch(layer, lanes[1])
    keep, post = layer.control("lanes.resid", attention), layer.control("lanes.post", attention)
    first, second = (keep[lane] * lanes[lane] + post[0, lane] * attention + post[1, lane] * mlp for lane in (0, 1))
    return first, second


def attention_branch(layer: Layer, x_BTD: Array) -> Array:
    """a * Attention(rms(x)), with the learned scale a [D]; or the layer's other mixer in place of attention."""
    return _mixer(layer, _entered(layer, x_BTD)[1])


def mlp_branch(layer: Layer, x_BTD: Array) -> Array:
    """m * MLP(rms(x)), with the learned scale m [D]."""
    return layer.ops.gained_mlp(_entered(layer, x_BTD)[1], *_mlp_arguments(layer))


def _mixer(layer: Layer, normalised: Array) -> Array:
    mixer = layer.shape.mixer
    if mixer == "attention":
        return attend(layer, normalised)
    return layer.control(f"{mixer}.scale", normalised) * MIXERS[mixer](layer, normalised)


def _mlp_arguments(layer: Layer) -> tuple[Array, Array, float, Array]:
    """Weights, slope and gain, as the operations take them."""
    up_FD, down_DF, scale = layer.weight("mlp.up_proj"), layer.weight("mlp.down_proj"), layer.control("mlp.scale")
    return up_FD, down_DF, layer.model.mlp_negative_slope, scale


def _entered(
    layer: Layer, x_BTD: Array, added: Array | None = None, first: Array | None = None, mix: Array | None = None
) -> tuple[Array, Array]:
    """(the sum that enters a half of the block, its norm times the block's norm scale where it has one)."""
    x_BTD, normalised = layer.ops.residual_norm(x_BTD, added, first, mix, layer.model.norm_eps)
    return x_BTD, scaled_norm(normalised, layer.shape.norm_scale)
