"""A small engine in NumPy and an observer, for tests of the loop: fast, and as exact as real ones."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from data.importing import import_dataset
from shared.engine.protocol import NonFiniteError, Stepper, StepResult, Weights, WeightsKind
from shared.engine.ranks import OneRank, Ranks
from shared.model.stages import StepNumbers
from shared.runs.observer import RunStart, StepReport, ValidationReport
from shared.spec import Spec, load_spec
from shared.training.run import train_run
from shared.views.plain import PlainObserver

# A run of few steps whose score takes little.
SHORT = ("training.steps=6", "evaluation.val_symbols=1024", "evaluation.batch_symbols=16384")


def tiny_spec(*overrides: str) -> Spec:
    """The tiny preset without compilation, with overrides."""
    return load_spec("tiny", ["training.compile=false", *overrides])


class FakeDevice:
    """A clock and a device. A step takes the host `queueing_s`, then the device `computing_s`, each one at a time."""

    def __init__(self, queueing_s: float = 0.0, computing_s: float = 0.0) -> None:
        self.queueing_s, self.computing_s = queueing_s, computing_s
        self.now_s = self.ready_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def queue(self) -> float:
        """Queue a step; returns when it will be done."""
        self.now_s += self.queueing_s
        self.ready_s = max(self.now_s, self.ready_s) + self.computing_s
        return self.ready_s

    def wait(self, until_s: float) -> None:
        self.now_s = max(self.now_s, until_s)


class FakeEngine:
    """Two tensors that every step mixes with its batch and hyperparameters, in float32.

    `broken_at` is the step (counted from 0) whose gradient is not finite; `infinite_after` the number of
    steps after which a weight is infinite though no gradient was. `calls` lists what was queued, read and so on.
    """

    name = "fake"
    ranks: Ranks = OneRank()
    compiles = True

    def __init__(self, spec: Spec, broken_at: int = -1, infinite_after: int = -1, loss_scale: float = 1.0) -> None:
        self.spec, self.broken_at, self.infinite_after, self.loss_scale = spec, broken_at, infinite_after, loss_scale
        self.state: dict[str, np.ndarray] = {}
        self.steps = 0
        self.used: list[WeightsKind] = []
        self.fail: Callable[[int], None] = lambda step: None
        self.fail_result: Callable[[int], None] = lambda step: None
        self.device = FakeDevice()
        self.calls: list[tuple[str, int]] = []

    def initialise(self, weights: Weights) -> None:
        self.state = {"weight/w": np.zeros(8, np.float32), "momentum/w": np.zeros(8, np.float32)}

    def use_symbol_weights(self, weights: np.ndarray) -> None:
        raise AssertionError("a loss here weighs every symbol alike")

    def warm_up(self, x: np.ndarray, earlier: object = None) -> None:
        pass

    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        raise AssertionError("training never asks for gradients")

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        step = self.steps
        self.fail(step)
        self.calls.append(("queue", step))
        self.steps += 1
        grad = np.resize(np.cos(x.astype(np.float32)).mean(axis=1), 8)
        loss = self.loss_scale * (math.log(self.spec.vocabulary.size) - float(np.abs(self.state["weight/w"]).mean()))
        momentum = np.float32(numbers.optimizer["momentum"]) * self.state["momentum/w"] + grad
        weight = self.state["weight/w"] - np.float32(numbers.optimizer["matrix_lr"]) * momentum
        if self.steps == self.infinite_after:
            weight = np.full_like(weight, np.inf)
        if step == self.broken_at:
            weight = np.full_like(weight, np.nan)
        self.state = {"weight/w": weight, "momentum/w": momentum}
        done_s = self.device.queue()

        def result() -> tuple[float, float]:
            self.fail_result(step)
            self.calls.append(("read", step))
            self.device.wait(done_s)
            if step == self.broken_at:
                raise NonFiniteError("layers.1.attn.q_proj.weight")
            return loss, float(np.linalg.norm(grad))

        return result

    def use_weights(self, kind: WeightsKind) -> None:
        self.used.append(kind)

    def score(self, x: np.ndarray) -> np.ndarray:
        return np.full(x.shape, math.log(256) - float(np.abs(self.state["weight/w"]).mean()), np.float32)

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        raise AssertionError("training never asks for whole distributions")

    def stepper(self, rows: int) -> Stepper:
        raise AssertionError("training never goes symbol by symbol")

    def export_weights(self, kind: WeightsKind) -> dict[str, np.ndarray]:
        return {"w": self.state["weight/w"].copy()}

    def save_state(self) -> dict[str, np.ndarray]:
        self.calls.append(("save", self.steps))
        return {name: value.copy() for name, value in self.state.items()}

    def load_state(self, state: Weights) -> None:
        self.state = dict(state)

    def peak_memory_bytes(self) -> int:
        return 1_000_000

    def synchronise(self) -> None:
        self.device.wait(self.device.ready_s)

    def device_name(self) -> str:
        return "fake device"


class RecordingObserver:
    """Keeps every event as (name, arguments); calls `on_event(name, step)` after each step and phase."""

    def __init__(self, on_event: Callable[[str, int], None] = lambda name, step: None) -> None:
        self.events: list[tuple[str, Any]] = []
        self.on_event = on_event

    def __enter__(self) -> RecordingObserver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def named(self, name: str) -> list[Any]:
        """The arguments of all events of one name."""
        return [arguments for event, arguments in self.events if event == name]

    def on_start(self, start: RunStart) -> None:
        self.events.append(("start", start))

    def on_step(self, report: StepReport) -> None:
        self.events.append(("step", report))
        self.on_event("step", report.step)

    def on_phase(self, phase: str) -> None:
        self.events.append(("phase", phase))
        self.on_event(phase, 0)

    def on_progress(self, done: int, total: int) -> None:
        self.events.append(("progress", (done, total)))

    def on_validation(self, report: ValidationReport) -> None:
        self.events.append(("validation", report))

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.events.append(("checkpoint", step))

    def on_warning(self, message: str) -> None:
        self.events.append(("warning", message))

    def on_end(self, status: str) -> None:
        self.events.append(("end", status))

    def on_stop_requested(self) -> None:
        self.events.append(("stop_requested", None))


def quiet_observer() -> PlainObserver:
    """A view that prints into memory."""
    return PlainObserver(Console(file=io.StringIO(), width=100))


def train_toy(root: Path) -> None:
    """A dataset `toy` in root/datasets, and the finished run `first` of a tiny model on it in root, by MLX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYTETWIN_DATASETS", str(root / "datasets"))
        documents = [f"document {index}: {index * 7919 % 9973} words, or so they say.\n" for index in range(300)]
        (root / "toy.jsonl").write_text("".join(json.dumps({"text": text * 2}) + "\n" for text in documents))
        import_dataset("toy", [root / "toy.jsonl"], heldout_frac=0.2)
        spec = tiny_spec(*SHORT, "data.train=toy", "data.heldout=toy")
        assert train_run(spec, "mlx", quiet_observer(), runs_dir=root, run_name="first").exit_status == 0
