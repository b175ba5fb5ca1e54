"""An Ops for a sequence that arrives in pieces: what an operation needs of earlier pieces is its state.

The model runs on a piece as it does on a window. Operations that mix positions (shared.ops.protocol names them) compute
the entries of the piece from it and their state; all others see only the piece anyway. Every call in a pass is a site
with a state of its own, because each pass makes the same calls in the same order.

What is read at position i is known before it. So the piece of positions i to j has entries i - 1 to j - 1 of what is
read: symbols, and all that is made of them up to `shift_right`, which then has nothing to move. What lies before the
first entry stands for nothing and reaches nothing: `shift_right` puts `first` in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.ops.protocol import Array, Ops, RecurrentStep, Scan
from shared.ops.wrapped_ops import WrappedOps

# A score less this much has no weight; finite in bfloat16 too.
MASKED = 1e30


class SteppingOps(WrappedOps):
    """`ops` for a sequence of at most `positions`: the first piece has any length, later ones have one position.

    The first `unknown` symbols of the first piece lie before the sequence; none of them may start a document. Weights
    must stay as they are.
    """

    def __init__(self, ops: Ops, positions: int, unknown: int) -> None:
        super().__init__(ops)
        self.positions, self.unknown = positions, unknown
        # The first position of the piece.
        self.position = 0
        self._states: list[Any] = []
        self._site = 0
        self._rotations: dict[tuple[int, float], tuple[Array, ...]] = {}
        # What is made of weights once, by their identities; with the weights, so that no other array takes these.
        self._made: dict[tuple[int, ...], tuple[Array, Sequence[Array]]] = {}

    def begin(self, position: int) -> None:
        """Begin the pass over the piece that starts at a position, 0 for a new sequence."""
        self.position, self._site = position, 0
        if position == 0:
            self._states = []

    def shift_right(self, x: Array, first: Array) -> Array:
        if self.position:
            return x
        return first if x.shape[1] == 1 else self.concatenate([first, x[:, 1:]], axis=1)

    def delayed(self, x: Array, first: Array) -> Array:
        state, time = self._state(), x.shape[1]
        whole = self.concatenate([first if state is None else state, x], axis=1)
        self._keep(whole[:, time:])
        return whole[:, :time]

    def lookback(self, x: Array, first: Array, count: int) -> Array:
        state = self._state()
        if state is None:
            joined = self.ops.lookback(x, first, count)
        else:
            joined = self.concatenate([x, state[..., : -x.shape[-1]]], axis=-1)
        self._keep(joined[:, -1:])
        return joined

    def running_count(self, x: Array, value: int) -> Array:
        state, counts = self._state(), self.ops.running_count(x, value)
        if state is not None:
            counts = counts + state
        self._keep(counts[:, -1:])
        if self.position:
            return counts
        # What lies before a window is in another document than its first symbol.
        return counts - self.asarray(np.arange(x.shape[1]) < self.unknown)

    def rope(self, x: Array, base: float) -> Array:
        if self.position == 0:
            return self.ops.rope(x, base)
        half = x.shape[-1] // 2
        cos, sin = (table[self.position] for table in self._angles(x, half, base))
        x1, x2 = x[..., :half], x[..., half:]
        return self.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1)

    def attention_inputs(
        self, x: Array, weights: Sequence[Array], gain: Array, rope_dims: int, rope_base: float, eps: float
    ) -> tuple[Array, Array, Array]:
        # In few operations, each of which costs more than what it computes for one position.
        batch, time, _ = x.shape
        heads, width = gain.shape[0], weights[0].shape[0] // gain.shape[0]
        queries_and_keys = heads + weights[1].shape[0] // width
        joined = self.linear(x, self.once(lambda: self.concatenate(weights, axis=0), *weights))
        joined = joined.reshape((batch, time, -1, width))
        qk = self.rms_norm(joined[:, :, :queries_and_keys], eps)
        if rope_dims:
            qk = self._rotated(qk, rope_dims, rope_base)
        return qk[:, :, :heads] * self.cast_like(gain, qk)[:, None], qk[:, :, heads:], joined[:, :, queries_and_keys:]

    def attention(self, q: Array, k: Array, v: Array, window: int = 0, documents: Array | None = None) -> Array:
        begin, end = self.position, self.position + q.shape[1]
        keys, values, numbers = self._remember(begin, end, k, v, documents)
        if q.shape[1] > 1:
            return self.ops.attention(q, k, v, window, documents)
        first = max(0, end - window) if window else 0
        scores = self.cast(q, "float32").reshape((*k.shape[:1], k.shape[2], -1, k.shape[3])) * k.shape[3] ** -0.5
        scores = scores @ self.cast(keys[..., first:end], "float32")
        if documents is not None:
            # Numbers never fall, so what is read has a number of at most the reader's.
            elsewhere = self.minimum(self.cast_like(documents - numbers[:, first:end], scores), 1.0)
            scores = scores - MASKED * elsewhere[:, None, None]
        read = self.softmax(scores) @ self.cast(values[:, :, first:end], "float32")
        return self.cast_like(read.reshape(q.shape), q)

    def recurrent(self, scan: Scan, step: RecurrentStep, inputs: Sequence[Array]) -> Array:
        state, outputs = self._state(), []
        for position in range(inputs[0].shape[1]):
            state, output = step(self, state, *(x[:, position] for x in inputs))
            outputs.append(output[:, None])
        self._keep(state)
        return outputs[0] if len(outputs) == 1 else self.concatenate(outputs, axis=1)

    def _remember(self, begin: int, end: int, k: Array, v: Array, documents: Array | None) -> tuple[Array, ...]:
        """The keys [B, G, C, S], values [B, G, S, C] and document numbers [B, S] of a site with those of the piece."""
        batch, time, groups, width = k.shape
        if time == 1:
            k, v = k.reshape((batch, groups, width, 1)), v.reshape((batch, groups, 1, width))
        else:
            # Only the last two axes can be exchanged.
            k, v = (self.transpose(x.reshape((batch, time, groups * width))) for x in (k, v))
            k, v = k.reshape((batch, groups, width, time)), self.transpose(v.reshape((batch, groups, width, time)))
        state = self._state()
        if state is None:
            room = np.zeros((batch, groups, width, self.positions))
            state = (
                self.cast_like(self.asarray(room), k),
                self.cast_like(self.asarray(room.swapaxes(2, 3)), v),
                self.asarray(np.zeros((batch, self.positions), np.int32)),
            )
        state[0][..., begin:end], state[1][:, :, begin:end] = k, v
        if documents is not None:
            state[2][:, begin:end] = documents
        self._keep(state)
        return state

    def _angles(self, x: Array, half: int, base: float) -> tuple[Array, ...]:
        """cos and sin of the angles of RoPE at every position, [T, 1, C / 2], in x's dtype."""
        if (half, base) not in self._rotations:
            theta = np.outer(np.arange(self.positions), base ** (-np.arange(half) / half))[:, None]
            tables = (np.cos(theta), np.sin(theta))
            self._rotations[half, base] = tuple(self.cast_like(self.asarray(each), x) for each in tables)
        return self._rotations[half, base]

    def once(self, make: Callable[[], Array], *weights: Array) -> Array:
        """What `make` makes of weights, made at the first call with these."""
        key = tuple(map(id, weights))
        if key not in self._made:
            self._made[key] = (make(), weights)
        return self._made[key][0]

    def _state(self) -> Any:
        """The state of the next site, None in the first pass; `_keep` must follow."""
        self._site += 1
        return None if self.position == 0 else self._states[self._site - 1]

    def _keep(self, state: Any) -> None:
        if self.position == 0:
            self._states.append(state)
        else:
            self._states[self._site - 1] = state
