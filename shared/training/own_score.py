"""Rescoring a run: when `bytetwin score RUN` may replace the score from the end of training."""

from __future__ import annotations

from typing import Any

from shared.errors import RunError
from shared.runs.metrics import MetricsLog, last_ending, read_events
from shared.runs.run_directory import RunDirectory
from shared.scoring.bits_per_byte import Score
from shared.scoring.document import ScoreDocument, write_score
from shared.scoring.documents import write_document_scores
from shared.scoring.overlap import NAME as OVERLAP
from shared.spec import Spec
from shared.views.report import write_report

SCORE_PROBLEMS = ("audit: ", "budget: ")


def why_not_own(run: RunDirectory, packed: Spec, document: ScoreDocument) -> str:
    """Why this is not the score that the end of the run would have written, in a few words; empty if it is.

    `packed` is the spec in the artifact that was scored, if one was. Raises RunError if the run cannot be read.
    """
    spec, data = run.read_spec(), document.dataset
    heldout = _environment(run).get("data", {}).get("heldout", {})
    engine = training_engine(run)
    if last_ending(read_events(run.metrics_path)) is None:
        return "the run is not finished (`bytetwin train` with --resume finishes it)"
    if document.weights != "packed":
        return f"it is of the {document.weights} weights, not of the artifact"
    if packed.artifact != spec.artifact or document.chosen is not None:
        return f"{run.artifact_path.name} is not as the run packs it (`bytetwin pack {run.path}` does that)"
    if data.name != f"{spec.data.heldout}/heldout":
        return f"it is of {data.name}, the run is scored on {spec.data.heldout}"
    if heldout.get("sha256", data.sha256) != data.sha256:
        return f"{data.name} is not the text it was when the run began"
    if any(check.name == OVERLAP and check.measured is None for check in document.audit.checks):
        return "the text that it was trained on is not there to compare with"
    if not data.complete:
        return "it is of a sample of the text"
    if document.stride_symbols != spec.evaluation.stride_symbols:
        return f"the run is scored with a stride of {spec.evaluation.stride_symbols}"
    adaptation = spec.evaluation.adaptation
    if document.protocol()["adaptation"] != (adaptation.model_dump(mode="json") if adaptation.is_on else "none"):
        return "the run is scored with another adaptation"
    if engine not in (None, document.engine):
        return f"it is by {document.engine}, the run is one of {engine}"
    return ""


def replace_score(run: RunDirectory, document: ScoreDocument, score: Score) -> None:
    """Overwrite the score of a finished run and what belongs to it: scores by document, the `finished` event, the
    report. Raises RunError if another process has the run, OSError if a file cannot be written."""
    run.lock()
    try:
        events = read_events(run.metrics_path)
        ending = last_ending(events)
        assert ending is not None, "not a finished run"
        write_document_scores(run.documents_path, score.by_document)
        write_score(run.score_path, document)
        kept = [problem for problem in ending.get("problems", []) if not problem.startswith(SCORE_PROBLEMS)]
        values = {name: value for name, value in ending.items() if name not in ("event", "step")}
        values |= {"bpb": document.bpb, "problems": [*document.problems, *kept]}
        with MetricsLog(run.metrics_path, after_step=max(event["step"] for event in events)) as metrics:
            metrics.append("finished", ending["step"], **values)
        write_report(run)
    finally:
        run.unlock()


def training_engine(run: RunDirectory) -> str | None:
    """The engine that the run was last trained with; None if the run does not say."""
    engine = _environment(run).get("engine")
    return engine if isinstance(engine, str) else None


def _environment(run: RunDirectory) -> dict[str, Any]:
    try:
        return run.read_environment()
    except RunError:
        return {}
