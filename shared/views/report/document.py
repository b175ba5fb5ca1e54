"""report.html: everything about a finished run on one page that needs no network and runs no script.

It is made from the files of the run directory alone, so it says what they say.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.files import write_atomically
from shared.model import parameter_counts
from shared.runs.finished_run import FinishedRun, number, read_run
from shared.runs.run_directory import RunDirectory
from shared.scoring.document import CheckPart, ScoreDocument
from shared.spec import Spec, spec_id
from shared.units import format_bytes
from shared.views.report.curves import training_section
from shared.views.report.markup import Child, Element, element, facts, page, section, table
from shared.views.report.phases import time_section
from shared.views.report.style import STYLE
from shared.views.report.svg_chart import Bar, bar_chart, budget_chart
from shared.views.report.tensors import tensor_section

GROUPS = {
    "matrix": "matrices of attention and MLP",
    "embedding": "embeddings",
    "head": "output heads",
    "scalar": "gains, mixes and start vectors",
    "adapter": "low-rank adapters",
}


def write_report(run: RunDirectory) -> None:
    """Write report.html of a finished run. Raises RunError if a file it is made from is missing or damaged, and
    ArtifactError if that is the artifact."""
    write_atomically(run.report_path, _document(read_run(run)))


def _document(run: FinishedRun) -> bytes:
    spec_toml = run.directory.spec_path.read_text(encoding="utf-8")
    parts = [
        _header(run),
        _score(run.score),
        training_section(run),
        *filter(None, [time_section(run)]),
        _audit(run.score),
        _size(run),
        _parameters(run.spec),
        *filter(None, [tensor_section(run)]),
        _environment(run.environment),
        _commands(run),
        section(
            "Spec",
            element("details", element("summary", f"resolved spec, id {spec_id(run.spec)}"), _code(spec_toml)),
        ),
    ]
    return page(f"{run.path.name}: {run.score.bpb:.4f} bits per byte", STYLE, parts)


def _header(run: FinishedRun) -> Element:
    score, environment = run.score, run.environment
    device = environment.get("device", "unknown device")
    line = f"bytetwin run of spec {score.spec_name}, engine {score.engine} on {device}"
    if "started" in environment:
        line += f", started {environment['started']}"
    header = element("header", element("h1", run.path.name), element("p", line, class_="quiet"))
    problems = run.ending.get("problems")
    if problems == []:
        verdict = "Every check of the audit passed, the size is within the budget, packing cost no more than allowed."
        header.append(element("p", element("strong", verdict, class_="good")))
    for problem in problems or ():
        header.append(element("p", element("strong", str(problem), class_="bad")))
    return header


def _score(score: ScoreDocument) -> Element:
    interval, dataset = score.confidence, score.dataset
    bars = [
        Bar("this model", score.bpb, f"{score.bpb:.4f}", interval.low_bpb, interval.high_bpb, emphasised=True),
        *(
            Bar(name, result.bpb, f"{result.bpb:.4f} ({format_bytes(result.compressed_bytes)})")
            for name, result in sorted(score.compressors.items(), key=lambda item: item[1].bpb)
        ),
    ]
    whole = "the whole held-out text" if dataset.complete else "a fixed sample of the held-out documents"
    return element(
        "section",
        element("p", f"{score.bpb:.4f} ", element("small", "bits per byte, lower is better"), class_="score"),
        element("p", score.confidence.text),
        element("figure", bar_chart(bars, "bits per byte")),
        facts(
            [
                (
                    "text",
                    f"{dataset.name}: {score.bytes:,} bytes in {score.documents:,} documents, {whole}; "
                    f"sha256 {dataset.scored_sha256}",
                ),
                (
                    "protocol",
                    f"{score.symbols:,} symbols, each scored once, {score.windows_text}, {score.weights} weights",
                ),
            ]
        ),
    )


def _audit(score: ScoreDocument) -> Element:
    rows = [
        (
            check.name,
            _verdict(check),
            "not a number" if check.measured is None else f"{check.measured:.3g}",
            f"{check.limit:.3g}",
            check.detail,
        )
        for check in score.audit.checks
    ]
    return section("Audit", table(("check", "verdict", "measured", "limit", "what was found"), rows, numeric=(2, 3)))


def _verdict(check: CheckPart) -> Element:
    if not check.passed:
        return element("strong", "failed", class_="bad")
    if check.warning:
        return element("strong", "warning", class_="warn")
    return element("strong", "passed", class_="good")


def _size(run: FinishedRun) -> Element:
    score = run.score
    artifact = score.artifact_bytes or 0
    total, limit = score.total_bytes, score.limit_bytes
    parts = [("artifact", artifact), ("code", score.code_bytes)]
    left = limit - total
    verdict = (
        element("strong", f"{left:,} bytes left", class_="good")
        if left >= 0
        else element("strong", f"{-left:,} bytes over the budget", class_="bad")
    )
    names = [(f"{name}: {size:,} bytes", float(size)) for name, size in parts]
    keys: list[Child] = [_key("first", "artifact"), _key("second", "code"), "together", "budget"]
    sizes = (artifact, score.code_bytes, total, limit)
    rows = [(key, f"{size:,}", _share(size, limit)) for key, size in zip(keys, sizes, strict=True)]
    found = section(
        "Size",
        element("figure", budget_chart(names, limit, f"{total:,} of {limit:,} bytes")),
        table(("", "bytes", "of the budget"), rows, numeric=(1, 2)),
        element("p", verdict),
    )
    packing = _packing(run)
    if packing is not None:
        found.append(packing)
    return found


def _key(style: str, name: str) -> Element:
    """A name with the colour it has in the chart."""
    return element("span", element("span", class_=f"key {style}"), name)


def _packing(run: FinishedRun) -> Element | None:
    """The cost of quantisation that the finished run logged."""
    noted = run.ending.get("packing")
    if not isinstance(noted, dict):
        return None
    names = ("unpacked_bpb", "packed_bpb", "difference_bpb", "limit_bpb")
    before, after, cost, limit = (number(noted, name) for name in names)
    if before is None or after is None or cost is None or limit is None:
        return None
    verdict = element("strong", f"{cost:+.4f}", class_="good" if cost <= limit else "bad")
    return element(
        "p",
        f"Packing took the validation sample from {before:.4f} to {after:.4f} bits per byte: ",
        verdict,
        f", at most {limit:+g} is allowed.",
    )


def _parameters(spec: Spec) -> Element:
    counts = parameter_counts(spec)
    total = counts["total"]
    rows = [
        (f"{name}: {meaning}", f"{counts[name]:,}", _share(counts[name], total))
        for name, meaning in GROUPS.items()
        if name in counts
    ]
    rows.append(("total", f"{total:,}", _share(total, total)))
    return section("Parameters", table(("group", "parameters", "share"), rows, numeric=(1, 2)))


def _environment(environment: Mapping[str, Any]) -> Element:
    labels = {name: name for name in ("engine", "device", "platform", "python")}
    labels |= {"float32_products": "float32 products", "cpu_count": "CPU cores"}
    rows: list[tuple[str, Child]] = [
        (label, str(environment[name])) for name, label in labels.items() if name in environment
    ]
    packages = environment.get("packages")
    if isinstance(packages, dict):
        rows.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
    rows.append(("commit", _commit(environment)))
    data = environment.get("data")
    for role, text in data.items() if isinstance(data, dict) else ():
        if isinstance(text, dict):
            sizes = ", ".join(
                f"{text[unit]:,} {unit}" for unit in ("bytes", "documents") if isinstance(text.get(unit), int)
            )
            rows.append(
                (f"{role} text", f"{text.get('name', 'unnamed')}: {sizes}; sha256 {text.get('sha256', 'unknown')}")
            )
    for start in environment.get("earlier_starts") or ():
        if isinstance(start, dict):
            where = f"engine {start.get('engine', 'unknown')} on {start.get('device', 'unknown device')}"
            rows.append(("earlier start", f"{start.get('started', 'at an unknown time')}: {where}, {_commit(start)}"))
    return section("Environment", facts(rows))


def _commit(environment: Mapping[str, Any]) -> str:
    git = environment.get("git")
    if not isinstance(git, dict):
        return "not run from a git checkout"
    return f"{git.get('commit', 'unknown')}{', with local changes' if git.get('modified') else ''}"


def _commands(run: FinishedRun) -> Element:
    path, engine = run.path, run.score.engine
    folder = [] if path.parent == Path("runs") else ["--runs-dir", str(path.parent)]
    train = ["bytetwin", "train", str(path / "spec.toml"), "--engine", engine, *folder, "--run"]
    commands = [
        ("Train the same spec with the same seed again", [*train, f"{path.name}-again"]),
        ("Continue from the last checkpoint; of a finished run, pack and score again", [*train, path.name, "--resume"]),
        ("Score the artifact again", ["bytetwin", "score", str(path), "--engine", engine]),
    ]
    commands_section = section("Commands")
    if "command" in run.environment:
        commands_section.append(element("p", "This run, as it was last started", class_="quiet"))
        commands_section.append(_code(str(run.environment["command"])))
    for purpose, words in commands:
        commands_section.append(element("p", purpose, class_="quiet"))
        commands_section.append(_code(shlex.join(words)))
    return commands_section


def _code(text: str) -> Element:
    return element("pre", element("code", text))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
