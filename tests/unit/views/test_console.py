"""Both views show what matters, at any width, and the parts they are made of are right."""

from __future__ import annotations

import io
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, ConsoleDimensions

from shared.engine.flops import training_flops
from shared.runs.observer import Observer, RunStart, StepReport, ValidationReport
from shared.training.pace import Pace
from shared.units import format_bytes, format_clock, format_count, format_duration
from shared.views.console import make_observer
from shared.views.dashboard import FREE_COLUMNS
from shared.views.live import LiveObserver
from shared.views.plain import STOP_NOTICE, PlainObserver, progress_text
from shared.views.plot import BLANK, MARGIN, MARK, History, braille_lines, column_values, plot_lines
from shared.views.utilisation import peak_flops_per_s, utilisation_text
from tests.fake_training import tiny_spec

TEXT = {"name": "builtin/train", "symbols": 1000, "bytes": 2_700_000, "documents": 7, "sha256": "ab" * 32}


def terminal(width: int, height: int = 30) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, _environ={"TERM": "xterm"})


def step_report(step: int, logged: bool = True) -> StepReport:
    return StepReport(
        step=step,
        nats_per_symbol=5.5 * step**-0.25,
        bpb=2.75 * step**-0.25 / math.log(2),
        grad_norm=0.25,
        lr_factor=0.875,
        progress_frac=step / 60,
        elapsed_s=0.3 * step,
        symbols=512 * step,
        bytes_per_s=45_100.0,
        step_s=0.364,
        left_s=42.0,
        peak_memory_bytes=812_000_000,
        logged=logged,
    )


def play(observer: Observer) -> None:
    """A run as the loop reports it, up to the middle."""
    observer.on_start(
        RunStart(Path("runs/tiny-mlx-1"), tiny_spec(), "mlx", "CPU", 48_702, {"train": TEXT}, history=[(0.0, 5.6)])
    )
    for step in range(1, 41):
        observer.on_step(step_report(step, logged=step % 10 == 0))
    observer.on_phase("validation")
    observer.on_progress(1, 2)
    observer.on_validation(ValidationReport(40, 2.753, 2.711, 2.795, 1.0, 1, 1, 9, "averaged", 3.0))
    observer.on_checkpoint(40, Path("runs/tiny-mlx-1/checkpoints/step-00000040.safetensors"))


def rendered(observer: LiveObserver, width: int, height: int = 30) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    console.print(observer)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_live_view_shows_every_figure(width: int) -> None:
    observer = LiveObserver(terminal(width))
    with observer:
        play(observer)
    lines = rendered(observer, width)
    text = "\n".join(lines)
    for shown in (
        "tiny on mlx",
        "runs/tiny-mlx-1",
        "step 40/60",
        "0:42 left",
        "1.5776 bpb, 2.1870 nats/symbol",
        "0.0175 (x0.875)",
        "0.25",
        "45.1 kB/s, 364 ms/step",
        "FLOP/s",
        "20.5 k symbols, 41.0 kB",
        "2.753 bpb [2.711, 2.795]",
        "averaged weights, step 40",
        "812 MB",
        "checkpoint",
        "0:12 of training",
        "bpb, \u25cf validation",
        "step 60",
    ):
        assert shown in text, f"{shown!r} is not in\n{text}"
    assert {len(line) for line in lines} == {min(width - FREE_COLUMNS, 120)}, "a clean rectangle"
    assert sum(any(ord(character) > BLANK for character in line) for line in lines) >= 4, "the curve has some height"


