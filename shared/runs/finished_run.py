"""A finished run, read back from its files for reports, records, comparisons and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.artifact import read_artifact
from shared.errors import RunError
from shared.runs.metrics import Event, last_ending, number, read_events
from shared.runs.run_directory import RunDirectory, train_text
from shared.scoring.document import ScoreDocument, read_score
from shared.scoring.documents import DocumentScores, read_document_scores
from shared.spec import Spec, spec_id


@dataclass(frozen=True)
class FinishedRun:
    """The content of a run's files. `environment` is environment.json, `metrics` every event of metrics.jsonl;
    `documents` is None where the run kept no scores by document, or they were not asked for."""

    directory: RunDirectory
    spec: Spec
    score: ScoreDocument
    environment: Mapping[str, Any]
    metrics: Sequence[Event]
    documents: DocumentScores | None = None

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def seed(self) -> int:
        return self.spec.training.seed

    @property
    def artifact_bytes(self) -> int:
        assert self.score.artifact_bytes is not None
        return self.score.artifact_bytes

    @property
    def problems(self) -> list[str]:
        """Why the score does not count, one line each: a failed audit, or over the budget of bytes."""
        return [f"{self.path}: {problem}" for problem in self.score.problems]

    @property
    def device(self) -> str:
        """Name and number of the devices."""
        return str(self.environment.get("device", "unknown device"))

    @property
    def ranks(self) -> int:
        """The number of processes that trained together."""
        return int(self.environment.get("ranks", 1))

    @property
    def train_text(self) -> str:
        """SHA-256 of the text that was trained on. Raises RunError if environment.json lacks it."""
        return train_text(self.environment, self.directory.environment_path)

    @property
    def bytes_per_symbol(self) -> float:
        """Bytes per symbol of the training text; 1 where the environment lacks it."""
        data = self.environment.get("data")
        train = data.get("train") if isinstance(data, dict) else None
        if isinstance(train, dict):
            size, symbols = number(train, "bytes"), number(train, "symbols")
            if size and symbols:
                return size / symbols
        return 1.0

    def events(self, *names: str) -> list[Event]:
        """The events of these names, in the order of the file."""
        return [event for event in self.metrics if event.get("event") in names]

    def by_step(self, name: str) -> list[Event]:
        """The events of a name in the order of their steps, the last one of each step."""
        latest = {event["step"]: event for event in self.events(name)}
        return [latest[step] for step in sorted(latest)]

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

    @property
    def ending(self) -> Event:
        """The last `finished` event; empty if there is none."""
        finished = self.events("finished")
        return finished[-1] if finished else {}


def read_run(run: RunDirectory) -> FinishedRun:
    """Read the files of a run that has a score, except its documents. Raises RunError if one is missing or damaged."""
    return FinishedRun(
        run, run.read_spec(), read_score(run.score_path), run.read_environment(), read_events(run.metrics_path)
    )


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
    if info.spec_id != spec_id(found.spec) or not found.score.is_of(info):
        raise RunError(
            f"{run.score_path}: the score is not that of {run.artifact_path.name}, which was packed again; repair "
            f"it with `bytetwin pack {run.path}` and, if that says so, `bytetwin score {run.path}`"
        )
    score = found.score
    documents = read_document_scores(
        run.documents_path, documents=score.documents, num_bytes=score.bytes, nats=score.nats
    )
    return replace(found, documents=documents)
