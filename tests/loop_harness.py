"""A training loop around the fake engine, for tests: everything a start of a run needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.runs.checkpoints import CheckpointStore
from shared.runs.metrics import MetricsLog, read_records
from shared.runs.observer import ValidationReport
from shared.spec import Spec
from shared.training.interruption import Interruption
from shared.training.loop import Outcome, Position, TrainingLoop
from shared.training.validation import NonFiniteScoreError
from tests.fake_training import FakeEngine, FakeLoader, RecordingObserver, tiny_spec

CADENCE = ("training.log_every_steps=4", "training.val_every_steps=5", "training.checkpoint_every_steps=6")
Progress = Callable[[int, int], None]


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
    loader: FakeLoader = field(default_factory=FakeLoader)

    def validate(self, step: int, progress: Progress) -> ValidationReport:
        if self.validation_fails:
            raise NonFiniteScoreError("the score of symbol 5 is nan")
        progress(50, 100)
        progress(100, 100)
        self.engine.calls.append(("validate", step))
        self.engine.device.now_s += 50.0
        return report(step, self.score(step) if self.score else float(self.engine.state["weight/w"].sum()))

    def start(self) -> Outcome:
        store = self.store or CheckpointStore(self.folder / "checkpoints", self.spec.training.keep_checkpoints)
        store.tidy()
        checkpoint = store.load_latest()
        position = Position()
        self.engine.initialise({})
        if checkpoint is not None:
            info = checkpoint.info
            self.engine.load_state(checkpoint.state)
            self.engine.steps = info.step
            last, best = (ValidationReport(**v) if v else None for v in (info.last_validation, info.best_validation))
            position = Position(info.step, info.elapsed_s, last, best, info.step_s, info.slowest_step_s)
            position.saved = position.stamp
        with MetricsLog(self.folder / "metrics.jsonl", position.step) as metrics:
            loop = TrainingLoop(
                self.spec,
                self.engine,
                self.loader,
                self.validate,
                store,
                metrics,
                self.observer,
                self.interruption,
                position,
                clock=self.engine.device.clock,
            )
            return loop.run()

    def store_steps(self) -> list[int]:
        return CheckpointStore(self.folder / "checkpoints", 1).steps()

    def records(self, event: str) -> list[dict[str, Any]]:
        """Records of one kind without those fields that measure time."""
        timing = ("elapsed_s", "bytes_per_s", "step_s", "seconds")
        found = [record for record in read_records(self.folder / "metrics.jsonl") if record["event"] == event]
        return [{key: value for key, value in record.items() if key not in timing} for record in found]


def make(folder: Path, *overrides: str, engine: dict[str, Any] | None = None, **options: Any) -> Harness:
    spec = tiny_spec("training.steps=23", *CADENCE, *overrides)
    return Harness(folder, spec, FakeEngine(spec, **(engine or {})), RecordingObserver(), Interruption(), **options)
