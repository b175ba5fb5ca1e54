"""The training loop, once for every engine.

Each turn looks at where the run stands and does what is due: validate, save, stop, or one more step. Because
nothing else is remembered between turns, a run continues from any checkpoint exactly as if it had never
stopped. What the engine computes is a function of (spec, step, state); time enters only with a `time` schedule.

A step's result is read after the next step is queued, and checkpoints are written in the background. Before anything
that needs the truth (a validation, a checkpoint, an end) all results are read; before the end everything is on disk.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from typing import Literal

import numpy as np

from data.loader import Loader, ReadAhead
from shared.engine.protocol import Engine, NonFiniteError
from shared.errors import DeviceError, RunError
from shared.model.stages import training_stages
from shared.optim import progress_frac
from shared.runs.checkpoint_writer import CheckpointWriter
from shared.runs.checkpoints import CheckpointInfo, CheckpointStore
from shared.runs.metrics import MetricsLog, chosen_names
from shared.runs.observer import Observer
from shared.spec import Spec, spec_id, spec_to_dict
from shared.tolerances import FIRST_LOSS_REL
from shared.training.deadline import Deadline
from shared.training.interruption import Interruption, StopRequested
from shared.training.pace import Pace
from shared.training.position import Failure, Outcome, Position
from shared.training.step_log import StepLog
from shared.training.step_queue import Clock, StepQueue
from shared.training.validation import NonFiniteScoreError, Validate


class TrainingLoop:
    """One run's loop over an engine that already holds the weights of `position`."""

    def __init__(
        self,
        spec: Spec,
        engine: Engine,
        loader: Loader,
        validate: Validate,
        store: CheckpointStore,
        metrics: MetricsLog,
        observer: Observer,
        interruption: Interruption,
        position: Position,
        *,
        bytes_per_symbol: float = 1.0,
        scored_shape: tuple[int, int] | None = None,
        clock: Clock = time.perf_counter,
        pause_frac: float = 1.0,
    ) -> None:
        """With a `pause_frac` below 1 the loop pauses after the first step that completes this fraction of the
        budget."""
        self.spec, self.engine, self.loader, self.validate = spec, engine, loader, validate
        self.store, self.metrics, self.observer, self.interruption = store, metrics, observer, interruption
        self.position, self.clock, self.scored_shape = position, clock, scored_shape
        self.pause_frac = pause_frac
        # The last one of this start or before it, those of pauses included.
        self.validation = position.last_validation
        self.batches = ReadAhead(loader)
        self.queue = StepQueue(engine, clock, position.elapsed_s)
        self.writer = CheckpointWriter(store, metrics.flush)
        self.pace = Pace(position.step_s, position.slowest_step_s)
        self.deadline = Deadline(spec, self.pace)
        self.log = StepLog(engine, self.deadline, metrics, observer, bytes_per_symbol)
        # A step that broke off leaves an engine whose state is not to be saved.
        self.in_step = False

    def run(self) -> Outcome:
        """Train to the end, a pause, a signal or a failure. Raises RunError where a file cannot be written."""
        try:
            self._warm_up()
            while True:
                self.interruption.check()
                self._announce_checkpoint()
                validation_due = self._due(self.spec.training.val_every_steps)
                checkpoint_due = self._due(self.spec.training.checkpoint_every_steps)
                self._settle_near_the_end()
                if validation_due or checkpoint_due or not self._more():
                    self._settle_all()
                ended = not self._more()
                paused = ended and self._fits()
                if ended and not paused:
                    self.log.finish()
                if (ended or validation_due) and not self._validated():
                    self._run_validation(counts=not paused or (validation_due and checkpoint_due))
                if (ended or checkpoint_due) and not self._saved():
                    self._save()
                if ended:
                    self._announce_checkpoint(wait=True)
                    return self._paused() if paused else self._end("finished")
                self._train_one_step()
        except StopRequested:
            return self._interrupted()
        except Failure as failure:
            return self._failed(failure)
        except DeviceError as error:
            return self._device_failed(error)
        finally:
            self.batches.close()
            self.writer.close()

    def _warm_up(self) -> None:
        """Compile, or run once, before the clock starts; a finished run has nothing to do that for."""
        if not self._more():
            return
        x = self.loader.batch(self.position.step)
        if self.spec.training.compile:
            self.observer.on_phase("compiling" if self.engine.compiles else "warming up")
            with self.interruption.nothing_to_save(), self.interruption.expected():
                if chosen := self.engine.warm_up(x, chosen_names(self.metrics.kept)):
                    self.metrics.append("choices", self.position.step, **chosen)
                # Also for a validation at the end alone: what is trained is lost where a device has no memory for it.
                if self.scored_shape is not None:
                    self.engine.score(np.zeros(self.scored_shape, np.int32))
        if self.deadline.by_clock and self.spec.schedule.warmup_frac > 0.0 and not self.pace.is_known:
            with self.interruption.expected():
                self.deadline.first_step_s = self._timed_warm_up(x)

    def _timed_warm_up(self, x: np.ndarray) -> float:
        """Seconds of a step before the first: by the clock the first learning rate depends on them."""
        self.engine.synchronise()
        begin = self.clock()
        self.engine.warm_up(x)
        self.engine.synchronise()
        return (self.clock() - begin) / len(training_stages(self.spec))

    def _steps(self) -> int:
        """Steps done or in flight."""
        return self.position.step + len(self.queue)

    def _begin_s(self) -> float:
        """Training time at which the next step begins: a step begins when the one before it ends."""
        return self.queue.expected_s if len(self.queue) else self.position.elapsed_s

    def _fits(self) -> bool:
        """Whether the budget has room for another step."""
        return self.deadline.fits(self._steps(), self._begin_s())

    def _more(self) -> bool:
        """Whether there is another step to train before the end or the pause."""
        return self._fits() and (
            self.pause_frac == 1.0 or progress_frac(self.spec, self._steps(), self._begin_s()) < self.pause_frac
        )

    def _settle_near_the_end(self) -> None:
        """Read what is in flight where the estimate of when it ends is not good enough for the deadline."""
        while len(self.queue) and self.deadline.is_near(self._begin_s()):
            self._settle()

    def _due(self, every_steps: int) -> bool:
        """Whether something of this cadence is due after the steps so far; 0 is never."""
        return every_steps > 0 and self._steps() > 0 and self._steps() % every_steps == 0

    def _validated(self) -> bool:
        last = self.position.last_validation
        return last is not None and last.step == self.position.step

    def _saved(self) -> bool:
        return self.position.saved == self.position.stamp

    def _train_one_step(self) -> None:
        """Queue the next step, then read the result of the one before it."""
        self.queue.start()
        step = self._steps()
        numbers, factor = self.deadline.hyperparameters(step, self._begin_s())
        x = self.batches.batch(step)
        try:
            with self.interruption.expected():
                self.queue.push(x, numbers, factor)
        except StopRequested:
            self.in_step = True
            raise
        if len(self.queue) > 1:
            self._settle()

    def _settle(self) -> None:
        """Wait for the oldest step in flight and report it."""
        position = self.position
        number = position.step + 1
        try:
            with self.interruption.expected():
                done = self.queue.read()
        except StopRequested:
            self.in_step = True
            raise
        except NonFiniteError as error:
            raise Failure(
                f"step {number}: the gradient of {error.parameter} is not a finite number",
                parameter=error.parameter,
                failed_step=number,
            ) from None
        if number == 1:
            self._check_first_loss(done.nats)
            self._check_first_gradient(done.grad_norm)
        position.step, position.elapsed_s = number, done.elapsed_s
        self.pace.add(done.step_s)
        position.step_s, position.slowest_step_s = self.pace.step_s, self.pace.slowest_s
        self.log.add(number, done, is_last=not len(self.queue) and not self._more())

    def _settle_all(self) -> None:
        """Read all results and stop the clock: what comes next is not training time."""
        while len(self.queue):
            self._settle()
        with self.interruption.expected():
            self.queue.stop()
        self.position.elapsed_s = self.queue.elapsed_s

    def _check_first_loss(self, nats: float) -> None:
        """A fresh model knows nothing, so its loss is near ln V (docs/techniques.md 12.2). Below that something
        is counted wrongly; above it the initial weights are merely bad."""
        ignorant = math.log(self.spec.vocabulary.size)
        found = f"the first loss is {nats:.3f} nats per symbol, a model that knows nothing has ln V = {ignorant:.3f}"
        if nats < (1.0 - FIRST_LOSS_REL) * ignorant:
            raise Failure(f"step 1: {found}: the accounting is wrong", failed_step=1)
        if nats > (1.0 + FIRST_LOSS_REL) * ignorant:
            self.observer.on_warning(f"{found}: check the initial values")

    def _check_first_gradient(self, norm: float) -> None:
        """Where the first step has no gradient and later ones have no other function, nothing is ever learnt: behind a
        head of zeros that is not trained, say."""
        training = self.spec.training
        if norm == 0.0 and len(training_stages(self.spec)) == 1 and not training.loss.has_auxiliary:
            named = f"training.freeze {training.freeze!r}, training.parameters {list(training.parameters)}"
            raise Failure(f"step 1: no gradient reaches what is trained ({named})", failed_step=1)

    def _run_validation(self, *, counts: bool) -> None:
        """Validate. At a pause it counts only where a checkpoint has it without the pause too: the best one stays."""
        position = self.position
        self.observer.on_phase("validation")
        try:
            with self.interruption.expected():
                report = self.validate(position.step, self._on_progress)
        except NonFiniteScoreError as error:
            raise Failure(
                f"step {position.step}: validation gave no finite number ({error})", failed_step=position.step
            ) from None
        self.validation = report
        if counts:
            position.last_validation = report
            if position.best_validation is None or report.bpb < position.best_validation.bpb:
                position.best_validation = report
        self.metrics.append("validation", **asdict(report))
        self.observer.on_validation(report)

    def _on_progress(self, done: int, total: int) -> None:
        self.interruption.check()
        self.observer.on_progress(done, total)

    def _save(self) -> None:
        """Begin to write a checkpoint, once the last one is on disk."""
        position = self.position
        self._announce_checkpoint(wait=True)
        with self.interruption.expected():
            state = self.engine.save_state()
        for name, value in state.items():
            if not np.isfinite(value).all():
                raise Failure(
                    f"step {position.step}: {name} is not finite after the update",
                    parameter=name.split("/", 1)[-1],
                    failed_step=position.step,
                )
        self.writer.start(self._checkpoint_info(), state)
        position.saved = position.stamp

    def _announce_checkpoint(self, *, wait: bool = False) -> None:
        """Report a checkpoint that has reached the disk. Raises RunError if one could not be written."""
        written = self.writer.collect(wait=wait)
        if written is not None:
            self.metrics.append("checkpoint", written.step, file=written.path.name)
            self.observer.on_checkpoint(written.step, written.path)

    def _checkpoint_info(self) -> CheckpointInfo:
        position = self.position
        return CheckpointInfo(
            step=position.step,
            elapsed_s=position.elapsed_s,
            engine=self.engine.name,
            spec_id=spec_id(self.spec),
            spec=spec_to_dict(self.spec),
            loader=self.loader.state(position.step),
            last_validation=position.last_validation,
            best_validation=position.best_validation,
            step_s=position.step_s,
            slowest_step_s=position.slowest_step_s,
        )

    def _paused(self) -> Outcome:
        self.metrics.append("paused", self.position.step, pause_frac=self.pause_frac)
        return self._end("paused", f"paused after step {self.position.step}")

    def _interrupted(self) -> Outcome:
        number = self.interruption.signal_number
        try:
            self._settle_all()
            if self.position.step > 0 and not self._saved() and not self.in_step:
                self._save()
        except StopRequested:
            self.in_step = True
        except Failure as failure:
            return self._failed(failure)
        except DeviceError as error:
            return self._device_failed(error)
        self._announce_checkpoint(wait=True)
        self.metrics.append("interrupted", self.position.step, signal=number)
        where = f"in step {self.position.step + 1}" if self.in_step else f"after step {self.position.step}"
        return self._end("interrupted", f"stopped by a signal {where}")

    def _failed(self, failure: Failure) -> Outcome:
        try:
            self._announce_checkpoint(wait=True)
        except RunError as error:
            self.observer.on_warning(str(error))
        latest = self.store.latest_path()
        advice = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
        details = {**failure.details, "last_checkpoint": str(latest) if latest else None}
        self.metrics.append("failed", self.position.step, reason=str(failure), **details)
        return self._end("failed", f"{failure}; training stopped; {advice}")

    def _device_failed(self, error: DeviceError) -> Outcome:
        """What is on the device is lost: it is neither read nor waited for."""
        return replace(self._failed(Failure(f"step {self.position.step + 1}: {error}")), device_failed=True)

    def _end(self, status: Literal["finished", "paused", "interrupted", "failed"], message: str = "") -> Outcome:
        position = self.position
        return Outcome(
            status=status,
            step=position.step,
            elapsed_s=position.elapsed_s,
            nats=self.log.last.nats_per_symbol if self.log.last else None,
            validation=self.validation,
            best_validation=position.best_validation,
            checkpoint=self.store.latest_path(),
            message=message,
        )
