"""The sections of the GPU benchmark that check: parity, kernels, compilation."""

from __future__ import annotations

import functools
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from cuda_train import distributed
from cuda_train.engine import GRAPHS_VARIABLE
from cuda_train.kernels import patch_attention
from cuda_train.kernels import softcapped_cross_entropy as kernel
from cuda_train.plain_ops import TorchOps, short_attention
from shared.engine.package import create_engine
from shared.engine.protocol import Engine, StepResult
from shared.model import initial_weights
from shared.ops import NumpyOps
from shared.optim import step_hyperparameters
from shared.parity import run_parity
from shared.spec import load_spec
from shared.tolerances import BF16_OPERATION_REL, GRADIENT_REL, NATS_ABS
from shared.training.profiling import Profile, ProfiledEngine, ProfileRequest
from tests.bench.gpu_record import Section, Settings, baseline_spec, own_engine, timed
from tests.bench.turns import random_tokens

TRACED_STEPS = 5
# Further on a model that learns one batch by heart multiplies what its rounding differs by.
COMPARED_STEPS = 4
NORM_EPS = 1e-6


def parity(settings: Settings, section: Section) -> None:
    """Parity with the float64 oracle, float32 with TF32 off, and bfloat16."""
    torch.set_float32_matmul_precision("highest")
    specs = [load_spec("tiny"), load_spec("smoke"), load_spec("h100")]
    if settings.quick:
        specs = [baseline_spec(settings)]
    for spec in specs:
        report = run_parity(spec, steps=3)
        rows = [(row.check, row.pair, f"{row.measured:.1e}", f"{row.tolerance:.0e}", row.unit) for row in report.rows]
        verdicts = [section.check(row.passed, f"{spec.name}: {row.check}, {row.pair}") for row in report.rows]
        section.lines.append(f"{spec.name}: {', '.join(report.implementations)}; {'; '.join(report.reductions)}\n")
        heading = ("check", "pair", "measured", "tolerance", "unit", "")
        section.table(heading, *[(*row, verdict) for row, verdict in zip(rows, verdicts, strict=True)])


def fused_loss(settings: Settings, section: Section) -> None:
    """The fused loss against the float64 oracle, and its time."""
    plain_ops = TorchOps(torch.device("cpu"))  # on the CPU the plain operation is the only one
    forms = {"plain": plain_ops.softcapped_cross_entropy, "fused": kernel.softcapped_cross_entropy}
    forms["plain, compiled"] = torch.compile(plain_ops.softcapped_cross_entropy)
    generator, device = torch.Generator().manual_seed(0), torch.device(settings.device)
    rows: list[tuple[Any, ...]] = [("vocabulary, dtype", "form", "nats off by", "gradient off by", "")]
    count = 21 if settings.quick else 3333
    for vocab_size in (260,) if settings.quick else (256, 260, 1000):
        for dtype, limit in ((torch.float32, GRADIENT_REL), (torch.bfloat16, BF16_OPERATION_REL)):
            logits = (5.0 * torch.randn(count, vocab_size, generator=generator)).to(dtype)
            targets = torch.randint(vocab_size, (count,), generator=generator, dtype=torch.int32)
            exact = logits.double().requires_grad_(True)
            capped = 30.0 * torch.tanh(exact / 30.0)
            (exact_grad,) = torch.autograd.grad(
                torch.nn.functional.cross_entropy(capped, targets.long(), reduction="sum"), exact
            )
            nats = NumpyOps().softcapped_cross_entropy(logits.double().numpy(), targets.numpy(), 30.0)
            for name in ("plain", "fused"):
                leaf = logits.to(device).requires_grad_(True)
                found = forms[name](leaf, targets.to(device), 30.0)
                (grad,) = torch.autograd.grad(found.sum(), leaf)
                off = float(np.abs(found.detach().cpu().double().numpy() - nats).max())
                grad_off = float((grad.cpu().double() - exact_grad).norm() / exact_grad.norm())
                verdict = section.check(off <= NATS_ABS and grad_off <= limit, f"{name} loss, {vocab_size}, {dtype}")
                rows.append((f"{vocab_size}, {dtype}", name, f"{off:.1e}", f"{grad_off:.1e}", verdict))
    section.table(*rows)
    count = 64 if settings.quick else 65_536
    leaf = torch.randn(count, 256, device=device, dtype=torch.bfloat16).requires_grad_(True)
    targets = torch.randint(256, (count,), device=device, dtype=torch.int32)
    rows = [(f"{count:,} symbols, vocabulary 256, bfloat16", "forward and backward, ms", "memory above its input, MB")]
    for name, form in forms.items():
        rows.append((name, *timed(settings, form, leaf, targets, 30.0)))
    section.table(*rows)


