"""A finished run, read back from its files for reports, records, comparisons and sweeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shared.artifact import read_artifact
from shared.errors import RunError
from shared.runs.metrics import Event, last_ending, number
from shared.runs.run_directory import RunDirectory
from shared.runs.run_files import RunFiles, read_files
from shared.scoring.document import ScoreDocument, read_score
from shared.scoring.documents import DocumentScores, read_document_scores
from shared.spec import spec_id


@dataclass(frozen=True)
class FinishedRun(RunFiles):
    """The content of the files of a run with a score. `documents` is None where the run kept no scores by document, or
    they were not asked for."""

    score: ScoreDocument
    documents: DocumentScores | None = None

    @property
    def artifact_bytes(self) -> int:
        assert self.score.artifact_bytes is not None
        return self.score.artifact_bytes

    @property
    def problems(self) -> list[str]:
        """Why the score does not count, one line each: a failed audit, or over the budget of bytes."""
        return [f"{self.path}: {problem}" for problem in self.score.problems]

    @property
    def last_step(self) -> Event:
        """The event of the last optimizer step."""
        return self.events("step")[-1]

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return int(self.last_step["step"])

    @property
    def train_s(self) -> float:
        """Seconds of training alone."""
        return float(self.last_step["elapsed_s"])

    @property
    def steps_per_s(self) -> float:
        """Optimizer steps in a second of training time."""
        return self.steps / self.train_s if self.train_s > 0 else 0.0


def read_run(run: RunDirectory) -> FinishedRun:
    """Read the files of a run that has a score, except its documents. Raises RunError if one is missing or damaged."""
    files = read_files(run)
    return FinishedRun(files.directory, files.spec, files.environment, files.metrics, score=read_score(run.score_path))


def read_finished(run: RunDirectory) -> FinishedRun:
    """Read a run that was trained, packed and scored to the end, with its documents.

    Raises RunError if it was not, or its score is not that of its artifact or of its documents.
    """
    unfinished = RunError(f"{run.path}: not finished; continue it with --run {run.name} --resume")
    run.read_spec()
    if not run.score_path.exists():
        raise unfinished
    found = read_run(run)
    steps = found.events("step")
    whole = steps and all(number(steps[-1], name) is not None for name in ("nats_per_symbol", "elapsed_s"))
    if not whole or last_ending(found.metrics) is None:
        raise unfinished
    info = read_artifact(run.artifact_path).info
    if info.spec_id != spec_id(found.spec):
        raise RunError(
            f"{run.artifact_path}: made for spec {info.spec_id}, {run.spec_path.name} beside it is "
            f"{spec_id(found.spec)}: one of the two is of another model"
        )
    if not found.score.is_of(info):
        raise RunError(
            f"{run.score_path}: the score is not that of {run.artifact_path.name}, which was packed again; repair "
            f"it with `bytetwin pack {run.path}` and, if that says so, `bytetwin score {run.path}`"
        )
    score = found.score
    documents = read_document_scores(
        run.documents_path, documents=score.documents, num_bytes=score.bytes, nats=score.nats
    )
    return replace(found, documents=documents)
