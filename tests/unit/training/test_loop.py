"""The loop on a small fake engine: cadence, stopping anywhere, failures."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DeviceError
from shared.optim import lr_factor
from shared.runs.checkpoints import CheckpointStore
from tests.fake_training import FakeEngine
from tests.loop_harness import Harness, make


def test_everything_happens_when_it_is_due(tmp_path: Path) -> None:
    harness = make(tmp_path)
    outcome = harness.start()
    assert outcome.status == "finished" and outcome.step == 23 and outcome.message == ""
    assert [r["step"] for r in harness.events("step")] == [1, 4, 8, 12, 16, 20, 23]
    assert [r["step"] for r in harness.events("validation")] == [5, 10, 15, 20, 23]
    assert harness.observer.named("checkpoint") == [6, 12, 18, 23]
    assert len(harness.observer.named("step")) == 23
    assert outcome.checkpoint == tmp_path / "checkpoints" / "step-00000023.safetensors"
    assert outcome.validation is not None and outcome.validation.step == 23
    assert outcome.best_validation is not None
    assert outcome.best_validation.bpb == min(r["bpb"] for r in harness.events("validation"))


@pytest.mark.parametrize(("compiles", "phase"), [(True, "compiling"), (False, "warming up")])
def test_the_first_stage_is_called_what_it_does(tmp_path: Path, compiles: bool, phase: str) -> None:
    harness = make(tmp_path, "training.compile=true", "training.val_every_steps=0")
    harness.engine.compiles = compiles
    harness.start()
    assert harness.observer.named("phase") == [phase, "validation"]


def test_a_device_that_cannot_score_fails_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: object) -> None:
        raise DeviceError("not enough memory")

    harness = make(tmp_path, "training.compile=true", "training.val_every_steps=0")
    monkeypatch.setattr(harness.engine, "score", full)
    outcome = harness.start()
    assert outcome.device_failed and outcome.step == 0 and not harness.engine.calls


def test_zero_cadence_means_only_at_the_end(tmp_path: Path) -> None:
    harness = make(tmp_path, "training.val_every_steps=0", "training.checkpoint_every_steps=0")
    harness.start()
    assert harness.observer.named("checkpoint") == [23]
    assert [r["step"] for r in harness.events("validation")] == [23]


@pytest.mark.parametrize("pause", [3, 5, 8, 10])
def test_a_pause_leaves_the_best_checkpoint_of_a_run_without(tmp_path: Path, pause: int) -> None:
    """Whatever is due there: nothing, a validation, a checkpoint, both."""
    found = []
    for name, pauses in (("plain", [1.0]), ("paused", [pause / 23, 1.0])):
        for pause_frac in pauses:
            score = lambda step: 1.0 if step == pause else 2.0 + step % 7  # noqa: E731
            harness = make(tmp_path / name, "training.checkpoint_every_steps=2", score=score, pause_frac=pause_frac)
            outcome = harness.start()
            if outcome.status == "paused":
                assert outcome.step == pause and outcome.validation is not None and outcome.validation.bpb == 1.0
        store = CheckpointStore(harness.folder / "checkpoints", harness.spec.training.keep_checkpoints)
        best = store.load_best()
        assert best is not None and outcome.best_validation is not None
        found.append((best.info.step, best.info.state_sha256, outcome.best_validation, store.steps()))
    assert found[0] == found[1]
    assert found[0][0] == (10 if pause == 10 else 23)


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


@pytest.mark.slow
@settings(max_examples=15)
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
                harness.signal()

        harness.observer.on_event = stop
        statuses.append(harness.start().status)
    assert make(folder, *overrides).start().status == "finished"
    resumed = make(folder, *overrides)
    assert set(statuses) <= {"interrupted", "finished"}
    for event in ("step", "validation"):
        assert resumed.events(event) == straight.events(event)
    newest = [CheckpointStore(f / "checkpoints", 2).load_latest() for f in (folder, straight.folder)]
    assert newest[0] is not None and newest[1] is not None
    for name, value in newest[1].state.items():
        assert newest[0].state[name].tobytes() == value.tobytes()


def test_an_interrupted_run_says_so_and_has_a_checkpoint(tmp_path: Path) -> None:
    harness = make(tmp_path)
    harness.observer.on_event = lambda name, step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
    with harness.interruption:
        outcome = harness.start()
    # Step 8 is in flight when step 7 is reported.
    assert outcome.status == "interrupted" and outcome.step == 8
    assert harness.interruption.exit_status == 143
    assert outcome.checkpoint == tmp_path / "checkpoints" / "step-00000008.safetensors"
    assert harness.events("interrupted") == [{"event": "interrupted", "step": 8, "signal": signal.SIGTERM}]
    assert [report.step for report in harness.observer.named("step")] == list(range(1, 9))


def test_an_engine_that_fails_because_of_a_signal_is_no_error_and_is_not_saved(tmp_path: Path) -> None:
    """Ctrl-C also ends a compiler that the engine has started."""
    harness = make(tmp_path)

    def compiler_is_killed(step: int) -> None:
        if step == 7:
            harness.signal()
            harness.engine.state["weight/w"][:] = 1e9
            raise RuntimeError("could not load what was compiled")

    harness.engine.fail = compiler_is_killed
    outcome = harness.start()
    assert outcome.status == "interrupted" and outcome.message == "stopped by a signal in step 8"
    assert outcome.checkpoint == tmp_path / "checkpoints" / "step-00000006.safetensors"
    assert [report.step for report in harness.observer.named("step")] == list(range(1, 8)), "step 7 was done"


def test_a_result_that_cannot_be_read_because_of_a_signal_is_no_error_and_is_not_saved(tmp_path: Path) -> None:
    """Step 8 is queued when the result of step 7 is asked for; neither counts."""
    harness = make(tmp_path)

    def broken(step: int) -> None:
        if step == 6:
            harness.signal()
            raise RuntimeError("a rank is gone")

    harness.engine.fail_result = broken
    outcome = harness.start()
    assert outcome.status == "interrupted" and outcome.message == "stopped by a signal in step 7"
    assert outcome.step == 6 and harness.store_steps() == [6]


def test_an_engine_that_fails_by_itself_is_an_error(tmp_path: Path) -> None:
    harness = make(tmp_path)

    def fail(step: int) -> None:
        raise RuntimeError("out of memory")

    harness.engine.fail = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        harness.start()


@pytest.mark.parametrize("where", ["fail", "fail_result"])
def test_a_device_that_fails_ends_the_run_and_nothing_is_read_from_it(where: str, tmp_path: Path) -> None:
    harness = make(tmp_path)

    def fail(step: int) -> None:
        if step == 8:
            harness.engine.calls.append(("failed", step))
            raise DeviceError("the GPU failed: [METAL] Impacting Interactivity")

    setattr(harness.engine, where, fail)
    outcome = harness.start()
    assert outcome.status == "failed" and outcome.device_failed
    assert outcome.message.startswith(f"step {outcome.step + 1}: the GPU failed: [METAL] Impacting Interactivity; ")
    assert outcome.message.endswith("step-00000006.safetensors") and harness.store_steps() == [6]
    assert harness.engine.calls[-1] == ("failed", 8), "not even waited for"
    (event,) = harness.events("failed")
    assert "Impacting Interactivity" in event["reason"]
    harness.engine = FakeEngine(harness.spec)
    again = harness.start()
    assert again.status == "finished" and not again.device_failed


def test_a_device_that_fails_after_a_signal_is_not_saved(tmp_path: Path) -> None:
    harness = make(tmp_path)
    harness.stop_at(7)

    def fail(step: int) -> None:
        if step == 7:
            raise DeviceError("the GPU failed: Timeout")

    harness.engine.fail_result = fail
    outcome = harness.start()
    assert outcome.device_failed and harness.store_steps() == [6]


def test_a_stop_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    harness = make(tmp_path)
    harness.signal()
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
    (event,) = harness.events("failed")
    assert event["failed_step"] == 15 and event["parameter"] == "layers.1.attn.q_proj.weight"
    assert event["last_checkpoint"] == str(checkpoint)


@pytest.mark.parametrize(
    ("options", "step", "message"),
    [
        ({"engine": {"broken_at": 0}}, 0, "step 1: the gradient of layers.1.attn.q_proj.weight is not a finite number"),
        ({"validation_fails": True}, 5, "step 5: validation gave no finite number (the score of symbol 5 is nan)"),
        ({"engine": {"infinite_after": 12}}, 12, "step 12: weight/w is not finite after the update"),
    ],
)
def test_what_is_no_number_stops_the_run_and_is_never_saved(
    tmp_path: Path, options: dict[str, Any], step: int, message: str
) -> None:
    outcome = make(tmp_path, **options).start()
    assert outcome.status == "failed" and outcome.step == step
    saved = tmp_path / "checkpoints" / "step-00000006.safetensors" if step == 12 else None
    advice = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
    assert outcome.message == f"{message}; training stopped; {advice}" and outcome.checkpoint == saved


def test_a_first_loss_below_ln_v_is_a_failure_and_above_it_a_warning(tmp_path: Path) -> None:
    low = make(tmp_path / "low", engine={"loss_scale": 0.5})
    outcome = low.start()
    assert outcome.status == "failed" and outcome.message.startswith("step 1: the first loss is 2.773 nats per symbol")
    assert f"ln V = {math.log(256):.3f}" in outcome.message
    high = make(tmp_path / "high", engine={"loss_scale": 2.0})
    assert high.start().status == "finished"
    assert len(high.observer.named("warning")) == 1
    usual = make(tmp_path / "usual")
    usual.start()
    assert usual.observer.named("warning") == []
