"""The operations of the torch engine with Triton kernels, for GPUs. Needs Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cuda_train import table_gradient
from cuda_train.kernels import (
    attention_heads,
    normed_mlp,
    patch_attention,
    residual_norm,
    softcapped_cross_entropy,
    squared_mlp,
)
from cuda_train.plain_ops import DTYPES, ROTATION_POSITIONS, TorchOps, rotation_table
from shared.ops import Array


class FusedTorchOps(TorchOps):
    """TorchOps in fewer passes over memory (docs/techniques.md 9.11)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        # Asked here, not where torch.compile would have to follow.
        self._fuses_mlp = squared_mlp.serves(device)

    def embedding(self, weight: torch.Tensor, index: torch.Tensor, dtype: str) -> torch.Tensor:
        if not table_gradient.fits(weight, index, dtype):
            return super().embedding(weight, index, dtype)
        return table_gradient.read_rows([weight], [index], DTYPES[dtype])

    def embedding_sum(
        self, weights: Sequence[torch.Tensor], indexes: Sequence[torch.Tensor], dtype: str
    ) -> torch.Tensor:
        if not table_gradient.fits(weights[0], indexes[0], dtype):
            return super().embedding_sum(weights, indexes, dtype)
        return table_gradient.read_rows(weights, indexes, DTYPES[dtype])

    def softcapped_cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, softcap: float) -> torch.Tensor:
        if not softcapped_cross_entropy.can_fuse(logits):
            return super().softcapped_cross_entropy(logits, targets, softcap)
        return softcapped_cross_entropy.softcapped_cross_entropy(logits, targets, softcap)

    def leaky_relu_squared_mlp(
        self, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float
    ) -> torch.Tensor:
        if not self._fuses_mlp or not squared_mlp.can_fuse(x, up):
            return super().leaky_relu_squared_mlp(x, up, down, negative_slope)
        return squared_mlp.squared_mlp(x, up.to(x.dtype), down.to(x.dtype), negative_slope)

    def gained_linear(self, x: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        # The gain multiplies the rows of the weight and not the result, which has many times as many numbers.
        return self.linear(x, gain[:, None] * weight)

    def gained_mlp(
        self, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float, gain: torch.Tensor
    ) -> torch.Tensor:
        return self.leaky_relu_squared_mlp(x, up, gain[:, None] * down, negative_slope)

    def residual_norm(
        self, x: Array, added: Array | None, first: Array | None, mix: Array | None, eps: float
    ) -> tuple[Array, Array]:
        if not residual_norm.can_fuse(x) or (added is None and mix is None):
            return super().residual_norm(x, added, first, mix, eps)
        return residual_norm.residual_norm(x, added, first, mix, eps)

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
        if not self._fuses_mlp or not squared_mlp.can_fuse(x, up) or not residual_norm.can_fuse(x):
            return super().normed_mlp(x, added, up, down, negative_slope, gain, norm_scale, eps)
        # Both factors multiply weights, which are smaller than what they multiply.
        up, down = norm_scale * up, gain[:, None] * down
        return normed_mlp.normed_mlp(x, added, up.to(x.dtype), down.to(x.dtype), negative_slope, eps)

    def attention_inputs(
        self, x: Array, weights: Sequence[Array], gain: Array, rope_dims: int, rope_base: float, eps: float
    ) -> tuple[Array, Array, Array]:
        head_dim = weights[0].shape[0] // gain.shape[0]
        rows = sum(weight.shape[0] for weight in weights)
        if rope_dims != head_dim or not attention_heads.can_fuse(x, rows // head_dim, head_dim):
            return super().attention_inputs(x, weights, gain, rope_dims, rope_base, eps)
        joined = self._joined(x, weights)
        cosines, sines = self._tables(x.shape[1], head_dim // 2, rope_base)
        kv_heads = weights[1].shape[0] // head_dim
        return attention_heads.attention_heads(joined, gain, cosines, sines, kv_heads, eps)

    def self_attention(
        self, x: Array, weights: Sequence[Array], gain: Array, rope_dims: int, rope_base: float, eps: float
    ) -> Array:
        rows = weights[0].shape[0]
        grouped = weights[1].shape[0] != rows
        if rope_dims or grouped or not patch_attention.can_fuse(x, rows // gain.shape[0]):
            return super().self_attention(x, weights, gain, rope_dims, rope_base, eps)
        return patch_attention.patch_attention(self._joined(x, weights), gain, eps)

    def _joined(self, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """x through several matrices, in one product: [B, T, all their rows]."""
        return F.linear(x, torch.cat([weight.to(x.dtype) for weight in weights]))

    def _tables(self, time: int, half: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the angles of positions 0 ... time - 1, float32 [T, C / 2] each."""
        positions = ROTATION_POSITIONS
        while positions < time:
            positions *= 2
        table = rotation_table(positions, half, base, torch.float32, self.device)[:, :, 0].narrow(1, 0, time)
        return table[0], table[1]
