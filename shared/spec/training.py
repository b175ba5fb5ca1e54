"""The training section: length, batch size, averaging and how often a run is checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from shared.spec.base import (
    MAX_BATCH,
    Batch,
    BelowOne,
    Count,
    DType,
    Float32Products,
    Fraction,
    Patterns,
    Positive,
    Rate,
    Section,
    require,
)
from shared.spec.loss import LossSpec
from shared.spec.qat import QatSpec

# What the spec's author writes for micro-batches that fit the device.
AUTO = "auto"
MICRO_BATCH_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_BATCH}, {"const": AUTO}]}


class TrainingSpec(Section):
    """Length, batch, precision and cadence of a run."""

    seed: Count = Field(
        1337, description="seed of initial weights, batch order and noise; runs with several seeds show what is chance"
    )
    steps: Positive = Field(description="optimizer steps; an upper limit with schedule.driver 'time'")
    time_limit_s: Rate = Field(
        0.0,
        description="seconds of training that a run by the clock has; no step begins that is expected to end later; 0 "
        "is no limit",
    )
    reserve_s: Rate = Field(
        0.0,
        description="seconds of time_limit_s kept for what must follow the steps within it, such as calibration on "
        "training text",
    )
    batch_symbols: Batch = Field(description="symbols in one global batch; a multiple of model.seq_len")
    micro_batch_symbols: Annotated[int, Field(ge=0, le=MAX_BATCH), WithJsonSchema(MICRO_BATCH_SCHEMA)] = Field(
        description='most symbols in one forward pass; default batch_symbols. "auto", stored as 0 in a spec: as many '
        "as the memory of the device holds by estimate, chosen when a run starts and recorded in it"
    )
    memory_limit_bytes: Count = Field(
        0, description="micro-batches shrink until their activations fit, by estimate; 0 is no limit"
    )
    dtype: DType = Field(
        "float32",
        description="dtype of matrix products and activations; weights, optimizer state, norms, softmax and loss stay "
        "float32",
    )
    float32_products: Float32Products = Field(
        "exact",
        description="exact, or fast: float32 matrices are multiplied in TF32 (10 bits after the point) where a GPU can",
    )
    compile: bool = Field(
        True,
        description="compile training and scoring before the clock starts; turn it off to debug or for a few steps",
    )
    freeze: Literal["none", "base"] = Field(
        "none",
        description="base: only the adapters of model.lora are trained, all other weights of the model keep their "
        "values",
    )
    parameters: Patterns = Field(
        ("*",),
        description="names of the parameters that are trained, of those that `freeze` leaves: * for any letters and ? "
        "for one, as layers.*.mlp.*; all others keep their values",
    )
    loss: LossSpec = LossSpec()
    qat: QatSpec
    ema_decay: BelowOne = Field(
        0.0, description="decay of the running weight average (EMA) that is scored and packed; 0 turns it off"
    )
    swa_every_steps: Count = Field(
        0, description="steps between snapshots whose plain mean (SWA) is scored and packed; 0 turns it off"
    )
    swa_start_frac: Fraction = Field(0.5, description="progress from which snapshots for the SWA are taken")
    swa_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="share of the SWA where there is an EMA too: scored is swa_share * SWA + (1 - swa_share) * EMA"
    )
    log_every_steps: Positive = Field(10, description="steps between two lines in metrics.jsonl and on the screen")
    val_every_steps: Count = Field(
        0, description="steps between two validations on evaluation.val_symbols of held-out text; 0 is only at the end"
    )
    checkpoint_every_steps: Count = Field(
        0, description="steps between two checkpoints; 0: only at the end or on a signal"
    )
    keep_checkpoints: Positive = Field(2, description="newest checkpoints kept on disk, in addition to the best one")

    @property
    def steps_limit_s(self) -> float:
        """Seconds within which the steps of a run by the clock must end; 0 is no limit."""
        return self.time_limit_s - self.reserve_s

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and "batch_symbols" in values:
            values = {"micro_batch_symbols": values["batch_symbols"], **values}
            if values["micro_batch_symbols"] == AUTO:
                values["micro_batch_symbols"] = 0
        return values


def scale_snapshots(training: dict[str, Any], factor: float, steps: int) -> None:
    """Change the fields of a training section, in place, to snapshots as often in `steps` steps as before, from the
    start on; `factor` is `steps` over the steps before. A short run has no time to wait for them."""
    if training["swa_every_steps"]:
        training["swa_every_steps"] = max(1, min(steps, round(training["swa_every_steps"] * factor)))
        training["swa_start_frac"] = 0.0


def check_snapshots(training: TrainingSpec, driver: str) -> None:
    """Raise ValueError if snapshots are wanted but no step can be one; with a clock that is only known afterwards."""
    every = training.swa_every_steps
    if every == 0:
        return
    last = training.steps // every * every
    taken = last > 0 and (driver == "time" or (last - 1) / training.steps >= training.swa_start_frac)
    allowed = f"so small that a snapshot falls between swa_start_frac {training.swa_start_frac} and the last step"
    require(taken, "training.swa_every_steps", every, allowed)
