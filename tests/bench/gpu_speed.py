"""The section of the GPU benchmark that races: whole training steps of two processes that take turns."""

from __future__ import annotations

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
    race = Race(settings)
    try:
        race.run()
    finally:  # What was measured before the budget was spent is told.
        stop_all(race.workers.values())
        race.tell(section)


class Race:
    """Processes that take turns, and what was measured of each so far, by name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = ["bytetwin", *(["public"] if settings.script else [])]
        self.workers: dict[str, Worker] = {}
        # Seconds until it is ready to train, parameters, seconds of a step in each round, peak memory.
        self.ready_s: dict[str, float] = {}
        self.parameters: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in self.names}
        self.memory: dict[str, int] = {}

    def run(self) -> None:
        """Start each with nothing compiled, one after the other: each compiles with all of the machine's processors.
        Then turns, then ours once more with what it compiled."""
        with tempfile.TemporaryDirectory() as cold:
            for variable in CACHE_VARIABLES:
                os.environ.pop(variable, None)
            keep_compiled(Path(cold))
            for name in self.names:
                self.start(name)
            for _ in range(self.settings.rounds):
                for name in self.names:
                    self.seconds[name].append(float(self.workers[name].ask("turn")[0]) / self.settings.turn_steps)
            for name in self.names:
                self.memory[name] = int(self.workers[name].ask("memory")[0])
                self.workers.pop(name).stop()
            self.start("bytetwin again")

    def start(self, name: str) -> None:
        """Start a worker and wait until it is ready to train."""
        settings = self.settings
        words = ["--device", settings.device, *(["--quick"] if settings.quick else [])]
        words += ["--script", str(settings.script.resolve())] if settings.script else []
        begin = time.perf_counter()
        self.workers[name] = Worker("tests.bench.gpu", "--worker", name.split(" ")[0], *words)
        (parameters,) = self.workers[name].ask("ready")
        self.ready_s[name], self.parameters[name] = time.perf_counter() - begin, int(parameters)

    def tell(self, section: Section) -> None:
        """Write down what is known."""
        settings = self.settings
        flops = training_flops(baseline_spec(settings)).per_symbol
        known = find_peak(device.device_name()) if settings.device == "cuda" else None
        peak = known[1].flops_per_s("bfloat16") if known else device.matrix_product_flops_per_s("bfloat16")
        heading = "|parameters|ready to train after, s|tokens/s, median|slowest to fastest|MFU|peak memory, MB"
        rows: list[tuple[Any, ...]] = [tuple(heading.split("|"))]
        for name, ready_s in self.ready_s.items():
            rates = sorted(settings.batch_symbols / value for value in self.seconds.get(name, []))
            cells = ["-"] * 3
            if rates:
                middle = statistics.median(rates)
                cells = [f"{middle:,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}", f"{middle * flops / peak:.1%}"]
            memory = f"{self.memory[name] / 1e6:,.0f}" if name in self.memory else "-"
            rows.append((name, f"{self.parameters[name]:,}", f"{ready_s:.1f}", *cells, memory))
        section.table(*rows)
        section.lines.append(
            "Ready: from the start of the process, with nothing compiled before; again: with what was compiled then.\n"
        )
        source = f"{known[0]} data sheet, dense bfloat16" if known else "measured product of large squares"
        section.lines.append(
            f"MFU: {flops / 1e6:.1f} MFLOP a symbol x tokens/s / {peak / 1e12:.1f} TFLOP/s ({source}).\n"
        )
        # The last round may have been cut off between two turns.
        pairs = list(zip(self.seconds.get("public", []), self.seconds["bytetwin"], strict=False))
        if pairs:
            ratios = ratios_text(*map(list, zip(*pairs, strict=True)))
            section.lines.append(
                f"Tokens per second, bytetwin to public: {ratios} of {settings.turn_steps} steps each, taking turns."
            )


def stop_all(workers: Iterable[Worker]) -> None:
    """End the processes, whatever they are doing."""
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


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
