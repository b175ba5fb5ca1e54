"""The question to preflight, and the facts that several rows share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.engine.device_facts import DeviceFacts, host_memory_bytes
from shared.preflight.measure import StepFailure, StepMeasurement
from shared.preflight.memory import MemoryEstimate
from shared.preflight.workload import Workload
from shared.runs.scaling_curve import ScalingFit
from shared.spec import Spec


@dataclass(frozen=True)
class Question:
    """One preflight. `ranks` processes train, on `nodes` machines like this one with equally many each; `price` is
    dollars per GPU-hour; without a `fit` that of a run in `runs_dir` on the spec's curve counts; `quick` checks shards
    by size alone; `as_trained` checks causality in the spec's dtype and compiled on a CPU as well."""

    spec: Spec
    engine: str
    ranks: int
    price: float | None = None
    fit: ScalingFit | None = None
    runs_dir: Path = Path("runs")
    quick: bool = False
    nodes: int = 1
    as_trained: bool = False

    @property
    def ranks_per_node(self) -> int:
        """Ranks on this machine."""
        return self.ranks // self.nodes

    @property
    def trainers(self) -> str:
        """The ranks and nodes, as text."""
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return f"{ranks} on {self.nodes} nodes" if self.nodes > 1 else ranks


@dataclass(frozen=True)
class Context:
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
    def sharing(self) -> int:
        """How many ranks share the measured device: a GPU has one, a CPU all those of its node."""
        return 1 if self.on_gpu else self.question.ranks_per_node

    @property
    def host_free_bytes(self) -> int:
        """Main memory that is free."""
        return host_memory_bytes()[0]

    @property
    def on_gpu(self) -> bool:
        """Whether the engine runs on a GPU here."""
        return self.facts.kind == "gpu"
