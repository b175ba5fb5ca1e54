"""`shared.ops.Ops` in plain torch, for any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from cuda_train.attention_forms import Attention, grouped_attention
from shared.ops.composed import ComposedOps, symbol_context_by_tables
from shared.ops.noise import mixed
from shared.ops.protocol import RecurrentStep, Scan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Rotation tables are made for at least this many positions, so that few sequence lengths need another one.
ROTATION_POSITIONS = 1024
# The longest sequence whose attention is written out, on a GPU: the longest patch of a local decoder.
SHORT_SEQUENCE = 16


class TorchOps(ComposedOps):
    """Array operations in torch on one device; definitions in shared.ops.protocol."""

    name = "torch"
    symbol_context = symbol_context_by_tables

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Plain attention over more than a few positions: an engine may choose another of cuda_train.attention_forms.
        self.attend: Attention = grouped_attention
        # The scans in another form than that of the model, by name: an engine may choose those of cuda_train.fla_scans.
        self.scans: dict[str, Callable[..., torch.Tensor]] = {}

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
        time, half = x.shape[1], x.shape[-1] // 2
        positions = ROTATION_POSITIONS
        while positions < time:
            positions *= 2
        # `narrow` and not a slice: torch.compile would fix the length of a sliced constant and compile again for each.
        table = rotation_table(positions, half, base, x.dtype, x.device).narrow(1, 0, time)
        cos, sin = table[0], table[1]
        x1, x2 = x[..., :half], x[..., half:]
        return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int = 0, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        if window or documents is not None:
            return masked_attention(q, k, v, window, documents)
        if q.is_cuda and q.shape[1] <= SHORT_SEQUENCE:
            return short_attention(q, k, v)
        return self.attend(q, k, v)

    def recurrent(self, scan: Scan, step: RecurrentStep, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.scans.get(scan.__name__, scan)(self, *inputs)

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

    def softcapped_logsumexp(self, logits: torch.Tensor, softcap: float) -> torch.Tensor:
        return torch.logsumexp(softcap * torch.tanh(logits.float() / softcap), dim=-1)

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

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x)

    def exp(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()

    def log(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()

    def softplus(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(x, torch.zeros_like(x))

    def running_sum(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.cumsum(dim=axis)

    def lower_triangle(self, x: torch.Tensor, diagonal: int = 0) -> torch.Tensor:
        return x.tril(diagonal)

    def running_count(self, x: torch.Tensor, value: int) -> torch.Tensor:
        return (x == value).cumsum(dim=1, dtype=torch.int32)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)

    def unit_step(self, x: torch.Tensor) -> torch.Tensor:
        return (x >= 0).to(x.dtype)

    def minimum(self, x: torch.Tensor, limit: float) -> torch.Tensor:
        return x.clamp(max=limit)

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, dim=-1)

    def power(self, x: torch.Tensor, exponent: float) -> torch.Tensor:
        return torch.pow(x, exponent)

    def largest(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().amax(dim=-1, keepdim=True)

    def round(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    def float16(self, x: torch.Tensor) -> torch.Tensor:
        return through_float16(x)

    def stop_gradient(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def row_noise(self, x: torch.Tensor, counter: torch.Tensor, salt: int) -> torch.Tensor:
        rows = x.detach()
        # Torch has few operations on unsigned integers: 32 bits in the lower half of 64.
        index = torch.arange(rows.numel(), device=rows.device).reshape(rows.shape)
        bits = mixed(index, counter.to(torch.int64), salt)
        uniform = (bits >> 8).to(torch.float32) * 2.0**-24
        return (uniform - 0.5) * self.largest(rows)


def through_float16(x: torch.Tensor) -> torch.Tensor:
    """x float32, 0 <= x < 65504, rounded half to even to what float16 holds; float32.

    By arithmetic: torch.compile treats a conversion to float16 and back as a no-op and leaves x unchanged.
    """
    bits = x.view(torch.int32)
    normal = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    # Below its normal range float16 has steps of 2^-24, as float32 has between 1/2 and 1.
    return torch.where(x < 2.0**-14, (x + 0.75) - 0.75, normal)


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, documents: torch.Tensor | None
) -> torch.Tensor:
    """`attention` with a window (0 for none) or document numbers, through torch's kernel for an explicit mask.

    q [B, T, H, C], k and v [B, T, G, C]: [B, T, H, C]. The mask is a bool [1 or B, 1, T, T].
    """
    position = torch.arange(q.shape[1], device=q.device)
    distance = position[:, None] - position[None, :]
    mask = (distance >= 0) & (distance < window) if window else distance >= 0
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    else:
        mask = mask[None, None]
    group = q.shape[2] // k.shape[2]
    # Heads one to one: torch's kernels that take a mask do not group them.
    k, v = (x.repeat_interleave(group, dim=2) if group > 1 else x for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def short_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`attention` of many short sequences, written out element by element in float32.

    Torch's fused kernels work on tiles of 64 or 128 positions, and take at most 65,535 sequences; the patches of
    a local decoder are a few positions long and number hundreds of thousands. Compiled, this is a kernel
    bound by memory. q [B, T, H, C], k and v [B, T, G, C]: [B, T, H, C] in q's dtype.
    """
    batch, time, heads, width = q.shape
    group = heads // k.shape[2]
    grouped = (batch, time, 1, k.shape[2], group, width)
    queries = q.float().reshape(grouped) * width**-0.5
    keys, values = (x.float().reshape(batch, 1, time, k.shape[2], 1, width) for x in (k, v))
    later = torch.ones(time, time, dtype=torch.bool, device=q.device).triu(1)[:, :, None, None]
    scores = (queries * keys).sum(dim=-1).masked_fill(later, float("-inf"))
    weights = torch.softmax(scores, dim=2)
    return (weights[..., None] * values).sum(dim=2).reshape(q.shape).to(q.dtype)


def rotation_table(positions: int, half: int, base: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """cos and sin of the RoPE angles, [2, positions, 1, half] in `dtype`, made once in float64 on the host.

    A compiled function treats it as a constant. Left in the graph, the double-precision cosines would be recomputed
    for every head of every position, on GPUs where they are up to 64 times slower than float32.
    """
    return _cached_rotation_table(positions, half, base, dtype, device)


# All that torch.compiler.assume_constant_result does. Calling it would import torch's compiler, which takes longer than
# the rest of torch, even where nothing is compiled.
rotation_table._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=32)
def _cached_rotation_table(
    positions: int, half: int, base: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    frequencies = base ** (-torch.arange(half, dtype=torch.float64) / half)
    theta = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)[:, None, :]
    return torch.stack([theta.cos(), theta.sin()]).to(dtype).to(device)