def decoder_attention(settings: Settings, section: Section) -> None:
    """Attention inside patches from a joined product, norms of heads included: written out, and as one kernel."""
    device = torch.device(settings.device)
    forms = {"written out, compiled": torch.compile(_written_out), "one kernel each way": _in_one_kernel}
    heading = ("patches x patch size, 4 heads of 64", "form", "result, gradients off by", "both ways, ms", "MB", "")
    rows: list[tuple[Any, ...]] = [heading]
    for patches, patch_size in ((3, 4),) if settings.quick else ((262_144, 4), (131_072, 8)):
        generator = torch.Generator(device).manual_seed(0)
        normal = functools.partial(torch.randn, generator=generator, device=device)
        joined = normal((patches, patch_size, 3 * 256), dtype=torch.bfloat16).requires_grad_(True)
        gain = (1.0 + 0.3 * normal((4,))).requires_grad_(True)
        slope = normal((patches, patch_size, 4, 64), dtype=torch.bfloat16)
        for name, form in forms.items():
            y = form(joined, gain)
            off = _off_by(joined, gain, slope, [y.detach(), *torch.autograd.grad(y, (joined, gain), slope)])
            del y
            verdict = section.check(max(off) <= BF16_OPERATION_REL, f"{name} attention, {patches} x {patch_size}")
            words = ", ".join(f"{each:.1e}" for each in off)
            rows.append((f"{patches:,} x {patch_size}", name, words, *timed(settings, form, joined, gain), verdict))
    section.table(*rows)


