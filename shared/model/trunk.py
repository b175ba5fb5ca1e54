"""The trunk: blocks in their virtual order, with U-Net skips and a mix of the input (docs/techniques.md 3.1, 6)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.block import palm_block, run_block, two_lane_block
from shared.model.layer import Layer, TrunkContext, trunk_layer
from shared.model.layer_order import LayerStep, layer_order
from shared.model.stages import LOOP_RAMP
from shared.ops import Array, Ops
from shared.spec import ModelSpec

# The residual stream [B, N, D]: one lane, or two in blocks of the two-lane form.
Lanes = tuple[Array, ...]


def run_trunk(
    ops: Ops, model: ModelSpec, params: Mapping[str, Array], x0_BND: Array, context: TrunkContext | None = None
) -> Array:
    """Normalised trunk outputs [B, N, D] of inputs x0; row i depends on rows <= i.

    Without a context the layers read only their input; specs that need more fail an assertion.
    """
    context = context or TrunkContext()
    kept: list[Array] = []
    lanes: Lanes = (x0_BND,)
    added: Array | None = None
    for step in layer_order(model):
        layer = trunk_layer(ops, model, params, step.layer, context)
        if step.skip is not None:
            first, *rest = _opened(layer, _summed(lanes, added))
            lanes, added = (_with_skip(layer, step.skip, first, kept.pop()), *rest), None
        if _is_gated(layer, step):
            before = _summed(lanes, added)
            lanes, added = _gated(layer, step, before, _summed(*_run_layer(layer, before, None, x0_BND))), None
        else:
            lanes, added = _run_layer(layer, lanes, added, x0_BND)
        if step.keeps_output:
            lanes, added = _summed(lanes, added), None
            kept.append(_merged(lanes))
    _, outputs_BND = ops.residual_norm(_merged(lanes), added, None, None, model.norm_eps)
    return outputs_BND


def _run_layer(layer: Layer, lanes: Lanes, added: Array | None, x0_BND: Array) -> tuple[Lanes, Array | None]:
    """(the lanes after one layer, in the form that the spec gives it; what is still to be added to the only lane)."""
    mix = layer.control("resid_mix") if layer.model.resid_mix else None
    if layer.shape.parallel == "off":
        x_BND, mlp_BND = run_block(layer, lanes[0], added, None if mix is None else x0_BND, mix)
        return (x_BND,), mlp_BND
    lanes = _summed(lanes, added)
    x_BND = lanes[0]
    if mix is not None:
        mix = layer.ops.cast_like(mix, x_BND)
        x_BND = mix[0] * x_BND + mix[1] * x0_BND
    if layer.shape.parallel == "two_lane":
        return two_lane_block(layer, (lanes[0], lanes[-1]), x_BND), None
    return (palm_block(layer, x_BND),), None


def _opened(layer: Layer, lanes: Lanes) -> Lanes:
    """The lanes that a skip finds before `layer`: where these open before it, both."""
    opens = layer.shape.parallel == "two_lane" and layer.model.parallel.split == "before_skip"
    return (lanes[0], lanes[-1]) if opens else lanes


def _summed(lanes: Lanes, added: Array | None) -> Lanes:
    """The lanes with what is still to be added to the only one."""
    return lanes if added is None else (lanes[0] + added,)


def _with_skip(layer: Layer, number: int, x_BND: Array, kept_BND: Array) -> Array:
    """x + w * kept; with skip gates (1 - s) w * kept + s x, s = sigmoid(g). `layer` is the one that reads the sum."""
    ops, params = layer.ops, layer.params
    entering = ops.cast_like(params[f"skips.{number}.weight"], x_BND) * kept_BND
    if not layer.model.skip_gates:
        return x_BND + entering
    gate = ops.cast_like(ops.sigmoid(params[f"skips.{number}.gate"]), x_BND)
    return entering + gate * (x_BND - entering)


def _is_gated(layer: Layer, step: LayerStep) -> bool:
    return layer.model.loop.gates and step.extra_pass > 0


def _gated(layer: Layer, step: LayerStep, before: Lanes, after: Lanes) -> Lanes:
    """before + g (after - before) in a gated extra pass, g the learned gate times the run's ramp."""
    loop, params = layer.model.loop, layer.params
    gate = params["loop.gates"][step.extra_pass - 1, step.layer - loop.first_layer]
    if LOOP_RAMP in params:
        gate = gate * params[LOOP_RAMP]
    gate = layer.ops.cast_like(gate, after[0])
    return tuple(old + gate * (new - old) for old, new in zip(before, after, strict=True))


def _merged(lanes: Lanes) -> Array:
    """The mean of the lanes."""
    return lanes[0] if len(lanes) == 1 else 0.5 * (lanes[0] + lanes[1])
