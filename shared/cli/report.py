"""`bytetwin report`: one page for one run or many, with what it measures of each model."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.datasets import open_split
from shared.artifact import read_artifact
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_output_argument,
    add_runs_dir_argument,
    console,
    number_type,
    say,
)
from shared.cli.costs import measure_costs
from shared.cli.scoring import default_engine, progress_bar, say_warnings
from shared.engine.package import available_engines, create_scorer
from shared.engine.protocol import Scorer
from shared.errors import UserError
from shared.files import write_atomically
from shared.runs.finished_run import FinishedRun, read_finished
from shared.runs.metrics import last_ending
from shared.runs.run_directory import RunDirectory
from shared.runs.run_files import RunFiles, read_files
from shared.runs.target import find_runs, load_trained
from shared.scoring.bits_per_byte import Progress
from shared.scoring.document import read_score
from shared.scoring.documents import DocumentScores, read_document_scores
from shared.scoring.generate import decode_text, encode_prompt, first_bytes, sample
from shared.scoring.loss_profile import profile_loss
from shared.spec import Spec, with_overrides
from shared.study.comparison import Comparison, compare_groups
from shared.study.groups import group_runs
from shared.study.table import cells, facts, headings
from shared.views.report.bars import Mark
from shared.views.report.comparison import ComparisonTables
from shared.views.report.contents import ReportedRun
from shared.views.report.document import report_page
from shared.views.report.profile import ModelView

# A few seconds for each run of a small model on a CPU.
MEASURED_SYMBOLS, SAMPLE_BYTES = 32_768, 400
TEMPERATURE, SEED = 0.8, 0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's name or folder, or a folder of runs (a sweep)")
    add_runs_dir_argument(parser)
    add_output_argument(parser, "default: report.html in the run, or here if there are several")
    parser.add_argument(
        "--symbols",
        type=number_type(int, lambda value: value >= 0, "an integer, 0 or more"),
        default=MEASURED_SYMBOLS,
        metavar="N",
        help="of the held-out text that each model is measured on; 0 measures nothing; default %(default)s",
    )
    parser.add_argument(
        "--loss",
        action="store_true",
        help="also what storing each tensor alone costs, measured on training text; takes a pass for each",
    )
    add_engine_argument(parser, oracle=True, unless="that of each run, or ")


def run(args: argparse.Namespace) -> CommandResult:
    """Measure the models, compare the runs, write the page."""
    directories = find_runs(args.runs, args.runs_dir)
    names = _names([directory.path for directory in directories])
    runs = [_read(directory, name) for directory, name in zip(directories, names, strict=True)]
    comparison, tables = _compare(runs) if len(runs) > 1 else (None, None)
    if args.symbols:
        with progress_bar(console(), "measuring", "symbols") as progress:
            runs = [_measured(args, each, progress) for each in runs]
    if args.loss:
        runs = [_with_costs(args, each) for each in runs]
    path: Path = args.output or (directories[0].report_path if len(runs) == 1 else Path("report.html"))
    content = report_page(runs, tables)
    write_atomically(path, content)
    say(console(), f"report {path}, {len(content):,} bytes")
    for each in runs:
        if each.no_model:
            say(console(), f"{each.name}: {each.no_model}", "yellow")
    document = {
        "report": str(path),
        "bytes": len(content),
        "runs": [_document(each) for each in runs],
        "comparison": comparison.to_document() if comparison is not None else None,
    }
    return CommandResult(document)


def _read(directory: RunDirectory, name: str) -> ReportedRun:
    """A run as its files have it; a score that is there must be whole."""
    score = read_score(directory.score_path) if directory.score_path.exists() else None
    return ReportedRun(name, read_files(directory), score)


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the folders, or where two agree as much of their paths as tells them apart."""
    found = [path.resolve() for path in paths]
    shared = Counter(path.name for path in found)
    if len(paths) == 1 or max(shared.values()) == 1:
        return [path.name for path in found]
    common = os.path.commonpath(found)
    return [path.relative_to(common).as_posix() for path in found]