def _in_one_kernel(joined: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return patch_attention.patch_attention(joined, gain, NORM_EPS)


def _written_out(joined: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    q, k, v = _heads(joined, gain)
    return short_attention(q, k, v)


def _heads(joined: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [S, P, H, C] of joined [S, P, 3 H C], in its dtype."""
    q, k, v = (each.unflatten(-1, (len(gain), -1)) for each in joined.chunk(3, dim=-1))
    q, k = (torch.nn.functional.rms_norm(each, each.shape[-1:], eps=NORM_EPS) for each in (q, k))
    return q * gain.to(q.dtype)[:, None], k, v


def _off_by(joined: torch.Tensor, gain: torch.Tensor, slope: torch.Tensor, found: list[torch.Tensor]) -> list[float]:
    """How far y and the gradients of joined and gain are from those in float64, relative to the norm of these."""
    wrong, whole = np.zeros(2), np.zeros(2)
    exact_gain = gain.detach().double().requires_grad_(True)
    total = torch.zeros_like(exact_gain)
    parts = (each.split(32_768) for each in (joined.detach(), slope, found[0], found[1]))
    for part, part_slope, *of_form in zip(*parts, strict=True):
        leaf = part.double().requires_grad_(True)
        q, k, v = (each.transpose(1, 2) for each in _heads(leaf, exact_gain))
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        shares = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(later, -math.inf).softmax(dim=-1)
        y = (shares @ v).transpose(1, 2)
        grad, grad_gain = torch.autograd.grad(y, (leaf, exact_gain), part_slope.double())
        total += grad_gain
        for index, (exact, ours) in enumerate(zip((y.detach(), grad), of_form, strict=True)):
            wrong[index] += float((ours.double() - exact).square().sum())
            whole[index] += float(exact.square().sum())
    return [*np.sqrt(wrong / whole).tolist(), float((found[2].double() - total).norm() / total.norm())]


def exchange(settings: Settings, section: Section) -> None:
    """A rank's step on an eighth of the batch, with the exchange of gradients: as one graph, and kernel by kernel."""
    spec = baseline_spec(settings)
    rows_each, length = max(1, settings.rows // 8), spec.model.seq_len
    x = random_tokens(settings.shape["vocab_size"])[: rows_each * length].reshape(rows_each, length)
    rows: list[tuple[Any, ...]] = [(f"{x.size:,} symbols", "ms a step", "losses of the first")]
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if settings.device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        ranks = distributed.TorchRanks()
        engines = []
        for name, value in {"one graph": "1", "kernel by kernel": "0"}.items():
            with patch.dict(os.environ, {GRAPHS_VARIABLE: value}):
                engine = create_engine("torch", spec, ranks=ranks)
            engines.append(engine)
            engine.initialise(initial_weights(spec))
            chosen = engine.warm_up(x) or {}
            section.check("step" not in chosen, f"a step with collectives: {chosen.get('step')}")
            losses.append([_timed_steps(engine, x, 1, first=step)[1] for step in range(COMPARED_STEPS)])
            step_s, _ = _timed_steps(engine, x, 2 if settings.quick else 50)
            rows.append((name, f"{1e3 * step_s:.2f}", " ".join(f"{loss:.5f}" for loss in losses[-1])))
        off = max(abs(one / other - 1.0) for one, other in zip(*losses, strict=True))
        # Not to the bit: cuDNN adds up gradients in no fixed order.
        section.check(off <= BF16_OPERATION_REL, f"losses differ by {off:.1e}")
        begin = time.perf_counter()
        distributed.disconnect()
        left_s = time.perf_counter() - begin
    section.table(*rows)
    verdict = section.check(not torch.distributed.is_initialized(), "the process group cannot be left")
    section.lines.append(f"The group is left after {left_s:.1f} s ({verdict}).")


def _timed_steps(engine: Engine, x: np.ndarray, count: int, first: int = 0) -> tuple[float, float]:
    """(seconds of a step, loss of the last) of `count` steps, read as the loop does: when the next one is queued."""
    begin = time.perf_counter()
    pending: list[StepResult] = []
    for step in range(first, first + count):
        pending.append(engine.train_step(x, step_hyperparameters(engine.spec, step, 0.0)))
        if len(pending) > 1:
            pending.pop(0)()
    loss, _ = pending.pop()()
    return (time.perf_counter() - begin) / count, loss


def compilation(settings: Settings, section: Section) -> None:
    """Compile time, recompilations after it, and a trace."""
    engine, batch = own_engine(settings)
    begin = time.perf_counter()
    engine.warm_up(batch())
    engine.synchronise()
    section.lines.append(f"Warm-up with compilation: {time.perf_counter() - begin:.1f} s.")
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    profiles: list[Profile] = []
    with tempfile.TemporaryDirectory() as folder:
        trace = settings.trace or Path(folder) / "trace.json"
        with ProfiledEngine(engine, ProfileRequest(TRACED_STEPS, profiles.append), trace) as watched:
            for step in range(12):
                watched.train_step(batch(), step_hyperparameters(engine.spec, 80 * step, step / 12))()
    again = counters["unique_graphs"] - before
    section.lines.append(
        f"Graphs compiled in 12 steps after it: {again} ({section.check(again == 0, 'recompilation')}).\n"
    )
    profile = profiles[0]
    section.lines.append(
        f"{profile.steps} traced steps of {1e3 * profile.step_s:.1f} ms each, with the tracing; {profile.measured}:\n"
    )
    heading = ("what", "share", "ms a step", "calls a step")
    costs = [
        (c.name, f"{c.share_frac:.1%}", f"{1e3 * c.seconds / profile.steps:.2f}", c.calls / profile.steps)
        for c in profile.costs
    ]
    section.table(heading, *costs)
