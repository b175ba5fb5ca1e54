"""A step's result is read one step late: order, failures, and the time that steps are said to take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.optim import lr_factor
from shared.runs.checkpoints import CheckpointStore
from shared.runs.metrics import read_events
from tests.fake_study import read_json
from tests.fake_training import FakeDevice
from tests.loop_harness import Harness, make


def test_a_result_is_read_after_the_next_step_is_queued_and_before_anything_needs_the_truth(tmp_path: Path) -> None:
    harness = make(tmp_path, "training.steps=8", "training.val_every_steps=3", "training.checkpoint_every_steps=5")
    harness.start()
    words = [f"{call} {step}" for call, step in harness.engine.calls]
    assert words == [
        *("queue 0", "queue 1", "read 0", "queue 2", "read 1", "read 2", "validate 3"),
        *("queue 3", "queue 4", "read 3", "read 4", "save 5", "queue 5", "read 5", "validate 6"),
        *("queue 6", "queue 7", "read 6", "read 7", "validate 8", "save 8"),
    ]


def test_each_step_is_reported_once_in_order_and_before_its_validation(tmp_path: Path) -> None:
    harness = make(tmp_path)
    harness.start()
    events = [(name, value.step) for name, value in harness.observer.events if name in ("step", "validation")]
    due = [5, 10, 15, 20, 23]
    expected = [e for k in range(1, 24) for e in [("step", k), *([("validation", k)] if k in due else [])]]
    assert events == expected
    logged = [(r["event"], r["step"]) for r in read_events(harness.folder / "metrics.jsonl")]
    steps = {1, 4, 8, 12, 16, 20, 23}
    wanted = [(name, k) for name, k in expected if name == "validation" or k in steps]
    assert [record for record in logged if record[0] != "checkpoint"] == wanted


@pytest.mark.parametrize("broken_at", range(12))
def test_wherever_a_gradient_breaks_the_step_is_named_and_nothing_spoilt_is_saved(
    tmp_path: Path, broken_at: int
) -> None:
    harness = make(tmp_path, "training.steps=12", "training.checkpoint_every_steps=2", engine={"broken_at": broken_at})
    outcome = harness.start()
    assert outcome.status == "failed" and outcome.step == broken_at
    assert outcome.message.startswith(f"step {broken_at + 1}: the gradient of layers.1.attn.q_proj.weight")
    assert [report.step for report in harness.observer.named("step")] == list(range(1, broken_at + 1))
    assert harness.store_steps() == list(range(2, broken_at + 1, 2))[-2:]
    latest = CheckpointStore(tmp_path / "checkpoints", 2).load_latest()
    assert latest is None or np.isfinite(latest.state["weight/w"]).all()


def timed(folder: Path, device: dict[str, float], *overrides: str) -> Harness:
    """A run by the clock whose steps take what the device says. A validation takes 50 s, which must not count."""
    harness = make(folder, "schedule.driver=time", "training.steps=1000", *overrides)
    harness.engine.device = FakeDevice(**device)
    return harness


# A step takes a second: on the host, which then has nothing to wait for, or on a device.
HOST, DEVICE = {"queueing_s": 1.0}, {"computing_s": 1.0}


@pytest.mark.parametrize("device", [HOST, DEVICE], ids=["host", "device"])
def test_a_time_schedule_ends_by_training_time_alone(tmp_path: Path, device: dict[str, float]) -> None:
    """A ninth second would end after the limit. Each step is reported with its own second on either device."""
    harness = timed(tmp_path, device, "training.time_limit_s=8.5", "training.log_every_steps=1")
    outcome = harness.start()
    assert outcome.status == "finished" and outcome.step == 8
    assert outcome.elapsed_s == 8.0
    reports = harness.observer.named("step")
    assert [report.elapsed_s for report in reports] == list(range(1, 9))
    assert [report.step_s for report in reports] == [1.0] * 8
    assert [report.progress_frac for report in reports] == [second / 8 for second in range(1, 9)]
    assert [report.left_s for report in reports] == [None, *(8.0 - second for second in range(2, 9))]


def test_the_device_never_waits_for_the_host(tmp_path: Path) -> None:
    """A quarter of a second of work on the host for each step hides behind the second that the device takes."""
    overrides = ("training.steps=20", "training.val_every_steps=0", "training.checkpoint_every_steps=0")
    harness = make(tmp_path, *overrides)
    harness.engine.device = FakeDevice(queueing_s=0.25, computing_s=1.0)
    outcome = harness.start()
    assert outcome.elapsed_s == 20.25
    reports = harness.observer.named("step")
    assert sum(report.step_s for report in reports) == 20.25
    assert [report.step_s for report in reports[1:]] == [1.0] * 19


def test_the_schedule_sees_the_moment_a_step_begins_on_the_device(tmp_path: Path) -> None:
    """The host is a step ahead, but the learning rate is that of the step's own time."""
    overrides = ("training.time_limit_s=20.0", "training.val_every_steps=0")
    harness = timed(tmp_path, DEVICE, *overrides)
    harness.start()
    factors = [report.lr_factor for report in harness.observer.named("step")]
    assert factors == pytest.approx([lr_factor(harness.spec.schedule, k / 19) for k in range(19)])


def test_training_time_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    overrides = ("training.time_limit_s=20.0", "training.val_every_steps=0")
    first = timed(tmp_path, HOST, *overrides)
    first.stop_at(4)
    assert first.start().step == 5
    assert read_json(tmp_path / "checkpoints" / "step-00000005.json")["elapsed_s"] == 5.0
    second = timed(tmp_path, HOST, *overrides)
    assert second.start().elapsed_s == 19.0
    assert second.observer.named("step")[0].elapsed_s == 6.0
