"""Arrays without values: their layout in memory, what their gradients cost, and what these read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

# What is multiplied: something by a weight matrix, or activations by each other (attention, scans, Newton-Schulz).
Products = Literal["matrices", "activations"]
# What a gradient reads: some arrays or memory, or the result of the operation itself.
Kept = Iterable[Any] | Literal["result"]

# The memory behind all layouts; never read.
NOTHING = np.zeros(1, np.int8)


class Storage:
    """Memory of `size` bytes that arrays are views of."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Shaped:
    """An array known only by its layout in memory. `traced`: derivatives are taken with respect to it, because it is
    trained or made from something that is. `inputs` are the traced arrays that it was made of, `backward` the
    operations that take its gradient on to them, of the given `kind`, and `kept` the memory that this reads. `forward`
    adds up the operations of all products."""

    # Lets NumPy's numbers use the operators of this class.
    __array_ufunc__ = None
    __slots__ = ("backward", "forward", "inputs", "item_bytes", "kept", "kind", "layout", "storage", "traced")

    def __init__(
        self,
        forward: Counter[Products],
        layout: np.ndarray,
        storage: Storage,
        item_bytes: int,
        inputs: Sequence[Any] = (),
        traced: bool = False,
    ) -> None:
        self.forward, self.layout, self.storage, self.item_bytes = forward, layout, storage, item_bytes
        self.inputs = tuple(value for value in inputs if _traced(value))
        self.traced: bool = traced or bool(self.inputs)
        self.kind: Products = "matrices"
        self.backward, self.kept = 0, tuple[Storage, ...]()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def view(self, layout: np.ndarray) -> Shaped:
        """The same memory, seen in another layout."""
        return Shaped(self.forward, layout, self.storage, self.item_bytes, [self])

    def reshape(self, shape: Sequence[int]) -> Shaped:
        """A view where the layout allows it, else a copy."""
        try:
            return self.view(np.reshape(self.layout, shape, copy=False))
        except ValueError:
            return made(np.broadcast_to(np.int8(0), self.shape).reshape(shape).shape, [self])

    def broadcast_to(self, shape: Sequence[int]) -> Shaped:
        return self.view(np.broadcast_to(self.layout, np.broadcast_shapes(self.shape, tuple(shape))))

    def __getitem__(self, index: Any) -> Shaped:
        index = index if isinstance(index, tuple) else (index,)
        # With an ellipsis NumPy gives a view, also where a single element is left, and reads nothing.
        return self.view(self.layout[index if ... in index else (*index, ...)])

    def __matmul__(self, other: Shaped) -> Shaped:
        """Both are read as batches of matrices: copies where they are broadcast, or have no such view."""
        batch = np.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        assert self.shape[-1] == other.shape[-2], f"{self.shape} @ {other.shape}"
        shape = (*batch, self.shape[-2], other.shape[-1])
        x, y = (
            value.broadcast_to((*batch, *value.shape[-2:])).reshape((-1, *value.shape[-2:])) for value in (self, other)
        )
        return product("activations", shape, 2 * math.prod(shape) * self.shape[-1], (self, x), (other, y))

    def __neg__(self) -> Shaped:
        return elementwise([self])

    def _plus(self, other: Any) -> Shaped:
        return elementwise([self, other])

    def _times(self, other: Any) -> Shaped:
        """The gradient of each factor reads the other one."""
        return elementwise([self, other], [self] * _traced(other) + [other] * self.traced)

    def __truediv__(self, other: Any) -> Shaped:
        return elementwise([self, other], [self] * _traced(other) + [other])

    def __rtruediv__(self, other: Any) -> Shaped:
        return elementwise([self], "result")

    __add__ = __radd__ = __sub__ = __rsub__ = __mod__ = _plus
    __mul__ = __rmul__ = _times


def made(layout: Sequence[int] | np.ndarray, inputs: Sequence[Any], keep: Kept = (), item_bytes: int = 0) -> Shaped:
    """A new array, by default with the widest elements of its inputs. Its gradient reads what it `keep`s."""
    arrays = [value for value in inputs if isinstance(value, Shaped)]
    layout = layout if isinstance(layout, np.ndarray) else in_order(layout)
    item_bytes = item_bytes or max(value.item_bytes for value in arrays)
    result = Shaped(arrays[0].forward, layout, Storage(item_bytes * layout.size), item_bytes, inputs)
    if result.traced:
        kept = [result] if keep == "result" else [each for each in keep if isinstance(each, Shaped | Storage)]
        result.kept = tuple(each.storage if isinstance(each, Shaped) else each for each in kept)
    return result


def elementwise(inputs: Sequence[Any], keep: Kept = ()) -> Shaped:
    """A new array with the axes in memory as in the first input that has the result's shape."""
    shape = np.broadcast_shapes(*(value.shape if isinstance(value, Shaped) else np.shape(value) for value in inputs))
    alike = [value.layout for value in inputs if isinstance(value, Shaped) and value.shape == shape]
    return made(in_order_of(alike[0]) if alike else shape, inputs, keep)


def product(
    kind: Products, shape: Sequence[int], operations: int, left: tuple[Shaped, Shaped], right: tuple[Shaped, Shaped]
) -> Shaped:
    """The result, of `shape`, of a product that takes so many operations, and as many again for the gradient of each
    factor that has one, which reads the other. A factor is given as it is and as it is read."""
    (x, x_read), (y, y_read) = left, right
    result = made(shape, [x, y], [x_read] * y.traced + [y_read] * x.traced)
    result.forward[kind] += operations
    result.kind, result.backward = kind, operations * (x.traced + y.traced)
    return result


def ancestors(value: Shaped) -> Iterator[Shaped]:
    """The traced arrays that `value` was made of, and itself, once each."""
    seen, waiting = {id(value)}, [value]
    while waiting:
        found = waiting.pop()
        yield found
        for other in found.inputs:
            if id(other) not in seen:
                seen.add(id(other))
                waiting.append(other)


def in_order(shape: Sequence[int]) -> np.ndarray:
    """The layout of a new array of bytes, row by row; there is no memory behind it."""
    sizes = [max(1, size) for size in shape]
    return as_strided(NOTHING, tuple(shape), [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])


def in_order_of(layout: np.ndarray) -> np.ndarray:
    """The layout of a new array of the same shape whose axes have the same order in memory."""
    if layout.flags.c_contiguous or 0 in layout.strides:
        return in_order(layout.shape)
    order = sorted(range(layout.ndim), key=lambda axis: -layout.strides[axis])
    return in_order([layout.shape[axis] for axis in order]).transpose(np.argsort(order))


def _traced(value: Any) -> bool:
    return isinstance(value, Shaped) and value.traced
