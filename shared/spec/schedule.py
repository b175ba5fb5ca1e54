"""The schedule section: learning rates, weight decay and depth over the course of a run (docs/techniques.md 9.8)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.spec.base import BelowOne, Fraction, Section
from shared.spec.depth import LoopScheduleSpec


class ScheduleSpec(Section):
    """The learning-rate factor as a function of the progress fraction in [0, 1] (docs/techniques.md 9.8).

    `steps`: progress is step / training.steps, reproducible. `time`: the larger of that and elapsed training time
    over the time at which the last step that fits in training.time_limit_s will end, for a competition against the
    clock. The rate of a step in the warm-up is that of its end, in the warm-down that of its start.
    """

    driver: Literal["steps", "time"] = Field(
        "steps",
        description="what progress follows: the step number, which is reproducible, or the clock of "
        "training.time_limit_s",
    )
    warmup_frac: Fraction = Field(
        0.0, description="fraction of the run, at its start, over which the rate rises linearly to its peak"
    )
    warmdown_frac: Fraction = Field(
        0.4, description="fraction of the run, at its end, over which the rate falls to min_lr_frac of its peak"
    )
    warmdown_shape: Literal["linear", "cosine"] = Field(
        "linear", description="shape of the warm-down: a straight line, or half a cosine"
    )
    min_lr_frac: Fraction = Field(0.0, description="fraction of the peak rate at the end of the warm-down")
    decay_end_frac: Fraction = Field(1.0, description="factor on weight decay at the end of the run; 1: no change")
    decay_taper_start_frac: BelowOne = Field(
        0.7, description="progress from which the factor on weight decay goes linearly from 1 to decay_end_frac"
    )
    decay_follows_lr: bool = Field(
        False,
        description="weight decay is multiplied by the learning-rate factor once more, so that it falls with its "
        "square",
    )
    loop: LoopScheduleSpec = LoopScheduleSpec()
