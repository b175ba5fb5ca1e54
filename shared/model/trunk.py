"""The trunk: blocks in their virtual order, with U-Net skips and a mix of the input (docs/techniques.md 3.1, 6)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.block import run_block
from shared.model.block_shape import trunk_block_shape
from shared.model.layer_order import LayerStep, layer_order
from shared.model.parallel import palm_block, two_lane_block
from shared.model.trunk_context import TrunkContext
from shared.ops import Array, Ops
from shared.spec import ModelSpec
from shared.stages import LOOP_RAMP

# The residual stream: one lane, or two in blocks of the two-lane form.
Lanes = tuple[Array, ...]


def run_trunk(
    ops: Ops, model: ModelSpec, params: Mapping[str, Array], x0: Array, context: TrunkContext | None = None
) -> Array:
    """Normalised trunk outputs [B, N, D] of inputs x0 [B, N, D]; row i depends on rows <= i.

    Without a context the layers read nothing beside their input; specs that need more fail an assertion.
    """
    context = context or TrunkContext()
    kept: list[Array] = []
    lanes: Lanes = (x0,)
    for step in layer_order(model):
        if step.skip is not None:
            lanes = (_with_skip(ops, model, params, step.skip, lanes[0], kept.pop()), *lanes[1:])
        after = _run_layer(ops, model, params, step.layer, lanes, x0, context)
        lanes = _gated(ops, model, params, step, lanes, after)
        if step.keeps_output:
            kept.append(_merged(lanes))
    return ops.rms_norm(_merged(lanes), model.norm_eps)


def _run_layer(
    ops: Ops,
    model: ModelSpec,
    params: Mapping[str, Array],
    layer: int,
    lanes: Lanes,
    x0: Array,
    context: TrunkContext,
) -> Lanes:
    """The lanes after one layer, in the form that the spec gives it."""
    prefix, shape, x = f"layers.{layer}", trunk_block_shape(model, layer), lanes[0]
    if model.resid_mix:
        mix = ops.cast_like(params[f"{prefix}.resid_mix"], x)
        x = mix[0] * x + mix[1] * x0
    form = model.parallel.form if layer >= model.parallel.first_layer else "off"
    if form == "two_lane":
        return two_lane_block(ops, model, shape, params, prefix, (lanes[0], lanes[-1]), x, context)
    if form == "palm":
        return (palm_block(ops, model, shape, params, prefix, x, context),)
    return (run_block(ops, model, shape, params, prefix, x, context),)


def _with_skip(ops: Ops, model: ModelSpec, params: Mapping[str, Array], number: int, x: Array, kept: Array) -> Array:
    """x + w * kept; with skip gates (1 - s) w * kept + s x, s = sigmoid(g)."""
    entering = ops.cast_like(params[f"skips.{number}.weight"], x) * kept
    if not model.skip_gates:
        return x + entering
    gate = ops.cast_like(ops.sigmoid(params[f"skips.{number}.gate"]), x)
    return entering + gate * (x - entering)


def _gated(
    ops: Ops, model: ModelSpec, params: Mapping[str, Array], step: LayerStep, before: Lanes, after: Lanes
) -> Lanes:
    """before + g (after - before) in a gated extra pass, g the learned gate times the run's ramp; else `after`."""
    loop = model.loop
    if not loop.gates or step.extra_pass == 0:
        return after
    gate = params["loop.gates"][step.extra_pass - 1, step.layer - loop.first_layer]
    if LOOP_RAMP in params:
        gate = gate * params[LOOP_RAMP]
    gate = ops.cast_like(gate, after[0])
    return tuple(old + gate * (new - old) for old, new in zip(before, after, strict=True))


def _merged(lanes: Lanes) -> Array:
    """The mean of the lanes."""
    return lanes[0] if len(lanes) == 1 else 0.5 * (lanes[0] + lanes[1])
