"""One row of the preflight table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Verdict = Literal["go", "risk", "no-go", "unknown"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

# Every row with what it asks, in the order of the table. The names are what --force takes.
ROWS: dict[str, str] = {
    "parity": "do the engines installed here compute the same thing?",
    "causality": "does any score depend on the symbol it predicts, or on a later one?",
    "gradients": "does every trained parameter learn?",
    "parameters": "how many weights are there?",
    "artifact_bytes": "do the predicted artifact and the code fit budget.total_bytes?",
    "code_bytes": "how large is the counted code?",
    "memory": "do a training step and a validation fit the device's free memory?",
    "step_time": "how long does a step take, and how many symbols fit in the time limit?",
    "evaluation_time": "how long does the score of the held-out text take?",
    "average": "is the run long enough for its average of the weights?",
    "mfu": "what share of the hardware's peak does the model use?",
    "cost": "what does the training cost at --price per GPU-hour?",
    "shards": "are all dataset shards present and intact?",
    "enough_data": "is there enough training text for one pass?",
    "overlap": "is held-out text in the training text, which would make its score worthless?",
    "disk": "is there room for checkpoints, artifact and report?",
    "clock": "is the system clock sane?",
    "driver": "do framework, driver and GPUs work, and is there one GPU of the same kind for each rank?",
    "projected_score": "what score does the scaling curve predict, of --fit or of a run on this spec's curve?",
}


@dataclass(frozen=True)
class Row:
    """One answer. `figure` is the number with its unit, `how` says how it was obtained or what is missing,
    `values` are the same numbers for a program. A risk is reported and forbids nothing, unless the report is strict.
    A forced no-go or risk counts as go."""

    name: str
    verdict: Verdict
    figure: str
    how: str
    values: dict[str, Any] = field(default_factory=dict)
    forced: bool = False

    def blocks(self, strict: bool = False) -> bool:
        """Whether this row forbids the run; with `strict` a risk does too."""
        return not self.forced and (self.verdict == "no-go" or (strict and self.verdict == "risk"))

    def force(self) -> Row:
        """The row overridden by the user; only what can forbid the run can be."""
        return replace(self, forced=True) if self.verdict in ("no-go", "risk") else self

    def to_document(self) -> dict[str, Any]:
        """The row as JSON; a number that is not finite becomes null."""
        return {
            "name": self.name,
            "question": ROWS[self.name],
            "verdict": self.verdict,
            "forced": self.forced,
            "figure": self.figure,
            "how": self.how,
            "values": {key: _plain(value) for key, value in self.values.items()},
        }


def go(name: str, figure: str, how: str, /, **values: Any) -> Row:
    """A row that says go."""
    return Row(name, "go", figure, how, values)


def risk(name: str, figure: str, how: str, /, **values: Any) -> Row:
    """A row whose own numbers allow the run to fail, though it is expected to succeed."""
    return Row(name, "risk", figure, how, values)


def no_go(name: str, figure: str, how: str, /, **values: Any) -> Row:
    """A row that forbids the run."""
    return Row(name, "no-go", figure, how, values)


def unknown(name: str, how: str, figure: str = "", /, **values: Any) -> Row:
    """A row that cannot be answered here; `how` names the GPU or the input that is needed."""
    return Row(name, "unknown", figure, how, values)


def judged(passed: bool, name: str, figure: str, how: str, /, **values: Any) -> Row:
    """Go if `passed`, no-go otherwise."""
    return (go if passed else no_go)(name, figure, how, **values)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