def test_colours_are_those_of_the_terminals_theme() -> None:
    """A colour that is fixed cannot be read on one of light and dark backgrounds."""
    console = terminal(120)
    with LiveObserver(console) as observer:
        play(observer)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[36m" in drawn and not re.search(r"\x1b\[[0-9;]*[34]8;[25];", drawn)


@pytest.mark.parametrize(("width", "height"), [(40, 10), (60, 16), (30, 5), (300, 80)])
def test_the_live_view_survives_any_size(width: int, height: int) -> None:
    observer = LiveObserver(terminal(80))
    with observer:
        play(observer)
    lines = rendered(observer, width, height)
    assert all(len(line) == min(width - FREE_COLUMNS, 120) for line in lines)


def test_nothing_is_cut_at_50_columns() -> None:
    wide, narrow = LiveObserver(terminal(120)), LiveObserver(terminal(50))
    with wide, narrow:
        play(wide)
        play(narrow)
    shown = " ".join("".join(line.strip("\u2502 ").ljust(46) for line in rendered(narrow, 50)).split())
    for words in (
        "step 40/60 0:42 left",
        "1.5776 bpb, 2.1870 nats/symbol",
        "2.753 bpb [2.711, 2.795]",
        "averaged weights, step 40",
        "45.1 kB/s, 364 ms/step,",
        "runs/tiny-mlx-1",
    ):
        assert words in shown, f"{words!r} is not in\n{shown}"
    assert "\u2026" not in shown


def test_by_the_clock_progress_is_time() -> None:
    spec = tiny_spec("schedule.driver=time", "training.time_limit_s=40", "training.reserve_s=0")
    assert progress_text(spec, 31, 22.4) == "0:22 of 0:40, step 31"
    assert progress_text(tiny_spec(), 7, 22.4) == "step  7/60"
    observer = LiveObserver(terminal(80))
    with observer:
        observer.on_start(RunStart(Path("runs/a"), spec, "mlx", "CPU", 1, {"train": TEXT}))
        observer.on_step(step_report(40))
        text = "\n".join(rendered(observer, 80))
    assert "0:12 of 0:40, step 40" in text and "0:42 left" in text and "0:40 \u2502" in text


def test_the_share_of_a_known_peak() -> None:
    fast = tiny_spec("training.dtype=bfloat16", "training.float32_products=fast")
    exact, device = tiny_spec(), "NVIDIA H100 80GB HBM3 (CUDA 13.0), 8 ranks"
    assert peak_flops_per_s(fast, device) == pytest.approx(8 * 989.4e12)
    assert peak_flops_per_s(exact, device) == pytest.approx(8 * 66.9e12)
    assert peak_flops_per_s(exact, "CPU, 2 threads") is None
    per_symbol = training_flops(fast).per_symbol
    assert utilisation_text(fast, device, 0.5 * 8 * 989.4e12 / per_symbol) == "50.0% MFU"
    assert utilisation_text(exact, "CPU, 2 threads", 2e9 / per_symbol) == "2 GFLOP/s"


def test_a_window_of_another_size_leaves_no_ghosts() -> None:
    """The screen is cleared before the first picture of a new size, and only then."""
    console = terminal(100)
    observer = LiveObserver(console)
    clear = "\x1b[2J"
    with observer:
        play(observer)
        observer._live.refresh()
        output = console.file
        assert isinstance(output, io.StringIO) and clear not in output.getvalue()
        console.size = ConsoleDimensions(60, 30)
        observer._live.refresh()
        first = output.getvalue()
        observer._live.refresh()
        assert first.count(clear) == 1 and output.getvalue().count(clear) == 1
        after = first.rpartition(clear)[2]
        assert "\x1b[1A" not in after.partition("tiny")[0], "no line of the old picture is counted on"


def test_an_echoed_interrupt_stays_beside_the_frame() -> None:
    """A terminal echoes ^C where the cursor is, at the end of the last line: it must not wrap."""
    for width in (50, 80, 120, 123):
        observer = LiveObserver(terminal(width))
        with observer:
            play(observer)
            assert all(len(line) + len("^C") < width for line in rendered(observer, width))


def test_the_live_view_tells_of_validation_and_of_stopping() -> None:
    observer = LiveObserver(terminal(80))
    with observer:
        play(observer)
        observer.on_phase("scoring")
        observer.on_progress(50_000, 200_000)
        text = "\n".join(rendered(observer, 80))
        assert "scoring" in text and "50.0 k/200 k symbols" in text and "left" in text
        assert STOP_NOTICE not in text
        observer.on_stop_requested()
        assert STOP_NOTICE in "\n".join(rendered(observer, 80))
        observer.on_end("interrupted")
        text = "\n".join(rendered(observer, 80))
        assert "interrupted" in text and "left" not in text


def test_plain_lines_one_for_each_logged_event() -> None:
    stream = io.StringIO()
    observer = PlainObserver(Console(file=stream, width=80))
    with observer:
        play(observer)
        observer.on_warning("careful [1]")
        observer.on_end("finished")
    lines = stream.getvalue().splitlines()
    assert sum(line.startswith("step ") for line in lines) == 4
    assert "step 40/60  loss 1.5776 bpb  grad 0.25  lr x0.875  45.1 kB/s  memory 812 MB  0:42 left" in lines, lines
    assert "validation at step 40: 2.753 bpb [2.711, 2.795] of the averaged weights  (3.00 s)" in lines
    assert "checkpoint runs/tiny-mlx-1/checkpoints/step-00000040.safetensors" in lines
    assert "train builtin/train: 2.70 MB in 7 documents, sha256 abababababababab" in lines
    assert lines[-2:] == ["warning: careful [1]", "run finished"]


def test_a_slow_stage_reports_its_progress_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr("shared.views.plain.time.monotonic", lambda: now[0])
    observer = PlainObserver(Console(file=stream, width=80))
    observer.on_phase("scoring")
    for done in range(1, 41):
        now[0] += 1.0
        observer.on_progress(done * 1000, 40_000)
    assert stream.getvalue().splitlines() == [
        "scoring: 10.0 k of 40.0 k symbols  0:30 left",
        "scoring: 20.0 k of 40.0 k symbols  0:20 left",
        "scoring: 30.0 k of 40.0 k symbols  0:10 left",
    ]


def test_a_silent_stage_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shared.views.stage_clock.PROGRESS_EVERY_S", 0.02)
    path = tmp_path / "output"
    with path.open("w") as stream, PlainObserver(Console(file=stream, width=80)) as observer:
        observer.on_phase("compiling")
        while path.read_text().count("\n") < 2:
            time.sleep(0.01)
        observer.on_end("finished")
        stream.flush()
        said = path.read_text().splitlines()
        time.sleep(0.1)
    assert set(said[:-1]) == {"compiling: 0:00"} and said[-1] == "run finished"
    assert path.read_text().splitlines() == said, "the clock stops with the stage"


def test_a_stop_notice_needs_nothing_but_a_file_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        PlainObserver(Console(file=file)).on_stop_requested()
        assert STOP_NOTICE in (tmp_path / "out").read_text()
    PlainObserver(Console(file=io.StringIO())).on_stop_requested()


def test_the_live_view_is_for_terminals_that_can_show_it(tmp_path: Path) -> None:
    assert isinstance(make_observer(terminal(80)), LiveObserver)
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        assert isinstance(make_observer(Console(file=file)), PlainObserver)
        assert isinstance(
            make_observer(Console(file=file, force_terminal=True, _environ={"TERM": "xterm"})), LiveObserver
        )
        dumb = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})
        assert isinstance(make_observer(dumb), PlainObserver)
    with (tmp_path / "latin").open("w", encoding="latin-1") as file:
        console = Console(file=file, force_terminal=True, _environ={"TERM": "xterm"})
        assert isinstance(make_observer(console), PlainObserver)


