"""Depth wiring: the order in which layers run, and how their outputs are combined (docs/techniques.md 6)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from shared.spec.base import Count, Fraction, Section, require, require_all

# A spec may come from a stranger's artifact: its virtual order must stay small.
MAX_EXTRA_LOOPS = 64
# Each stage of a run is a function of its own that an engine compiles before the clock starts.
MAX_STAGES = 4


class LoopSpec(Section):
    """Depth recurrence: layers first_layer to last_layer run 1 + extra_loops times with the same weights.

    The virtual order is [0 .. first - 1] + [first .. last] * (1 + extra_loops) + [last + 1 .. num_layers - 1].
    """

    first_layer: Count = Field(0, description="first layer of the loop, counted from 0")
    last_layer: Count = Field(0, description="last layer of the loop, counted from 0")
    extra_loops: Annotated[int, Field(ge=0, le=MAX_EXTRA_LOOPS)] = Field(0, description="further passes; 0 is no loop")
    gates: bool = Field(
        False,
        description="extra passes give x + g (B(x) - x) instead of B(x), B a block; a learned g per pass and layer, "
        "1 at first",
    )
    skips: Literal["halves", "outside"] = Field(
        "halves",
        description="U-Net skips from the first half of the virtual order to the second, or from before the loop to "
        "after it",
    )


class ParallelSpec(Section):
    """Attention and MLP side by side in layers first_layer and later; A and M below carry their scales.

    `palm`: n = rms(x); x + A(n) + M(n). `two_lane`: x becomes two lanes l0 = l1 = x. Attention reads l0 (mixed
    with x0 where resid_mix is on), the MLP reads l1; lane k becomes r[k] lk + p[0, k] A + p[1, k] M with learned
    r, 1.1 at first, and p, 1 at first. Skips enter lane 0; the lanes leave as their mean. `split` says whether the skip
    that enters the first such layer does so before the stream becomes two, and so is in both.
    """

    form: Literal["off", "palm", "two_lane"] = Field(
        "off",
        description="off: the MLP reads the stream that attention has added to; palm and two_lane: see the section",
    )
    first_layer: Count = Field(0, description="first layer in this form, counted from 0")
    split: Literal["after_skip", "before_skip"] = Field(
        "after_skip",
        description="two_lane: the stream becomes two lanes after the U-Net skip into first_layer, or before it, "
        "as published (#1530), so that this skip is in lane 0 alone",
    )


class LoopScheduleSpec(Section):
    """When model.loop runs. Before, the layers run in plain order with the same parameters; a score always uses
    every loop. Extra loop k = 1, 2, .. runs once both
    progress >= start_frac + (k - 1) stagger_frac and step >= start_step + (k - 1) stagger_steps."""

    start_frac: Fraction = Field(0.0, description="progress fraction from which the first extra loop runs")
    stagger_frac: Fraction = Field(0.0, description="each further extra loop starts this much progress later")
    start_step: Count = Field(0, description="step, counted from 0, from which the first extra loop runs")
    stagger_steps: Count = Field(0, description="each further extra loop starts this many steps later")
    ramp_frac: Fraction = Field(0.0, description="loop gates rise from 0 to full over this much progress")
    ramp_steps: Count = Field(0, description="loop gates rise from 0 to full over this many steps")

    @property
    def ramps(self) -> bool:
        """Whether the loop gates rise slowly."""
        return self.ramp_frac > 0.0 or self.ramp_steps > 0

    def is_running(self, extra_loop: int, step: int, progress: float) -> bool:
        """Whether extra loop 1, 2, .. runs in a step that begins with this progress."""
        later = extra_loop - 1
        return (
            progress >= self.start_frac + later * self.stagger_frac
            and step >= self.start_step + later * self.stagger_steps
        )

    def ramp(self, step: int, progress: float) -> float:
        """The factor on all loop gates, in [0, 1]."""
        shares = [1.0]
        if self.ramp_frac > 0.0:
            shares.append((progress - self.start_frac) / self.ramp_frac)
        if self.ramp_steps > 0:
            shares.append((step - self.start_step) / self.ramp_steps)
        return max(0.0, min(shares))


def scale_loop_schedule(values: dict[str, Any], factor: float) -> dict[str, Any]:
    """The values of a LoopScheduleSpec for a run that is `factor` times as long: everything counted in steps."""
    scaled = {name: int(values[name] * factor) for name in ("start_step", "stagger_steps", "ramp_steps")}
    return {**values, **scaled}


def check_depth(num_layers: int, loop: LoopSpec, parallel: ParallelSpec, mlp_dims: tuple[int, ...]) -> None:
    """Raise ValueError for a loop outside the layers, lanes that a loop would cross, or widths for other layers."""
    allowed = f"empty or one width for each of the {num_layers} layers (model.num_layers)"
    require(len(mlp_dims) in (0, num_layers), "model.mlp_dims", list(mlp_dims), allowed)
    first, last = parallel.first_layer, loop.last_layer
    allowed = f"below model.num_layers ({num_layers})"
    require(parallel.form == "off" or first < num_layers, "model.parallel.first_layer", first, allowed)
    has_lanes, allowed = parallel.form == "two_lane", "after_skip where model.parallel.form is not two_lane"
    require(has_lanes or parallel.split == "after_skip", "model.parallel.split", parallel.split, allowed)
    if loop.extra_loops == 0:
        return
    allowed = f"from model.loop.first_layer ({loop.first_layer}) to below model.num_layers ({num_layers})"
    require(loop.first_layer <= last < num_layers, "model.loop.last_layer", last, allowed)
    crossed = has_lanes and loop.first_layer < first <= last
    allowed = f"outside of {loop.first_layer + 1} to {last}: a loop cannot lead from two lanes back to one"
    require(not crossed, "model.parallel.first_layer", first, allowed)


def check_loop_schedule(loop: LoopSpec, schedule: LoopScheduleSpec, steps: int, driver: str) -> None:
    """Raise ValueError for a loop that would never be trained, or a schedule that means nothing for it."""
    if loop.extra_loops == 0:
        return
    later = loop.extra_loops - 1
    last_frac = schedule.start_frac + later * schedule.stagger_frac
    last_step = schedule.start_step + later * schedule.stagger_steps
    at_end = f"such that the last loop starts before the end of training (training.steps = {steps})"
    by_clock = "0 with schedule.driver 'time', which may end before that step; use schedule.loop.start_frac"
    require_all(
        schedule,
        "schedule.loop",
        (last_frac < 1.0, "start_frac", "such that the last loop starts before 1"),
        (last_step < steps, "start_step", at_end),
        (last_step == 0 or driver == "steps", "start_step", by_clock),
    )
    staggered = later > 0 and (schedule.stagger_frac > 0.0 or schedule.stagger_steps > 0)
    allowed = f"at most {MAX_STAGES - 1} with loops that start one after the other: each stage is compiled by itself"
    require(not staggered or later <= MAX_STAGES - 2, "model.loop.extra_loops", loop.extra_loops, allowed)
    can_ramp = not schedule.ramps or (loop.gates and not staggered)
    allowed = "0 without model.loop.gates, or where loops start one after the other"
    require_all(schedule, "schedule.loop", (can_ramp, "ramp_steps" if schedule.ramp_steps else "ramp_frac", allowed))
