"""LQER: what quantisation lost of a matrix, added back as a product of two thin matrices (docs/techniques.md 11.7).

Of the error E = W - W^ the largest `rank` singular directions are kept, A = U S and B = V'. A is stored in 2 bits,
levels -2 to 1, with one scale of its largest magnitude / 1.5; B in 4 bits, levels -8 to 7, with a scale for every 64
neighbours of a row, largest magnitude / 7.5. It is a storage around that of the codes and adds its parts to them.

Only the tensors with the largest errors keep theirs, which is known when all are coded: `with_corrections`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.ops import Array, Ops
from shared.quantisers.protocol import InputStatistics, Part, Parts, QuantisedTensor, Quantiser, Storage
from shared.quantisers.row_grid import are_codes, are_scales

GROUP = 64
A_LEVELS, A_LARGEST = (-2, 1), 1.5
B_LEVELS, B_LARGEST = (-8, 7), 7.5


@dataclass(frozen=True)
class LowRank:
    """A quantiser of matrices with a correction of a rank. Parts after those of `base`: `lqer_a` int8 [R, rank],
    `lqer_b` int8 [rank, C], `lqer_scales` float16: that of A, then those of B's groups in row order.

    Training reads the grid of the base: which tensors are corrected is decided when packing.
    """

    base: Quantiser
    rank: int

    @property
    def method(self) -> str:
        return self.base.method

    @property
    def bits(self) -> int:
        return self.base.bits

    @property
    def stored_settings(self) -> Mapping[str, str | int]:
        return {**self.base.stored_settings, "lqer_rank": self.rank}

    @property
    def code_limit(self) -> int:
        return self.base.code_limit

    @property
    def needs_statistics(self) -> bool:
        return self.base.needs_statistics

    @property
    def has_surrogate(self) -> bool:
        return self.base.has_surrogate

    @property
    def grid(self) -> Storage:
        return self.base.grid

    def settled(self, shape: tuple[int, ...], statistics: InputStatistics | None) -> Self:
        return replace(self, base=self.base.settled(shape, statistics))

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows, columns = shape
        return (
            *self.base.parts(shape),
            Part("lqer_a", "i1", (rows, self.rank)),
            Part("lqer_b", "i1", (self.rank, columns)),
            Part("lqer_scales", "<f2", (1 + self.rank * _groups_in(columns),)),
        )

    def encode(self, weights: NDArray[np.float32], statistics: InputStatistics | None = None) -> Parts:
        parts = self.base.encode(weights, statistics)
        return {**parts, **self.correction(weights, self.base.decode(weights.shape, parts))}

    def correction(self, weights: NDArray[np.float32], decoded: NDArray[np.float32]) -> Parts:
        """The three parts for a matrix and what its codes stand for."""
        a_RK, b_KC = leading_factors(weights.astype(np.float64) - decoded, self.rank)
        with np.errstate(over="ignore"):
            a_scale = np.array([[np.abs(a_RK).max(initial=0.0) / A_LARGEST]]).astype(np.float16)
        groups = [np.abs(b_KC[:, at : at + GROUP]).max(axis=1) for at in range(0, b_KC.shape[1], GROUP)]
        b_scales_KG = (np.stack(groups, axis=1) / B_LARGEST).astype(np.float16)
        if not np.isfinite(a_scale).all():
            raise ArtifactError("its error is too large for a float16 scale")
        return {
            "lqer_a": _levels(a_RK, a_scale, A_LEVELS),
            "lqer_b": _levels(b_KC, _by_column(b_scales_KG, b_KC.shape[1]), B_LEVELS),
            "lqer_scales": np.concatenate([a_scale[0], b_scales_KG.reshape(-1)]),
        }

    def decode(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        scales = parts["lqer_scales"].astype(np.float64)
        b_scales_KC = _by_column(scales[1:].reshape(self.rank, -1), shape[1])
        # One term after the other, in float64: a product of matrices would add in the order of the machine.
        total = self.base.decode(shape, parts).astype(np.float64)
        for a_R, b_C in zip(parts["lqer_a"].T, parts["lqer_b"] * (b_scales_KC * scales[0]), strict=True):
            total += a_R[:, None] * b_C
        return total.astype(np.float32)

    def steps(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        return self.base.steps(shape, parts)

    def is_valid(self, parts: Parts) -> bool:
        is_valid = are_codes(parts["lqer_a"], *A_LEVELS) and are_codes(parts["lqer_b"], *B_LEVELS)
        return is_valid and are_scales(parts["lqer_scales"]) and self.base.is_valid(parts)

    def rounding_error(self, ops: Ops, weights: Array) -> Array:
        return self.base.rounding_error(ops, weights)

    def in_steps(self, ops: Ops, weights: Array) -> Array:
        return self.base.in_steps(ops, weights)

    def gaussian_code_bits(self, row_length: int) -> float:
        return self.base.gaussian_code_bits(row_length)


def with_corrections(
    tensors: Mapping[str, QuantisedTensor],
    weights: Mapping[str, NDArray[np.float32]],
    ranks: Mapping[str, int],
    count: int,
) -> dict[str, QuantisedTensor]:
    """The tensors, of which the `count` with the largest |W - W^| in Frobenius norm get a correction.

    `ranks`: the rank of each tensor that may have one. A stack of matrices and a matrix with fewer rows or columns than
    its rank get none.
    """
    norms = {
        name: float(
            np.linalg.norm(weights[name] - tensors[name].storage.decode(tensors[name].shape, tensors[name].parts))
        )
        for name in _that_can_have_one(tensors, ranks)
    }
    corrected = dict(tensors)
    for name in sorted(norms, key=lambda name: -norms[name])[:count]:
        corrected[name] = with_correction(tensors[name], weights[name], ranks[name])
    return corrected


def with_correction(tensor: QuantisedTensor, weights: NDArray[np.float32], rank: int) -> QuantisedTensor:
    """The tensor with a correction of this rank in addition to its codes."""
    storage = LowRank(tensor.storage, rank)  # type: ignore[arg-type]
    decoded = tensor.storage.decode(tensor.shape, tensor.parts)
    return QuantisedTensor(storage, tensor.shape, {**tensor.parts, **storage.correction(weights, decoded)})


def leading_factors(errors_RC: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """U S [R, rank] and V' [rank, C] of the largest singular values of a matrix, a column of U S each.

    The largest magnitude of a column of U S is negative: A has a level more there, and the signs are no accident.
    """
    rows, columns = errors_RC.shape
    if rows <= columns:
        _, vectors = np.linalg.eigh(errors_RC @ errors_RC.T)
        u_RK = vectors[:, ::-1][:, :rank]
        scaled_KC = u_RK.T @ errors_RC
        sizes_K = np.linalg.norm(scaled_KC, axis=1)
        a_RK, b_KC = u_RK * sizes_K, scaled_KC / np.where(sizes_K > 0, sizes_K, 1.0)[:, None]
    else:
        _, vectors = np.linalg.eigh(errors_RC.T @ errors_RC)
        b_KC = vectors[:, ::-1][:, :rank].T
        a_RK = errors_RC @ b_KC.T
    signs_K = np.where(a_RK[np.abs(a_RK).argmax(axis=0), np.arange(rank)] > 0, -1.0, 1.0)
    return a_RK * signs_K, b_KC * signs_K[:, None]


def _that_can_have_one(tensors: Mapping[str, QuantisedTensor], ranks: Mapping[str, int]) -> Iterable[str]:
    for name, rank in ranks.items():
        shape = tensors[name].shape
        if 0 < rank <= min(shape) and len(shape) == 2:
            yield name


def _groups_in(columns: int) -> int:
    return -(-columns // GROUP)


def _by_column(scales_KG: NDArray[np.floating], columns: int) -> NDArray[np.floating]:
    return np.repeat(scales_KG, GROUP, axis=1)[:, :columns]


def _levels(values: NDArray[np.float64], scales: NDArray[np.floating], levels: tuple[int, int]) -> NDArray[np.int8]:
    """The nearest levels to values / scales; 0 where the scale is 0."""
    steps = np.where(scales > 0, scales, np.float16(1)).astype(np.float64)
    return np.clip(np.rint(values / steps), *levels).astype(np.int8)
