"""One finished run as a comparison sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.target import RUNS, find_run
from shared.scoring.document import ScoreDocument
from shared.scoring.documents import DocumentScores, read_document_scores
from shared.spec.difference import FREE_IN_EXPERIMENT, fields
from shared.study.record import read_result


@dataclass(frozen=True)
class TextProtocol:
    """What was scored and how. `text_sha256` is of the bytes, so that tokens may be held against bytes; windows are
    in symbols of the model's own vocabulary, and `dataset` is a name to print."""

    dataset: str
    text_sha256: str
    window_symbols: int
    stride_symbols: int
    adaptation: str
    weights: str


@dataclass(frozen=True)
class ScoredRun:
    """`fields` is the spec as `section.key` and value, without what runs of one experiment may differ in.
    `train_name` is that of the training text, `train_text` its SHA-256. `documents` is None where the run kept no
    scores by document; `timed` says that the clock ended the training."""

    path: Path
    spec_name: str
    fields: Mapping[str, Any]
    train_name: str
    train_text: str
    seed: int
    engine: str
    device: str
    protocol: TextProtocol
    bpb: float
    nats: float
    symbols: int
    bytes: int
    parameters: int
    total_bytes: int
    limit_bytes: int
    steps: int
    train_s: float
    timed: bool
    audit_failures: tuple[str, ...]
    documents: DocumentScores | None

    @property
    def window_bytes(self) -> float:
        """Mean bytes of text in a scored window."""
        return self.protocol.window_symbols * self.bytes / self.symbols

    @property
    def steps_per_s(self) -> float:
        """Optimizer steps in a second of training time."""
        return self.steps / self.train_s if self.train_s > 0 else 0.0

    @property
    def problems(self) -> list[str]:
        """Why the score does not count, one line each."""
        found = [f"{self.path}: audit: {failure}" for failure in self.audit_failures]
        if self.total_bytes > self.limit_bytes:
            found.append(
                f"{self.path}: {self.total_bytes:,} bytes of artifact and code, the limit is {self.limit_bytes:,}"
            )
        return found


def find_scored_runs(words: list[str]) -> list[ScoredRun]:
    """The finished runs that the words of a command line name, each once: runs by name or path, and folders of runs
    (a sweep's), which stand for the finished runs in them. Raises UserError for a word that names no finished run."""
    found: dict[Path, ScoredRun] = {}
    for word in words:
        for run in _runs_of(word):
            key = run.path.resolve()
            if key not in found:
                found[key] = read_scored_run(run)
    return list(found.values())


def read_scored_run(run: RunDirectory) -> ScoredRun:
    """Read a finished run back. Raises RunError if it is not finished or its files contradict each other."""
    result = read_result(run)
    spec, score = result.spec, result.score
    documents = read_document_scores(
        run.documents_path, documents=score.documents, num_bytes=score.bytes, nats=score.nats
    )
    return ScoredRun(
        path=run.path,
        spec_name=spec.name,
        fields=fields(spec, FREE_IN_EXPERIMENT),
        train_name=spec.data.train,
        train_text=result.train_text,
        seed=spec.training.seed,
        engine=score.engine,
        device=result.hardware,
        protocol=_protocol(score),
        bpb=score.bpb,
        nats=score.nats,
        symbols=score.symbols,
        bytes=score.bytes,
        parameters=score.parameters,
        total_bytes=result.total_bytes,
        limit_bytes=score.limit_bytes,
        steps=int(result.last_step["step"]),
        train_s=float(result.last_step["elapsed_s"]),
        timed=spec.schedule.driver == "time",
        audit_failures=tuple(f"{check.name}: {check.detail}" for check in score.audit.checks if not check.passed),
        documents=documents,
    )


def _protocol(score: ScoreDocument) -> TextProtocol:
    return TextProtocol(
        score.dataset.name,
        score.dataset.text_sha256,
        score.window_symbols,
        score.stride_symbols,
        score.adaptation,
        score.weights,
    )


def _runs_of(word: str) -> list[RunDirectory]:
    """The run of that name, or the finished runs of that folder in order of name."""
    run = find_run(word)
    if run is None:
        raise UserError(f"{word}: no such run in {RUNS}/ and no such folder")
    if run.spec_path.is_file():
        return [run]
    inside = [RunDirectory(path) for path in sorted(run.path.iterdir()) if (path / "spec.toml").is_file()]
    finished = [inner for inner in inside if inner.score_path.is_file()]
    if not finished:
        raise UserError(f"{run.path}: neither a run nor a folder of finished runs")
    return finished
