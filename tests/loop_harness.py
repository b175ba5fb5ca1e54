"""A training loop around the fake engine, for tests: everything a start of a run needs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.loader import Loader
from shared.runs.checkpoints import CheckpointStore
from shared.runs.metrics import Event, MetricsLog
from shared.runs.observer import ValidationReport
from shared.spec import Spec
from shared.training.interruption import Interruption
from shared.training.loop import Outcome, TrainingLoop
from shared.training.run import start_or_resume
from shared.training.sources import Sources
from shared.training.validation import NonFiniteScoreError
from tests.fake_study import events_of
from tests.fake_training import FakeEngine, RecordingObserver, tiny_spec
from tests.museum.fake_stream import FakeStream

CADENCE = ("training.log_every_steps=4", "training.val_every_steps=5", "training.checkpoint_every_steps=6")
Progress = Callable[[int, int], None]

TEXT = FakeStream([np.random.default_rng(0).bytes(1000)])
SOURCES = Sources(TEXT, TEXT, TEXT, Loader(TEXT, seq_len=16, batch_rows=4, seed=0))


def report(step: int, bpb: float) -> ValidationReport:
    return ValidationReport(step, bpb, bpb - 0.1, bpb + 0.1, 1.0, 100, 100, 3, "averaged")


@dataclass
class Harness:
    """One start of a run: everything a loop needs, around a folder that outlives it."""

    folder: Path
    spec: Spec
    engine: FakeEngine
    observer: RecordingObserver
    interruption: Interruption
    validation_fails: bool = False
    store: CheckpointStore | None = None
    score: Callable[[int], float] | None = None
    pause_frac: float = 1.0

    def validate(self, step: int, progress: Progress) -> ValidationReport:
        if self.validation_fails:
            raise NonFiniteScoreError("the score of symbol 5 is nan")
        progress(50, 100)
        progress(100, 100)
        self.engine.calls.append(("validate", step))
        self.engine.device.now_s += 50.0
        return report(step, self.score(step) if self.score else float(self.engine.state["weight/w"].sum()))

    def stop_at(self, at: int) -> None:
        """A signal is remembered when a step is reported: the next one is in flight then."""
        self.observer.on_event = lambda name, step: self.signal() if step == at else None

    def signal(self) -> None:
        self.interruption.signal_number = signal.SIGINT

    def start(self) -> Outcome:
        self.folder.mkdir(exist_ok=True)
        store = self.store or CheckpointStore(self.folder / "checkpoints", self.spec.training.keep_checkpoints)
        store.tidy()
        checkpoint = store.load_latest()
        position = start_or_resume(self.spec, self.engine, SOURCES, store, checkpoint)
        self.engine.steps = position.step
        with MetricsLog(self.folder / "metrics.jsonl", position.step) as metrics:
            loop = TrainingLoop(
                self.spec,
                self.engine,
                SOURCES.loader,
                self.validate,
                store,
                metrics,
                self.observer,
                self.interruption,
                position,
                clock=self.engine.device.clock,
                scored_shape=(2, 16),
                pause_frac=self.pause_frac,
            )
            return loop.run()

    def store_steps(self) -> list[int]:
        return CheckpointStore(self.folder / "checkpoints", 1).steps()

    def events(self, name: str) -> list[Event]:
        """Events of one name without those fields that measure time."""
        timing = ("elapsed_s", "bytes_per_s", "step_s", "seconds")
        found = events_of(self.folder, name)
        return [{key: value for key, value in event.items() if key not in timing} for event in found]


def make(folder: Path, *overrides: str, engine: dict[str, Any] | None = None, **options: Any) -> Harness:
    spec = tiny_spec("training.steps=23", *CADENCE, *overrides)
    return Harness(folder, spec, FakeEngine(spec, **(engine or {})), RecordingObserver(), Interruption(), **options)
