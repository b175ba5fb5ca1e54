"""A run by the clock ends before its limit, and its schedule ends with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from shared.errors import SpecError
from shared.optim import lr_factor
from shared.runs.run_directory import RunDirectory
from shared.study.rungs import is_past, validation_at
from shared.training.deadline import Deadline
from tests.bench.deadline import BY_CLOCK, KINDS, QUIET, IdleEngine, simulate
from tests.fake_study import events_of
from tests.fake_training import FakeDevice, tiny_spec
from tests.loop_harness import Harness, make

# A step takes what is given on the host, or on a device that the host is ahead of.
HOST, DEVICE = "queueing_s", "computing_s"


def by_clock(folder: Path, *overrides: str, where: str = HOST, step_s: float = 1.0) -> Harness:
    harness = make(folder, *BY_CLOCK, *QUIET, *overrides)
    harness.engine = IdleEngine(harness.spec)
    harness.engine.device = FakeDevice(**{where: step_s})
    return harness


class VaryingDevice(FakeDevice):
    """A device with given lengths of its steps."""

    def __init__(self, lengths_s: Sequence[float]) -> None:
        super().__init__()
        self.lengths_s = iter(lengths_s)

    def queue(self) -> float:
        self.queueing_s = next(self.lengths_s)
        return super().queue()


@pytest.mark.parametrize("computes", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_is_not_late_and_leaves_less_than_two_steps(kind: str, computes: bool) -> None:
    """A short version of tests/bench/deadline.py."""
    for seed in range(4):
        ending = simulate(KINDS[kind], 0.9, 120.0, seed, computes=computes)
        assert ending.unused_steps < 2.0
        assert not ending.late or not ending.foreseeable
        assert 0.4 <= ending.last_rate <= 2.5


@pytest.mark.slow
@settings(max_examples=60)
@given(
    limit_s=st.floats(1.0, 100.0),
    reserve_frac=st.sampled_from([0.0, 0.3]),
    step_s=st.floats(0.05, 3.0),
    spread=st.floats(0.0, 0.5),
    seed=st.integers(0, 1000),
    computes=st.booleans(),
)
@example(limit_s=1.0, reserve_frac=0.3, step_s=0.203125, spread=0.1875, seed=786, computes=True)
def test_no_step_that_was_to_be_expected_ends_late(
    limit_s: float, reserve_frac: float, step_s: float, spread: float, seed: int, computes: bool
) -> None:
    """A run is late only by a step that was slower than all before it but the first, or by its first or second."""
    assume(limit_s / step_s < 300)

    def jitter(rng: np.random.Generator, passed: float) -> float:
        return 1.0 + spread * float(rng.random())

    ending = simulate(jitter, step_s, limit_s, seed, computes=computes, reserve_s=reserve_frac * limit_s)
    assert ending.steps >= 1
    if ending.steps >= 3:
        assert ending.unused_steps < 2.0
        assert not ending.late or not ending.foreseeable


def test_a_step_begins_while_the_slowest_recent_one_would_still_fit(tmp_path: Path) -> None:
    """Steps of 1 s, each third of 1.5 s. With 1.6 s left one more begins, with 1.5 s none."""
    for limit_s, steps in ((10.6, 9), (10.5, 8)):
        harness = by_clock(tmp_path / str(limit_s), f"training.time_limit_s={limit_s}")
        harness.engine.device = VaryingDevice([1.0, 1.0, 1.5] * 10)
        assert harness.start().step == steps


def test_the_rule_before_was_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step began whenever the limit was not reached yet."""
    monkeypatch.setattr(Deadline, "fits", lambda self, step, begin_s: begin_s < self.limit_s)
    assert by_clock(tmp_path, "training.time_limit_s=10.5").start().elapsed_s == 11.0


def test_the_schedule_ends_with_the_last_step(tmp_path: Path) -> None:
    """As in a run of as many steps by steps: into 11.04 s go 10 steps of 1 s, with 5 % more for another."""
    harness = by_clock(tmp_path, "training.time_limit_s=11.04", "schedule.warmdown_frac=0.5")
    outcome = harness.start()
    factors = [report.lr_factor for report in harness.observer.named("step")]
    assert outcome.step == 10
    assert factors == pytest.approx([lr_factor(harness.spec.schedule, step / 10) for step in range(10)], rel=0.01)


def test_a_reserve_is_kept_free(tmp_path: Path) -> None:
    outcome = by_clock(tmp_path, "training.time_limit_s=20.5", "training.reserve_s=8").start()
    assert outcome.step == 12 and outcome.elapsed_s == 12.0


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        (("training.reserve_s=1",), "must be 0 without a time limit"),
        (
            ("schedule.driver=time", "training.time_limit_s=5", "training.reserve_s=5"),
            r"must be below training\.time_limit_s \(5.0\)",
        ),
    ],
)
def test_a_reserve_that_leaves_no_time_is_refused(overrides: tuple[str, ...], allowed: str) -> None:
    with pytest.raises(SpecError, match=r"training\.reserve_s = .*" + allowed):
        tiny_spec(*overrides)


