"""The sections of the GPU benchmark that compare forms of one operation on the shapes of the `h100` preset."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from cuda_train import fla_scans
from cuda_train.attention_forms import activate, attention_forms, chosen_attention, grouped_attention
from cuda_train.choosing import choose
from cuda_train.plain_ops import DTYPES, TorchOps
from shared.ops.composed import ComposedOps, symbol_context_by_tables
from shared.spec import Spec, load_spec
from shared.tolerances import BF16_OPERATION_REL
from tests.bench.gpu_record import Section, Settings, timed
from tests.bench.turns import random_tokens

# Symbols of a micro-batch of the preset.
SYMBOLS = 1 << 19
QUICK = (
    *("model.model_dim=32", "model.seq_len=64", "model.mlp_dim=64", "model.decoder.dim=16", "model.decoder.mlp_dim=32"),
    *("training.batch_symbols=512", "evaluation.stride_symbols=64", "evaluation.batch_symbols=256"),
)


def preset(settings: Settings) -> Spec:
    return load_spec("h100", [*QUICK] if settings.quick else [])


def attention_choice(settings: Settings, section: Section) -> None:
    """Attention of the trunk: the implementations here, and which is chosen at warm-up."""
    spec, device = preset(settings), torch.device(settings.device)
    symbols = spec.training.batch_symbols if settings.quick else SYMBOLS
    forms, found = attention_forms(device), chosen_attention(spec, symbols // spec.model.seq_len, device)
    if found is None:
        # On a CPU torch's own is the only one: its time, judged as the others would be.
        shapes = [(4, spec.model.num_patches, heads, 16) for heads in (4, 2, 2)]
        choice = choose(forms, [torch.randn(shape).bfloat16() for shape in shapes], grouped_attention)
    else:
        choice, _ = found
    rows: list[tuple[Any, ...]] = [("form", "forward and backward, ms", "")]
    for name in forms:
        verdict = choice.refused.get(name, "chosen" if name == choice.name else "")
        rows.append((name, choice.milliseconds.get(name, "-"), verdict))
    section.check(choice.name in choice.milliseconds, "attention: no form is right")
    section.table(*rows)
    activate("torch")


def symbol_context(settings: Settings, section: Section) -> None:
    """The context of the local decoder: written out, as rows of tables, and these with gradients by products with
    one-hot matrices, which are written or, on a GPU, made in a kernel's registers."""
    from cuda_train import table_gradient  # These need Triton.
    from cuda_train.fused_ops import FusedTorchOps

    class Products(TorchOps):
        def embedding_sum(
            self, weights: Sequence[torch.Tensor], indexes: Sequence[torch.Tensor], dtype: str
        ) -> torch.Tensor:
            return table_gradient.read_rows(weights, indexes, DTYPES[dtype], fused=False)

    spec, device = preset(settings), torch.device(settings.device)
    dim, context, length = spec.model.decoder.dim, spec.model.decoder.context, spec.model.seq_len
    symbols = spec.training.batch_symbols if settings.quick else SYMBOLS
    text = np.minimum(random_tokens(spec.vocabulary.size)[:symbols], 255).reshape(-1, length)
    index, generator = torch.from_numpy(text).to(device), torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    weights = weight(spec.vocabulary.size, dim), weight(dim), weight(dim, context * dim)
    forms: dict[str, Callable[..., torch.Tensor]] = {
        "written out": _form(TorchOps(device), ComposedOps.symbol_context, index),
        "rows of tables": _form(TorchOps(device), symbol_context_by_tables, index),
        "rows of tables, gradients by products": _form(Products(device), symbol_context_by_tables, index),
        "rows of tables, gradients by the kernel": _form(FusedTorchOps(device), FusedTorchOps.symbol_context, index),
    }
    rows: list[tuple[Any, ...]] = [(f"{symbols:,} symbols, {context} places", "forward and backward, ms", "memory, MB")]
    right: list[torch.Tensor] = []
    for name, form in forms.items():
        found = _result_and_gradients(form, weights)
        right = right or found
        off = max(float((a - b).norm() / b.norm()) for a, b in zip(found, right, strict=True))
        section.check(off <= BF16_OPERATION_REL, f"symbol context {name}")
        compiled = form if settings.quick else torch.compile(form)
        rows.append((name, *timed(settings, compiled, *weights)))
    section.table(*rows)


