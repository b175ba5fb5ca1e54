"""The artifact section: how a model is packed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from shared.spec.base import AboveZero, BelowOne, Count, Section, require
from shared.spec.calibration import CalibrationSpec

Bits = Literal[4, 5, 6, 7, 8]
Method = Literal["row_max", "sd_clip", "clip_search", "uniform", "ternary"]
Codec = Literal["brotli", "range"]
TableClass = Literal["matrix", "embedding", "head"]

MAX_TENSOR_RULES = 4096


class QuantiserSpec(Section):
    """Storage of tensors in integer codes: a grid of values, and the rule by which a weight gets its code.

    `row_max`: one scale per row by its largest weight. `sd_clip`: by its standard deviation. `clip_search`: by the
    quantile with the least squared error. `uniform`: one step for the tensor, no clipping, for an entropy coder; with
    feedback also factors for rows and columns that follow the loss.
    `ternary`: -1, 0, 1 times a scale per group.
    """

    method: Method = Field("row_max", description="the grid of values: see the section")
    bits: Bits = Field(8, description="bits of a code, 4 to 8; uniform and ternary have their own")
    rounding: Literal["nearest", "gptq", "two_sided"] = Field(
        "nearest",
        description="nearest: each weight by itself; gptq: column by column, the error of one made good by the next, "
        "with statistics of the inputs; two_sided: uniform only, by row as well, with gradients of the loss",
    )
    clip_sd: Annotated[float, Field(ge=0.1, le=100.0)] = Field(
        12.85, description="sd_clip: largest code in standard deviations of the row, 0.1 to 100"
    )
    hessian_clip: BelowOne = Field(
        0.0, description="sd_clip: how far a row's scale follows its weight in the loss; 0 off"
    )
    step: AboveZero = Field(0.15, description="uniform: step between values, in the unit of step_unit")
    step_unit: Literal["rms", "loss"] = Field(
        "rms",
        description="uniform: rms: of the tensor's weights; loss: the step at which a million weights cost step^2 / 24 "
        "nats a symbol, so that one step serves all tensors; needs two_sided",
    )
    trellis: Literal[0, 4, 8] = Field(
        0,
        description="uniform: states of a trellis of codes, which has a fifth less error at equal bytes; 0 for none; "
        "not with two_sided",
    )
    group: Annotated[int, Field(gt=0, le=1024)] = Field(128, description="ternary: weights that share a scale")
    lqer_rank: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="rank of the low-rank correction of the error in 2 and 4 bits; 0 for none"
    )

    @property
    def has_trellis(self) -> bool:
        """Whether codes belong to two quantisers in turn."""
        return self.method == "uniform" and self.trellis > 0

    @property
    def has_surrogate(self) -> bool:
        """Whether training can read what this stores: a quantile, the inputs of a matrix, its weight in the loss and
        the path through a trellis are not known there."""
        is_unknown = (
            (self.method == "sd_clip" and self.hessian_clip > 0) or self.step_unit == "loss" or self.has_trellis
        )
        return self.method != "clip_search" and not is_unknown


class MatrixQuantiserSpec(QuantiserSpec):
    """The same for matrices, which take fewer bits."""

    bits: Bits = Field(6, description=str(QuantiserSpec.model_fields["bits"].description))


class TensorQuantiserSpec(QuantiserSpec):
    """The same for tensors by name."""

    pattern: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="names of tensors, * for any letters and ? for one: layers.*.mlp.down_proj.weight"
    )


class ArtifactSpec(Section):
    """Quantisation and compression of the packed model (docs/techniques.md 11)."""

    matrix: MatrixQuantiserSpec = Field(MatrixQuantiserSpec(), description="matrices, where most of the bytes are")
    embed: QuantiserSpec = Field(QuantiserSpec(), description="tables of symbols, and the matrices of gates")
    head: QuantiserSpec = Field(QuantiserSpec(), description="output matrices that are not tied to a table")
    tensors: Annotated[tuple[TensorQuantiserSpec, ...], Field(strict=False, max_length=MAX_TENSOR_RULES)] = Field(
        (), description="settings of tensors by name, in place of those of their class; the last that matches counts"
    )
    codec: Codec = Field(
        "brotli", description="codec of the codes: brotli, or range: a range coder that knows rows and columns"
    )
    lqer_tensors: Count = Field(
        3, description="how many of the tensors with an lqer_rank are corrected: those with the largest errors"
    )
    calibration: CalibrationSpec = CalibrationSpec()
    logits: Literal["none", "temperature", "temperature_bias"] = Field(
        "none",
        description="what is fitted to the packed weights, on training text, and stored: nothing; a temperature of the "
        "logits; or that and a bias for every symbol",
    )
    brotli_quality: Annotated[int, Field(ge=0, le=11)] = Field(
        11, description="effort of brotli; 11 gives the smallest file and takes longest"
    )
    brotli_window: Annotated[int, Field(ge=10, le=24)] = Field(
        24, description="base-2 logarithm of the bytes that brotli searches for repetitions"
    )

    @property
    def all_settings(self) -> tuple[QuantiserSpec, ...]:
        """The settings of the classes, then those by name."""
        return (self.matrix, self.embed, self.head, *self.tensors)

    def settings_of(self, name: str, table_class: TableClass) -> QuantiserSpec:
        """The settings of a quantised tensor: of the last pattern that matches its name, else of its class."""
        for rule in reversed(self.tensors):
            if matches(name, rule.pattern):
                return rule
        return {"matrix": self.matrix, "embedding": self.embed, "head": self.head}[table_class]

    @model_validator(mode="after")
    def _check_calibration(self) -> ArtifactSpec:
        for settings in self.all_settings:
            by_loss, rounding = settings.step_unit == "loss", settings.rounding
            is_uniform, two_sided = settings.method == "uniform", rounding == "two_sided"
            require(is_uniform or not two_sided, "artifact rounding", rounding, "nearest or gptq but for uniform")
            require(
                not (settings.has_trellis and two_sided),
                "artifact rounding",
                rounding,
                "nearest or gptq with a trellis",
            )
            require(two_sided or not by_loss, "artifact step_unit", "loss", "rms unless rounding is two_sided")
        needed = any(settings.rounding != "nearest" or settings.hessian_clip > 0.0 for settings in self.all_settings)
        source = self.calibration.source
        allowed = "self_generated or train unless rounding is nearest and hessian_clip 0"
        require(not needed or source != "none", "artifact.calibration.source", source, allowed)
        return self

    @classmethod
    def matrix_bits_of(cls, values: Any) -> int:
        """The matrix bits of an artifact section that is not checked yet; the default where they will be refused."""
        matrix = values.get("matrix") if isinstance(values, dict) else None
        default: int = MatrixQuantiserSpec.model_fields["bits"].default
        bits = matrix.get("bits", default) if isinstance(matrix, dict) else default
        return int(bits) if bits in get_args(Bits) else default


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern with any letters for each * and one for each ?.

    Letter by letter, which torch.compile can follow: it comes through here where a loss reads codes.
    """
    at = after = 0
    star, resumed = -1, 0
    while at < len(name):
        if after < len(pattern) and pattern[after] == "*":
            star, resumed = after, at
            after += 1
        elif after < len(pattern) and pattern[after] in ("?", name[at]):
            at, after = at + 1, after + 1
        elif star >= 0:
            resumed += 1
            at, after = resumed, star + 1
        else:
            return False
    return pattern[after:].strip("*") == ""
