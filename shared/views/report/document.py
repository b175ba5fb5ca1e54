"""report.html: everything about a run, or about several, on one page that needs no network.

It is made from the files of the run directories, so it says what they say, and from what `bytetwin report` measures of
the models.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.files import write_atomically
from shared.runs.finished_run import read_run
from shared.runs.run_directory import RunDirectory
from shared.spec import spec_id
from shared.views.report.assets import chart_style, scripts
from shared.views.report.comparison import ComparisonTables, comparison_section, differences_section, runs_section
from shared.views.report.contents import ReportedRun
from shared.views.report.curves import training_section
from shared.views.report.facts import commands_section, environment_section
from shared.views.report.markup import Element, details, element, page, section
from shared.views.report.phases import time_section
from shared.views.report.profile import model_sections
from shared.views.report.score import audit_section, score_section, size_section
from shared.views.report.style import STYLE
from shared.views.report.tensors import parameter_section, tensor_section

MORE = "`bytetwin report RUN` adds what it measures of the model: text that it writes, where its loss is, documents."
UNFINISHED = {
    "running": "This run is not finished yet.",
    "trained": "This run is trained, but not packed yet.",
    "paused": "This run is paused: it is resumed, or was stopped by `sweep --halving`.",
    "interrupted": "This run was interrupted.",
    "failed": "This run failed.",
}


def write_report(run: RunDirectory) -> None:
    """Write report.html of a finished run from its files alone. Raises RunError if one is missing or damaged, and
    ArtifactError if that is the artifact."""
    found = read_run(run)
    write_atomically(run.report_path, report_page([ReportedRun(run.name, found, found.score, no_model=MORE)]))


def report_page(runs: Sequence[ReportedRun], comparison: ComparisonTables | None = None) -> bytes:
    """The page of one run or several, HTML in UTF-8. Raises ArtifactError for a damaged artifact."""
    training = training_section([run.files for run in runs], [run.name for run in runs])
    if len(runs) == 1:
        run = runs[0]
        score = [score_section(run.score)] if run.score is not None else []
        parts = [_header(run), *score, training, *_sections(run)]
        figure = f": {run.score.bpb:.4f} bits per byte" if run.score is not None else ""
        title = run.name + figure
    else:
        title = f"{len(runs)} runs"
        parts = [element("header", element("h1", title)), runs_section(runs)]
        parts += [comparison_section(comparison)] if comparison is not None else []
        parts += [differences_section(runs), training, section("Each run", *map(_folded, runs))]
    return page(title, chart_style() + STYLE, parts, scripts())


def _folded(run: ReportedRun) -> Element:
    """All of one run, to be opened."""
    score = [score_section(run.score)] if run.score is not None else []
    return details(run.name, _header(run), *score, *_sections(run))


def _sections(run: ReportedRun) -> list[Element]:
    """The sections of a run that no chart of several runs has."""
    files = run.files
    spec_toml = files.directory.spec_path.read_text(encoding="utf-8")
    found: list[Element | None] = [*model_sections(run.model)] if run.model is not None else []
    if run.no_model:
        found.append(element("p", run.no_model, class_="quiet"))
    found.append(time_section(files))
    if run.score is not None:
        found += [audit_section(run.score), size_section(files, run.score)]
    found += [
        parameter_section(files.spec),
        tensor_section(files, run.score, run.costs),
        environment_section(files.environment),
        commands_section(files, run.score),
        section(
            "Spec",
            details(f"resolved spec, id {spec_id(files.spec)}", element("pre", element("code", spec_toml))),
        ),
    ]
    # An element without children is false.
    return [part for part in found if part is not None]


def _header(run: ReportedRun) -> Element:
    environment, spec = run.files.environment, run.files.spec
    device = environment.get("device", "unknown device")
    line = f"bytetwin run of spec {spec.name}, engine {environment.get('engine', 'unknown')} on {device}"
    if "started" in environment:
        line += f", started {environment['started']}"
    header = element("header", element("h1", run.name), element("p", line, class_="quiet"))
    if run.state != "finished":
        header.append(element("p", element("strong", UNFINISHED[run.state], class_="warn")))
        return header
    problems = run.files.ending.get("problems")
    if problems == []:
        verdict = "Every check of the audit passed, the size is within the budget, packing cost no more than allowed."
        header.append(element("p", element("strong", verdict, class_="good")))
    for problem in problems or ():
        header.append(element("p", element("strong", str(problem), class_="bad")))
    return header
