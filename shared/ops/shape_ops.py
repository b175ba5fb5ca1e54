"""Shapes without values: runs the model to count the operations of its products, in the forward and the backward pass.

A multiplication and its addition are two operations. Counted are matrix products and attention; norms, activations,
rotations and the softmax are left out, as is usual, so a share of peak is not flattered.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

# What is multiplied: something by a weight matrix, or activations by each other (attention, scans, Newton-Schulz).
Products = Literal["matrices", "activations"]


class Shaped:
    """An array of which only the shape is known. `traced`: derivatives are taken with respect to it, as it is trained
    or made of something that is. `inputs` are the traced arrays that it was made of, `backward` the operations that
    take its gradient on to them, of the given `kind`."""

    # NumPy leaves operators between its numbers and this to this.
    __array_ufunc__ = None
    __slots__ = ("backward", "inputs", "kind", "ops", "shape", "traced")

    def __init__(
        self,
        ops: ShapeOps,
        shape: Sequence[int],
        inputs: Sequence[Any] = (),
        traced: bool = False,
        kind: Products = "matrices",
        backward: int = 0,
    ) -> None:
        self.ops, self.shape, self.kind, self.backward = ops, tuple(shape), kind, backward
        self.inputs = tuple(value for value in inputs if isinstance(value, Shaped) and value.traced)
        self.traced: bool = traced or bool(self.inputs)

    def reshape(self, shape: Sequence[int]) -> Shaped:
        return Shaped(self.ops, self._like().reshape(shape).shape, [self])

    def __getitem__(self, index: Any) -> Shaped:
        return Shaped(self.ops, self._like()[index].shape, [self])

    def __matmul__(self, other: Shaped) -> Shaped:
        batch = np.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        assert self.shape[-1] == other.shape[-2], f"{self.shape} @ {other.shape}"
        shape = (*batch, self.shape[-2], other.shape[-1])
        return self.ops.product("activations", shape, 2 * math.prod(shape) * self.shape[-1], self, other)

    def __neg__(self) -> Shaped:
        return Shaped(self.ops, self.shape, [self])

    def _with(self, other: Any) -> Shaped:
        return Shaped(self.ops, np.broadcast_shapes(self.shape, np.shape(other)), [self, other])

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = _with

    def _like(self) -> np.ndarray:
        """An array of this shape that takes no memory."""
        return np.broadcast_to(np.int8(0), self.shape)


class ShapeOps:
    """`shared.ops.Ops` over `Shaped`. Adds up the operations of the products that are made."""

    name = "shapes"

    def __init__(self) -> None:
        self.forward: Counter[Products] = Counter()

    def array(self, shape: Sequence[int], traced: bool = False) -> Shaped:
        """An array to begin with, of symbols or weights; `traced` where it is trained."""
        return Shaped(self, shape, traced=traced)

    def product(self, kind: Products, shape: Sequence[int], operations: int, *inputs: Shaped) -> Shaped:
        """The result, of `shape`, of a product that takes so many operations, and as many again for the gradient of
        each input that has one."""
        self.forward[kind] += operations
        backward = operations * sum(value.traced for value in inputs)
        return Shaped(self, shape, inputs, kind=kind, backward=backward)

    def backward(self, loss: Shaped) -> Counter[Products]:
        """Operations of the backward pass from a loss to everything traced that it depends on."""
        total: Counter[Products] = Counter()
        for value in _ancestors(loss):
            total[value.kind] += value.backward
        return total

    def asarray(self, values: np.ndarray) -> Shaped:
        return self.array(values.shape)

    def to_numpy(self, x: Shaped) -> np.ndarray:
        raise TypeError("there are no values")

    def linear(self, x: Shaped, weight: Shaped) -> Shaped:
        assert x.shape[-1] == weight.shape[1], f"{x.shape} by {weight.shape}"
        shape = (*x.shape[:-1], weight.shape[0])
        return self.product("matrices", shape, 2 * math.prod(x.shape) * weight.shape[0], x, weight)

    def leaky_relu_squared_mlp(self, x: Shaped, up: Shaped, down: Shaped, negative_slope: float) -> Shaped:
        return self.linear(self.linear(x, up), down)

    def attention(self, q: Shaped, k: Shaped, v: Shaped, window: int = 0, documents: Shaped | None = None) -> Shaped:
        """Only the pairs that a causal mask and a window let through; which a document mask does depends on the text,
        and kernels skip few of them."""
        batch, time, heads, width = q.shape
        seen = min(window or time, time)
        pairs = seen * (seen + 1) // 2 + (time - seen) * seen
        operations = 2 * batch * heads * width * pairs
        scores = self.product("activations", (batch, heads, time, time), operations, q, k)
        return self.product("activations", q.shape, operations, scores, v)

    def embedding(self, weight: Shaped, index: Shaped, dtype: str) -> Shaped:
        return Shaped(self, (*index.shape, weight.shape[1]), [weight])

    def softcapped_cross_entropy(self, logits: Shaped, targets: Shaped, softcap: float) -> Shaped:
        return Shaped(self, targets.shape, [logits])

    def softcapped_log_softmax(self, logits: Shaped, softcap: float) -> Shaped:
        return Shaped(self, logits.shape, [logits])

    def softcapped_logsumexp(self, logits: Shaped, softcap: float) -> Shaped:
        return Shaped(self, logits.shape[:-1], [logits])

    def concatenate(self, arrays: Sequence[Shaped], axis: int) -> Shaped:
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        return Shaped(self, shape, arrays)

    def stack(self, arrays: Sequence[Shaped]) -> Shaped:
        return Shaped(self, (len(arrays), *arrays[0].shape), arrays)

    def broadcast_to(self, x: Shaped, shape: Sequence[int]) -> Shaped:
        return Shaped(self, np.broadcast_shapes(x.shape, tuple(shape)), [x])

    def transpose(self, x: Shaped) -> Shaped:
        return Shaped(self, (*x.shape[:-2], x.shape[-1], x.shape[-2]), [x])

    def sum(self, x: Shaped, axes: Sequence[int] | None = None, keepdims: bool = False) -> Shaped:
        summed = range(len(x.shape)) if axes is None else [axis % len(x.shape) for axis in axes]
        kept = [(1 if keepdims else 0) if axis in summed else size for axis, size in enumerate(x.shape)]
        return Shaped(self, [size for axis, size in enumerate(kept) if keepdims or axis not in summed], [x])

    def largest(self, x: Shaped) -> Shaped:
        return Shaped(self, (*x.shape[:-1], 1), [x])

    def _alike(self, x: Shaped, *rest: Any, **named: Any) -> Shaped:
        """Something of the same shape that follows x."""
        return Shaped(self, x.shape, [x])

    def _constant(self, x: Shaped, *rest: Any, **named: Any) -> Shaped:
        """Something of the same shape that is a constant to derivatives."""
        return Shaped(self, x.shape)

    cast = cast_like = rms_norm = rope = sqrt = sigmoid = exp = log = softplus = _alike
    running_sum = lower_triangle = relu = minimum = softmax = power = _alike
    running_count = unit_step = round = float16 = stop_gradient = row_noise = _constant


def _ancestors(value: Shaped) -> Iterator[Shaped]:
    """The traced arrays that `value` was made of, and itself, once each."""
    seen, waiting = {id(value)}, [value]
    while waiting:
        found = waiting.pop()
        yield found
        for other in found.inputs:
            if id(other) not in seen:
                seen.add(id(other))
                waiting.append(other)
