"""The seam below the model: the array operations an engine must supply.

The model, losses and optimizer updates are written once over an `Ops`. Three implementations exist:
NumPy float64 (shared.ops.numpy_ops, the oracle), MLX (mlx_train.ops) and torch (cuda_train.ops).
Each docstring is the mathematical definition; an engine may compute it any way it likes, and the
parity check holds it to the definition.

Arrays are the framework's own. Besides these methods the model uses only what all three frameworks
share: `.shape`, `.reshape(shape)`, basic slicing, `+ - * /`, `%` of integers and `@` (batched matrix product).

Shape letters are those of shared.model. `dtype` arguments are "float32" or "bfloat16".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Array = Any
# Both take the operations first: see `Ops.recurrent`.
Scan = Callable[..., Array]
RecurrentStep = Callable[..., tuple[Array, Array]]


class Ops(Protocol):
    """Array operations over one framework. Stateless, apart from the device it was made for."""

    name: str

    def asarray(self, values: np.ndarray) -> Array:
        """The same values on the device: floats as float32 (float64 in the oracle), integers as int32."""

    def to_numpy(self, x: Array) -> np.ndarray:
        """The same values on the host: float32 (float64 from the oracle) or int32."""

    def cast(self, x: Array, dtype: str) -> Array:
        """x in another floating dtype; the oracle always stays in float64."""

    def cast_like(self, x: Array, like: Array) -> Array:
        """x in the dtype of `like`."""

    def linear(self, x: Array, weight: Array) -> Array:
        """x [..., in] times weight [out, in] transposed: [..., out], in x's dtype."""

    def embedding(self, weight: Array, index: Array, dtype: str) -> Array:
        """Rows of weight [V, D] at index [...] (int32): [..., D] in `dtype`."""

    def rms_norm(self, x: Array, eps: float) -> Array:
        """x / sqrt(mean(x^2, last axis) + eps), weightless; the mean is accumulated in float32."""

    def rope(self, x: Array, base: float) -> Array:
        """Rotary position encoding of x [B, T, H, C], halves layout, rotation by -theta (docs/techniques.md 3.3).

        theta[t, i] = t * base^(-2i/C) for i < C/2; with x = (x1, x2) split in halves the result is
        (x1 cos + x2 sin, -x1 sin + x2 cos).
        """

    def attention(self, q: Array, k: Array, v: Array, window: int = 0, documents: Array | None = None) -> Array:
        """Causal attention with scale 1/sqrt(C) and grouped heads.

        q [B, T, H, C], k and v [B, T, G, C]; query head h reads key/value head floor(h * G / H) at
        positions <= its own; softmax in float32. Returns [B, T, H, C]. With `window` W above 0 position t
        reads t - W + 1 ... t only; with `documents` [B, T] int32 it reads positions of its own number only.
        """

    def leaky_relu_squared_mlp(self, x: Array, up: Array, down: Array, negative_slope: float) -> Array:
        """down @ phi(up @ x) with phi(z) = leaky_relu(z, negative_slope)^2.

        x [..., D], up [F, D], down [D, F]: [..., D]. Squaring loses the sign: phi(z) = (slope z)^2 below zero.
        """

    def softcapped_cross_entropy(self, logits: Array, targets: Array, softcap: float) -> Array:
        """-log softmax(softcap * tanh(logits / softcap))[target], in nats, float32.

        logits [..., V], targets [...] int32: [...].
        """

    def softcapped_log_softmax(self, logits: Array, softcap: float) -> Array:
        """log softmax(softcap * tanh(logits / softcap)) over the last axis, in nats, float32."""

    def softcapped_logsumexp(self, logits: Array, softcap: float) -> Array:
        """log of the sum of exp(softcap * tanh(logits / softcap)) over the last axis: [...] of [..., V], float32."""

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """Join along an existing axis."""

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Join along a new first axis."""

    def broadcast_to(self, x: Array, shape: Sequence[int]) -> Array:
        """x repeated to a larger shape."""

    def transpose(self, x: Array) -> Array:
        """The last two axes exchanged."""

    def sum(self, x: Array, axes: Sequence[int] | None = None, keepdims: bool = False) -> Array:
        """Sum over axes, all of them with None."""

    def sqrt(self, x: Array) -> Array:
        """Element-wise square root."""

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x)), element-wise, in x's dtype."""

    def exp(self, x: Array) -> Array:
        """e^x, element-wise, in x's dtype."""

    def log(self, x: Array) -> Array:
        """Natural logarithm, element-wise, for x > 0."""

    def softplus(self, x: Array) -> Array:
        """ln(1 + e^x), element-wise, in x's dtype; overflows for no x."""

    def running_sum(self, x: Array, axis: int) -> Array:
        """Sums of the entries up to and including each one along an axis."""

    def lower_triangle(self, x: Array, diagonal: int = 0) -> Array:
        """The matrices of the last two axes with 0 wherever column > row + diagonal."""

    def running_count(self, x: Array, value: int) -> Array:
        """How many of x[:, 0] ... x[:, t] equal `value`, for every t: int32 [B, T] of int32 [B, T]."""

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""

    def unit_step(self, x: Array) -> Array:
        """1 where x >= 0, else 0, element-wise, in x's dtype."""

    def minimum(self, x: Array, limit: float) -> Array:
        """Element-wise minimum with a number."""

    def softmax(self, x: Array) -> Array:
        """exp(x) over its sum along the last axis, in x's dtype; summed in float32."""

    def power(self, x: Array, exponent: float) -> Array:
        """x^exponent, element-wise, for x >= 0 and an exponent of 1 or more."""

    def largest(self, x: Array) -> Array:
        """The largest |x| of each row of x [..., C]: [..., 1]."""

    def round(self, x: Array) -> Array:
        """The nearest whole number to x float32, halves to even; the oracle rounds x to float32 first. Used, like
        `float16`, only in what is a constant to derivatives."""

    def float16(self, x: Array) -> Array:
        """x float32, 0 <= x < 65504, rounded half to even to what float16 holds, in x's dtype; in the oracle too."""

    def stop_gradient(self, x: Array) -> Array:
        """x, a constant to derivatives."""

    def row_noise(self, x: Array, counter: Array, salt: int) -> Array:
        """(u - 1/2) times the largest |x| of the row, for x [..., C] float32; a constant to derivatives.

        u is uniform in [0, 1), the top 24 of the 32 bits of shared.ops.noise.mixed(counter, salt, index of the
        element), the same in every implementation. `counter`: a scalar that holds a whole number below 2^24.
        """

    # Made of the ones above, in shared.ops.composed; an engine may fuse them.

    def gained_linear(self, x: Array, weight: Array, gain: Array) -> Array:
        """gain [out] times `linear(x, weight)`."""

    def gained_mlp(self, x: Array, up: Array, down: Array, negative_slope: float, gain: Array) -> Array:
        """gain [D] times `leaky_relu_squared_mlp`."""

    def residual_norm(
        self, x: Array, added: Array | None, first: Array | None, mix: Array | None, eps: float
    ) -> tuple[Array, Array]:
        """(s, rms_norm(s)) of s = mix[0] (x + added) + mix[1] first, all [..., D] and mix [2, D].

        Without `added` nothing is added; without `mix`, and so without `first`, s is the sum alone.
        """

    def embedding_sum(self, weights: Sequence[Array], indexes: Sequence[Array], dtype: str) -> Array:
        """The sum of `embedding` of each weight [V, D] by its index [...], added up in float32: [..., D] in `dtype`."""

    def normed_mlp(
        self,
        x: Array,
        added: Array,
        up: Array,
        down: Array,
        negative_slope: float,
        gain: Array,
        norm_scale: float,
        eps: float,
    ) -> tuple[Array, Array]:
        """(s, `gained_mlp` of norm_scale rms_norm(s)) of s = x + added, all [..., D]."""

    # What follows mixes the entries of axis 1, as rope, attention and running_count do: a wrapper that is given a
    # sequence in pieces (shared.ops.stepping_ops) computes these from the pieces before.

    def shift_right(self, x: Array, first: Array) -> Array:
        """What each position may read of x [B, T, ...], whose entries it predicts: first [B, 1, ...], x[:, 0], x[:, 1],
        ... up to T entries."""

    def delayed(self, x: Array, first: Array) -> Array:
        """x [B, T, ...] moved later in its own sequence by the K entries of first [B, K, ...]: first, x[:, 0], x[:, 1],
        ... up to T entries."""

    def lookback(self, x: Array, first: Array, count: int) -> Array:
        """x[:, t], x[:, t - 1], ..., x[:, t - count + 1] joined along the last axis: [B, T, count D] of x [B, T, D].
        Before x lies first [B, 1, D]."""

    def symbol_context(self, table: Array, first: Array, projection: Array | None, index: Array, dtype: str) -> Array:
        """projection [D, K D] times e[t - 1], ..., e[t - K], with rows e[t] of table [V, D] at index [B, T] (int32) and
        before them first [B, 1, D], in each row of the batch the same: [B, T, D] in `dtype`. Without a projection
        e[t - 1]."""

    def recurrent(self, scan: Scan, step: RecurrentStep, inputs: Sequence[Array]) -> Array:
        """`scan(ops, *inputs)`, [B, N, ...] of inputs [B, N, ...]. It is what `step` gives from position to position:
        (state, output [B, ...]) = step(ops, state before, *inputs at the position), from the state None."""

    def attention_inputs(
        self, x: Array, weights: Sequence[Array], gain: Array, rope_dims: int, rope_base: float, eps: float
    ) -> tuple[Array, Array, Array]:
        """q [B, T, H, C], k and v [B, T, G, C] of x [B, T, D] by weights ([H C, D], [G C, D], [G C, D]).

        Each head of q and k is normalised and its first `rope_dims` features are rotated; the H heads of q are
        multiplied by gain [H].
        """

    def self_attention(
        self, x: Array, weights: Sequence[Array], gain: Array, rope_dims: int, rope_base: float, eps: float
    ) -> Array:
        """`attention` of `attention_inputs`, where nothing else reads or changes these: [B, T, H, C]."""
