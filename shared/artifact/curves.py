"""What one tensor's storage costs in bytes and in error over all settings that may be chosen (docs/techniques.md 12.5).

A method has one dial: the width of its codes, or the step between values where an entropy coder follows. The tensor is
really encoded at some values of the dial. Between steps, bits and the logarithm of the error change so smoothly that
they are interpolated; widths are taken as they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.artifact.budget import entropy_bits
from shared.artifact.code_lengths import range_bits
from shared.errors import ArtifactError
from shared.quantisers import QuantisedTensor
from shared.spec import QuantiserSpec

CodeBits = Callable[[QuantisedTensor], float]
"""The bits that a coder takes for all codes of a tensor."""

Store = Callable[[QuantiserSpec], tuple[float, float]]
"""Stores a tensor by some settings: the bits it takes, and its error. Raises ArtifactError if they cannot store it."""

WIDTHS = (8, 7, 6, 5, 4)
OCTAVES = 8
"""How far steps reach: from the finest that int8 codes allow to 256 times that, or to the coarsest."""

COARSEST_STEP = 6.0
"""Nearly all weights are 0 by then: a tensor that costs nothing ends here."""

MEASURED_PER_OCTAVE, CHOSEN_PER_OCTAVE = 2, 64

CLIP_DEVIATIONS = 6.0
"""A row of sd_clip keeps at least this many deviations, as many as its width allows."""


@dataclass(frozen=True)
class Curve:
    """A tensor over the dial of one method: `values` of it, finest first, `bits` of all stored parts and `errors` as
    `stored_error` defines them. `base` has the settings that are not chosen."""

    base: QuantiserSpec
    values: NDArray[np.float64]
    bits: NDArray[np.float64]
    errors: NDArray[np.float64]

    @property
    def is_smooth(self) -> bool:
        """Whether the dial takes any value."""
        return is_smooth(self.base)

    def settings(self, value: float) -> QuantiserSpec:
        """The settings with the dial at a value."""
        return with_dial(self.base, value)

    def at(self, value: float) -> tuple[float, float]:
        """Bits and error at a value."""
        order = np.argsort(self.values)
        x, xs = math.log2(value), np.log2(self.values[order])
        return float(np.interp(x, xs, self.bits[order])), float(np.exp2(np.interp(x, xs, _log2(self.errors[order]))))

    def corrected(self, value: float, bits: float, error: float) -> Curve:
        """The curve moved so that it goes through what was measured at a value."""
        expected_bits, expected = self.at(value)
        factor = error / expected if expected > 0.0 else 1.0
        return replace(self, bits=self.bits + (bits - expected_bits), errors=self.errors * factor)

    def filled(self) -> Curve:
        """The curve with all values that may be chosen."""
        if not self.is_smooth or len(self.values) < 2:
            return self
        low, high = np.log2(self.values[[0, -1]])
        values = np.exp2(np.linspace(low, high, 1 + math.ceil((high - low) * CHOSEN_PER_OCTAVE)))
        x, xs = np.log2(values), np.log2(self.values)
        errors = np.exp2(np.interp(x, xs, _log2(self.errors)))
        return replace(self, values=values, bits=np.interp(x, xs, self.bits), errors=errors)


def is_smooth(settings: QuantiserSpec) -> bool:
    """Whether the dial of a method is a step and not a width."""
    return settings.method in ("uniform", "sd_clip")


def with_dial(settings: QuantiserSpec, value: float) -> QuantiserSpec:
    """Settings with the dial of their method at a value: a width, or a step in deviations of the tensor or its rows."""
    if settings.method == "ternary":
        return settings
    if settings.method == "uniform":
        return settings.model_copy(update={"step": _short(value)})
    if settings.method == "sd_clip":
        bits = next((bits for bits in reversed(WIDTHS) if value * _limit(bits) >= CLIP_DEVIATIONS), WIDTHS[0])
        return settings.model_copy(update={"bits": bits, "clip_sd": _short(value * _limit(bits))})
    return settings.model_copy(update={"bits": round(value)})


def dial_values(settings: QuantiserSpec, weights: NDArray[np.float32]) -> list[float]:
    """The values at which a tensor is measured, finest first."""
    if settings.method == "ternary":
        return [1.0]
    if not is_smooth(settings):
        return [float(bits) for bits in WIDTHS]
    exact = weights.astype(np.float64)
    deviation = math.sqrt(float(np.square(exact).mean()))
    # Rounded up, so that the largest weight has a code.
    finest = float(np.abs(exact).max()) / deviation / _limit(WIDTHS[0]) * 1.001 if deviation else COARSEST_STEP
    octaves = min(float(OCTAVES), max(0.0, math.log2(COARSEST_STEP / finest)))
    count = 1 + math.ceil(octaves * MEASURED_PER_OCTAVE)
    return [finest * 2.0 ** (octaves * index / max(1, count - 1)) for index in range(count)]


def measure_curve(store: Store, base: QuantiserSpec, weights: NDArray[np.float32]) -> Curve:
    """The curve of a tensor. Raises ArtifactError if its method can store it at no value of the dial.

    It is measured with each weight rounded by itself; feedback of errors, a trellis and a low-rank correction, which
    take longer, are done at one value in the middle and change the others as much.
    """
    plain = base.model_copy(update={"rounding": "nearest", "trellis": 0, "lqer_rank": 0})
    found: list[tuple[float, float, float]] = []
    for value in dial_values(plain, weights):
        with contextlib.suppress(ArtifactError):
            found.append((value, *store(with_dial(plain, value))))
    if not found:
        raise ArtifactError(f"{base.method} can store it at no setting")
    values, bits, errors = np.array(found).T
    curve = Curve(base, values, bits, errors)
    middle = float(values[len(values) // 2])
    return curve if base == plain else curve.corrected(middle, *store(with_dial(base, middle)))


def stored_bits(tensor: QuantisedTensor, code_bits: CodeBits) -> float:
    """Bits of a tensor as it is stored: those of its codes by the coder, of other small integers by their entropy, and
    of everything else its size."""
    bits = 0.0
    for name, part in tensor.parts.items():
        if name == "codes":
            bits += code_bits(tensor)
        else:
            bits += entropy_bits(part) * part.size if part.dtype == np.int8 else 8.0 * part.nbytes
    return bits


def entropy_code_bits(tensor: QuantisedTensor) -> float:
    """The order-0 entropy of a tensor's codes, near what brotli takes."""
    codes = tensor.parts["codes"]
    return entropy_bits(codes) * codes.size


def range_code_bits(tensor: QuantisedTensor) -> float:
    """What the range coder takes for a tensor's codes, alone and with what it has to learn left out."""
    codes = tensor.parts["codes"].reshape(-1, tensor.shape[-1])
    states = int(tensor.storage.stored_settings.get("trellis", 0))
    return range_bits([codes], [states])


CODE_BITS: dict[str, CodeBits] = {"brotli": entropy_code_bits, "range": range_code_bits}
"""The estimate for each codec."""


def decoded(tensor: QuantisedTensor) -> NDArray[np.float32]:
    """The weights that a stored tensor gives back."""
    return tensor.storage.decode(tensor.shape, tensor.parts)


def _limit(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


def _short(value: float) -> float:
    """The number with the digits that a table of tensors should carry."""
    return float(f"{value:.5g}")


def _log2(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log2(np.maximum(errors, 1e-300))
