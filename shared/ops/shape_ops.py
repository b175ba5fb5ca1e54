"""Shapes without values: runs the model to count the operations of its products, and the bytes that it keeps.

A multiplication and its addition are two operations. Counted are matrix products and attention; norms, activations,
rotations and the softmax are left out, as is usual, so a share of peak is not flattered.

Kept are the arrays that the gradient of each verb reads: what an engine without a compiler holds from the forward pass
to the backward pass. Each verb states its own below. They are those of torch; MLX differs in attention alone, whose
scores it keeps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

# What is multiplied: something by a weight matrix, or activations by each other (attention, scans, Newton-Schulz).
Products = Literal["matrices", "activations"]

# Bytes of an element. Integers are int32.
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
# What layouts lie in; never read.
NOTHING = np.zeros(1, np.int8)


class Storage:
    """Memory of `size` bytes that arrays are views of."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Shaped:
    """An array of which only the layout in memory is known. `traced`: derivatives are taken with respect to it, as it
    is trained or made of something that is. `inputs` are the traced arrays that it was made of, `backward` the
    operations that take its gradient on to them, of the given `kind`, and `kept` the memory that this reads."""

    # NumPy leaves operators between its numbers and this to this.
    __array_ufunc__ = None
    __slots__ = ("backward", "inputs", "item_bytes", "kept", "kind", "layout", "ops", "storage", "traced")

    def __init__(
        self,
        ops: ShapeOps,
        layout: np.ndarray,
        storage: Storage,
        item_bytes: int,
        inputs: Sequence[Any] = (),
        traced: bool = False,
    ) -> None:
        self.ops, self.layout, self.storage, self.item_bytes = ops, layout, storage, item_bytes
        self.inputs = tuple(value for value in inputs if isinstance(value, Shaped) and value.traced)
        self.traced: bool = traced or bool(self.inputs)
        self.kind: Products = "matrices"
        self.backward, self.kept = 0, tuple[Storage, ...]()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def reshape(self, shape: Sequence[int]) -> Shaped:
        """A view where the layout allows it, else a copy."""
        try:
            return self.view(np.reshape(self.layout, shape, copy=False))
        except ValueError:
            return self.ops.made(np.broadcast_to(np.int8(0), self.shape).reshape(shape).shape, [self])

    def view(self, layout: np.ndarray) -> Shaped:
        """The same memory, seen in another layout."""
        return Shaped(self.ops, layout, self.storage, self.item_bytes, [self])

    def __getitem__(self, index: Any) -> Shaped:
        index = index if isinstance(index, tuple) else (index,)
        # With an ellipsis NumPy gives a view, also where a single element is left, and reads nothing.
        return self.view(self.layout[index if ... in index else (*index, ...)])

    def __matmul__(self, other: Shaped) -> Shaped:
        batch = np.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        assert self.shape[-1] == other.shape[-2], f"{self.shape} @ {other.shape}"
        shape = (*batch, self.shape[-2], other.shape[-1])
        flat = [value.broadcast_to((*batch, *value.shape[-2:])).reshape((-1, *value.shape[-2:])) for value in (self, other)]
        operations = 2 * math.prod(shape) * self.shape[-1]
        return self.ops.product("activations", shape, operations, (self, flat[0]), (other, flat[1]))

    def __neg__(self) -> Shaped:
        return self.ops.elementwise([self])

    def _plus(self, other: Any) -> Shaped:
        return self.ops.elementwise([self, other])

    def _times(self, other: Any) -> Shaped:
        """Each factor's gradient reads the other one."""
        return self.ops.elementwise([self, other], keep=[self] * _traced(other) + [other] * self.traced)

    def __truediv__(self, other: Any) -> Shaped:
        return self.ops.elementwise([self, other], keep=[self] * _traced(other) + [other])

    def __rtruediv__(self, other: Any) -> Shaped:
        return self.ops.elementwise([self], keep="result")

    __add__ = __radd__ = __sub__ = __rsub__ = __mod__ = _plus
    __mul__ = __rmul__ = _times

    def broadcast_to(self, shape: Sequence[int]) -> Shaped:
        return self.view(np.broadcast_to(self.layout, np.broadcast_shapes(self.shape, tuple(shape))))


