"""The training loop, once for every engine.

Each turn looks at where the run stands and does what is due: validate, save, stop, or one more step. As
nothing else is remembered between turns, a run continues from any checkpoint exactly as if it had never
stopped. What the engine computes is a function of (spec, step, state); time enters only with a `time` schedule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared.engine import Engine, NonFiniteError
from shared.optim import lr_factor, progress_frac, step_hyperparameters
from shared.spec import Spec, spec_id, spec_to_dict
from shared.tolerances import FIRST_LOSS_REL
from shared.training.checkpoints import CheckpointInfo, CheckpointStore
from shared.training.interruption import Interruption, StopRequested
from shared.training.metrics import MetricsLog
from shared.training.observer import Observer, StepReport, ValidationReport
from shared.training.pace import Pace
from shared.training.sources import BatchLoader
from shared.training.validation import NonFiniteScoreError, Validate

Clock = Callable[[], float]


@dataclass
class Position:
    """Where a run stands: optimizer steps done, seconds of training alone, what was last scored.

    `saved` is the stamp of the newest checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    last_validation: ValidationReport | None = None
    best_validation: ValidationReport | None = None
    saved: tuple[int, int] | None = None

    @property
    def stamp(self) -> tuple[int, int]:
        """(steps done, step of the last validation): what makes two checkpoints different."""
        return self.step, self.last_validation.step if self.last_validation else 0


@dataclass(frozen=True)
class Outcome:
    """How the loop ended. `nats` is the last training loss of this start, None if it took no step;
    `message` is one line for the user, empty where training finished."""

    status: Literal["finished", "interrupted", "failed"]
    step: int
    elapsed_s: float
    nats: float | None
    validation: ValidationReport | None
    best_validation: ValidationReport | None
    checkpoint: Path | None
    message: str = ""