def test_whichever_ends_first_steps_or_time(tmp_path: Path) -> None:
    for steps, done in ((7, 7), (30, 10)):
        harness = by_clock(tmp_path / str(steps), "training.time_limit_s=10.5", f"training.steps={steps}")
        assert harness.start().step == done
        last = harness.observer.named("step")[-1]
        assert last.progress_frac == 1.0 and last.left_s == 0.0 and last.logged


def test_a_first_step_is_always_made(tmp_path: Path) -> None:
    """Nothing is known of its length, and a run of no steps would pack the initial weights."""
    assert by_clock(tmp_path, "training.time_limit_s=0.5").start().step == 1


@pytest.mark.parametrize("where", [HOST, DEVICE])
def test_the_last_step_is_in_the_metrics_and_in_time(tmp_path: Path, where: str) -> None:
    """It proves to be the last only after the clock was stopped for a validation."""
    harness = by_clock(tmp_path, "training.time_limit_s=11.0501", "training.val_every_steps=10", where=where)
    stop = harness.engine.synchronise

    def slow_stop() -> None:
        stop()
        harness.engine.device.now_s += 0.001

    harness.engine.synchronise = slow_stop  # type: ignore[method-assign]
    outcome = harness.start()
    steps = events_of(tmp_path, "step")
    assert outcome.step == 10 and outcome.elapsed_s <= 11.0501
    assert [event["step"] for event in steps] == [1, 10]
    assert steps[-1]["progress_frac"] == 1.0 and steps[-1]["elapsed_s"] <= 11.0501


@pytest.mark.parametrize("stop_at", [1, 5, 17, 18])
@pytest.mark.parametrize("where", [HOST, DEVICE])
def test_a_resumed_run_ends_in_time_too(tmp_path: Path, where: str, stop_at: int) -> None:
    """It knows from its checkpoint how long steps take, and after the last one that there is no time for another."""
    first = by_clock(tmp_path, "training.time_limit_s=20", where=where)
    first.stop_at(stop_at)
    assert first.start().status == "interrupted"
    for _ in range(2):
        outcome = by_clock(tmp_path, "training.time_limit_s=20", where=where).start()
        assert outcome.status == "finished" and outcome.step == 19 and outcome.elapsed_s <= 20.0


@pytest.mark.parametrize("where", [HOST, DEVICE])
def test_by_the_clock_a_rung_is_a_fraction_of_the_time(tmp_path: Path, where: str) -> None:
    """A run pauses in the step after it, is validated and saved there, and resumed ends as it does without."""
    for pause_frac, status, steps in ((0.25, "paused", (5, 6)), (0.5, "paused", (10, 11)), (1.0, "finished", (19, 19))):
        harness = by_clock(tmp_path, "training.time_limit_s=20", "training.val_every_steps=0", where=where)
        harness.pause_frac = pause_frac
        outcome, run = harness.start(), RunDirectory(harness.folder)
        assert outcome.status == status and steps[0] <= outcome.step <= steps[1]
        assert outcome.validation is not None and outcome.validation.step == outcome.step
        if status == "paused":
            assert validation_at(run, pause_frac) == outcome.validation.bpb
            assert is_past(run, harness.spec, pause_frac - 0.15) and not is_past(run, harness.spec, pause_frac + 0.1)
    assert validation_at(run, 0.75) is None


@pytest.mark.parametrize("where", [HOST, DEVICE])
def test_by_the_clock_too_the_first_step_of_a_warm_up_counts(tmp_path: Path, where: str) -> None:
    """The length of the first step is measured beforehand, outside the clock."""
    overrides = ("training.time_limit_s=20", "schedule.warmup_frac=0.4", "schedule.warmdown_frac=0")
    harness = by_clock(tmp_path, *overrides, where=where)
    harness.engine.warm_up = lambda x: harness.engine.device.wait(harness.engine.device.queue())  # type: ignore[method-assign]
    outcome = harness.start()
    factors = [report.lr_factor for report in harness.observer.named("step")]
    assert outcome.elapsed_s == 19.0
    assert factors[:8] == pytest.approx([(step + 1) / 8 for step in range(8)], rel=0.1) and min(factors) > 0.1
    unknown = by_clock(tmp_path / "unknown", *overrides, where=where)
    unknown.start()
    assert unknown.observer.named("step")[0].lr_factor > 0