class ShapeOps:
    """`shared.ops.Ops` over `Shaped`. Adds up the operations of the products that are made. `keeps_scores`: the
    gradient of attention reads the scores, as in MLX."""

    name = "shapes"

    def __init__(self, keeps_scores: bool = False) -> None:
        self.forward: Counter[Products] = Counter()
        self.keeps_scores = keeps_scores
        self.logits_bytes = 0

    def array(self, shape: Sequence[int], traced: bool = False) -> Shaped:
        """An array to begin with, of symbols or weights; `traced` where it is trained."""
        return Shaped(self, _in_order(shape), Storage(4 * math.prod(shape)), 4, traced=traced)

    def made(
        self,
        layout: Sequence[int] | np.ndarray,
        inputs: Sequence[Any],
        keep: Iterable[Any] | Literal["result"] = (),
        item_bytes: int = 0,
    ) -> Shaped:
        """A new array, by default with the widest elements of its inputs. Its gradient reads what it `keep`s."""
        layout = layout if isinstance(layout, np.ndarray) else _in_order(layout)
        item_bytes = item_bytes or max(value.item_bytes for value in inputs if isinstance(value, Shaped))
        result = Shaped(self, layout, Storage(item_bytes * layout.size), item_bytes, inputs)
        kept = [result] if keep == "result" else keep
        if result.traced:
            result.kept = tuple(x if isinstance(x, Storage) else x.storage for x in kept if isinstance(x, Shaped | Storage))
        return result

    def elementwise(self, inputs: Sequence[Any], keep: Iterable[Any] | Literal["result"] = ()) -> Shaped:
        """In the order in memory of the first input that has the result's shape."""
        shape = np.broadcast_shapes(*(np.shape(value) if not isinstance(value, Shaped) else value.shape for value in inputs))
        alike = [value.layout for value in inputs if isinstance(value, Shaped) and value.shape == shape]
        return self.made(_in_order_of(alike[0]) if alike else shape, inputs, keep)

    def product(
        self, kind: Products, shape: Sequence[int], operations: int, *factors: tuple[Shaped, Shaped]
    ) -> Shaped:
        """The result, of `shape`, of a product of two that takes so many operations, and as many again for the
        gradient of each factor that has one; this reads the other. Factors are given with what is multiplied for it."""
        (x, x_read), (y, y_read) = factors
        result = self.made(shape, [x, y], [x_read] * y.traced + [y_read] * x.traced)
        self.forward[kind] += operations
        result.kind, result.backward = kind, operations * (x.traced + y.traced)
        return result

    def backward(self, loss: Shaped) -> Counter[Products]:
        """Operations of the backward pass from a loss to everything traced that it depends on."""
        total: Counter[Products] = Counter()
        for value in _ancestors(loss):
            total[value.kind] += value.backward
        return total

    def kept_bytes(self, loss: Shaped, beside: Iterable[Shaped] = ()) -> int:
        """Bytes held between the forward pass and the backward pass from a loss, `beside` what is there anyway."""
        kept = {storage for value in _ancestors(loss) for storage in value.kept}
        return sum(storage.size for storage in kept - {value.storage for value in beside})

    def asarray(self, values: np.ndarray) -> Shaped:
        return self.array(values.shape)

    def to_numpy(self, x: Shaped) -> np.ndarray:
        raise TypeError("there are no values")

    def cast(self, x: Shaped, dtype: str) -> Shaped:
        return self._in_bytes(x, ITEM_BYTES[dtype])

    def cast_like(self, x: Shaped, like: Shaped) -> Shaped:
        return self._in_bytes(x, like.item_bytes)

    def linear(self, x: Shaped, weight: Shaped) -> Shaped:
        assert x.shape[-1] == weight.shape[1], f"{x.shape} by {weight.shape}"
        shape = (*x.shape[:-1], weight.shape[0])
        weight = self.cast_like(weight, x)
        rows = x.reshape((-1, x.shape[-1]))
        return self.product("matrices", shape, 2 * math.prod(x.shape) * weight.shape[0], (x, rows), (weight, weight))

    def leaky_relu_squared_mlp(self, x: Shaped, up: Shaped, down: Shaped, negative_slope: float) -> Shaped:
        hidden = self.linear(x, up)
        rectified = self.elementwise([hidden], keep=[hidden])
        return self.linear(self.elementwise([rectified], keep=[rectified]), down)

    def attention(self, q: Shaped, k: Shaped, v: Shaped, window: int = 0, documents: Shaped | None = None) -> Shaped:
        """Only the pairs that a causal mask and a window let through; which a document mask does depends on the text,
        and kernels skip few of them. Kept are what is read, the result, and a logarithm for each of its heads; with a
        mask that is not plain also the mask, and keys and values one to one with the queries."""
        batch, time, heads, width = q.shape
        seen = min(window or time, time)
        pairs = seen * (seen + 1) // 2 + (time - seen) * seen
        operations = 2 * batch * heads * width * pairs
        masked = bool(window) or documents is not None
        if masked and heads > k.shape[2]:
            k, v = (self.made(q.shape, [value]) for value in (k, v))
        scores = self.product("activations", (batch, heads, time, time), operations, (q, q), (k, k))
        result = self.made(q.shape, [scores, v], "result", q.item_bytes)
        result.kind, result.backward = "activations", operations * (scores.traced + v.traced)
        self.forward["activations"] += operations
        mask = [Storage(q.item_bytes * (1 if documents is None else batch) * time**2)] if masked else []
        held = [scores.storage] if self.keeps_scores else []
        result.kept += (q.storage, k.storage, v.storage, Storage(4 * batch * heads * time), *mask, *held)
        return result

    def rms_norm(self, x: Shaped, eps: float) -> Shaped:
        return self.elementwise([x], keep=[x, Storage(4 * math.prod(x.shape[:-1]))])

    def rope(self, x: Shaped, base: float) -> Shaped:
        """Its tables are made once and stay."""
        return self.made(x.shape, [x])

    def embedding(self, weight: Shaped, index: Shaped, dtype: str) -> Shaped:
        return self.made((*index.shape, weight.shape[1]), [weight], [index], ITEM_BYTES[dtype])

    def softcapped_cross_entropy(self, logits: Shaped, targets: Shaped, softcap: float) -> Shaped:
        """The tanh, the logarithms of the shares, and the targets in 64 bits."""
        size = math.prod(logits.shape)
        self.logits_bytes = max(self.logits_bytes, 4 * size)
        kept = [Storage(4 * size), Storage(4 * size), Storage(8 * math.prod(targets.shape)), Storage(4)]
        return self.made(targets.shape, [logits], kept, 4)

    def softcapped_log_softmax(self, logits: Shaped, softcap: float) -> Shaped:
        size = 4 * math.prod(logits.shape)
        return self.made(logits.shape, [logits], [Storage(size), Storage(size)], 4)

    def softcapped_logsumexp(self, logits: Shaped, softcap: float) -> Shaped:
        size = 4 * math.prod(logits.shape)
        kept = [Storage(size), Storage(size), Storage(size // logits.shape[-1])]
        return self.made(logits.shape[:-1], [logits], kept, 4)

    def concatenate(self, arrays: Sequence[Shaped], axis: int) -> Shaped:
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        return self.made(shape, arrays)

    def stack(self, arrays: Sequence[Shaped]) -> Shaped:
        return self.made((len(arrays), *arrays[0].shape), arrays)

    def broadcast_to(self, x: Shaped, shape: Sequence[int]) -> Shaped:
        return x.broadcast_to(shape)

    def transpose(self, x: Shaped) -> Shaped:
        return x.view(np.swapaxes(x.layout, -1, -2))

    def sum(self, x: Shaped, axes: Sequence[int] | None = None, keepdims: bool = False) -> Shaped:
        summed = range(len(x.shape)) if axes is None else [axis % len(x.shape) for axis in axes]
        kept = [(1 if keepdims else 0) if axis in summed else size for axis, size in enumerate(x.shape)]
        return self.made([size for axis, size in enumerate(kept) if keepdims or axis not in summed], [x])

    def row_scale(self, x: Shaped, limit: int) -> Shaped:
        return self.array((*x.shape[:-1], 1))

    def softplus(self, x: Shaped) -> Shaped:
        """As the logarithm of a sum with an array of zeros."""
        return self.elementwise([x], keep=[x, Storage(x.storage.size)])

    def _of_result(self, x: Shaped, *rest: Any) -> Shaped:
        """The gradient reads the result."""
        return self.elementwise([x], keep="result")

    def _of_input(self, x: Shaped, *rest: Any) -> Shaped:
        """The gradient reads x."""
        return self.elementwise([x], keep=[x])

    def _linear_map(self, x: Shaped, *rest: Any, **named: Any) -> Shaped:
        """The gradient reads neither."""
        return self.elementwise([x])

    def _constant(self, x: Shaped, *rest: Any, **named: Any) -> Shaped:
        """Something of the same shape that is a constant to derivatives."""
        return Shaped(self, _in_order_of(x.layout), Storage(x.item_bytes * x.layout.size), x.item_bytes)

    def _in_bytes(self, x: Shaped, item_bytes: int) -> Shaped:
        same = x.item_bytes == item_bytes
        return x if same else self.made(_in_order_of(x.layout), [x], item_bytes=item_bytes)

    sqrt = sigmoid = exp = relu = softmax = _of_result
    log = minimum = power = _of_input
    running_sum = lower_triangle = _linear_map
    running_count = unit_step = rounding_error = row_noise = _constant

    def stop_gradient(self, x: Shaped) -> Shaped:
        return Shaped(self, x.layout, x.storage, x.item_bytes)


def _traced(value: Any) -> bool:
    return isinstance(value, Shaped) and value.traced


def _in_order(shape: Sequence[int]) -> np.ndarray:
    """The layout of a new array of bytes, row by row; there is no memory behind it."""
    sizes = [max(1, size) for size in shape]
    return as_strided(NOTHING, tuple(shape), [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])


def _in_order_of(layout: np.ndarray) -> np.ndarray:
    """The layout of a new array of the same shape whose axes have the same order in memory."""
    if layout.flags.c_contiguous or 0 in layout.strides:
        return _in_order(layout.shape)
    order = sorted(range(layout.ndim), key=lambda axis: -layout.strides[axis])
    return _in_order([layout.shape[axis] for axis in order]).transpose(np.argsort(order))


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
