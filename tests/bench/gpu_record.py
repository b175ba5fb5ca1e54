"""What the GPU benchmark measures, and the parts its record is made of. Imports nothing of torch: see `prepare`."""

from __future__ import annotations

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared.engine.microbatch import with_micro_batches
from shared.engine.package import create_engine, engine_package
from shared.engine.protocol import Engine
from shared.model import initial_weights
from shared.spec import Spec, spec_from_dict
from tests.bench.turns import random_tokens


@dataclass(frozen=True)
class Settings:
    """What is measured: the public baseline's size, or (quick) something a CPU does in seconds."""

    device: str
    quick: bool
    script: Path | None
    rounds: int
    trace: Path | None = None
    turn_steps: int = field(init=False)
    shape: dict[str, int] = field(init=False)
    rows: int = field(init=False)
    micro_batches: int = field(init=False)

    def __post_init__(self) -> None:
        names = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult", "seq_len")
        sizes = (256, 1, 32, 4, 2, 2, 64) if self.quick else (256, 9, 512, 8, 4, 2, 1024)
        object.__setattr__(self, "shape", dict(zip(names, sizes, strict=True)))
        object.__setattr__(self, "rows", 4 if self.quick else 512)
        # Of the public script, as its own default for one GPU.
        object.__setattr__(self, "micro_batches", 2 if self.quick else 8)
        object.__setattr__(self, "turn_steps", 2 if self.quick else 10)

    @property
    def batch_symbols(self) -> int:
        """Symbols of one training step."""
        return self.rows * self.shape["seq_len"]


@dataclass
class Section:
    """A part of the record: lines of markdown, and the checks that failed."""

    title: str
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def text(self) -> list[str]:
        """The section as lines of markdown."""
        return [f"## {self.title}", "", *self.lines]

    def check(self, holds: bool, what: str) -> str:
        """`ok` or `FAILED`, and remember which."""
        if not holds:
            self.failures.append(what)
        return "ok" if holds else "FAILED"

    def table(self, *rows: tuple[Any, ...]) -> None:
        """A markdown table; the first row is its heading."""
        cells = [[str(cell) for cell in row] for row in rows]
        self.lines += ["| " + " | ".join(row) + " |" for row in cells]
        self.lines.insert(len(self.lines) - len(cells) + 1, "|---" * len(cells[0]) + "|")
        self.lines.append("")


def prepare(settings: Settings, worker: bool) -> None:
    """Before torch is imported: which device it sees, and what stands in for the GPU's compilers."""
    if settings.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use; --device cpu --quick tests this script without one")
    if settings.quick:
        # Graphs are captured, which is what decides about recompiling, but not compiled; the workers do not even that.
        capture = functools.partial(torch.compile, backend="eager")
        torch.compile = (lambda function, **_: function) if worker else capture  # type: ignore[assignment]


def record_text(settings: Settings, sections: list[Section]) -> str:
    """The record as markdown."""
    import torch

    from cuda_train import device

    failures = [failure for section in sections for failure in section.failures]
    script = f" --script {settings.script.name}" if settings.script else ""
    driver = " --device cpu --quick" if settings.quick else ""
    lines = [
        f"# The torch engine on {device.device_name()}, {time.strftime('%Y-%m-%d')}",
        "",
        f"    python -m tests.bench.gpu{script}{driver}",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}. Model: "
        + ", ".join(f"{key} {value}" for key, value in settings.shape.items())
        + f"; {settings.batch_symbols:,} symbols a step, the public script in {settings.micro_batches} micro-batches, "
        f"here in {settings.batch_symbols // baseline_spec(settings).training.micro_batch_symbols}.",
        "",
        f"Checks that failed: {', '.join(failures) or 'none'}.",
    ]
    for section in sections:
        lines += ["", *section.text()]
    return "\n".join(lines) + "\n"


def baseline_spec(settings: Settings) -> Spec:
    """The public baseline's architecture, batch, precision and Muon settings as a spec."""
    shape = settings.shape
    same = ("num_layers", "model_dim", "num_heads", "num_kv_heads", "seq_len")
    model: dict[str, int | float] = {key: shape[key] for key in same}
    model |= {"mlp_dim": shape["mlp_mult"] * shape["model_dim"], "mlp_negative_slope": 0.0}
    training = {"steps": 1000, "batch_symbols": settings.batch_symbols, "dtype": "bfloat16"}
    training |= {"micro_batch_symbols": "auto"}
    optimizer = {"ns_dtype": "bfloat16", "matrix_lr": 0.04, "embed_lr": 0.05, "scalar_lr": 0.04}
    spec = spec_from_dict({"name": "baseline", "model": model, "training": training, "optimizer": optimizer})
    return with_micro_batches(spec, "torch", engine_package("torch").device_facts())


def own_engine(settings: Settings) -> tuple[Engine, Callable[[], np.ndarray]]:
    """(the torch engine with the baseline's weights, a function that gives the next batch)."""
    spec = baseline_spec(settings)
    engine = create_engine("torch", spec)
    engine.initialise(initial_weights(spec))
    tokens, place = random_tokens(settings.shape["vocab_size"]), 0

    def batch() -> np.ndarray:
        nonlocal place
        place = place if place + settings.batch_symbols <= len(tokens) else 0
        place += settings.batch_symbols
        return tokens[place - settings.batch_symbols : place].reshape(settings.rows, -1)

    return engine, batch


def timed(settings: Settings, form: Callable[..., Any], *inputs: Any) -> tuple[str, str]:
    """(milliseconds of a forward and a backward pass, median of 20; megabytes that they need beside what was there; "-"
    on a CPU)."""
    import torch

    on_gpu = settings.device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    slope = torch.ones_like(form(*inputs))

    def both_ways() -> None:
        form(*inputs).backward(slope)
        for each in inputs:
            if isinstance(each, torch.Tensor):
                each.grad = None  # Else the next pass would also add two gradients.

    for _ in range(1 if settings.quick else 5):
        both_ways()
    wait()
    start_bytes = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    milliseconds = []
    for _ in range(3 if settings.quick else 20):
        begin = time.perf_counter()
        both_ways()
        wait()
        milliseconds.append(1e3 * (time.perf_counter() - begin))
    extra = f"{(torch.cuda.max_memory_allocated() - start_bytes) / 1e6:,.0f}" if on_gpu else "-"
    return f"{statistics.median(milliseconds):.3f}", extra
