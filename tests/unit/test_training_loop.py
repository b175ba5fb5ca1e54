"""The loop on a small fake engine: cadence, stopping anywhere, failures, time."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.optim import lr_factor
from shared.spec import Spec
from shared.training.checkpoints import CheckpointStore
from shared.training.interruption import Interruption
from shared.training.loop import Outcome, Position, TrainingLoop
from shared.training.metrics import MetricsLog, read_records
from shared.training.observer import ValidationReport
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
    clock: Callable[[], float] | None = None
    validation_fails: bool = False

    def validate(self, step: int, progress: Progress) -> ValidationReport:
        if self.validation_fails:
            raise NonFiniteScoreError("the score of symbol 5 is nan")
        progress(50, 100)
        progress(100, 100)
        return report(step, float(self.engine.state["weight/w"].sum()))

    def start(self) -> Outcome:
        store = CheckpointStore(self.folder / "checkpoints", self.spec.training.keep_checkpoints)
        store.tidy()
        checkpoint = store.load_latest()
        position = Position()
        self.engine.initialise({})
        if checkpoint is not None:
            info = checkpoint.info
            self.engine.load_state(checkpoint.state)
            self.engine.steps = info.step
            last, best = (ValidationReport(**v) if v else None for v in (info.last_validation, info.best_validation))
            position = Position(info.step, info.elapsed_s, last, best)
            position.saved = position.stamp
        with MetricsLog(self.folder / "metrics.jsonl", position.step) as metrics:
            options: dict[str, Any] = {"clock": self.clock} if self.clock else {}
            loop = TrainingLoop(
                self.spec,
                self.engine,
                FakeLoader(),
                self.validate,
                store,
                metrics,
                self.observer,
                self.interruption,
                position,
                **options,
            )
            return loop.run()

    def records(self, event: str) -> list[dict[str, Any]]:
        """Records of one kind without those fields that measure time."""
        timing = ("elapsed_s", "bytes_per_s", "step_s", "seconds")
        found = [record for record in read_records(self.folder / "metrics.jsonl") if record["event"] == event]
        return [{key: value for key, value in record.items() if key not in timing} for record in found]


def make(folder: Path, *overrides: str, engine: dict[str, Any] | None = None, **options: Any) -> Harness:
    spec = tiny_spec("training.steps=23", *CADENCE, *overrides)
    return Harness(folder, spec, FakeEngine(spec, **(engine or {})), RecordingObserver(), Interruption(), **options)


def test_everything_happens_when_it_is_due(tmp_path: Path) -> None:
    harness = make(tmp_path)
    outcome = harness.start()
    assert outcome.status == "finished" and outcome.step == 23 and outcome.message == ""
    assert [r["step"] for r in harness.records("step")] == [1, 4, 8, 12, 16, 20, 23]
    assert [r["step"] for r in harness.records("validation")] == [5, 10, 15, 20, 23]
    assert harness.observer.named("checkpoint") == [6, 12, 18, 23]
    assert len(harness.observer.named("step")) == 23
    assert outcome.checkpoint == tmp_path / "checkpoints" / "step-00000023.safetensors"
    assert outcome.validation is not None and outcome.validation.step == 23
    assert outcome.best_validation is not None
    assert outcome.best_validation.bpb == min(r["bpb"] for r in harness.records("validation"))


def test_zero_cadence_means_only_at_the_end(tmp_path: Path) -> None:
    harness = make(tmp_path, "training.val_every_steps=0", "training.checkpoint_every_steps=0")
    harness.start()
    assert harness.observer.named("checkpoint") == [23]
    assert [r["step"] for r in harness.records("validation")] == [23]


def test_the_learning_rate_follows_the_progress_at_the_start_of_a_step(tmp_path: Path) -> None:
    harness = make(tmp_path)
    harness.start()
    factors = [report.lr_factor for report in harness.observer.named("step")]
    assert factors == [lr_factor(harness.spec.schedule, step / 23) for step in range(23)]


def test_a_second_start_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = make(tmp_path).start()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = make(tmp_path)
    outcome = again.start()
    assert outcome.status == "finished" and outcome.step == 23 and outcome.nats is None
    assert again.observer.events == []
    assert outcome.validation == first.validation
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@settings(max_examples=15, deadline=None)
@given(
    stops=st.lists(st.tuples(st.sampled_from(["step", "validation"]), st.integers(1, 8)), min_size=1, max_size=6),
    val_every=st.integers(0, 6),
    checkpoint_every=st.integers(0, 6),
)
def test_stopped_anywhere_and_resumed_it_is_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, stops: list[tuple[str, int]], val_every: int, checkpoint_every: int
) -> None:
    """A stop is asked for after some steps of a start, or in its first validation after some events."""
    overrides = (f"training.val_every_steps={val_every}", f"training.checkpoint_every_steps={checkpoint_every}")
    straight = make(tmp_path_factory.mktemp("straight"), *overrides)
    straight.start()
    folder = tmp_path_factory.mktemp("stopped")
    statuses = []
    for kind, count in stops:
        harness = make(folder, *overrides)
        seen = 0

        def stop(name: str, step: int, harness: Harness = harness, kind: str = kind, count: int = count) -> None:
            nonlocal seen
            seen += 1
            if seen >= count and name == kind:
                harness.interruption.signal_number = signal.SIGINT

        harness.observer.on_event = stop
        statuses.append(harness.start().status)
    assert make(folder, *overrides).start().status == "finished"
    resumed = make(folder, *overrides)
    assert set(statuses) <= {"interrupted", "finished"}
    for event in ("step", "validation"):
        assert resumed.records(event) == straight.records(event)
    newest = [CheckpointStore(f / "checkpoints", 2).load_latest() for f in (folder, straight.folder)]
    assert newest[0] is not None and newest[1] is not None
    for name, value in newest[1].state.items():
        assert newest[0].state[name].tobytes() == value.tobytes()


def test_an_interrupted_run_says_so_and_has_a_checkpoint(tmp_path: Path) -> None:
    harness = make(tmp_path)
    harness.observer.on_event = lambda name, step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
    with harness.interruption:
        outcome = harness.start()
    assert outcome.status == "interrupted" and outcome.step == 7
    assert harness.interruption.exit_status == 143
    assert outcome.checkpoint == tmp_path / "checkpoints" / "step-00000007.safetensors"
    assert harness.records("interrupted") == [{"event": "interrupted", "step": 7, "signal": signal.SIGTERM}]


def test_an_engine_that_fails_because_of_a_signal_is_no_error_and_is_not_saved(tmp_path: Path) -> None:
    """Ctrl-C also ends a compiler that the engine has started."""
    harness = make(tmp_path)

    def compiler_is_killed(step: int) -> None:
        if step == 7:
            harness.interruption.signal_number = signal.SIGINT
            harness.engine.state["weight/w"][:] = 1e9
            raise RuntimeError("could not load what was compiled")

    harness.engine.fail = compiler_is_killed
    outcome = harness.start()
    assert outcome.status == "interrupted" and outcome.message == "stopped by a signal in step 8"
    assert outcome.checkpoint == tmp_path / "checkpoints" / "step-00000006.safetensors"


def test_an_engine_that_fails_by_itself_is_an_error(tmp_path: Path) -> None:
    harness = make(tmp_path)

    def fail(step: int) -> None:
        raise RuntimeError("out of memory")

    harness.engine.fail = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        harness.start()


def test_a_stop_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    harness = make(tmp_path)
    harness.interruption.signal_number = signal.SIGINT
    outcome = harness.start()
    assert outcome.status == "interrupted" and outcome.step == 0 and outcome.checkpoint is None


def test_a_gradient_that_is_no_number_names_step_parameter_and_checkpoint(tmp_path: Path) -> None:
    harness = make(tmp_path, engine={"broken_at": 14})
    outcome = harness.start()
    checkpoint = tmp_path / "checkpoints" / "step-00000012.safetensors"
    assert outcome.status == "failed" and outcome.step == 14
    assert outcome.message == (
        "step 15: the gradient of layers.1.attn.q_proj.weight is not a finite number; training stopped; "
        f"the last good checkpoint is {checkpoint}"
    )
    (record,) = harness.records("failed")
    assert record["failed_step"] == 15 and record["parameter"] == "layers.1.attn.q_proj.weight"
    assert record["last_checkpoint"] == str(checkpoint)


def test_a_failure_before_any_checkpoint_says_there_is_none(tmp_path: Path) -> None:
    outcome = make(tmp_path, engine={"broken_at": 0}).start()
    assert outcome.message.endswith("training stopped; there is no checkpoint yet")


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    outcome = make(tmp_path, engine={"infinite_after": 12}).start()
    assert outcome.status == "failed"
    assert outcome.message.startswith("step 12: weight/w is not finite after the update; training stopped")
    assert outcome.checkpoint == tmp_path / "checkpoints" / "step-00000006.safetensors"


def test_a_validation_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    outcome = make(tmp_path, validation_fails=True).start()
    assert outcome.status == "failed" and outcome.step == 5
    assert outcome.message.startswith(
        "step 5: validation gave no finite number (the score of symbol 5 is nan); training stopped"
    )


def test_a_first_loss_below_ln_v_is_a_failure_and_above_it_a_warning(tmp_path: Path) -> None:
    low = make(tmp_path / "low", engine={"loss_scale": 0.5})
    low.folder.mkdir()
    outcome = low.start()
    assert outcome.status == "failed" and outcome.message.startswith("step 1: the first loss is 2.773 nats per symbol")
    assert f"ln V = {math.log(256):.3f}" in outcome.message
    high = make(tmp_path / "high", engine={"loss_scale": 2.0})
    high.folder.mkdir()
    assert high.start().status == "finished"
    assert len(high.observer.named("warning")) == 1
    usual = make(tmp_path / "usual")
    usual.folder.mkdir()
    usual.start()
    assert usual.observer.named("warning") == []


class SteppingClock:
    """Every second reading is one second later: a measured span lasts exactly one second."""

    def __init__(self) -> None:
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return float(self.readings)


def test_a_time_schedule_ends_by_training_time_alone(tmp_path: Path) -> None:
    """Steps and the waits before a validation or checkpoint take a second each; the validation itself is free."""
    overrides = ("schedule.driver=time", "training.time_limit_s=8.5", "training.steps=1000")
    timed = make(tmp_path, *overrides, "training.val_every_steps=0", clock=SteppingClock())
    outcome = timed.start()
    # Six steps, the wait for the checkpoint after step 6, two more steps: 9 s; then two waits at the end.
    assert outcome.status == "finished" and outcome.step == 8
    assert outcome.elapsed_s == 11.0
    progress = [report.progress_frac for report in timed.observer.named("step")]
    assert progress == [min(1.0, second / 8.5) for second in (1, 2, 3, 4, 5, 6, 8, 9)]


def test_training_time_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    overrides = ("schedule.driver=time", "training.time_limit_s=20.0", "training.steps=1000")
    first = make(tmp_path, *overrides, "training.val_every_steps=0", clock=SteppingClock())
    first.observer.on_event = lambda name, step: (
        setattr(first.interruption, "signal_number", signal.SIGINT) if step == 5 else None
    )
    assert first.start().step == 5
    stored = json.loads((tmp_path / "checkpoints" / "step-00000005.json").read_text())
    assert stored["elapsed_s"] == 6.0
    second = make(tmp_path, *overrides, "training.val_every_steps=0", clock=SteppingClock())
    second.start()
    assert second.observer.named("step")[0].elapsed_s == 7.0
