"""`bytetwin report`: one page for one run or many, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shared.cli import report as command
from shared.cli.report import find_runs
from shared.runs.run_directory import RunDirectory
from shared.views.report import document
from shared.views.report.contents import ReportedRun
from tests.browser import OUTSIDE, find_browser, open_browser
from tests.command_line import CommandLine
from tests.fake_study import copy_run
from tests.unit.views.test_report import HOSTILE, Page

# How many points of the first chart have a colour.
INK = """
(() => {
  const chart = document.querySelector(".chart canvas");
  const points = chart.getContext("2d").getImageData(0, 0, chart.width, chart.height).data;
  return points.filter((value, index) => index % 4 === 3 && value > 0).length;
})()
"""
UNFOLD = "document.querySelectorAll('details:first-of-type').forEach((part) => { part.open = true; })"
QUICK = ("--symbols", "512", "--engine", "numpy")


@pytest.fixture(autouse=True)
def short_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SAMPLE_BYTES", 24)


def sweep_of(trained: Path, folder: Path, seeds: int = 5) -> list[Path]:
    """Runs of two learning rates, each with these seeds."""
    rates = {"old": "0.02", "new": "0.5"}
    return [
        copy_run(
            trained,
            folder / f"{name}-seed{seed}",
            f"training.seed={seed}",
            f"optimizer.matrix_lr={rate}",
            factor=(1.0 if name == "old" else 0.9) + seed / 1000,
        )
        for name, rate in rates.items()
        for seed in range(seeds)
    ]


def test_the_report_of_a_run_says_what_its_model_does(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = len((run / "report.html").read_bytes())
    done = cli("report", run, *QUICK, "--json")
    found = Page((run / "report.html").read_bytes())
    assert done.status == 0 and done.document["report"] == str(run / "report.html")
    assert done.document["bytes"] == len((run / "report.html").read_bytes()) < before + 100_000
    only = done.document["runs"][0]
    assert 256 < only["profile"]["total"]["symbols"] <= 512 and 0 < len(only["sample"].encode()) <= 24 * 3
    for title in ("Generated text", "Where the loss is", "Worst and best documents", "Where the bytes are"):
        assert title in found.text
    shares = re.findall(r"costliest (\d+)% of symbols carry ([\d.]+)%", found.text)
    assert [int(symbols) for symbols, _ in shares] == [1, 5, 10]
    assert all(float(symbols) <= float(loss) for symbols, loss in shares), "the costliest carry more than their number"
    assert len(found.named("pre", "text")) == 4 and found.named("i", "n5")


def test_the_report_of_a_sweep_compares(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    sweep_of(trained, tmp_path / "sweep", 3)
    page = tmp_path / "page.html"
    done = cli("report", tmp_path / "sweep", "--symbols", "0", "--out", page, "--json")
    found = Page(page.read_bytes())
    assert done.status == 0 and done.document["comparison"]["groups"][1]["verdict"] == "worse"
    assert "6 runs" in found.text and "optimizer.matrix_lr 0.5 0.02" in found.text
    assert "Bits per byte more than new, with 99% intervals over seeds" in found.text
    assert len(found.data["runs"]) == 6 and len(found.named("button", "chip")) == 6
    assert {run["name"] for run in found.data["runs"]} == {
        f"{name}-seed{seed}" for name in ("old", "new") for seed in range(3)
    }


def test_runs_that_cannot_be_compared_are_still_shown(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    """One that is not finished, of which no weights are left, and two of the same name."""
    first = copy_run(trained, tmp_path / "a" / "run", "training.seed=1")
    second = copy_run(trained, tmp_path / "b" / "run", "training.seed=2")
    for name in ("score.json", "artifact.btw", "documents.safetensors"):
        (second / name).unlink()
    shutil.rmtree(second / "checkpoints")
    events = (second / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in events if json.loads(line)["event"] in ("start", "step", "validation")]
    (second / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    page = tmp_path / "page.html"
    done = cli("report", first, second, *QUICK, "--output", page)
    text = Page(page.read_bytes()).text
    assert done.status == 0 and "b/run: The model was not measured" in done.told
    assert "a/run" in text and "This run is not finished yet" in text and "Nothing but the seed: 1, 2" in text
    assert "fewer than two runs can be compared" in text


def test_a_report_needs_runs(tmp_path: Path, cli: CommandLine) -> None:
    (tmp_path / "empty").mkdir()
    assert "neither a run nor a folder of runs" in cli.refusal("report", tmp_path / "empty")
    assert "0 or more" in cli.refusal("report", tmp_path, "--symbols", "-1")


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
def test_ten_runs_in_a_browser(trained: Path, tmp_path: Path) -> None:
    """Pictures of the page are left in the folder of the test."""
    found = find_runs(map(str, sweep_of(trained, tmp_path)))
    runs = [command._read(each, each.name) for each in found]
    args = command.argparse.Namespace(runs_dir=tmp_path, engine="numpy", symbols=512)
    model = command._view(args, runs[0], lambda done, total: None)
    model = replace(model, sample=HOSTILE + model.sample)
    runs = [replace(run, model=model) for run in runs]
    page = tmp_path / "report.html"
    page.write_bytes(document.report_page(runs, command._compare(runs)[1]))
    assert page.stat().st_size < 3_000_000
    with open_browser(str(find_browser()), tmp_path / "profile") as browser:
        for width, dark in ((1280, False), (390, True)):
            browser.open(page, width, dark=dark)
            browser.evaluate(UNFOLD)
            assert browser.evaluate(OUTSIDE) == [] and browser.errors == []
            assert browser.evaluate("document.querySelectorAll('.chart canvas').length") == 4
            for axis in ("bytes", "seconds"):
                browser.evaluate(f"document.querySelector('input[value={axis}]').click()")
            browser.evaluate("document.querySelector('button.chip').click()")
            assert browser.evaluate("document.querySelector('button.chip').getAttribute('aria-pressed')") == "false"
            assert browser.errors == []
            browser.screenshot(tmp_path / f"report-{width}-{'dark' if dark else 'light'}.png")
        assert browser.evaluate(INK) > 2000, "curves are drawn"


def test_the_run_of_a_page_without_a_score_has_its_state(trained: Path) -> None:
    run = command._read(RunDirectory(trained), "first")
    assert isinstance(run, ReportedRun) and run.state == "finished"
    events = [event for event in run.files.metrics if event["event"] != "finished"]
    for last, state in (("interrupted", "interrupted"), ("step", "running"), ("phases", "trained")):
        files = replace(run.files, metrics=[*events, {"event": last, "step": 9}])
        assert replace(run, files=files).state == state
