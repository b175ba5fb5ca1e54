"""The optimizer and schedule sections (docs/techniques.md 9)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.spec.base import Count, DType, Fraction, Positive, Rate, Section, require
from shared.spec.depth import LoopScheduleSpec

NSCoefficients = Literal["quintic", "polar_express"]


class OptimizerSpec(Section):
    """Muon for matrices, Adam for everything else (docs/techniques.md 9). Learning rates are peak values."""

    matrix_lr: Rate = 0.02
    embed_lr: Rate = 0.03
    head_lr: Rate = 0.008
    scalar_lr: Rate = 0.02
    adapter_lr: Rate = Field(0.01, description="of the factors of model.lora")
    muon_momentum: Fraction = 0.95
    muon_momentum_start: Fraction = 0.85
    muon_momentum_warmup_steps: Count = 300
    muon_weight_decay: Rate = 0.0
    muon_cautious_decay: bool = Field(
        False, description="a weight decays only where its update has its sign, p -= 1[u p >= 0] lr decay p"
    )
    muon_row_normalise: bool = Field(
        False, description="MuonEq-R: rows of the update are divided by max(L2 norm, 1e-7) before Newton-Schulz"
    )
    normuon: bool = Field(
        False,
        description="NorMuon: the orthogonal update is divided by the root of a running mean square of each row "
        "(column, where those are more) and rescaled to its former Frobenius norm",
    )
    normuon_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="decay of that running mean")
    ns_steps: Positive = Field(5, description="Newton-Schulz iterations")
    ns_coefficients: NSCoefficients = Field(
        "quintic",
        description="quintic: the same three in every iteration; polar_express: the best for each of five iterations, "
        "the fifth for all further ones",
    )
    ns_dtype: DType = "float32"
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_eps: Annotated[float, Field(gt=0.0)] = 1e-8
    adam_weight_decay: Rate = 0.0
    adam_cautious_decay: bool = Field(False, description="as muon_cautious_decay, for the parameters of Adam")
    grad_clip_norm: Rate = Field(0.0, description="global gradient norm is clipped to this; 0 turns it off")

    @model_validator(mode="after")
    def _check_cautious_decay(self) -> OptimizerSpec:
        for kind in ("muon", "adam"):
            cautious, decay = f"{kind}_cautious_decay", f"{kind}_weight_decay"
            require(
                not getattr(self, cautious) or getattr(self, decay) > 0,
                f"optimizer.{cautious}",
                True,
                f"false where optimizer.{decay} is 0",
            )
        return self


class ScheduleSpec(Section):
    """The learning-rate factor as a function of the progress fraction in [0, 1] (docs/techniques.md 9.8).

    `steps`: progress is step / training.steps, reproducible. `time`: the larger of that and elapsed training time
    over the time at which the last step that fits in training.time_limit_s will end, for a competition against the
    clock. The rate of a step in the warm-up is that of its end, in the warm-down that of its start.
    """

    driver: Literal["steps", "time"] = "steps"
    warmup_frac: Fraction = 0.0
    warmdown_frac: Fraction = 0.4
    warmdown_shape: Literal["linear", "cosine"] = "linear"
    min_lr_frac: Fraction = Field(0.0, description="the factor at the end of the warm-down")
    decay_end_frac: Fraction = Field(1.0, description="factor on every weight decay at the end of training")
    decay_taper_start_frac: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.7, description="progress from which that factor falls linearly from 1"
    )
    decay_follows_lr: bool = Field(
        False, description="weight decay carries the learning-rate factor once more: lr decay p falls with its square"
    )
    loop: LoopScheduleSpec = LoopScheduleSpec()
