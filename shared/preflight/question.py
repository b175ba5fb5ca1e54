"""What preflight is asked, and the facts that several rows share."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.device_facts import DeviceFacts, host_memory_bytes
from shared.errors import UserError
from shared.preflight.measure import StepFailure, StepMeasurement
from shared.preflight.memory import MemoryEstimate
from shared.preflight.workload import Workload
from shared.spec import Spec


@dataclass(frozen=True)
class ScalingFit:
    """bits per byte = c + a T^-alpha after T training symbols (FEATURES 3.15)."""

    c: float
    a: float
    alpha: float

    def bpb(self, symbols: float) -> float:
        """The score after that many symbols."""
        return float(self.c + self.a * symbols**-self.alpha)


@dataclass(frozen=True)
class Question:
    """One preflight. `price` is dollars per GPU-hour; `quick` checks shards by size alone."""

    spec: Spec
    engine: str
    ranks: int
    price: float | None = None
    fit: ScalingFit | None = None
    runs_dir: Path = Path("runs")
    quick: bool = False


@dataclass(frozen=True)
class Bench:
    """A question with what was found out about the machine before the rows are answered.

    `step` is the measured training step, why there is none, or None where it was not tried because the
    estimate rules it out.
    """

    question: Question
    facts: DeviceFacts
    workload: Workload
    memory: MemoryEstimate
    step: StepMeasurement | StepFailure | None

    @property
    def spec(self) -> Spec:
        """The spec in question."""
        return self.question.spec

    @property
    def needs_gpu(self) -> bool:
        """Whether speed and memory of the real run cannot be known here: a bfloat16 spec is made for GPUs,
        and this engine runs on a CPU, where everything is measured in float32."""
        return self.facts.kind == "cpu" and self.spec.training.dtype == "bfloat16"

    @property
    def rank_symbols(self) -> int:
        """Symbols of one rank's share of the batch."""
        return self.workload.rank_symbols

    @property
    def host_free_bytes(self) -> int:
        """Main memory that is free."""
        return host_memory_bytes()[0]

    @property
    def on_gpu(self) -> bool:
        """Whether the engine runs on a GPU here."""
        return self.facts.kind == "gpu"


def read_fit(path: Path) -> ScalingFit:
    """A scaling fit out of a JSON file with the numbers c, a and alpha. Raises UserError naming file and field."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"--fit {path}: cannot be read ({reason})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"--fit {path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"--fit {path}: must be an object with the numbers c, a and alpha")
    numbers = {name: _number(path, values, name) for name in ("c", "a", "alpha")}
    if numbers["alpha"] <= 0 or numbers["a"] < 0 or numbers["c"] < 0:
        raise UserError(f"--fit {path}: alpha must be above 0, a and c at least 0; it has {numbers}")
    return ScalingFit(**numbers)


def _number(path: Path, values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"--fit {path}: {name} = {value!r}; the file must give c, a and alpha as finite numbers")
    return float(value)
