"""The calibration section: the text on which the inputs of matrices are measured before packing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.spec.base import AboveZero, Count, Section, Window

MAX_CALIBRATION_WINDOWS = 1 << 16


class CalibrationSpec(Section):
    """The text for methods that weigh errors by the inputs of a matrix (docs/techniques.md 11.9); never held-out text.

    `self_generated`: windows that the model writes itself, so that no text is needed. `train`: windows of the training
    text, which counts as training. `none`: no text, for methods that need none.
    """

    source: Literal["self_generated", "train", "none"] = Field(
        "self_generated",
        description="self_generated: the model writes the text; train: windows of the training text, measured within "
        "training.reserve_s where there is a time limit; none: no calibration",
    )
    windows: Annotated[int, Field(gt=0, le=MAX_CALIBRATION_WINDOWS)] = Field(
        64, description="windows of calibration text; more of them cost time and measure the inputs better"
    )
    window_symbols: Window = Field(
        512, description="most symbols of a window: fewer where model.seq_len is shorter, and whole patches"
    )
    temperature: AboveZero = Field(
        0.8, description="self_generated: divides the log-probabilities; below 1 the text is more likely than sampled"
    )
    seed: Count = Field(0, description="seed of the symbols that are drawn, or of the windows that are taken")
