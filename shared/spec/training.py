"""The data and training sections: which text, how long, how much at a time."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from shared.spec.base import Count, DType, Positive, Rate, Section


class DataSpec(Section):
    """Datasets by name (`bytetwin data list`). `builtin` needs no network: text of the Python library."""

    train: str = Field("builtin", min_length=1, description="its `train` split is trained on")
    heldout: str = Field("builtin", min_length=1, description="its `heldout` split is scored, never trained on")


class TrainingSpec(Section):
    """Length, batch, precision and cadence of a run."""

    seed: Count = 1337
    steps: Positive
    time_limit_s: Rate = Field(0.0, description="training time after which a `time` schedule ends; 0 is none")
    batch_symbols: Positive = Field(description="symbols in one global batch; a multiple of model.seq_len")
    micro_batch_symbols: Positive = Field(description="most symbols in one forward pass; default batch_symbols")
    memory_limit_bytes: Count = Field(
        0, description="micro-batches shrink until their activations fit, by estimate; 0 is no limit"
    )
    dtype: DType = "float32"
    compile: bool = True
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="decay of the weight average that is scored and packed; 0 turns it off"
    )
    log_every_steps: Positive = 10
    val_every_steps: Count = Field(0, description="validation on the subset; 0 is only at the end")
    checkpoint_every_steps: Count = Field(0, description="0 is only at the end and on interruption")
    keep_checkpoints: Positive = 2

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and "batch_symbols" in values:
            return {"micro_batch_symbols": values["batch_symbols"], **values}
        return values
