"""`shared.ops.Ops` in torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from cuda_train.device import default_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchOps:
    """Array operations in torch on one device; definitions in shared.ops.protocol."""

    name = "torch"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def asarray(self, values: np.ndarray) -> torch.Tensor:
        values = np.asarray(values)
        values = values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
        return torch.from_numpy(values).to(self.device)

    def to_numpy(self, x: torch.Tensor) -> np.ndarray:
        x = x.detach()
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy().copy()

    def cast(self, x: torch.Tensor, dtype: str) -> torch.Tensor:
        return x.to(DTYPES[dtype])

    def cast_like(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.to(like.dtype)

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight.to(x.dtype))

    def embedding(self, weight: torch.Tensor, index: torch.Tensor, dtype: str) -> torch.Tensor:
        return F.embedding(index, weight).to(DTYPES[dtype])

    def rms_norm(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), eps=eps)

    def rope(self, x: torch.Tensor, base: float) -> torch.Tensor:
        half = x.shape[-1] // 2
        frequencies = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
        theta = torch.outer(torch.arange(x.shape[1], dtype=torch.float64, device=x.device), frequencies)
        cos, sin = theta.cos()[:, None, :].to(x.dtype), theta.sin()[:, None, :].to(x.dtype)
        x1, x2 = x[..., :half], x[..., half:]
        return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)

    def leaky_relu_squared_mlp(
        self, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, negative_slope: float
    ) -> torch.Tensor:
        return self.linear(F.leaky_relu(self.linear(x, up), negative_slope).square(), down)

    def softcapped_cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, softcap: float) -> torch.Tensor:
        capped = softcap * torch.tanh(logits.float() / softcap)
        nats = F.cross_entropy(capped.flatten(0, -2), targets.flatten().long(), reduction="none")
        return nats.reshape(targets.shape)

    def softcapped_log_softmax(self, logits: torch.Tensor, softcap: float) -> torch.Tensor:
        return F.log_softmax(softcap * torch.tanh(logits.float() / softcap), dim=-1)

    def concatenate(self, arrays: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
        return torch.cat(list(arrays), dim=axis)

    def stack(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(arrays))

    def broadcast_to(self, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        return x.expand(tuple(shape))

    def transpose(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2)

    def sum(self, x: torch.Tensor, axes: Sequence[int] | None = None, keepdims: bool = False) -> torch.Tensor:
        return x.sum() if axes is None else x.sum(dim=tuple(axes), keepdim=keepdims)

    def sqrt(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)

    def minimum(self, x: torch.Tensor, limit: float) -> torch.Tensor:
        return x.clamp(max=limit)


def make_ops() -> TorchOps:
    """The operations on the first GPU, or on the CPU."""
    return TorchOps(default_device())
