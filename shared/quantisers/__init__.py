"""Quantisation methods: float32 weights to integer codes and back, by the name that a spec gives.

A new method is a file next to `row_max.py`, its name in QUANTISERS and in `shared.spec.artifact.Method`.
"""

from __future__ import annotations

from collections.abc import Callable

from shared.quantisers.float32 import Float32
from shared.quantisers.protocol import Curvature, InputStatistics, Part, Parts, QuantisedTensor, Quantiser, Storage
from shared.quantisers.row_max import RowMax
from shared.quantisers.uniform import Uniform
from shared.spec import QuantiserSpec

__all__ = [
    "QUANTISERS",
    "Curvature",
    "Float32",
    "InputStatistics",
    "Part",
    "Parts",
    "QuantisedTensor",
    "Quantiser",
    "RowMax",
    "Storage",
    "Uniform",
    "quantiser",
]

QUANTISERS: dict[str, Callable[[QuantiserSpec, int], Quantiser]] = {
    "row_max": lambda settings, bits: RowMax(bits),
    "uniform": lambda settings, bits: Uniform(settings.step, settings.rounding, settings.step_unit),
}
"""Makes the quantiser of a section of the spec, at a width."""


def quantiser(settings: QuantiserSpec, bits: int | None = None) -> Quantiser:
    """The method that a section of the spec names, at the section's own width or another."""
    return QUANTISERS[settings.method](settings, settings.bits if bits is None else bits)
