"""The part of the training section about training for the artifact's few bits (docs/techniques.md 11.2)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from shared.spec.artifact import ArtifactSpec, Method, QuantiserSpec
from shared.spec.base import BelowOne, Count, Section, require, require_all


class QatSpec(Section):
    """Quantisation-aware training: the training loss reads other values in place of the matrices, from some time on.

    `straight_through`: the rounded weights, as an artifact of `bits` stores them, while the gradient is taken as if
    they were the weights themselves; any other grid than the artifact's would train for what is never packed. Where the
    artifact rounds by gptq or corrects errors, training reads the nearest codes of its grid.
    `noise`: w + (u - 1/2) max|row| / qmax with u uniform in [0, 1), another for every weight and step;
    qmax = 2^(bits - 1) - 1. At the artifact's width it is as large as the rounding; it is not a grid, so any other size
    is a choice. Scores and artifacts are of the weights themselves.
    """

    form: Literal["off", "straight_through", "noise"] = Field(
        "off",
        description="what the training loss reads instead of the matrices (see the section); off: the matrices "
        "themselves",
    )
    bits: Annotated[int, Field(ge=4, le=8)] = Field(
        description="bits of a code; default artifact.matrix.bits, which straight_through must have; noise: "
        "4 to 8, published 8"
    )
    start_frac: BelowOne = Field(0.0, description="progress from which quantisation acts")
    start_step: Count = Field(0, description="step, counted from 0, before which quantisation does not act either")

    def is_acting(self, step: int, progress: float) -> bool:
        """Whether it acts in a step that begins with this progress; `step` counts from 0."""
        return self.form != "off" and step >= self.start_step and progress >= self.start_frac


def check_qat_width(qat: QatSpec, matrix_bits: int) -> None:
    """Raise ValueError for codes that the artifact does not have. Runs of before this rule can still be read."""
    allowed = f"artifact.matrix.bits ({matrix_bits}) with form 'straight_through', which rounds as the artifact does"
    require(qat.form != "straight_through" or qat.bits == matrix_bits, "training.qat.bits", qat.bits, allowed)


def check_surrogates(qat: QatSpec, entropy_weight: float, artifact: ArtifactSpec) -> None:
    """Raise ValueError for codes that the training loss cannot read, though it is to. Tensors named by a pattern count
    as matrices."""
    reader = "training.loss.code_entropy" if entropy_weight > 0 else "training.qat.form 'straight_through'"
    if entropy_weight == 0 and qat.form != "straight_through":
        return
    rules = {f"tensors.{index}": rule for index, rule in enumerate(artifact.tensors)}
    for where, settings in {"matrix": artifact.matrix, **rules}.items():
        *first, last = (method for method in get_args(Method) if QuantiserSpec(method=method).has_surrogate)
        field, allowed = "method", f"{', '.join(first)} or {last}"
        if settings.method == "sd_clip":
            field, allowed = "hessian_clip", "0"
        elif settings.has_trellis:
            field, allowed = "trellis", "0"
        allowed += f" with {reader}, as no training step knows what it needs"
        require(settings.has_surrogate, f"artifact.{where}.{field}", getattr(settings, field), allowed)


def scale_qat(values: dict[str, Any], factor: float, steps: int) -> dict[str, Any]:
    """The values of a QatSpec for a run of `steps` steps, `factor` times as long; a short one has no time to wait."""
    reached = (steps - 1) / steps >= values["start_frac"]
    start_step = min(int(values["start_step"] * factor), steps - 1)
    return {**values, "start_step": start_step, "start_frac": values["start_frac"] if reached else 0.0}


def check_qat(qat: QatSpec, steps: int, driver: str) -> None:
    """Raise ValueError for quantisation that never acts, or may not."""
    if qat.form == "off":
        return
    by_clock = "0 with schedule.driver 'time', which may end before that step; use training.qat.start_frac"
    reached = driver == "time" or (steps - 1) / steps >= qat.start_frac
    require_all(
        qat,
        "training.qat",
        (qat.start_step < steps, "start_step", f"below training.steps ({steps})"),
        (qat.start_step == 0 or driver == "steps", "start_step", by_clock),
        (reached, "start_frac", f"at most {(steps - 1) / steps}, with which the last of {steps} steps begins"),
    )
