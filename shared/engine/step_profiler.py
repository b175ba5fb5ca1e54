"""The profiler of an engine's training steps, and the costs it reports (shared.training.profiling)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.files import write_atomically


@dataclass(frozen=True)
class Cost:
    """One kind of work: its own time over all traced steps, and its share of the time of all kinds."""

    name: str
    calls: int
    seconds: float
    share_frac: float


class StepProfiler(Protocol):
    """An engine's own profiler. All queued work is done when it is called."""

    measured: str

    def start(self, trace_path: Path) -> None:
        """Watch from now on."""

    def stop(self) -> list[Cost]:
        """Stop watching, write the trace, return the cost of every kind of work."""


def costs_by_name(spent: Mapping[str, tuple[int, float]]) -> list[Cost]:
    """Costs, largest first, of (calls, seconds) by name; what took no time is left out."""
    total = sum(seconds for _, seconds in spent.values())
    costs = [Cost(name, calls, seconds, seconds / total) for name, (calls, seconds) in spent.items() if seconds > 0.0]
    return sorted(costs, key=lambda cost: -cost.seconds)


def write_trace(path: Path, events: Sequence[tuple[str, float, float]]) -> None:
    """Events (name, start in seconds, duration in seconds) of one thread, in the trace event format."""
    first = min((start for _, start, _ in events), default=0.0)
    records = [
        {"name": name, "ph": "X", "pid": 0, "tid": 0, "ts": 1e6 * (start - first), "dur": 1e6 * duration}
        for name, start, duration in events
    ]
    document = {"traceEvents": records, "displayTimeUnit": "ms"}
    write_atomically(path, json.dumps(document).encode() + b"\n")
