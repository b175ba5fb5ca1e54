"""How long each phase took: counted from what an observer hears, noted at any end, shown where it is read."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest

from shared.runs.observer import Observer, StepReport
from shared.training.phase_clock import PhaseClock
from shared.training.run import train_run
from shared.views.report.phases import phase_seconds, phases_text
from tests.fake_study import events_of
from tests.fake_training import SHORT, FakeDevice, RecordingObserver, tiny_spec
from tests.loop_harness import report


def step(seconds: float) -> StepReport:
    values: dict[str, Any] = {item.name: 0 for item in fields(StepReport)}
    return StepReport(**{**values, "step_s": seconds})


def test_every_second_belongs_to_one_stage() -> None:
    time, heard = FakeDevice(), RecordingObserver()
    clock = PhaseClock(heard, time.clock)
    watched = cast(Observer, clock)

    def after(seconds: float, tell: Any, *what: Any) -> None:
        time.now_s += seconds
        tell(*what)

    after(1.0, watched.on_phase, "compiling")
    after(5.0 + 2.0, watched.on_step, step(2.0))  # the step began when compiling was over
    after(2.0, watched.on_step, step(2.0))
    after(0.0, watched.on_phase, "validation")
    after(3.0, watched.on_progress, 10, 10)
    after(0.0, watched.on_validation, report(5, 2.5))
    after(0.5 + 2.0, watched.on_step, step(2.0))  # half a second for a checkpoint
    after(0.25, watched.on_phase, "packing")
    after(4.0, watched.on_phase, "scoring")
    after(6.0, clock.stop)
    assert clock.seconds() == pytest.approx(
        {
            "starting": 1.0,
            "compiling": 5.0,
            "training": 6.0,
            "checkpoints": 0.75,
            "validation": 3.0,
            "packing": 4.0,
            "scoring": 6.0,
        }
    )
    assert sum(clock.seconds().values()) == pytest.approx(time.now_s)
    # The view behind it heard everything.
    assert [name for name, _ in heard.events].count("step") == 3
    assert heard.named("phase") == ["compiling", "validation", "packing", "scoring"]
    assert len(heard.named("validation")) == 1 and heard.named("progress") == [(10, 10)]


def test_starts_of_one_run_are_added_up() -> None:
    events = [
        {"event": "phases", "step": 3, "seconds": {"training": 2.0, "checkpoints": 0.01}},
        {"event": "finished", "step": 6, "seconds": 7},
        {"event": "phases", "step": 6, "seconds": {"training": 3.0, "scoring": 61.0, "odd": math.nan}},
    ]
    seconds = phase_seconds(events)
    assert seconds == {"training": 5.0, "checkpoints": 0.01, "scoring": 61.0, "odd": 0.0}
    assert phases_text(seconds) == "scoring 1:01, training 5.00 s"
    assert phase_seconds([]) == {} and phases_text({}) == ""


@pytest.mark.slow
def test_a_run_notes_its_stages(tmp_path: Path) -> None:
    spec = tiny_spec(*SHORT)
    first = train_run(spec, "mlx", RecordingObserver(), runs_dir=tmp_path, run_name="a", finish=False)
    (event,) = events_of(tmp_path / "a", "phases")
    assert event["seconds"] == first.phase_s
    assert list(first.phase_s) == ["starting", "training", "checkpoints", "validation"]
    assert first.phase_s["training"] == pytest.approx(first.outcome.elapsed_s, rel=0.05, abs=0.02)
    whole = train_run(spec, "mlx", RecordingObserver(), runs_dir=tmp_path, run_name="a", resume=True)
    events = events_of(tmp_path / "a", "phases", "finished")
    assert [event["event"] for event in events] == ["phases", "finished", "phases"]
    assert {"packing", "validation of the artifact", "scoring", "audit", "report"} <= whole.phase_s.keys()
    page = (tmp_path / "a" / "report.html").read_text()
    assert "<h2>Time</h2>" in page
    for phase in phase_seconds(events):
        assert f'<th scope="row">{phase}</th>' in page
