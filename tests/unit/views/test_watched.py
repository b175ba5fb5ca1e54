"""`bytetwin watch` shows what the files of a run say, whole or half-written."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console, ConsoleDimensions

from shared.cli import watch
from shared.cli.screen import Screen
from shared.runs.metrics import Event, state_of
from shared.runs.run_directory import RunDirectory
from shared.views.watched import WatchedRuns, left_s, read_watched
from tests.command_line import CommandLine
from tests.fake_training import tiny_spec
from tests.unit.views.test_report import ENVIRONMENT, FINISHED, HOSTILE, step_event

VALIDATION = {
    "event": "validation",
    "step": 20,
    "bpb": 2.753,
    "low_bpb": None,
    "high_bpb": None,
    "nats": 1.0,
    "symbols": 1,
    "bytes": 1,
    "documents": 9,
    "weights": "averaged",
}
RUNNING = [{"event": "start", "step": 0}, *(step_event(step, 4.0) for step in range(10, 41, 10)), VALIDATION]
PHASES = {"event": "phases", "step": 40, "seconds": {}}


def a_run(folder: Path, events: list[Event] = RUNNING, *overrides: str) -> Path:
    """A run whose metrics hold these events, the last line cut short."""
    folder.mkdir(parents=True)
    run = RunDirectory(folder)
    run.write_spec(tiny_spec(*overrides))
    run.environment_path.write_text(json.dumps(ENVIRONMENT))
    run.metrics_path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    return folder


def shown(renderable: object, width: int) -> str:
    console = Screen()
    console.file, console.size = io.StringIO(), ConsoleDimensions(width, 40)
    console.print(renderable)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_a_running_run(tmp_path: Path, cli: CommandLine) -> None:
    run = a_run(tmp_path / "run")
    done = cli("watch", run)
    for words in (
        "training",
        "step 40/60  0:10 left",
        "2.8854 bpb, 4.0000 nats/symbol",
        "2.753 bpb",
        "averaged weights, step 20",
        "last written 0:0",
        "0:20 of training",
    ):
        assert words in done.out, f"{words!r} is not in\n{done.out}"
    (only,) = cli("watch", run, "--json").document["runs"]
    assert (only["state"], only["step"], only["left_s"]) == ("running", 40, 10.0)
    assert "no process on this machine has it" in done.out and not only["in_use"]
    directory = RunDirectory(run)
    directory.lock()
    assert "no process" not in cli("watch", run).out and cli("watch", run, "--json").document["runs"][0]["in_use"]
    directory.unlock()
    assert (only["validation_bpb"], only["validation_weights"]) == (2.753, "averaged")


def test_a_run_that_is_packed_and_scored(tmp_path: Path, cli: CommandLine) -> None:
    done = cli("watch", a_run(tmp_path / "run", [*RUNNING, {"event": "phase", "step": 40, "phase": "scoring"}]))
    assert "scoring" in done.out and "left" not in done.out and "last written 0:0" in done.out
    (only,) = cli("watch", tmp_path / "run", "--json").document["runs"]
    assert (only["state"], only["phase"]) == ("running", "scoring")
    a_run(tmp_path / "other")
    rows = cli("watch", tmp_path).out
    assert "scoring, silent for 0:0" in rows and "running, silent for 0:0" in rows and "0:10 left" in rows


def test_what_ends_a_run_is_its_state() -> None:
    for events, state in (
        ([], "running"),
        (RUNNING, "running"),
        ([*RUNNING, PHASES], "trained"),
        ([*RUNNING, {"event": "interrupted", "step": 40}, PHASES], "interrupted"),
        ([*RUNNING, {"event": "failed", "step": 40}], "failed"),
        ([*RUNNING, FINISHED, PHASES], "finished"),
        ([*RUNNING, FINISHED, PHASES, {"event": "resume", "step": 40}, step_event(41, 4.0)], "running"),
    ):
        assert state_of(events) == state


def test_several_runs_are_rows_at_any_width(tmp_path: Path) -> None:
    names = [f"run-{index}" for index in range(3)]
    runs = [read_watched(RunDirectory(a_run(tmp_path / name))) for name in names]
    ended = read_watched(RunDirectory(a_run(tmp_path / "ended", [*RUNNING, FINISHED])))
    for width in (40, 80, 140):
        text = shown(WatchedRuns([*runs, ended]), width)
        assert all(len(line) <= width for line in text.splitlines())
        words = " ".join(text.split())
        for word in (*names, "ended", "finished", "step 40/60", "2.753 bpb"):
            assert word in words, f"{word!r} is not in\n{text}"
        assert "\u2026" not in text


def test_a_run_that_has_just_begun_or_says_odd_things(tmp_path: Path) -> None:
    new = RunDirectory(a_run(tmp_path / "new", []))
    new.environment_path.unlink()
    assert "-" in shown(read_watched(new).dashboard, 80)
    odd = [{"event": "step", "step": 5}, {**VALIDATION, "bpb": "much"}, {**step_event(9, 4.0), "grad_norm": HOSTILE}]
    found = read_watched(RunDirectory(a_run(tmp_path / "odd", odd)))
    assert found.dashboard.step == 9 and found.dashboard.validation is None
    assert "step  9/60" in shown(found.dashboard, 80)


@pytest.mark.parametrize(("limit_s", "expected"), [(25.0, 5.0), (600.0, 10.0)])
def test_by_the_clock_what_is_left_is_time(limit_s: float, expected: float) -> None:
    spec = tiny_spec("schedule.driver=time", f"training.time_limit_s={limit_s}", "training.reserve_s=0")
    steps = [step_event(step, 4.0) for step in range(10, 41, 10)]
    assert left_s(spec, steps) == expected and left_s(spec, steps[-1:]) == limit_s - 20.0
    assert left_s(tiny_spec(), steps[-1:]) is None


def test_it_looks_again_until_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a terminal that is there no more than this test's memory."""
    run = a_run(tmp_path / "run")
    out = Console(file=io.StringIO(), width=80, height=40, force_terminal=True, _environ={"TERM": "xterm"})
    monkeypatch.setattr(watch, "result_console", lambda args: out)
    args = watch.argparse.Namespace(runs=[str(run)], runs_dir=tmp_path, json=False, once=False, interval=0.1)

    def finish() -> None:
        time.sleep(0.3)
        metrics = RunDirectory(run).metrics_path
        metrics.write_text(metrics.read_text().rpartition("\n")[0] + "\n" + json.dumps(FINISHED) + "\n")

    thread = threading.Thread(target=finish)
    thread.start()
    result = watch.run(args)
    thread.join()
    output = out.file
    assert isinstance(output, io.StringIO)
    assert result.document is None and "finished" in output.getvalue() and "training" in output.getvalue()


def test_refusals(tmp_path: Path, cli: CommandLine) -> None:
    assert "no run named" in cli.refusal("watch", tmp_path / "nowhere")
    assert "from 0.1 to 3600" in cli.refusal("watch", tmp_path, "--interval", "0")
