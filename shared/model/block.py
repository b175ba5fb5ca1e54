"""One block, of the trunk or of the local decoder: attention or a recurrent mixer, and an MLP.

One after the other, or side by side in a parallel form (docs/techniques.md 3.1, 6.3, 7).
"""

from __future__ import annotations

from shared.model.attention import attend
from shared.model.gated_delta import gated_delta
from shared.model.layer import Layer
from shared.model.mamba2 import mamba2
from shared.ops import Array

# What mixes the positions of a block.
MIXERS = {"attention": attend, "mamba2": mamba2, "gated_delta": gated_delta}


def run_block(layer: Layer, x_BTD: Array) -> Array:
    """One pre-norm block: h = x + a * Attention(rms(x)); h + m * MLP(rms(h))."""
    x_BTD = x_BTD + attention_branch(layer, x_BTD)
    return x_BTD + mlp_branch(layer, x_BTD)


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
    mixer = layer.shape.mixer
    mixed_BTD = MIXERS[mixer](layer, _normalised(layer, x_BTD))
    return layer.control("attn.scale" if mixer == "attention" else f"{mixer}.scale", x_BTD) * mixed_BTD


def mlp_branch(layer: Layer, x_BTD: Array) -> Array:
    """m * MLP(rms(x)), with the learned scale m [D]."""
    up_FD, down_DF = layer.weight("mlp.up_proj"), layer.weight("mlp.down_proj")
    slope = layer.model.mlp_negative_slope
    mlp_BTD = layer.ops.leaky_relu_squared_mlp(_normalised(layer, x_BTD), up_FD, down_DF, slope)
    return layer.control("mlp.scale", x_BTD) * mlp_BTD


def _normalised(layer: Layer, x_BTD: Array) -> Array:
    """rms(x), times the block's norm scale where it has one."""
    normalised = layer.rms_norm(x_BTD)
    return normalised if layer.shape.norm_scale == 1.0 else layer.shape.norm_scale * normalised
