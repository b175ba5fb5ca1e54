"""The implementations of causal attention that a GPU may have, for `cuda_train.choosing` (docs/techniques.md 9.11).

All but FlashAttention 4 are reached through torch's own function, which torch.compile knows: which kernels it calls is
set around the call, and FlashAttention 3 takes the place of torch's flash attention while torch has it active.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F

from cuda_train.choosing import Choice, choose
from shared.model.block_shape import trunk_block_shape
from shared.spec import Spec

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# What torch prefers by itself.
TORCHS_OWN = "torch"
# Newer flash attention by torch's name for it (torch.nn.attention, from torch 2.11 on), and the packages that bring it.
FA3, FA3_PACKAGE = "FA3", "flash_attn_interface"
FA4, FA4_PACKAGE = "FA4", "flash_attn.cute"
# Both are for GPUs from this compute capability on (Hopper).
LEAST_CAPABILITY = (9, 0)
# Positions, of all sequences together, that forms are compared on. With a quarter of them a pass took 1 ms on an H200,
# and two starts chose differently because of the host's share.
MOST_POSITIONS = 1 << 18


def grouped_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """shared.ops.Ops.attention, plain and causal, by the kernels that torch prefers: q [B, T, H, C], k and v
    [B, T, G, C]: [B, T, H, C]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    if group > 1 and q.is_cuda and q.dtype == torch.float32:
        # Grouped float32 heads make torch write out all scores; its fused kernels take them one to one.
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        group = 1
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1).transpose(1, 2)


def attention_forms(device: torch.device) -> dict[str, Attention]:
    """What may compute `grouped_attention` in bfloat16 on a device, by name, torch's own preference first."""
    forms: dict[str, Attention] = {TORCHS_OWN: grouped_attention}
    if device.type != "cuda":
        return forms
    from torch.nn.attention import SDPBackend

    forms["cuDNN"] = _by(SDPBackend.CUDNN_ATTENTION)
    forms["flash"] = _by(SDPBackend.FLASH_ATTENTION)
    if torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY:
        if _can_activate() and _is_installed(FA3_PACKAGE):
            forms[FA3] = forms["flash"]
        if _is_installed(FA4_PACKAGE):
            from cuda_train.flash_attention_4 import flash_attention_4

            forms[FA4] = flash_attention_4
    return forms


def activate(name: str) -> None:
    """Prepare torch, in all of this process, for calls of the form of a name: flash attention becomes a newer one, or
    torch's own again. Raises what torch raises where the package does not fit."""
    if not _can_activate():
        return
    if name == FA3:
        torch.nn.attention.activate_flash_attention_impl(name)
    elif torch.nn.attention.current_flash_attention_impl() is not None:
        torch.nn.attention.restore_flash_attention_impl()


def chosen_attention(
    spec: Spec, rows: int, device: torch.device, earlier: str | None = None
) -> tuple[Choice, Attention] | None:
    """The `earlier` form of a run where it still works, else the fastest for micro-batches of so many rows on a device;
    None where there is nothing to choose: in float32, in a trunk whose attention has a mask or is not there, and where
    torch's own form is the only one."""
    model, forms = spec.model, attention_forms(device)
    shape = trunk_block_shape(model, 0)
    masked = model.attention.window or model.attention.document_mask
    if spec.training.dtype != "bfloat16" or masked or "attention" not in (model.mixers or ["attention"]):
        return None
    if len(forms) == 1:
        return None
    positions = model.num_patches
    batch, generator = max(1, min(rows, MOST_POSITIONS // positions)), torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn((batch, positions, heads, shape.head_dim), generator=generator).to(device, torch.bfloat16)
        for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    )
    choice = None
    if earlier in forms:
        choice = choose({earlier: forms[earlier]}, (q, k, v), grouped_attention, activate)
    if choice is None or choice.refused:
        choice = choose(forms, (q, k, v), grouped_attention, activate)
    activate(choice.name)
    return choice, forms[choice.name]


def _by(backend: torch.nn.attention.SDPBackend) -> Attention:
    """`grouped_attention` by one kind of kernel, or an error where it does not take these arrays."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(backend):
            return grouped_attention(q, k, v)

    return attend


def _can_activate() -> bool:
    return hasattr(torch.nn.attention, "activate_flash_attention_impl")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # Its parent is missing.
        return False
