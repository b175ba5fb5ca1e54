"""metrics.jsonl: one JSON object per logged event, appended whole and at once.

Every event has `event`, its name, and `step`, the number of optimizer steps done. Names: `start`, `resume`,
`choices` (what was chosen by measurement at a start), `step`, `validation`, `checkpoint`, `phase` (what begins behind
the last step: `packing`, `scoring`, ...), `paused` (`pause_frac`: at which fraction of its budget), `interrupted`,
`failed`, `finished`, and at any end `phases`, the seconds of each.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from shared.errors import RunError
from shared.files import check_regular, write_atomically
from shared.parsing import parse_json
from shared.runs.observer import ValidationReport

Event = dict[str, Any]
State = Literal["running", "trained", "finished", "paused", "interrupted", "failed"]

_REPORT = TypeAdapter(ValidationReport)
# What is a finite number wherever an event has it.
NUMBERS = ("nats_per_symbol", "elapsed_s", "progress_frac", "lr_factor", "bpb")


def read_events(path: Path) -> list[Event]:
    """Read all complete events of a metrics file, in order, without a line that a killed process cut short or that is
    no event. Raises RunError if the file cannot be read."""
    try:
        check_regular(path)
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    events = []
    for line in lines:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and _is_whole(event := _current(event)):
            events.append(event)
    return events


def number(values: Mapping[str, Any], name: str) -> float | None:
    """A finite number of an event, or None."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def as_report(event: Event) -> ValidationReport | None:
    """The report in a `validation` event; None where it lacks something."""
    try:
        return _REPORT.validate_json(json.dumps({name: value for name, value in event.items() if name != "event"}))
    except ValidationError:
        return None


def _is_whole(event: Event) -> bool:
    """Whether an event is one, and its values have the types that its readers take for granted."""
    name, step = event.get("event"), event.get("step")
    if not isinstance(name, str) or type(step) is not int or step < 0:
        return False
    if name == "finished":
        packing, problems = event.get("packing", {}), event.get("problems", [])
        numbers = isinstance(packing, dict) and all(number(packing, key) is not None for key in packing)
        return numbers and isinstance(problems, list) and all(isinstance(problem, str) for problem in problems)
    return all(number(event, key) is not None for key in NUMBERS if key in event)


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


def chosen_names(events: Sequence[Event]) -> dict[str, str]:
    """The names in the last `choices` event, by what they were chosen for."""
    found = [event for event in events if event["event"] == "choices"][-1:]
    return {
        what: choice["name"]
        for event in found
        for what, choice in event.items()
        if isinstance(choice, dict) and isinstance(choice.get("name"), str)
    }


def state_of(events: Sequence[Event]) -> State:
    """How a run stands by its events. `trained` is one that ended before it was packed; one whose process was killed
    stays `running`."""
    if last_ending(events) is not None:
        return "finished"
    found = [event["event"] for event in events if event["event"] != "calibration"]
    ended = bool(found) and found[-1] == "phases"
    last = found[-2] if ended and len(found) > 1 else found[-1] if found else ""
    if last == "paused":
        return "paused"
    if last == "interrupted":
        return "interrupted"
    if last == "failed":
        return "failed"
    return "trained" if ended else "running"


class MetricsLog:
    """The metrics file of a run, open for appending from a given step on."""

    def __init__(self, path: Path, after_step: int, on_event: Callable[[Event], None] | None = None) -> None:
        """Keep the events up to `after_step` and drop later ones: those steps are about to be repeated. `on_event` gets
        each event that was written."""
        self.path, self._on_event = path, on_event
        self.kept = [event for event in read_events(path) if event["step"] <= after_step]
        try:
            write_atomically(path, b"".join(_line(event) for event in self.kept))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise self._cannot_write(error) from None

    def append(self, name: str, step: int, **values: Any) -> None:
        """Write one event in one system call. Raises RunError if the file cannot be written."""
        try:
            event = {"event": name, "step": step, **values}
            line = _line(event)
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.EIO, "a line was written in part")
        except OSError as error:
            raise self._cannot_write(error) from None
        if self._on_event is not None:
            self._on_event(event)

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
