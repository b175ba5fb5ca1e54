"""The interface of a quantisation method, by which packing, training and size predictions use it.

A method says which arrays it stores of a tensor (`parts`); their sizes follow from the tensor's shape alone, so the
container plans every byte of a file before it reads one. Codes, scales per row, group or tensor and the factors of a
low-rank correction are all such arrays; how a section of them is compressed is up to the container.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from shared.ops import Array, Ops

Parts = Mapping[str, NDArray[Any]]
"""The arrays that stand for one tensor, by the name of their part."""


@dataclass(frozen=True)
class Part:
    """One array that a method stores of a tensor. Parts of a name lie together in a section of the container.

    `dtype` is NumPy's name of it, little-endian. The part that holds the weights' codes is called `codes`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of items."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Size of one item."""
        return np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Curvature:
    """Second moments of the gradient g [out, in] of the nats of a calibration text by one matrix, per symbol.

    `inputs`: g'g, float64 [in, in]; `outputs`: gg', float64 [out, out]. They have the same trace.
    """

    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64]


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the inputs of one matrix [out, in] over a calibration text.

    `rows`: number of inputs; `gram`: X'X of them, float64 [in, in]; None where no product reads the matrix.
    `reads`: how often each row was looked up, int64 [out]; None where it is not a table.
    `curvature`: of the loss, which only `two_sided` needs; None without gradients.
    """

    rows: int = 0
    gram: NDArray[np.float64] | None = None
    reads: NDArray[np.int64] | None = None
    curvature: Curvature | None = None


class Storage(Protocol):
    """A way in which the artifact stores a tensor."""

    @property
    def method(self) -> str:
        """Its name, in a spec and in the tensor table of an artifact."""

    @property
    def bits(self) -> int:
        """Bits per weight."""

    @property
    def stored_settings(self) -> Mapping[str, str | int]:
        """The settings that `parts` and `decode` depend on, and the rounding where it is not to the nearest code, by
        their names in a QuantiserSpec, in the order of it."""

    @property
    def needs_statistics(self) -> bool:
        """Whether `encode` reads statistics of the tensor's inputs."""

    @property
    def grid(self) -> Storage:
        """The same with rounding to the nearest code and without corrections. Training reads what this one stores."""

    def settled(self, shape: tuple[int, ...], statistics: InputStatistics | None) -> Self:
        """The storage that `encode` really uses for a tensor: where there is no Gram matrix of its inputs, one that
        reads none."""

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The arrays stored of a tensor of this shape, the same for any weights."""

    def encode(self, weights: NDArray[np.float32], statistics: InputStatistics | None = None) -> Parts:
        """The parts of finite float32 weights, the same on every machine. Raises ArtifactError, without a name, for
        weights that it cannot store."""

    def decode(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        """The weights that the parts stand for."""

    def is_valid(self, parts: Parts) -> bool:
        """Whether some weights have these parts: a model must not run on others."""


class Quantiser(Storage, Protocol):
    """A method of storage in integer codes, with the sides of it that training and predictions see."""

    @property
    def code_limit(self) -> int:
        """The largest code; the smallest is its negative."""

    @property
    def has_surrogate(self) -> bool:
        """Whether training can read what is stored: without, `rounding_error` and `in_steps` raise."""

    def steps(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        """What a code of 1 stands for at each weight, in a shape that broadcasts to that of the weights."""

    def rounding_error(self, ops: Ops, weights: Array) -> Array:
        """Decoded weights minus weights [..., C], float32; a constant to derivatives."""

    def in_steps(self, ops: Ops, weights: Array) -> Array:
        """Weights [..., C] in units of the step between codes, which is a constant to derivatives."""

    def gaussian_code_bits(self, row_length: int) -> float:
        """Order-0 entropy, in bits, of the codes of Gaussian weights in rows of this length."""


@dataclass(frozen=True)
class QuantisedTensor:
    """One tensor as an artifact stores it."""

    storage: Storage
    shape: tuple[int, ...]
    parts: Parts