def recurrent_scans(settings: Settings, section: Section) -> None:
    """The scans of Mamba-2 and the gated delta rule: compiled here, and by fla-core where it is installed."""
    device, ops = torch.device(settings.device), TorchOps(torch.device(settings.device))
    mixers = 'model.mixers=["mamba2","gated_delta"]'
    spec = load_spec("tiny" if settings.quick else "h100", ["model.num_layers=2", mixers, "training.dtype=bfloat16"])
    chosen = fla_scans.chosen_scans(spec, ops, device)
    rows: list[tuple[Any, ...]] = [("scan", "form", "forward and backward, ms", "memory, MB")]
    for name, (own, other) in fla_scans.SCANS.items():
        arrays = [x.requires_grad_() for x in fla_scans.scan_inputs(spec, name, device)]
        forms = {fla_scans.OWN: own} | ({fla_scans.FLA: other} if fla_scans.is_there(device) else {})
        for form_name, scan in forms.items():
            form = functools.partial(scan, ops)
            verdict = chosen[name][0].refused.get(form_name, "") if name in chosen else ""
            section.check(not verdict, f"{form_name} {name}: {verdict}")
            if not verdict:
                compiled = form if settings.quick else torch.compile(form)
                rows.append((name, form_name, *timed(settings, compiled, *arrays)))
    section.table(*rows)


def mlp_tiles(settings: Settings, section: Section) -> None:
    """The MLP with its activation in the products: in tiles of several forms, beside the plain operations."""
    from cuda_train.kernels import squared_mlp  # It needs Triton.
    from cuda_train.kernels.squared_mlp import Tiles

    device, generator = torch.device(settings.device), torch.Generator().manual_seed(0)
    # Triton's interpreter multiplies no bfloat16 matrices.
    dtype = torch.float32 if settings.device == "cpu" else torch.bfloat16
    dim = settings.shape["model_dim"]
    hidden = settings.shape["mlp_mult"] * dim
    arrays = [
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in ((settings.batch_symbols, dim), (hidden, dim), (dim, hidden))
    ]
    one = {"stages": 4, "per_processor": 1, "pieces": 1}
    choices = {
        "FORWARD": [squared_mlp.FORWARD, Tiles(warps=8), Tiles(pieces=4), Tiles(**one)],
        "BACKWARD": [
            squared_mlp.BACKWARD,
            *(Tiles(pieces=4), Tiles(inner=32, stages=5), Tiles(inner=32, stages=5, pieces=4)),
            Tiles(inner=32, warps=8, stages=3, pieces=1),
            Tiles(**one, warps=8),
        ],
    }
    rows: list[tuple[Any, ...]] = [("MLP", "forward and backward, ms", "memory, MB")]
    for slope in (0.0,) if settings.quick else (0.0, 0.5):
        plain = functools.partial(TorchOps(device).leaky_relu_squared_mlp, negative_slope=slope)
        rows.append(
            (f"plain, slope {slope}", *timed(settings, plain if settings.quick else torch.compile(plain), *arrays))
        )
        right = _result_and_gradients(plain, arrays)
        form = functools.partial(squared_mlp.squared_mlp, negative_slope=slope)
        for name, tried in choices.items():
            usual = tried[0]
            for tiles in tried[:2] if settings.quick else tried:
                setattr(squared_mlp, name, tiles)
                found = _result_and_gradients(form, arrays)
                off = max(float((a - b).norm() / b.norm()) for a, b in zip(found, right, strict=True))
                label = f"{name.lower()} {_differences(tiles)}, slope {slope}"
                section.check(off <= BF16_OPERATION_REL, label)
                rows.append((label, *timed(settings, form, *arrays)))
            setattr(squared_mlp, name, usual)
    section.table(*rows)


def _differences(value: Any) -> str:
    """The fields of a dataclass that are not its defaults."""
    differing = [field.name for field in fields(value) if getattr(value, field.name) != field.default]
    return ", ".join(f"{name} {getattr(value, name)}" for name in differing) or "as by default"


def _result_and_gradients(form: Callable[..., torch.Tensor], arrays: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    value = form(*arrays)
    return [value.detach(), *torch.autograd.grad(value.float().square().mean(), arrays)]


def _form(ops: TorchOps, context: Callable[..., torch.Tensor], index: torch.Tensor) -> Callable[..., torch.Tensor]:
    def form(table: torch.Tensor, start: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        first = start.expand(len(index), 1, len(start))
        return context(ops, table, first, projection, index, "bfloat16")

    return form
