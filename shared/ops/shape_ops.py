"""Shapes without values: runs the model to count the operations of its products, and the bytes that it keeps.

A multiplication and its addition are two operations. Counted are matrix products and attention; norms, activations,
rotations and the softmax are left out, as is usual, so a share of peak is not flattered.

Kept is what the gradients read: the memory that an engine which compiles nothing holds from the forward pass to the
backward pass. Each operation says what its own gradient reads. It is what torch reads; MLX also reads the scores of
attention.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shared.ops.composed import ComposedOps, symbol_context_by_tables
from shared.ops.shaped import Products, Shaped, Storage, ancestors, elementwise, in_order, in_order_of, made, product

# Bytes of an element. Integers are int32.
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


class ShapeOps(ComposedOps):
    """`shared.ops.Ops` over `Shaped`. Adds up the operations of the products that are made in `forward`, and notes the
    largest logits and attention scores, in float32, in `logits_bytes` and `scores_bytes`. `keeps_scores`: the gradient
    of attention reads its scores, of which plain causal attention makes half."""

    name = "shapes"
    symbol_context = symbol_context_by_tables

    def __init__(self, keeps_scores: bool = False) -> None:
        self.forward: Counter[Products] = Counter()
        self.keeps_scores = keeps_scores
        self.logits_bytes = self.scores_bytes = 0

    def array(self, shape: Sequence[int], traced: bool = False) -> Shaped:
        """An array to begin with, of symbols or weights; `traced` where it is trained."""
        return Shaped(self.forward, in_order(shape), Storage(4 * math.prod(shape)), 4, traced=traced)

    def backward(self, loss: Shaped) -> Counter[Products]:
        """Operations of the backward pass from a loss to everything traced that it depends on."""
        total: Counter[Products] = Counter()
        for value in ancestors(loss):
            total[value.kind] += value.backward
        return total

    def kept_bytes(self, loss: Shaped, held: Iterable[Shaped] = ()) -> int:
        """Bytes held between the forward and the backward pass from a loss, without those of arrays `held` anyway."""
        kept = {storage for value in ancestors(loss) for storage in value.kept}
        return sum(storage.size for storage in kept - {value.storage for value in held})

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
        return product("matrices", shape, 2 * math.prod(x.shape) * weight.shape[0], (x, rows), (weight, weight))

    def leaky_relu_squared_mlp(self, x: Shaped, up: Shaped, down: Shaped, negative_slope: float) -> Shaped:
        hidden = self.linear(x, up)
        rectified = elementwise([hidden], keep=[hidden])
        return self.linear(elementwise([rectified], keep=[rectified]), down)

    def attention(self, q: Shaped, k: Shaped, v: Shaped, window: int = 0, documents: Shaped | None = None) -> Shaped:
        """Only the pairs that a causal mask and a window let through: what a document mask removes depends on the text,
        and kernels skip little of it. Kept are what is read, the result, and a logarithm for each of its heads; with a
        mask that is not plain also the mask, and keys and values one to one with the queries."""
        batch, time, heads, width = q.shape
        seen = min(window or time, time)
        pairs = seen * (seen + 1) // 2 + (time - seen) * seen
        operations = 2 * batch * heads * width * pairs
        masked = bool(window) or documents is not None
        if masked and heads > k.shape[2]:
            k, v = (made(q.shape, [value]) for value in (k, v))
        scores = product("activations", (batch, heads, time, time), operations, (q, q), (k, k))
        result = made(q.shape, [scores, v], "result", q.item_bytes)
        result.kind, result.backward = "activations", operations * (scores.traced + v.traced)
        self.forward["activations"] += operations
        mask = [Storage(q.item_bytes * (1 if documents is None else batch) * time**2)] if masked else []
        held = [Storage(4 * batch * heads * (time**2 if masked else pairs))] if self.keeps_scores else []
        self.scores_bytes = max(self.scores_bytes, 4 * batch * heads * time**2)
        result.kept += (q.storage, k.storage, v.storage, Storage(4 * batch * heads * time), *mask, *held)
        return result

    def rms_norm(self, x: Shaped, eps: float) -> Shaped:
        return elementwise([x], keep=[x, Storage(4 * math.prod(x.shape[:-1]))])

    def rope(self, x: Shaped, base: float) -> Shaped:
        """Its tables are made once and stay."""
        return made(x.shape, [x])

    def embedding(self, weight: Shaped, index: Shaped, dtype: str) -> Shaped:
        return made((*index.shape, weight.shape[1]), [weight], [index], ITEM_BYTES[dtype])

    def softcapped_cross_entropy(self, logits: Shaped, targets: Shaped, softcap: float) -> Shaped:
        """The tanh, the logarithms of the shares, and the targets in 64 bits."""
        size = 4 * math.prod(logits.shape)
        self.logits_bytes = max(self.logits_bytes, size)
        kept = [Storage(size), Storage(size), Storage(8 * math.prod(targets.shape)), Storage(4)]
        return made(targets.shape, [logits], kept, 4)

    def softcapped_log_softmax(self, logits: Shaped, softcap: float) -> Shaped:
        size = 4 * math.prod(logits.shape)
        return made(logits.shape, [logits], [Storage(size), Storage(size)], 4)

    def softcapped_logsumexp(self, logits: Shaped, softcap: float) -> Shaped:
        size = 4 * math.prod(logits.shape)
        kept = [Storage(size), Storage(size), Storage(size // logits.shape[-1])]
        return made(logits.shape[:-1], [logits], kept, 4)

    def concatenate(self, arrays: Sequence[Shaped], axis: int) -> Shaped:
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        return made(shape, arrays)

    def stack(self, arrays: Sequence[Shaped]) -> Shaped:
        return made((len(arrays), *arrays[0].shape), arrays)

    def broadcast_to(self, x: Shaped, shape: Sequence[int]) -> Shaped:
        return x.broadcast_to(shape)

    def transpose(self, x: Shaped) -> Shaped:
        return x.view(np.swapaxes(x.layout, -1, -2))

    def sum(self, x: Shaped, axes: Sequence[int] | None = None, keepdims: bool = False) -> Shaped:
        summed = range(len(x.shape)) if axes is None else [axis % len(x.shape) for axis in axes]
        kept = [(1 if keepdims else 0) if axis in summed else size for axis, size in enumerate(x.shape)]
        return made([size for axis, size in enumerate(kept) if keepdims or axis not in summed], [x])

    def largest(self, x: Shaped) -> Shaped:
        """The absolute values are written out; the gradient reads them and the result."""
        absolute = elementwise([x], [x])
        result = made((*x.shape[:-1], 1), [absolute], [absolute])
        result.kept += (result.storage,)
        return result

    def softplus(self, x: Shaped) -> Shaped:
        """Computed as the logarithm of a sum with an array of zeros."""
        return elementwise([x], keep=[x, Storage(x.storage.size)])

    def _of_result(self, x: Shaped, *rest: Any) -> Shaped:
        """The gradient reads the result."""
        return elementwise([x], keep="result")

    def _of_input(self, x: Shaped, *rest: Any) -> Shaped:
        """The gradient reads x."""
        return elementwise([x], keep=[x])

    def _linear_map(self, x: Shaped, *rest: Any, **named: Any) -> Shaped:
        """The gradient reads neither."""
        return elementwise([x])

    def _constant(self, x: Shaped, *rest: Any, **named: Any) -> Shaped:
        """An array of the same shape that is a constant to derivatives."""
        return Shaped(self.forward, in_order_of(x.layout), Storage(x.item_bytes * x.layout.size), x.item_bytes)

    def _in_bytes(self, x: Shaped, item_bytes: int) -> Shaped:
        same = x.item_bytes == item_bytes
        return x if same else made(in_order_of(x.layout), [x], item_bytes=item_bytes)

    sqrt = sigmoid = exp = relu = softmax = _of_result
    log = minimum = power = _of_input
    running_sum = lower_triangle = _linear_map
    running_count = unit_step = round = float16 = row_noise = _constant

    def stop_gradient(self, x: Shaped) -> Shaped:
        return Shaped(self.forward, x.layout, x.storage, x.item_bytes)
