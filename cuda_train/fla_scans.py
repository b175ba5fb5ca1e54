"""The scans of recurrent mixers by `fla-core`, where it is installed and agrees (docs/techniques.md 9.11).

Its functions take bfloat16 and stop torch.compile, so each is an operator that the compiler does not look into. They
bring their own gradients, which are asked for inside another operator: that computes the result again.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cuda_train.choosing import Choice, problem_of
from shared.model.gated_delta import delta_scan
from shared.model.mamba2 import selective_scan
from shared.ops import Ops
from shared.spec import Spec

# By the scan of shared.model: the module and the function of fla-core. Both take queries, keys, values [B, N, H, C] and
# logarithms of decays [B, N, H], the second one strengths [B, N, H] too.
FUNCTIONS = {
    "selective_scan": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "delta_scan": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
}
MIXERS = {"mamba2": "selective_scan", "gated_delta": "delta_scan"}
OWN, FLA = "chunks", "fla-core"
# Positions of the arrays that both are compared on, of two sequences.
MOST_POSITIONS = 1024

Scan = Callable[..., torch.Tensor]


def fla_selective_scan(
    ops: Ops, x: torch.Tensor, log_decay: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """shared.model.mamba2.selective_scan: queries c read values x by keys b, both one to one with the heads."""
    share = x.shape[2] // b.shape[2]
    q, k = (each.repeat_interleave(share, dim=2) for each in (c, b))
    return _scan("selective_scan", [q.bfloat16(), k.bfloat16(), x.bfloat16(), log_decay]).float()


def fla_delta_scan(
    ops: Ops,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    strength: torch.Tensor,
) -> torch.Tensor:
    """shared.model.gated_delta.delta_scan."""
    return _scan("delta_scan", [q.bfloat16(), k.bfloat16(), v.bfloat16(), log_decay, strength]).float()


SCANS: dict[str, tuple[Scan, Scan]] = {
    "selective_scan": (selective_scan, fla_selective_scan),
    "delta_scan": (delta_scan, fla_delta_scan),
}


def chosen_scans(spec: Spec, ops: Any, device: torch.device) -> dict[str, tuple[Choice, Scan]]:
    """For each scan of a spec that is trained in bfloat16: what was found of fla-core, and the scan to use. Empty where
    it is not installed, or not for this device."""
    found: dict[str, tuple[Choice, Scan]] = {}
    if spec.training.dtype != "bfloat16" or not is_there(device):
        return found
    for mixer, name in MIXERS.items():
        if mixer not in spec.model.mixers:
            continue
        own, other = SCANS[name]
        inputs = scan_inputs(spec, name, device)
        problem = problem_of(lambda *x, scan=other: scan(ops, *x), inputs, lambda *x, scan=own: scan(ops, *x))
        choice = Choice(OWN if problem else FLA, refused={FLA: problem} if problem else {})
        found[name] = choice, own if problem else other
    return found


def is_there(device: torch.device) -> bool:
    """Whether fla-core is installed and this is a GPU, for which its kernels are."""
    return device.type == "cuda" and importlib.util.find_spec("fla") is not None


def scan_inputs(spec: Spec, name: str, device: torch.device) -> list[torch.Tensor]:
    """Arrays like those of a spec: float32, keys of length 1, decays and strengths in (0, 1)."""
    model, generator = spec.model, torch.Generator().manual_seed(0)
    heads, positions = model.num_heads, min(model.num_patches, MOST_POSITIONS)

    def normal(count: int, width: int) -> torch.Tensor:
        return torch.randn((2, positions, count, width), generator=generator).to(device)

    x, log_decay = normal(heads, model.head_dim), -torch.nn.functional.softplus(normal(heads, 1)[..., 0] - 3.0)
    if name == "selective_scan":
        return [x, log_decay, *(normal(model.num_kv_heads, model.state_dim) for _ in range(2))]
    q, k = (torch.nn.functional.normalize(normal(heads, model.head_dim), dim=-1) for _ in range(2))
    return [q, k, x, log_decay, torch.sigmoid(normal(heads, 1)[..., 0])]


def _called(name: str, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the function of fla-core for a scan gives."""
    module, function = FUNCTIONS[name]
    named = dict(zip(("q", "k", "v", "g", "beta"), inputs, strict=False))
    result: torch.Tensor = getattr(importlib.import_module(module), function)(**named, scale=1.0)[0]
    return result


@torch.library.custom_op("bytetwin::fla_scan", mutates_args=())
def _scan(name: str, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return _called(name, inputs).contiguous()


@_scan.register_fake
def _(name: str, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.empty_like(inputs[2], memory_format=torch.contiguous_format)


@torch.library.custom_op("bytetwin::fla_scan_backward", mutates_args=())
def _scan_backward(name: str, inputs: Sequence[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        found = torch.autograd.grad(_called(name, leaves), leaves, grad)
    return [value.contiguous() for value in found]


@_scan_backward.register_fake
def _(name: str, inputs: Sequence[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _keep(ctx: Any, inputs: tuple[str, Sequence[torch.Tensor]], output: torch.Tensor) -> None:
    ctx.name, arrays = inputs
    ctx.save_for_backward(*arrays)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[None, list[torch.Tensor]]:
    return None, _scan_backward(ctx.name, list(ctx.saved_tensors), grad.contiguous())


_scan.register_autograd(_gradients, setup_context=_keep)