class _Failure(Exception):
    """Training cannot go on; `details` go into the metrics record."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class TrainingLoop:
    """One run's loop over an engine that already holds the weights of `position`."""

    def __init__(
        self,
        spec: Spec,
        engine: Engine,
        loader: BatchLoader,
        validate: Validate,
        store: CheckpointStore,
        metrics: MetricsLog,
        observer: Observer,
        interruption: Interruption,
        position: Position,
        *,
        bytes_per_symbol: float = 1.0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.spec, self.engine, self.loader, self.validate = spec, engine, loader, validate
        self.store, self.metrics, self.observer, self.interruption = store, metrics, observer, interruption
        self.position, self.bytes_per_symbol, self.clock = position, bytes_per_symbol, clock
        self.pace = Pace()
        self.nats: float | None = None
        # A step that broke off leaves an engine whose state is not to be saved.
        self.in_step = False

    def run(self) -> Outcome:
        """Train to the end, to a signal or to a failure. Raises RunError where a file cannot be written."""
        try:
            self._warm_up()
            while True:
                self.interruption.check()
                finished = self._progress() >= 1.0
                if (finished or self._due(self.spec.training.val_every_steps)) and not self._validated():
                    self._run_validation()
                if (finished or self._due(self.spec.training.checkpoint_every_steps)) and not self._saved():
                    self._save()
                if finished:
                    return self._end("finished")
                if self._progress() < 1.0:
                    self._train_one_step()
        except StopRequested:
            return self._interrupted()
        except _Failure as failure:
            return self._failed(failure)

    def _warm_up(self) -> None:
        """Compile before the clock starts; a finished run has nothing to compile for."""
        if self.spec.training.compile and self._progress() < 1.0:
            self.observer.on_stage("compiling")
            self.engine.warm_up(self.loader.batch(self.position.step))

    def _progress(self) -> float:
        return progress_frac(self.spec, self.position.step, self.position.elapsed_s)

    def _due(self, every_steps: int) -> bool:
        """Whether something of this cadence belongs after the steps done so far; 0 is never."""
        return every_steps > 0 and self.position.step > 0 and self.position.step % every_steps == 0

    def _validated(self) -> bool:
        last = self.position.last_validation
        return last is not None and last.step == self.position.step

    def _saved(self) -> bool:
        return self.position.saved == self.position.stamp

    def _train_one_step(self) -> None:
        position = self.position
        progress = self._progress()
        begin = self.clock()
        x = self.loader.batch(position.step)
        try:
            with self.interruption.expected():
                nats, grad_norm = self.engine.train_step(x, step_hyperparameters(self.spec, position.step, progress))
        except StopRequested:
            self.in_step = True
            raise
        except NonFiniteError as error:
            raise _Failure(
                f"step {position.step + 1}: the gradient of {error.parameter} is not a finite number",
                parameter=error.parameter,
                failed_step=position.step + 1,
            ) from None
        seconds = self.clock() - begin
        if position.step == 0:
            self._check_first_loss(nats)
        position.step += 1
        position.elapsed_s += seconds
        self.nats = nats
        self.pace.add(seconds, self._progress() - progress)
        self._report(nats, grad_norm, lr_factor(self.spec.schedule, progress), seconds)

    def _report(self, nats: float, grad_norm: float, factor: float, seconds: float) -> None:
        position, training = self.position, self.spec.training
        progress = self._progress()
        logged = position.step == 1 or position.step % training.log_every_steps == 0 or progress >= 1.0
        report = StepReport(
            step=position.step,
            nats=nats,
            grad_norm=grad_norm,
            lr_factor=factor,
            progress_frac=progress,
            elapsed_s=position.elapsed_s,
            symbols=position.step * training.batch_symbols,
            bytes_per_s=training.batch_symbols * self.bytes_per_symbol / max(self.pace.step_s, 1e-9),
            step_s=seconds,
            left_s=self.pace.left_s(1.0 - progress),
            peak_memory_bytes=self.engine.peak_memory_bytes(),
            logged=logged,
        )
        if logged:
            values = asdict(report)
            for name in ("step", "left_s", "logged"):
                del values[name]
            self.metrics.append("step", report.step, **values)
        self.observer.on_step(report)

    def _check_first_loss(self, nats: float) -> None:
        """A fresh model knows nothing, so its loss is near ln V (FEATURES 1.3, test 8). Below that something
        is counted wrongly; above it the initial weights are merely bad."""
        ignorant = math.log(self.spec.vocabulary.size)
        found = f"the first loss is {nats:.3f} nats per symbol, a model that knows nothing has ln V = {ignorant:.3f}"
        if nats < (1.0 - FIRST_LOSS_REL) * ignorant:
            raise _Failure(f"step 1: {found}: the accounting is wrong", failed_step=1)
        if nats > (1.0 + FIRST_LOSS_REL) * ignorant:
            self.observer.on_warning(f"{found}: check the initial values")

    def _run_validation(self) -> None:
        position = self.position
        self._synchronise()
        self.observer.on_stage("validation")
        try:
            with self.interruption.expected():
                report = self.validate(position.step, self._on_progress)
        except NonFiniteScoreError as error:
            raise _Failure(
                f"step {position.step}: validation gave no finite number ({error})", failed_step=position.step
            ) from None
        position.last_validation = report
        if position.best_validation is None or report.bpb < position.best_validation.bpb:
            position.best_validation = report
        self.metrics.append("validation", **asdict(report))
        self.observer.on_validation(report)

    def _on_progress(self, done: int, total: int) -> None:
        self.interruption.check()
        self.observer.on_progress(done, total)

    def _save(self) -> None:
        position = self.position
        self._synchronise()
        state = self.engine.save_state()
        for name, value in state.items():
            if not np.isfinite(value).all():
                raise _Failure(
                    f"step {position.step}: {name} is not finite after the update",
                    parameter=name.split("/", 1)[-1],
                    failed_step=position.step,
                )
        self.metrics.flush()
        path = self.store.save(self._checkpoint_info(), state)
        position.saved = position.stamp
        self.metrics.append("checkpoint", position.step, file=path.name)
        self.observer.on_checkpoint(position.step, path)

    def _checkpoint_info(self) -> CheckpointInfo:
        position = self.position
        return CheckpointInfo(
            step=position.step,
            elapsed_s=position.elapsed_s,
            engine=self.engine.name,
            spec_id=spec_id(self.spec),
            spec=spec_to_dict(self.spec),
            loader=self.loader.state(position.step),
            last_validation=_plain(position.last_validation),
            best_validation=_plain(position.best_validation),
        )

    def _synchronise(self) -> None:
        """Queued work belongs to the training time, not to what is measured next."""
        begin = self.clock()
        self.engine.synchronise()
        self.position.elapsed_s += self.clock() - begin

    def _interrupted(self) -> Outcome:
        number = self.interruption.signal_number
        try:
            if self.position.step > 0 and not self._saved() and not self.in_step:
                self._save()
        except _Failure as failure:
            return self._failed(failure)
        self.metrics.append("interrupted", self.position.step, signal=number)
        where = f"in step {self.position.step + 1}" if self.in_step else f"after step {self.position.step}"
        return self._end("interrupted", f"stopped by a signal {where}")

    def _failed(self, failure: _Failure) -> Outcome:
        latest = self.store.latest_path()
        advice = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
        details = {**failure.details, "last_checkpoint": str(latest) if latest else None}
        self.metrics.append("failed", self.position.step, reason=str(failure), **details)
        return self._end("failed", f"{failure}; training stopped; {advice}")

    def _end(self, status: Literal["finished", "interrupted", "failed"], message: str = "") -> Outcome:
        position = self.position
        return Outcome(
            status=status,
            step=position.step,
            elapsed_s=position.elapsed_s,
            nats=self.nats,
            validation=position.last_validation,
            best_validation=position.best_validation,
            checkpoint=self.store.latest_path(),
            message=message,
        )


def _plain(report: ValidationReport | None) -> dict[str, Any] | None:
    return asdict(report) if report else None
