"""Quantisation methods: float32 weights to integer codes and back, by the name that a spec gives.

A new method is a file next to `row_max.py`, its name in QUANTISERS and in `shared.spec.artifact.Method`.
"""

from __future__ import annotations

from collections.abc import Callable

from shared.quantisers.clip_search import ClipSearch
from shared.quantisers.float32 import Float32
from shared.quantisers.low_rank import LowRank
from shared.quantisers.protocol import InputStatistics, Part, Parts, QuantisedTensor, Quantiser, Storage
from shared.quantisers.row_max import RowMax
from shared.quantisers.sd_clip import SdClip
from shared.quantisers.ternary import Ternary
from shared.spec import QuantiserSpec

__all__ = [
    "QUANTISERS",
    "ClipSearch",
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
    "quantiser",
]

QUANTISERS: dict[str, Callable[[QuantiserSpec, int], Quantiser]] = {"row_max": lambda settings, bits: RowMax(bits)}
"""Makes the quantiser of a section of the spec, at a width."""


def quantiser(settings: QuantiserSpec, bits: int | None = None) -> Quantiser:
    """The method that a section of the spec names, at the section's own width or another."""
    return QUANTISERS[settings.method](settings, settings.bits if bits is None else bits)
