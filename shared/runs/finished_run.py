"""What a report is made of: the files of a finished run, read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import RunError
from shared.scoring.document import ScoreDocument, read_score
from shared.spec import Spec
from shared.runs.metrics import Record, read_records
from shared.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class FinishedRun:
    """What the files of a run say."""

    path: Path
    spec: Spec
    spec_toml: str
    score: ScoreDocument
    environment: Mapping[str, Any]
    records: Sequence[Record]

    def events(self, *names: str) -> list[Record]:
        """The records of these events, in the order of the file."""
        return [record for record in self.records if record.get("event") in names]

    def by_step(self, event: str) -> list[Record]:
        """The records of an event in the order of their steps, the last one of each step."""
        latest = {record["step"]: record for record in self.events(event)}
        return [latest[step] for step in sorted(latest)]

    @property
    def ending(self) -> Record:
        """The last `finished` record; empty if there is none."""
        finished = self.events("finished")
        return finished[-1] if finished else {}

    @property
    def bytes_per_symbol(self) -> float:
        """Bytes per symbol of the training text; 1 where the environment does not tell."""
        data = self.environment.get("data")
        train = data.get("train") if isinstance(data, dict) else None
        if isinstance(train, dict):
            size, symbols = number(train, "bytes"), number(train, "symbols")
            if size and symbols:
                return size / symbols
        return 1.0


def read_finished(run: RunDirectory) -> FinishedRun:
    """Read the files of a run. Raises RunError if one that a report needs is missing or damaged."""
    try:
        environment = json.loads(run.environment_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        environment = None
    if not isinstance(environment, dict):
        raise RunError(f"{run.environment_path}: missing or not valid JSON, so there is no report")
    return FinishedRun(
        path=run.path,
        spec=run.read_spec(),
        spec_toml=run.spec_path.read_text(encoding="utf-8"),
        score=read_score(run.score_path),
        environment=environment,
        records=read_records(run.metrics_path),
    )


def number(values: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a record, or None."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
