"""Quantisation methods: float32 weights to integer codes and back, by the name that a spec gives.

A new method is a file next to `row_max.py`, its name in QUANTISERS and in `shared.spec.artifact.Method`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from shared.quantisers.clip_search import ClipSearch
from shared.quantisers.float32 import Float32
from shared.quantisers.low_rank import LowRank
from shared.quantisers.protocol import Curvature, InputStatistics, Part, Parts, QuantisedTensor, Quantiser, Storage
from shared.quantisers.row_max import RowMax
from shared.quantisers.sd_clip import SdClip
from shared.quantisers.ternary import Ternary
from shared.quantisers.uniform import Uniform
from shared.spec import QuantiserSpec

__all__ = [
    "QUANTISERS",
    "ClipSearch",
    "Curvature",
    "Float32",
    "InputStatistics",
    "LowRank",
    "Part",
    "Parts",
    "QuantisedTensor",
    "Quantiser",
    "RowMax",
    "SdClip",
    "Storage",
    "Ternary",
    "Uniform",
    "quantiser",
    "quantiser_of",
]

QUANTISERS: dict[str, Callable[[QuantiserSpec, int], Quantiser]] = {
    "row_max": lambda settings, bits: RowMax(bits, _by_column(settings)),
    "sd_clip": lambda settings, bits: SdClip(bits, _by_column(settings), settings.clip_sd, settings.hessian_clip),
    "clip_search": lambda settings, bits: ClipSearch(bits, _by_column(settings)),
    "ternary": lambda settings, bits: Ternary(settings.group, _by_column(settings)),
    "uniform": lambda settings, bits: Uniform(settings.step, settings.rounding, settings.step_unit),
}
"""Makes the quantiser of a section of the spec, at a width. Ternary codes have their own."""


def _by_column(settings: QuantiserSpec) -> Literal["nearest", "gptq"]:
    """The rounding of a method that knows no feedback by rows, which a spec cannot ask of it."""
    return "nearest" if settings.rounding == "nearest" else "gptq"


def quantiser(settings: QuantiserSpec, bits: int | None = None) -> Quantiser:
    """The method that a section of the spec names, at the section's own width or another, without a correction."""
    return QUANTISERS[settings.method](settings, settings.bits if bits is None else bits)


def quantiser_of(settings: QuantiserSpec, shape: tuple[int, ...]) -> Quantiser:
    """The quantiser of a tensor of this shape. Low-rank corrections are for matrices with as many rows and columns as
    the rank: stacks of matrices and thin ones are stored without."""
    base = quantiser(settings)
    is_corrected = len(shape) == 2 and 0 < settings.lqer_rank <= min(shape)
    return LowRank(base, settings.lqer_rank) if is_corrected else base
