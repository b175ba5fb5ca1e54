"""The section of the GPU benchmark that races: whole training steps of two processes that take turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cuda_train import device
from shared.engine.flops import training_flops
from shared.model import parameter_counts
from shared.optim import step_hyperparameters
from shared.preflight.hardware import find_peak
from tests.bench.gpu_record import Section, Settings, baseline_spec, own_engine
from tests.bench.public_script import public_step


def speed(settings: Settings, section: Section) -> None:
    """Speed and memory of a whole training step."""
    names = ["bytetwin", *(["public"] if settings.script else [])]
    workers = {name: start_worker(settings, name) for name in names}
    ready = {name: read_reply(worker) for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(settings.rounds):
        for name, worker in workers.items():
            seconds[name].append(float(ask(worker, "turn")[0]) / settings.turn_steps)
    memory = {name: int(ask(worker, "memory")[0]) for name, worker in workers.items()}
    for worker in workers.values():
        worker.communicate("")
    flops = training_flops(baseline_spec(settings)).per_symbol
    known = find_peak(device.device_name()) if settings.device == "cuda" else None
    peak = known[1].flops_per_s("bfloat16") if known else device.matrix_product_flops_per_s("bfloat16")
    rows: list[tuple[Any, ...]] = [
        (
            "",
            "parameters",
            "ready to train after, s",
            "tokens/s, median",
            "slowest to fastest",
            "MFU",
            "peak memory, MB",
        )
    ]
    for name, times in seconds.items():
        rates = sorted(settings.batch_symbols / value for value in times)
        middle = statistics.median(rates)
        first_s, parameters = ready[name]
        spread = f"{rates[0]:,.0f} to {rates[-1]:,.0f}"
        share = f"{middle * flops / peak:.1%}"
        rows.append(
            (name, f"{int(parameters):,}", first_s, f"{middle:,.0f}", spread, share, f"{memory[name] / 1e6:,.0f}")
        )
    section.table(*rows)
    source = f"{known[0]} data sheet, dense bfloat16" if known else "measured product of large squares"
    section.lines.append(f"MFU: {flops / 1e6:.1f} MFLOP a symbol x tokens/s / {peak / 1e12:.1f} TFLOP/s ({source}).\n")
    if "public" in seconds:
        ratios = sorted(a / b for a, b in zip(seconds["public"], seconds["bytetwin"], strict=True))
        median = f"{statistics.median(ratios):.2f}"
        section.lines.append(
            f"Tokens per second, bytetwin to public: median {median}, from {ratios[0]:.2f} to {ratios[-1]:.2f}, "
            f"n = {len(ratios)} rounds of {settings.turn_steps} steps each, taking turns."
        )


def own_step(settings: Settings) -> tuple[Callable[[], None], int]:
    """(one whole training step as the loop takes it, number of parameters)."""
    engine, batch = own_engine(settings)
    engine.warm_up(batch())
    pending: list[Any] = []

    def step() -> None:
        result = engine.train_step(batch(), step_hyperparameters(engine.spec, 500, 0.5))
        pending.append(result)
        if len(pending) > 1:
            pending.pop(0)()  # the loop reads a step's numbers when the next one is queued

    return step, parameter_counts(engine.spec)["total"]


def serve(settings: Settings, name: str) -> None:
    """A worker: takes `turn_steps` steps for each line `turn` on stdin, tells its peak memory for `memory`."""
    begin = time.perf_counter()
    if name == "public":
        assert settings.script is not None
        where = torch.device(settings.device)
        step, parameters = public_step(
            settings.script, settings.shape, settings.batch_symbols, settings.micro_batches, where
        )
    else:
        step, parameters = own_step(settings)
    wait = torch.cuda.synchronize if settings.device == "cuda" else lambda: None
    step()
    wait()
    print("reply", f"{time.perf_counter() - begin:.1f}", parameters, flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print("reply", device.peak_memory_bytes(), flush=True)
            continue
        begin = time.perf_counter()
        for _ in range(settings.turn_steps):
            step()
        wait()
        print("reply", time.perf_counter() - begin, flush=True)


def start_worker(settings: Settings, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.bench.gpu", "--worker", name, "--device", settings.device]
    command += ["--quick"] if settings.quick else []
    command += ["--script", str(settings.script)] if settings.script else []
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)


def ask(worker: subprocess.Popen, request: str) -> list[str]:
    """A worker's answer to one request."""
    assert worker.stdin
    worker.stdin.write(f"{request}\n")
    worker.stdin.flush()
    return read_reply(worker)


def read_reply(worker: subprocess.Popen) -> list[str]:
    """The words of a worker's next reply; other lines it prints are passed over."""
    assert worker.stdout
    for line in worker.stdout:
        if line.startswith("reply "):
            return line.split()[1:]
    raise RuntimeError(f"a worker stopped with status {worker.wait()}")
