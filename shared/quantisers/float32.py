"""Storage without quantisation, for gains, mixes, start vectors and whatever has no rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.quantisers.protocol import InputStatistics, Part, Parts


@dataclass(frozen=True)
class Float32:
    """Weights as they are. No spec names it: the class of a parameter does (shared.artifact.quantise)."""

    method = "float32"
    bits = 32
    needs_statistics = False

    @property
    def grid(self) -> Self:
        return self

    def settled(self, shape: tuple[int, ...], statistics: InputStatistics | None) -> Self:
        return self

    @property
    def stored_settings(self) -> Mapping[str, str | int]:
        return {}

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        return (Part("values", "<f4", shape),)

    def encode(self, weights: NDArray[np.float32], statistics: InputStatistics | None = None) -> Parts:
        return {"values": weights.copy()}

    def decode(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        return parts["values"].astype(np.float32)

    def is_valid(self, parts: Parts) -> bool:
        return bool(np.isfinite(parts["values"]).all())