def test_units() -> None:
    sizes = [format_bytes(n) for n in (0, 999, 1000, 45_120, 999_600, 8.12e8, 3e12, 3e15)]
    assert sizes == ["0 B", "999 B", "1.00 kB", "45.1 kB", "1.00 MB", "812 MB", "3.00 TB", "3,000 TB"]
    assert [format_count(n) for n in (7, 1234, 3_600_000)] == ["7", "1.23 k", "3.60 M"]
    assert [format_clock(s) for s in (0, 42.4, 725, 3723, -1)] == ["0:00", "0:42", "12:05", "1:02:03", "0:00"]
    durations = [format_duration(s) for s in (0.0004, 0.3642, 0.9996, 2.6, 42.04, 59.95, 725)]
    assert durations == ["0.40 ms", "364 ms", "1.00 s", "2.60 s", "42.0 s", "1:00", "12:05"]


def test_pace_leaves_out_the_step_that_compiles() -> None:
    pace = Pace()
    assert pace.step_s == pace.slowest_s == 0.0 and not pace.is_known
    pace.add(40.0)
    assert pace.step_s == pace.slowest_s == 40.0 and not pace.is_known
    for seconds in (0.5, 0.6, 0.5, 0.5):
        pace.add(seconds)
    assert 0.5 < pace.step_s < 0.55 and pace.slowest_s == 0.6 and pace.is_known
    for _ in range(2000):
        pace.add(0.5)
    assert math.isclose(pace.step_s, 0.5) and pace.slowest_s == 0.5, "the slowest of recent steps"


