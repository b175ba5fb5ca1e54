"""Ternary codes in groups: the mean magnitude of a group times -1, 0 or 1 (docs/techniques.md 11.8).

A group is `group` neighbours within a row; the last of a row may be shorter. s = mean |w| and the code is round(w / s)
within -1 ... 1. The mean is a sum, and as in sd_clip.py it is taken of whole numbers, |w| in steps of the group's
largest / 1023: exact in any order, and the same in training as in the artifact.

Codes are stored as one byte each for the entropy coder. Gaussian weights have 1.583 bits each; five codes to a byte
(base 3) and brotli take 1.587 and hide from the coder which codes stand side by side. Brotli on the bytes takes 1.654,
because it gives no symbol less than a whole bit: `artifact.codec` range is for this method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.ops import Array, NumpyOps, Ops
from shared.quantisers.gptq import mean_gram
from shared.quantisers.protocol import InputStatistics, Part, Parts
from shared.quantisers.row_grid import (
    Rounding,
    are_codes,
    are_scales,
    divisors,
    gptq_codes,
    nearest_codes,
    scales_of_largest,
    stored_rounding,
)

FINE_LIMIT = 1023
"""The largest whole number that a mean is taken of: with the 11 bits of its step it is exact in float32."""


@dataclass(frozen=True)
class Ternary:
    """The method. Parts: `codes` int8 in the shape of the weights, `scales` float16, one per group in row order."""

    group: int = 128
    rounding: Rounding = "nearest"

    method = "ternary"
    bits = 2
    code_limit = 1
    has_surrogate = True

    @property
    def stored_settings(self) -> Mapping[str, str | int]:
        return {"method": self.method, **stored_rounding(self.rounding), "group": self.group}

    @property
    def needs_statistics(self) -> bool:
        return self.rounding == "gptq"

    @property
    def grid(self) -> Self:
        return replace(self, rounding="nearest")

    def settled(self, shape: tuple[int, ...], statistics: InputStatistics | None) -> Self:
        return self.grid if mean_gram(statistics, shape) is None else self

    def groups_in(self, columns: int) -> int:
        """Number of groups of a row."""
        return -(-columns // self.group)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        return Part("codes", "i1", shape), Part("scales", "<f2", (math.prod(shape[:-1]) * self.groups_in(shape[-1]),))

    def encode(self, weights: NDArray[np.float32], statistics: InputStatistics | None = None) -> Parts:
        ops, gram_CC = NumpyOps(), mean_gram(statistics, weights.shape)
        rows_RC = ops.asarray(weights.reshape(-1, weights.shape[-1]))
        with np.errstate(invalid="ignore"):
            scales_RG = self._by_groups(ops, rows_RC, lambda groups: group_scales(ops, groups)[..., 0])
        if not np.isfinite(scales_RG).all():
            raise ArtifactError(f"weight {float(np.abs(rows_RC).max()):.3g} is too large for a float16 scale")
        steps_RG = divisors(ops, scales_RG)
        if self.rounding == "gptq" and gram_CC is not None:
            codes = gptq_codes(rows_RC, gram_CC, lambda column: steps_RG[:, column // self.group], 1)
        else:
            steps = np.repeat(steps_RG, self.group, axis=1)[:, : rows_RC.shape[1]]
            codes = nearest_codes(ops, rows_RC, steps, 1).astype(np.int8)
        return {"codes": codes.reshape(weights.shape), "scales": scales_RG.reshape(-1).astype(np.float16)}

    def decode(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        return parts["codes"].astype(np.float32) * self.steps(shape, parts)

    def steps(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        scales = parts["scales"].astype(np.float32).reshape(*shape[:-1], self.groups_in(shape[-1]))
        return np.repeat(scales, self.group, axis=-1)[..., : shape[-1]]

    def is_valid(self, parts: Parts) -> bool:
        return are_codes(parts["codes"], -1, 1) and are_scales(parts["scales"])

    def rounding_error(self, ops: Ops, weights: Array) -> Array:
        def error(groups: Array) -> Array:
            steps = divisors(ops, group_scales(ops, groups))
            return nearest_codes(ops, groups, steps, 1) * steps - groups

        return self._by_groups(ops, ops.stop_gradient(weights), error)

    def in_steps(self, ops: Ops, weights: Array) -> Array:
        return self._by_groups(
            ops, weights, lambda groups: groups / divisors(ops, group_scales(ops, ops.stop_gradient(groups)))
        )

    def gaussian_code_bits(self, row_length: int) -> float:
        """Groups are taken as long: each has the mean magnitude of the distribution, sqrt(2 / pi) deviations."""
        outer = NormalDist().cdf(-math.sqrt(2 / math.pi) / 2)
        inner = 1 - 2 * outer
        return -2 * outer * math.log2(outer) - inner * math.log2(inner)

    def _by_groups(self, ops: Ops, rows: Array, rule: Callable[[Array], Array]) -> Array:
        """rule of the groups [..., G, group] of rows [..., C], side by side in the last axis again."""
        *lead, columns = rows.shape
        whole = columns // self.group * self.group
        pieces = [(rows[..., :whole], self.group)] if whole else []
        if whole < columns:
            pieces.append((rows[..., whole:], columns - whole))
        found = [rule(piece.reshape((*lead, -1, length))).reshape((*lead, -1)) for piece, length in pieces]
        return found[0] if len(found) == 1 else ops.concatenate(found, -1)


def group_scales(ops: Ops, groups: Array) -> Array:
    """Mean magnitude of each group of [..., C], as float16 holds it: [..., 1]. Not finite on overflow."""
    step = scales_of_largest(ops, ops.largest(groups), FINE_LIMIT)
    whole = nearest_codes(ops, groups, divisors(ops, step), FINE_LIMIT)
    total = ops.sum(ops.relu(whole) + ops.relu(-whole), axes=(-1,), keepdims=True)
    return ops.float16(step * ops.float16(total / groups.shape[-1]))
