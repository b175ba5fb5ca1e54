"""Hands the events of metrics.jsonl to sinks, in a thread of their own: a sink that fails or hangs stops no run.

Numbers have the names of metrics.jsonl: `step/bpb` is `bpb` of the events `step`, `phases/seconds/training` the seconds
of training in the last event. What a sink gets is what was written to the file, so the two cannot differ.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shared.errors import UserError, nearest
from shared.runs.metrics import Event
from shared.runs.run_directory import RunDirectory
from shared.sinks.kinds import KINDS, Sink
from shared.spec import spec_to_dict

# How long the end of a run waits for a sink, which may be uploading an artifact.
PATIENCE_S = 60.0
FIRST_EVENTS, LAST_EVENT = ("start", "resume"), "phases"


class Sinks:
    """Sinks by name, as a context manager around a run. `on_event` is for `train_run`; `warn` gets one line for each
    sink that is given up, in the thread of the run."""

    def __init__(
        self,
        names: Sequence[str],
        warn: Callable[[str], None],
        kinds: Mapping[str, type[Sink]] | None = None,
        patience_s: float = PATIENCE_S,
        group: str | None = None,
    ) -> None:
        """`group` is the name under which a sink shows several runs together. Raises UserError as `check_installed`
        does; `kinds` replaces those there are (tests)."""
        if kinds is None:
            check_installed(names)
        self._warn, self._patience_s = warn, patience_s
        self._followers = [_Follower(name, (kinds or KINDS)[name], group) for name in dict.fromkeys(names)]

    def on_event(self, run: RunDirectory, event: Event) -> None:
        """Queue an event of a run. Returns at once."""
        for follower in self._followers:
            follower.events.put((run, event))
        self._tell()

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *_: object) -> None:
        for follower in self._followers:
            follower.events.put(None)
        limit = time.monotonic() + self._patience_s
        for follower in self._followers:
            follower.thread.join(max(0.0, limit - time.monotonic()))
            if follower.thread.is_alive():
                follower.failure = f"did not end within {self._patience_s:g} s"
        self._tell()

    def _tell(self) -> None:
        for follower in self._followers:
            if follower.failure and not follower.told:
                follower.told = True
                self._warn(f"--log {follower.name}: {follower.failure}; the run continues without it")


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError for a sink that there is not, or whose package is not installed."""
    for name in names:
        if name not in KINDS:
            raise UserError(f"--log {name}: no such sink{nearest(name, list(KINDS))}; choices: {', '.join(KINDS)}")
        package = KINDS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"--log {name} needs the package {package}, which is not installed (extra `{package}`)")


class _Follower:
    """One sink and its thread. After a failure events are taken and dropped."""

    def __init__(self, name: str, kind: type[Sink], group: str | None) -> None:
        self.name, self.kind, self.group = name, kind, group
        self.events: queue.SimpleQueue[tuple[RunDirectory, Event] | None] = queue.SimpleQueue()
        self.failure, self.told = "", False
        self._sink: Sink | None = None
        self._finished = False
        # A daemon, so that one that hangs does not keep the process.
        self.thread = threading.Thread(target=self._work, name=f"sink {name}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (item := self.events.get()) is not None:
            self._guarded(self._take, *item)
        if self._sink is not None:
            # The run broke off without its last event.
            self._guarded(self._sink.end, None)

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self.failure:
            try:
                function(*arguments)
            except (Exception, SystemExit) as error:
                self.failure = f"{type(error).__name__}: {error}"

    def _take(self, run: RunDirectory, event: Event) -> None:
        name = event["event"]
        if name in FIRST_EVENTS:
            config = {"spec": spec_to_dict(run.read_spec()), "environment": run.read_environment()}
            self._sink = self.kind(run, config, resumed=name == "resume", group=self.group)
        if self._sink is None:
            return
        self._finished |= name == "finished"
        if values := dict(numbers(event)):
            self._sink.log(event["step"], values)
        if name == LAST_EVENT:
            sink, self._sink = self._sink, None
            sink.end(run.artifact_path if self._finished else None)


def numbers(event: Event) -> Iterator[tuple[str, float]]:
    """Every number of an event by its name."""
    yield from _numbers(event["event"], {key: value for key, value in event.items() if key not in ("event", "step")})


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, dict):
            yield from _numbers(name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
