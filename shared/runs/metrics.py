"""metrics.jsonl: one JSON object per logged event, appended whole and at once.

Every event has `event`, its name, and `step`, the number of optimizer steps done. Names: `start`, `resume`,
`step`, `validation`, `checkpoint`, `interrupted`, `failed`, `finished`, and at any end `phases`, the seconds of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import RunError
from shared.files import write_atomically

Event = dict[str, Any]


def read_events(path: Path) -> list[Event]:
    """Read all complete events of a metrics file, in order, without a line that a killed process cut short."""
    if not path.exists():
        return []
    events = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("step"), int):
            events.append(_current(event))
    return events


def _current(event: Event) -> Event:
    """Give an event of an older version the names of today."""
    if event.get("event") == "stages":
        return {**event, "event": "phases"}
    if event.get("event") == "step" and "nats" in event:
        return {"nats_per_symbol" if name == "nats" else name: value for name, value in event.items()}
    return event


def last_ending(events: Sequence[Event]) -> Event | None:
    """The `finished` event of a run; None if it did not finish, or was trained further since."""
    found = [event for event in events if event["event"] in ("step", "finished")]
    return found[-1] if found and found[-1]["event"] == "finished" else None


class MetricsLog:
    """The metrics file of a run, open for appending from a given step on."""

    def __init__(self, path: Path, after_step: int) -> None:
        """Keep the events up to `after_step` and drop later ones: those steps are about to be repeated."""
        self.path = path
        self.kept = [event for event in read_events(path) if event["step"] <= after_step]
        try:
            write_atomically(path, b"".join(_line(event) for event in self.kept))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise self._cannot_write(error) from None

    def append(self, name: str, step: int, **values: Any) -> None:
        """Write one event in one system call. Raises RunError if the file cannot be written."""
        try:
            os.write(self._descriptor, _line({"event": name, "step": step, **values}))
        except OSError as error:
            raise self._cannot_write(error) from None

    def flush(self) -> None:
        """Wait until what was appended is on disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._cannot_write(error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cannot_write(self, error: OSError) -> RunError:
        return RunError(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}")


def _line(event: Event) -> bytes:
    return json.dumps(event, allow_nan=False).encode() + b"\n"
