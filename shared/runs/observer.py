"""The reports of the training loop, and the Observer that receives them: the loop knows no console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from shared.spec import Spec


@dataclass(frozen=True)
class RunStart:
    """A run that is about to train from `step` on. `data` is `Sources.describe()`; `history` holds
    (progress fraction, bits per byte) of the steps already logged."""

    run_path: Path
    spec: Spec
    engine: str
    device: str
    parameters: int
    data: dict[str, dict[str, Any]]
    step: int = 0
    progress_frac: float = 0.0
    validation: ValidationReport | None = None
    history: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. `step` counts steps done, this one included; `nats_per_symbol` is the mean of the batch
    before the update, `bpb` the same in bits per byte, the unit of a validation; `left_s` is the time to the end of
    training, None while it is unknown."""

    step: int
    nats_per_symbol: float
    bpb: float
    grad_norm: float
    lr_factor: float
    progress_frac: float
    elapsed_s: float
    symbols: int
    bytes_per_s: float
    step_s: float
    left_s: float | None
    peak_memory_bytes: int
    logged: bool


@dataclass(frozen=True)
class ValidationReport:
    """A score on the validation sample after `step` steps, of the `weights` named; the interval is None for too few
    documents. `nats` is their sum."""

    step: int
    bpb: float
    low_bpb: float | None
    high_bpb: float | None
    nats: float
    symbols: int
    bytes: int
    documents: int
    weights: str
    seconds: float = 0.0


class Observer(Protocol):
    """A view of a run. Entered before `on_start`, left when the command is done."""

    def __enter__(self) -> Observer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def on_start(self, start: RunStart) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_phase(self, phase: str) -> None:
        """A phase other than training steps begins: `validation`, `packing`, ..."""

    def on_progress(self, done: int, total: int) -> None:
        """The current phase has processed `done` of `total` symbols."""

    def on_validation(self, report: ValidationReport) -> None: ...

    def on_checkpoint(self, step: int, path: Path) -> None: ...

    def on_warning(self, message: str) -> None: ...

    def on_end(self, status: str) -> None:
        """The run is over: `finished`, `interrupted` or `failed`."""

    def on_stop_requested(self) -> None:
        """A stop was asked for. Called in another thread, perhaps in the middle of a step."""