def _compare(runs: Sequence[ReportedRun]) -> tuple[Comparison | None, ComparisonTables]:
    """The comparison of the finished runs, or why there is none."""
    finished: list[FinishedRun] = []
    left_out = []
    for each in runs:
        try:
            finished.append(read_finished(each.files.directory))
        except UserError as error:
            left_out.append(f"not compared: {error}")
    if len(finished) < 2:
        return None, ComparisonTables(notes=["fewer than two runs can be compared", *left_out])
    try:
        comparison = compare_groups(group_runs(finished))
    except UserError as error:
        return None, ComparisonTables(notes=[f"not compared: {error}", *left_out])
    baseline = comparison.rows[0].group.label
    return comparison, ComparisonTables(
        headings(comparison),
        [cells(row) for row in comparison.rows],
        _marks(comparison),
        f"Bits per byte more than {baseline}, with {comparison.level:.0%} intervals over seeds; left is better",
        [*facts(comparison), *comparison.problems, *left_out],
    )


def _marks(comparison: Comparison) -> list[Mark]:
    """The differences from the baseline."""
    marks = []
    for row in comparison.rows[1:]:
        found = row.difference
        assert found is not None, "only the baseline has no difference"
        low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
        marks.append(Mark(row.group.label, found.mean, f"{found.mean:+.4f}, {row.verdict}", low, high))
    return marks


def _measured(args: argparse.Namespace, run: ReportedRun, progress: Progress) -> ReportedRun:
    """The run with what its model does, or with why that is not known."""
    try:
        return replace(run, model=_view(args, run, progress))
    except UserError as error:
        return replace(run, no_model=f"The model was not measured: {error}")


def _view(args: argparse.Namespace, run: ReportedRun, progress: Progress) -> ModelView:
    files = run.files
    target = load_trained(str(files.path), runs_dir=args.runs_dir)
    say_warnings(console(), target)
    # To compile takes longer than to score this little.
    spec = with_overrides(target.spec, ["training.compile=false"])
    stream = open_split(spec.data.heldout, "heldout", spec.vocabulary)
    engine = args.engine or _engine_of(files)
    scorer = create_scorer(engine, spec, target.weights)
    documents = _documents(run, stream.sha256, stream.num_documents) if target.weights_name == "packed" else None
    profile = profile_loss(scorer, stream, max_symbols=args.symbols, documents=documents, progress=progress)
    sampled = f"{SAMPLE_BYTES} bytes from nothing, at temperature {TEMPERATURE:g}, seed {SEED}, by {engine}"
    weights = target.weights_name if target.step is None else f"{target.weights_name} (step {target.step})"
    return ModelView(weights, engine, profile, _sample(scorer, spec), sampled)


def _with_costs(args: argparse.Namespace, run: ReportedRun) -> ReportedRun:
    """The run with the costs of its artifact's tensors, if it is packed."""
    if not run.files.directory.artifact_path.is_file():
        return run
    floats = load_trained(str(run.files.path), "averaged", runs_dir=args.runs_dir)
    artifact = read_artifact(run.files.directory.artifact_path)
    return replace(run, costs=measure_costs(args.engine or _engine_of(run.files), artifact, floats))


def _engine_of(files: RunFiles) -> str:
    """The engine that trained the run, if it is installed."""
    trained = str(files.environment.get("engine"))
    return trained if trained in available_engines() else default_engine()


def _documents(run: ReportedRun, text_sha256: str, num_documents: int) -> DocumentScores | None:
    """The scores of all documents of the text, if the run has them and was scored on it as it is measured here."""
    score, files = run.score, run.files
    if (
        score is None
        or score.adaptation != "none"
        or score.dataset.scored_sha256 != text_sha256
        or last_ending(files.metrics) is None
    ):
        return None
    found = read_document_scores(
        files.directory.documents_path, documents=score.documents, num_bytes=score.bytes, nats=score.nats
    )
    return found if found is not None and len(found.bytes) == num_documents else None


def _sample(scorer: Scorer, spec: Spec) -> str:
    vocabulary = spec.vocabulary
    symbols = sample(scorer, encode_prompt(vocabulary, b""), SAMPLE_BYTES, temperature=TEMPERATURE, seed=SEED)
    return "".join(first_bytes(decode_text(symbols, vocabulary), SAMPLE_BYTES))


def _document(run: ReportedRun) -> dict[str, object]:
    score, model = run.score, run.model
    return {
        "run": str(run.files.path),
        "state": run.state,
        "bpb": score.bpb if score is not None else None,
        "profile": model.profile.to_document() if model is not None else None,
        "sample": model.sample if model is not None else None,
        "not_measured": run.no_model or None,
    }