def test_pace_of_an_earlier_start_holds_until_two_steps_are_known() -> None:
    pace = Pace(0.5, 0.7)
    pace.add(40.0)
    assert pace.is_known and (pace.step_s, pace.slowest_s) == (0.5, 0.7)
    pace.add(0.6)
    assert (pace.step_s, pace.slowest_s) == (0.6, 0.7)


def test_braille_of_a_falling_line() -> None:
    lines = braille_lines([8.0, 4.0, 2.0, 1.0], width=3, height=1, low=1.0, high=8.0)
    # Dots of columns 0 and 1 in the first cell: rows 0 and 0-1; the second cell: rows 1-2 and 2-3.
    assert lines == [chr(BLANK + 0x01 + 0x08 + 0x10) + chr(BLANK + 0x02 + 0x04 + 0x20 + 0x80) + chr(BLANK)]


def test_columns_are_means_with_straight_lines_between() -> None:
    assert column_values([], 10) == []
    assert column_values([(0.0, 4.0), (0.05, 6.0), (0.45, 1.0)], 10) == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert column_values([(1.0, 2.0)], 4) == [2.0] * 4


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 30)), max_size=80), st.integers(1, 40), st.integers(1, 9))
def test_any_curve_can_be_drawn(points: list[tuple[float, float]], width: int, height: int) -> None:
    values = column_values(sorted(points), 2 * width)
    assert len(values) <= 2 * width
    if values:
        lines = braille_lines(values, width, height, min(values), max(values))
        assert [len(line) for line in lines] == [width] * height
        dots = [sum((ord(c) - BLANK).bit_count() for c in line) for line in lines]
        assert sum(dots) >= len(values), "every column has a dot"


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 30)), max_size=40),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 30)), max_size=5),
    st.integers(12, 60),
    st.integers(2, 9),
)
def test_any_plot_has_its_axis_and_marks(
    points: list[tuple[float, float]], validations: list[tuple[float, float]], width: int, rows: int
) -> None:
    lines = plot_lines(sorted(points), validations, width, rows, "end")
    assert len(lines) == rows + 1 and all(line.cell_len <= width for line in lines)
    if points:
        columns = {min(width - MARGIN - 1, int(place * (width - MARGIN))) for place, _ in validations}
        assert sum(line.plain[MARGIN:].count(MARK) for line in lines[:-1]) == len(columns)
        assert lines[-1].plain.endswith("end") or width < 20


def test_the_first_steps_do_not_flatten_the_plot() -> None:
    points = [(step / 100, 8.0 if step < 4 else 3.0 - step / 100) for step in range(101)]
    lines = plot_lines(points, [(0.5, 2.4)], 60, 5, "step 100")
    assert lines[0].plain.startswith(" 2.950 \u2502") and lines[4].plain.startswith(" 2.000 \u2502")
    assert sum(MARK in line.plain for line in lines) == 2 and "bpb, \u25cf validation" in lines[-1].plain


def test_a_long_history_is_merged_not_cut() -> None:
    history = History((step / 10_000, 5.0 - step / 10_000) for step in range(10_000))  # type: ignore[arg-type]
    points = history.points()
    assert len(points) <= History.MOST_POINTS
    assert points[0][0] < 0.001 and points[-1] == (0.9999, 5.0 - 0.9999)
    assert all(math.isclose(place + value, 5.0) for place, value in points)
