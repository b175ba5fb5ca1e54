"""`train --profile N`: where the time of a training step goes.

An engine is wrapped in a ProfiledEngine, which passes every call on and counts training steps. After the
first few it lets the engine's own profiler watch N steps, writes `trace.json` into the run directory (Chrome's
trace event format; open it in https://ui.perfetto.dev or chrome://tracing) and reports the largest costs.
Then it only passes calls on. The loop knows nothing of it, and the numbers of the run do not change.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from shared.engine.leader import LeadingEngine
from shared.engine.package import engine_package
from shared.engine.protocol import Engine, StepResult
from shared.engine.step_profiler import Cost, StepProfiler
from shared.errors import DeviceError, UserError
from shared.model.stages import StepNumbers

# Steps that are not traced: the first ones still allocate memory and choose kernels.
SKIPPED_STEPS = 3
LARGEST = 10


@dataclass(frozen=True)
class Profile:
    """The result of a trace. `costs` are the largest, at most LARGEST; `measured` says what was timed."""

    trace_path: Path
    steps: int
    step_s: float
    measured: str
    costs: tuple[Cost, ...]

    def to_document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "trace_path": str(self.trace_path)}


def make_profiler(engine: Engine) -> StepProfiler:
    """The profiler of an engine's package, for what this process does: rank 0's own share."""
    engine = engine.engine if isinstance(engine, LeadingEngine) else engine
    return engine_package(engine.name).make_profiler(engine)


@dataclass(frozen=True)
class ProfileRequest:
    """Trace `steps` steps and report them. Raises UserError for less than one."""

    steps: int
    report: Callable[[Profile], None]

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--profile {self.steps}: must be at least 1, the number of steps to trace")


@contextlib.contextmanager
def profiled(engine: Engine, request: ProfileRequest | None, trace_path: Path) -> Iterator[Engine]:
    """The engine to train with: itself, or a ProfiledEngine if a profile is asked for."""
    if request is None:
        yield engine
    else:
        with ProfiledEngine(engine, request, trace_path) as watched:
            yield watched


class ProfiledEngine:
    """An engine that traces the requested number of training steps after the first `skipped`. Enter it around the loop:
    a run that ends before that leaves a trace of the steps there were. The trace also ends early at a validation or
    save, so that their cost is not counted as a step's."""

    def __init__(self, engine: Engine, request: ProfileRequest, trace_path: Path, skipped: int = SKIPPED_STEPS) -> None:
        self._engine, self._request, self._trace_path, self._skipped = engine, request, trace_path, skipped
        self._profiler = make_profiler(engine)
        self._begin_s = 0.0
        self._taken = 0
        self._watching = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __enter__(self) -> Engine:
        return cast(Engine, self)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # A device that has failed ends a run in good order, but has no more to say.
        if kind is None:
            with contextlib.suppress(DeviceError):
                self._stop()

    def score(self, x: np.ndarray) -> np.ndarray:
        """The engine's scores; ends the trace."""
        self._stop()
        return self._engine.score(x)

    def save_state(self) -> dict[str, np.ndarray]:
        """The engine's state; ends the trace."""
        self._stop()
        return self._engine.save_state()

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        """The engine's step, traced if its turn has come."""
        if self._taken == self._skipped:
            self._start()
        result = self._engine.train_step(x, numbers)
        self._taken += 1
        if self._taken == self._skipped + self._request.steps:
            self._stop()
        return result

    def _start(self) -> None:
        self._engine.synchronise()
        self._profiler.start(self._trace_path)
        self._begin_s = time.perf_counter()
        self._watching = True

    def _stop(self) -> None:
        if not self._watching:
            return
        self._watching = False
        self._engine.synchronise()
        seconds = time.perf_counter() - self._begin_s
        costs = self._profiler.stop()
        largest = sorted(costs, key=lambda cost: -cost.seconds)[:LARGEST]
        steps = self._taken - self._skipped
        if steps:
            step_s = seconds / steps
            self._request.report(Profile(self._trace_path, steps, step_s, self._profiler.measured, tuple(largest)))


def print_profile(console: Console, profile: Profile) -> None:
    """The largest costs as a table, and where the trace is."""
    table = Table(
        title=f"largest costs of {profile.steps} steps, {1e3 * profile.step_s:.1f} ms each ({profile.measured})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("what", overflow="fold")
    for heading in ("share", "ms per step", "calls per step"):
        table.add_column(heading, justify="right")
    for cost in profile.costs:
        milliseconds, calls = 1e3 * cost.seconds / profile.steps, cost.calls / profile.steps
        table.add_row(cost.name, f"{cost.share_frac:.1%}", f"{milliseconds:.3f}", f"{calls:.4g}")
    console.print(table)
    console.print(f"trace {profile.trace_path}", soft_wrap=True)
