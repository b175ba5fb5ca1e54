"""report.html: one page, well formed, closed to the network, that says what the run directory says."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import RunError
from shared.model import parameter_counts
from shared.runs.metrics import Event
from shared.runs.run_directory import RunDirectory
from shared.scoring.document import write_score
from shared.scoring.loss_profile import Part
from shared.spec import Spec
from shared.views.report import bars
from shared.views.report.bars import Bar, Mark
from shared.views.report.curves import CURVES, MOST_POINTS, Row, thinned
from shared.views.report.document import write_report
from shared.views.report.markup import data_block, element, page
from shared.views.report.profile import often_counted
from tests.fake_study import score_of
from tests.fake_training import tiny_spec

HOSTILE = "<script>alert('x')</script>\"&amp;\x00\x1b[31m\u202e\ud800"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Parses strictly: every element is closed where it must be."""

    def __init__(self, content: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.data: dict[str, Any] = {}
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(content.decode("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag}: attribute given twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and "id" in self.elements[-1][1]:
            self.data = json.loads(data)
        elif self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def run(self) -> dict[str, Any]:
        """The curves of the first run, as the script of the page draws them."""
        found: dict[str, Any] = self.data["runs"][0]
        return found

    def named(self, tag: str, class_: str = "") -> list[dict[str, str]]:
        return [values for name, values in self.elements if name == tag and class_ in values.get("class", "")]


def step_event(step: int, nats: float) -> Event:
    return {
        "event": "step",
        "step": step,
        "nats_per_symbol": nats,
        "grad_norm": 1.0,
        "lr_factor": 1.0 - step / 100,
        "progress_frac": step / 60,
        "elapsed_s": 0.5 * step,
        "symbols": 512 * step,
        "bytes_per_s": 1_500_000.0,
        "step_s": 0.5,
        "peak_memory_bytes": 7_000_000,
    }


def validation_event(step: int, bpb: float) -> dict[str, Any]:
    return {"event": "validation", "step": step, "bpb": bpb, "low_bpb": bpb - 0.1, "high_bpb": bpb + 0.1}


PACKING = {"unpacked_bpb": 2.4011, "packed_bpb": 2.4044, "difference_bpb": 0.0033, "limit_bpb": 0.01}
FINISHED = {"event": "finished", "step": 60, "bpb": 2.5, "packing": PACKING, "problems": []}
EVENTS = [
    {"event": "start", "step": 0, "engine": "mlx"},
    *(step_event(step, 5.5 - 0.06 * step) for step in range(1, 61)),
    validation_event(30, 3.7),
    validation_event(60, 2.4),
    FINISHED,
]
ENVIRONMENT = {
    "started": "2026-01-02T03:04:05+00:00",
    "command": "bytetwin train tiny --run first",
    "engine": "mlx",
    "device": "some processor",
    "python": "3.11.9",
    "platform": "Linux-6",
    "cpu_count": 8,
    "packages": {"numpy": "2.4.6", "mlx": "0.32.4"},
    "git": {"commit": "c0ffee", "modified": True},
    "data": {"train": {"name": "text/train", "symbols": 1000, "bytes": 2000, "documents": 3, "sha256": "b" * 64}},
    "earlier_starts": [],
}


def report(
    folder: Path,
    events: list[Event] = EVENTS,
    environment: Mapping[str, Any] = ENVIRONMENT,
    spec: Spec | None = None,
    **score: Any,
) -> Page:
    """The page of a run directory with these files, parsed."""
    spec = spec or tiny_spec()
    folder.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(folder)
    run.write_spec(spec)
    run.environment_path.write_text(json.dumps(environment))
    run.metrics_path.write_text("".join(json.dumps(event) + "\n" for event in events))
    write_score(run.score_path, score_of(spec, **score))
    write_report(run)
    assert not list(folder.glob(".*.tmp"))
    content = run.report_path.read_bytes()
    found = Page(content)
    drawn = [value for name, values in found.elements for key, value in values.items() if key != "aria-label"]
    assert not [value for value in drawn if re.search(r"\b(nan|inf)\b", value, re.IGNORECASE)]
    return found


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    text = report(tmp_path / "first").text
    for fact in (
        "first",
        "spec tiny, engine mlx on some processor, started 2026-01-02T03:04:05+00:00",
        "2.5000 bits per byte",
        "95% confidence interval: 2.4123 to 2.5877 (12 documents)",
        "xz -9",
        "3.2800 (4.10 kB)",
        "brotli -11",
        "60 of 60 steps, 30.7 k symbols",
        "30.0 s of training alone",
        "7.00 MB",
        "future passed 1.5e-07, at most 0.0001 moved",
        "artifact 123,456 0.8%",
        "code 234,567 1.5%",
        "together 358,023 2.2%",
        "15,641,977 bytes left",
        "from 2.4011 to 2.4044 bits per byte: +0.0033 , at most +0.01 is allowed",
        f"total {parameter_counts(tiny_spec())['total']:,} 100.0%",
        "numpy 2.4.6, mlx 0.32.4",
        "c0ffee, with local changes",
        "text/train: 2,000 bytes, 3 documents",
        "bytetwin train tiny --run first",
        "--run first --resume",
        "[model.decoder]",
        "Every check of the audit passed",
    ):
        assert fact in text, fact


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    found = report(tmp_path / "first")
    assert not found.named("link") and not found.named("img")
    for _, values in found.elements:
        assert not {"src", "href", "onload", "onclick", "style"} & values.keys()
    content = (tmp_path / "first" / "report.html").read_text()
    assert re.findall(r"\S+://\S+", content) == ["https://github.com/leeoniya/uPlot"], "the library says what it is"
    assert "@import" not in content and "url(" not in content
    assert "prefers-color-scheme: dark" in content and "@media print" in content
    assert len(content) < 100_000


def test_the_page_runs_its_own_scripts_alone(tmp_path: Path) -> None:
    report(tmp_path / "first")
    content = (tmp_path / "first" / "report.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    assert len(scripts) == 2
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}' 'sha256-{}'".format(*hashes)
    assert html.escape(policy, quote=False) in content.replace("&#x27;", "'")


def test_the_library_is_the_one_that_was_published() -> None:
    """uPlot 1.6.32 from the npm registry: dist/uPlot.iife.min.js and dist/uPlot.min.css."""
    folder = Path(bars.__file__).parent
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16] for name in ("uplot.js", "uplot.css")]
    assert digests == ["19c8d4c6ad88929a", "df630c6a8d6f8eea"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = {"name": HOSTILE, "bytes": HOSTILE, "symbols": HOSTILE, HOSTILE: 1}
    environment = {
        **dict.fromkeys(ENVIRONMENT, HOSTILE),
        "packages": {HOSTILE: HOSTILE},
        "git": {"commit": HOSTILE},
        "data": {"train": hostile, HOSTILE: hostile},
        "earlier_starts": [{"engine": HOSTILE, "started": HOSTILE, "git": {"commit": HOSTILE}}, HOSTILE],
    }
    events = [*EVENTS[:-1], {"event": "resume", "step": 9, "engine": HOSTILE}, {**FINISHED, "problems": [HOSTILE]}]
    check = {"name": HOSTILE, "passed": False, "measured": None, "limit": 0.0, "detail": HOSTILE, "warning": True}
    plain = HOSTILE[:-1]
    hashes = {"sha256": "a" * 64, "scored_sha256": "b" * 64, "text_sha256": "c" * 64}
    found = report(
        tmp_path / "<b>&'run\"",
        events,
        environment,
        tiny_spec('data.train="<i>text</i>"'),
        engine=plain,
        spec_name=plain,
        dataset={**hashes, "name": plain, "complete": False},
        compressors={plain: {"compressed_bytes": 1, "bpb": 1.0}},
        audit={"passed": False, "checks": [json.loads(json.dumps(check).replace("\\ud800", ""))]},
    )
    assert len(found.named("script")) == 3 and not found.named("b") and not found.named("i")
    assert "<b>&'run\"" in found.text and "<i>text</i>" in found.text
    assert "<script>alert('x')</script>\"&amp;\ufffd\ufffd[31m\ufffd" in found.text
    assert "failed" in found.text and "not a number" in found.text and "fixed sample" in found.text


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_survives_as_text(text: str, value: str) -> None:
    content = page(text, "", [element("p", text, element("b", title=value), text)])
    found = Page(content)
    assert len(found.elements) == len(Page(page("", "", [element("p", element("b"))])).elements)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", content.decode())
    readable = re.sub(r"[^!-~]+", "", text)
    assert readable in re.sub(r"[^!-~]+", "", html.unescape("".join(found.texts)))


@given(st.text(st.characters()))
def test_no_text_ends_the_data_of_a_script(text: str) -> None:
    hostile = text + "</script><!--<script>" + text
    found = Page(page("", "", [data_block("curves", {"name": hostile})]))
    assert found.data == {"name": hostile}


def test_without_validation_the_loss_stands_alone(tmp_path: Path) -> None:
    found = report(tmp_path / "a", [event for event in EVENTS if event["event"] != "validation"])
    assert len(found.named("div", "chart")) == 4 and found.run["validation"]["bpb"] == []
    assert "Validation (dots)" not in found.text


def test_the_curves_lie_over_steps_seconds_and_bytes(tmp_path: Path) -> None:
    run = report(tmp_path / "a").run
    assert run["x"] == {
        "step": list(range(1, 61)),
        "seconds": [0.5 * step for step in range(1, 61)],
        "bytes": [1024 * step for step in range(1, 61)],
    }
    assert run["y"]["grad_norm"] == [1.0] * 60 and run["y"]["speed"] == [1_500_000] * 60
    assert run["y"]["rate"][9] == pytest.approx(0.9 * tiny_spec().optimizer.matrix_lr)
    scored = run["validation"]
    assert (scored["step"], scored["seconds"], scored["bytes"]) == ([30, 60], [15, 30], [30 * 1024, 60 * 1024])
    assert (scored["bpb"], scored["low"], scored["high"]) == ([3.7, 2.4], [3.6, 2.3], [3.8, 2.5])


def test_the_caption_says_which_weights_were_validated(tmp_path: Path) -> None:
    assert "Validation (dots) is the score on a fixed sample" in report(tmp_path / "unknown").text
    events = [{**event, "weights": "averaged"} if event["event"] == "validation" else event for event in EVENTS]
    assert (
        "Validation (dots) is the score of the averaged weights on a fixed sample"
        in report(tmp_path / "a", events).text
    )


def test_few_steps_or_none(tmp_path: Path) -> None:
    found = report(tmp_path / "a", [step_event(1, 5.5), validation_event(1, 4.0), FINISHED])
    assert found.run["x"]["step"] == [1] and found.run["validation"]["seconds"] == [0.5]
    assert "1 of 60 steps" in found.text
    assert report(tmp_path / "b", [FINISHED]).run["y"] == {name: [] for name in CURVES}


def test_what_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    spoiled = [
        {**step_event(61, math.nan), "lr_factor": math.inf, "bytes_per_s": None, "peak_memory_bytes": "much"},
        {**validation_event(61, math.nan), "low_bpb": None},
        {"event": "step", "step": 62},
        {**step_event(63, 1.0), "bytes_per_s": None, "grad_norm": "much"},
    ]
    found = report(tmp_path / "a", [*EVENTS[:-1], *spoiled, FINISHED])
    assert found.run["validation"]["step"] == [30, 60] and "nan" not in found.text.lower().split()
    assert found.run["x"]["step"][-1] == 63 and found.run["y"]["speed"][-1] is found.run["y"]["grad_norm"][-1] is None


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    """A step that was logged twice counts once, the last time; the last `finished` event is the one that holds."""
    again = [{"event": "resume", "step": 30, "engine": "torch"}, *(step_event(step, 3.0) for step in range(30, 61))]
    ending = {**FINISHED, "packing": {**PACKING, "packed_bpb": 2.4111, "difference_bpb": 0.01}}
    environment = {**ENVIRONMENT, "earlier_starts": [{"engine": "mlx", "device": "old one", "started": "before"}]}
    found = report(tmp_path / "a", [*EVENTS, *again, validation_event(60, 2.3), ending], environment)
    assert "resumed at step 30 (torch)" in found.text and "before: engine mlx on old one" in found.text
    assert "2.4111" in found.text and "2.4044" not in found.text
    places = found.run["x"]["step"]
    assert len(places) == 60 and places == sorted(set(places))
    assert found.run["validation"]["bpb"] == [3.7, 2.3]


def test_training_loss_is_converted_with_the_bytes_of_a_symbol(tmp_path: Path) -> None:
    """Two bytes a symbol: 4 ln 2 nats per symbol are 2 bits per byte, where the validation stands."""
    events = [step_event(1, 8 * math.log(2)), step_event(2, 4 * math.log(2)), validation_event(2, 2.0), FINISHED]
    run = report(tmp_path / "a", events).run
    assert run["y"]["bpb"] == [4.0, 2.0] and run["validation"]["bpb"] == [2.0]


def test_problems_and_missing_figures_are_shown(tmp_path: Path) -> None:
    nothing = {"level": 0.95, "low_bpb": None, "high_bpb": None, "units": "documents", "num_units": 1}
    nothing |= {"effective_units": 1.0, "reason": "1 document, at least 5 are needed"}
    ending = {**FINISHED, "problems": ["budget: too much"]}
    found = report(tmp_path / "a", [*EVENTS[:-1], ending], {"git": None}, limit_bytes=1000, confidence=nothing)
    assert "budget: too much" in found.text and "Every check" not in found.text
    assert "357,023 bytes over the budget" in found.text and len(found.named("line", "limit")) == 1
    assert "no confidence interval: 1 document, at least 5 are needed" in found.text
    assert "not run from a git checkout" in found.text and not found.named("line", "whisker")


@pytest.mark.parametrize("name", ["environment.json", "score.json", "spec.toml"])
def test_a_missing_file_is_an_error_and_no_report(tmp_path: Path, name: str) -> None:
    report(tmp_path)
    (tmp_path / "report.html").unlink()
    (tmp_path / name).unlink()
    with pytest.raises(RunError, match=name):
        write_report(RunDirectory(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_a_limit_says_on_which_side_of_it_is_good(tmp_path: Path) -> None:
    """Plausibility passes above its limit, the other checks below theirs."""
    check = {"name": "plausibility", "passed": True, "measured": 2.19, "limit": 1.0, "detail": "", "warning": False}
    leak = {**check, "name": "future", "passed": False, "measured": 0.3, "limit": 1e-4}
    low = {**check, "passed": False, "measured": 0.3}
    text = report(tmp_path / "a", audit={"passed": False, "checks": [check, leak, low]}).text
    assert "plausibility passed 2.19, at least 1" in text and "future failed 0.3, at most 0.0001" in text
    assert "plausibility failed 0.3, at least 1" in text


def test_bars_are_proportional_from_zero() -> None:
    chart = bars.bar_chart([Bar("a", 2.0, "2", 1.5, 2.5, emphasised=True), Bar("b", 4.0, "4")], "sizes")
    first, second = (float(bar.attrib["width"].rstrip("%")) for bar in chart.iter("rect"))
    assert (first, second) == (50.0, 100.0) and len(list(chart.iter("line"))) == 3


@given(st.lists(st.floats(width=32), max_size=20))
def test_any_bar_stays_in_its_chart(values: list[float]) -> None:
    rows = [Bar(str(index), value, "", value, value) for index, value in enumerate(values)]
    marks = [Mark(row.name, row.value, row.text, row.low, row.high) for row in rows]
    charts = [bars.bar_chart(rows, "a"), bars.column_chart(rows, "b"), bars.mark_chart(marks, "c")]
    drawn = [each.attrib.items() for chart in charts for each in chart.iter() if each.tag in ("rect", "line", "circle")]
    shares = [float(value[:-1]) for items in drawn for _, value in items if value.endswith("%")]
    assert len(drawn) >= 3 * len(values) and all(0.0 <= share <= 100.0 for share in shares)


def test_very_long_curves_are_thinned_to_their_means() -> None:
    rows: list[Row] = [(step, step, step, float(step % 2), math.nan) for step in range(1, 10 * MOST_POINTS + 1)]
    thin = thinned(rows, MOST_POINTS)
    assert len(thin) == MOST_POINTS and thin[-1][:3] == rows[-1][:3]
    assert all(row[3] == 0.5 and math.isnan(row[4]) for row in thin)


def test_positions_that_few_windows_count_are_no_figure() -> None:
    """Of windows that overlap the first one alone counts its beginning."""
    few, many = (Part(name, symbols, symbols, 3.0) for name, symbols in (("0 to 31", 32), ("32 to 63", 1024)))
    assert often_counted([few, many]) == [many] and often_counted([few]) == [few]
    even = [Part(str(index), 900 + index, 900, 1.0) for index in range(4)]
    assert often_counted(even) == even
