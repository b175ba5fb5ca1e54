"""`shared.ops.Ops` in torch in float64: the oracle's operations on torch's kernels, on a CPU or a GPU."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from cuda_train.device import default_device
from cuda_train.plain_ops import TorchOps, masked_attention


class Float64TorchOps(TorchOps):
    """TorchOps whose floats are float64; dtype arguments are ignored. It scores and does not train."""

    def asarray(self, values: np.ndarray) -> torch.Tensor:
        values = np.asarray(values)
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int32)
        return torch.from_numpy(values).to(self.device)

    def cast(self, x: torch.Tensor, dtype: str) -> torch.Tensor:
        return x

    def embedding(self, weight: torch.Tensor, index: torch.Tensor, dtype: str) -> torch.Tensor:
        return F.embedding(index, weight)

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int = 0, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        return masked_attention(q, k, v, window, documents)

    def softcapped_cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, softcap: float) -> torch.Tensor:
        log_probs = self.softcapped_log_softmax(logits, softcap)
        return -log_probs.gather(-1, targets[..., None].long())[..., 0]

    def softcapped_log_softmax(self, logits: torch.Tensor, softcap: float) -> torch.Tensor:
        return F.log_softmax(softcap * torch.tanh(logits / softcap), dim=-1)

    def softcapped_logsumexp(self, logits: torch.Tensor, softcap: float) -> torch.Tensor:
        return torch.logsumexp(softcap * torch.tanh(logits / softcap), dim=-1)


def make_float64_ops() -> Float64TorchOps:
    """The operations on the first GPU, or on the CPU."""
    return Float64TorchOps(default_device())
