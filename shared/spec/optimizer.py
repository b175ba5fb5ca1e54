"""The optimizer and schedule sections (FEATURES 3.5, 3.6)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.spec.base import Count, DType, Fraction, Positive, Rate, Section


class OptimizerSpec(Section):
    """Muon for matrices, Adam for everything else (FEATURES 3.5). Learning rates are peak values."""

    matrix_lr: Rate = 0.02
    embed_lr: Rate = 0.03
    head_lr: Rate = 0.008
    scalar_lr: Rate = 0.02
    muon_momentum: Fraction = 0.95
    muon_momentum_start: Fraction = 0.85
    muon_momentum_warmup_steps: Count = 300
    muon_weight_decay: Rate = 0.0
    ns_steps: Positive = Field(5, description="Newton-Schulz iterations")
    ns_dtype: DType = "float32"
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_eps: Annotated[float, Field(gt=0.0)] = 1e-8
    adam_weight_decay: Rate = 0.0
    grad_clip_norm: Rate = Field(0.0, description="global gradient norm is clipped to this; 0 turns it off")


class ScheduleSpec(Section):
    """The learning-rate factor as a function of the progress fraction in [0, 1] (FEATURES 3.6).

    `steps`: progress is step / training.steps, reproducible. `time`: the larger of that and
    elapsed training time / training.time_limit_s, for a competition against the clock.
    """

    driver: Literal["steps", "time"] = "steps"
    warmup_frac: Fraction = 0.0
    warmdown_frac: Fraction = 0.4
    warmdown_shape: Literal["linear", "cosine"] = "linear"
    min_lr_frac: Fraction = Field(0.0, description="the factor at the end of the warm-down")
