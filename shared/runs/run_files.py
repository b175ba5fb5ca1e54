"""The files that any run has, running or ended, as they are read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.runs.metrics import Event, number, read_events
from shared.runs.run_directory import RunDirectory, train_text
from shared.spec import Spec


@dataclass(frozen=True)
class RunFiles:
    """What every run leaves behind. `environment` is environment.json, `metrics` every event of metrics.jsonl."""

    directory: RunDirectory
    spec: Spec
    environment: Mapping[str, Any]
    metrics: Sequence[Event]

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def seed(self) -> int:
        return self.spec.training.seed

    @property
    def device(self) -> str:
        """Name and number of the devices."""
        return str(self.environment.get("device", "unknown device"))

    @property
    def ranks(self) -> int:
        """The number of processes that trained together."""
        return int(self.environment.get("ranks", 1))

    @property
    def train_text(self) -> str:
        """SHA-256 of the text that was trained on. Raises RunError if environment.json lacks it."""
        return train_text(self.environment, self.directory.environment_path)

    @property
    def bytes_per_symbol(self) -> float:
        """Bytes per symbol of the training text; 1 where the environment lacks it."""
        data = self.environment.get("data")
        train = data.get("train") if isinstance(data, dict) else None
        if isinstance(train, dict):
            size, symbols = number(train, "bytes"), number(train, "symbols")
            if size and symbols:
                return size / symbols
        return 1.0

    def events(self, *names: str) -> list[Event]:
        """The events of these names, in the order of the file."""
        return [event for event in self.metrics if event.get("event") in names]

    def by_step(self, name: str) -> list[Event]:
        """The events of a name in the order of their steps, the last one of each step."""
        latest = {event["step"]: event for event in self.events(name)}
        return [latest[step] for step in sorted(latest)]

    @property
    def ending(self) -> Event:
        """The last `finished` event; empty if there is none."""
        finished = self.events("finished")
        return finished[-1] if finished else {}


def read_files(run: RunDirectory) -> RunFiles:
    """Read what a run has from its start on. Raises RunError if a file is missing or damaged."""
    return RunFiles(run, run.read_spec(), run.read_environment(), read_events(run.metrics_path))
