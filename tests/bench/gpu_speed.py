"""The section of the GPU benchmark that races: whole training steps of two processes that take turns."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from cuda_train import device
from cuda_train.compiling import CACHE_VARIABLES, keep_compiled
from shared.engine.flops import training_flops
from shared.engine.hardware import find_peak
from shared.engine.protocol import StepResult
from shared.model import parameter_counts
from shared.optim import step_hyperparameters
from tests.bench.gpu_record import Section, Settings, baseline_spec, own_engine
from tests.bench.public_script import public_step
from tests.bench.turns import Worker, ratios_text, serve


def speed(settings: Settings, section: Section) -> None:
    """Speed and memory of a whole training step."""
    names = ["bytetwin", *(["public"] if settings.script else [])]
    words = ["--device", settings.device, *(["--quick"] if settings.quick else [])]
    words += ["--script", str(settings.script.resolve())] if settings.script else []
    workers: dict[str, Worker] = {}
    ready: dict[str, tuple[float, int]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def start(name: str) -> tuple[float, int]:
        """(seconds until it is ready to train, number of parameters)."""
        begin = time.perf_counter()
        workers[name] = Worker("tests.bench.gpu", "--worker", name.split(" ")[0], *words)
        (parameters,) = workers[name].ask("ready")
        return time.perf_counter() - begin, int(parameters)

    with tempfile.TemporaryDirectory() as cold, contextlib.ExitStack() as stack:
        for variable in CACHE_VARIABLES:
            os.environ.pop(variable, None)
        keep_compiled(Path(cold))
        stack.callback(lambda: stop_all(workers.values()))
        for name in names:  # One after the other: each compiles with all of the machine's processors.
            ready[name] = start(name)
        for _ in range(settings.rounds):
            for name, worker in workers.items():
                seconds[name].append(float(worker.ask("turn")[0]) / settings.turn_steps)
        memory = {name: int(worker.ask("memory")[0]) for name, worker in workers.items()}
        for worker in workers.values():
            worker.stop()
        warm_s, _ = start("bytetwin again")
    flops = training_flops(baseline_spec(settings)).per_symbol
    known = find_peak(device.device_name()) if settings.device == "cuda" else None
    peak = known[1].flops_per_s("bfloat16") if known else device.matrix_product_flops_per_s("bfloat16")
    heading = "|parameters|ready to train after, s|tokens/s, median|slowest to fastest|MFU|peak memory, MB"
    rows: list[tuple[Any, ...]] = [tuple(heading.split("|"))]
    for name, times in seconds.items():
        rates = sorted(settings.batch_symbols / value for value in times)
        middle = statistics.median(rates)
        ready_s, parameters = ready[name]
        spread = f"{rates[0]:,.0f} to {rates[-1]:,.0f}"
        share = f"{middle * flops / peak:.1%}"
        rows.append(
            (name, f"{parameters:,}", f"{ready_s:.1f}", f"{middle:,.0f}", spread, share, f"{memory[name] / 1e6:,.0f}")
        )
    section.table(*rows)
    section.lines.append(
        f"Ready: from the start of the process, with nothing compiled before. Bytetwin again after {warm_s:.1f} s, "
        "with what it compiled the first time.\n"
    )
    source = f"{known[0]} data sheet, dense bfloat16" if known else "measured product of large squares"
    section.lines.append(f"MFU: {flops / 1e6:.1f} MFLOP a symbol x tokens/s / {peak / 1e12:.1f} TFLOP/s ({source}).\n")
    if "public" in seconds:
        ratios = ratios_text(seconds["public"], seconds["bytetwin"])
        section.lines.append(
            f"Tokens per second, bytetwin to public: {ratios} of {settings.turn_steps} steps each, taking turns."
        )


def stop_all(workers: Iterable[Worker]) -> None:
    """End the processes, whatever they are doing."""
    for worker in workers:
        worker.process.kill()


def own_step(settings: Settings) -> tuple[Callable[[], None], int]:
    """(one whole training step as the loop takes it, number of parameters)."""
    engine, batch = own_engine(settings)
    engine.warm_up(batch())
    pending: list[StepResult] = []

    def step() -> None:
        result = engine.train_step(batch(), step_hyperparameters(engine.spec, 500, 0.5))
        pending.append(result)
        if len(pending) > 1:
            pending.pop(0)()  # the loop reads a step's numbers when the next one is queued

    return step, parameter_counts(engine.spec)["total"]


def work(settings: Settings, name: str) -> None:
    """A worker: takes `turn_steps` steps for each `turn`, tells its peak memory for `memory`."""
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

    def turn() -> float:
        begin = time.perf_counter()
        for _ in range(settings.turn_steps):
            step()
        wait()
        return time.perf_counter() - begin

    serve({"ready": lambda: parameters, "turn": turn, "memory": device.peak_memory_bytes})
