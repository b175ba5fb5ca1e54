"""A whole run: open everything, train, pack, score; new or resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

from data.tokenizer import tokenizer_by_hash
from shared.engine.leader import check_divisible, follow, leading
from shared.engine.microbatch import check_fits, cut_by_memory, with_limit_of, with_micro_batches, with_symbols
from shared.engine.package import create_engine, engine_package, limit_memory
from shared.engine.protocol import Engine
from shared.engine.ranks import OneRank, Ranks
from shared.errors import DeviceError, RunError
from shared.model import initial_weights, parameter_counts, symbol_weights
from shared.optim import progress_frac
from shared.runs.checkpoints import Checkpoint, CheckpointStore
from shared.runs.environment import describe_environment
from shared.runs.finished_run import FinishedRun
from shared.runs.metrics import Event, MetricsLog, as_report
from shared.runs.observer import Observer, RunStart
from shared.runs.run_directory import RunDirectory, check_same_training, open_run
from shared.scoring.adaptation import check_adaptation
from shared.scoring.bits_per_byte import passes_shape
from shared.spec import Spec, spec_id, stored_spec
from shared.training.calibration import TASKS
from shared.training.finish import Finished, OpenRun, Packing, add_compressors, finish_run
from shared.training.interruption import ENDED, Interruption, StopRequested
from shared.training.loop import Outcome, Position, TrainingLoop
from shared.training.phase_clock import PhaseClock
from shared.training.profiling import ProfileRequest, profiled
from shared.training.sources import Sources, open_sources, starting_text
from shared.training.validation import make_validate
from shared.units import bits_per_byte
from shared.views.report import write_report


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `finished` is None unless it was packed and scored; `exit_status` is 0, 1 (training
    failed or a check failed) or 128 + signal number; `phase_s` has the seconds of every phase."""

    run: RunDirectory
    outcome: Outcome
    finished: Finished | None
    exit_status: int
    phase_s: Mapping[str, float] = field(default_factory=dict)


def train_run(
    spec: Spec,
    engine_name: str,
    observer: Observer,
    *,
    runs_dir: Path,
    run_name: str | None = None,
    resume: bool = False,
    finish: bool = True,
    profile: ProfileRequest | None = None,
    ranks: Ranks | None = None,
    entered: Interruption | None = None,
    resume_command: Callable[[str], str] | None = None,
    on_event: Callable[[RunDirectory, Event], None] | None = None,
    pause_frac: float = 1.0,
) -> RunResult:
    """Train a spec (`bind_tokenizer`) in a run directory. Raises UserError for anything that cannot be used as asked.

    Nothing is created before the spec, the engine and the data are known to be good. With several ranks
    this is what rank 0 does; the others call `follow_run`. `entered` is an Interruption that the caller has entered
    already; by default signals count from here to the end. `resume_command` gives the command line that resumes the run
    of a name, for who ends it by a second signal. `on_event` gets the run and each event that metrics.jsonl got.
    With a `pause_frac` below 1 the run is validated, saved and left (`paused`) after that fraction of its steps or of
    its time.
    """
    spec = _with_micro_batches(spec, engine_name, ranks, runs_dir / run_name if resume and run_name else None)
    clock = PhaseClock(observer)
    signals = Interruption(observer.on_stop_requested) if entered is None else contextlib.nullcontext(entered)
    with signals as interruption, leading(_engine(spec, engine_name, ranks)) as engine:
        sources = open_sources(spec)
        check_adaptation(spec)
        run = open_run(runs_dir, run_name, spec, engine_name, resume=resume)
        if resume_command is not None:
            interruption.last_words = f"bytetwin: {ENDED}; resume with: {resume_command(run.name)}\n"
        try:
            with profiled(engine, profile, run.trace_path) as watched:
                result = _train_in(run, spec, watched, sources, clock, interruption, finish, on_event, pause_frac)
            observer.on_end(result.outcome.status)
            return result
        finally:
            run.unlock()


def earlier_result(run: FinishedRun) -> RunResult:
    """The result that `train_run` returned when this run was finished."""
    validations = [report for event in run.by_step("validation") if (report := as_report(event))]
    store = CheckpointStore(run.directory.checkpoints_path, run.spec.training.keep_checkpoints)
    outcome = Outcome(
        status="finished",
        step=run.steps,
        elapsed_s=run.train_s,
        nats=run.last_step["nats_per_symbol"],
        validation=validations[-1] if validations else None,
        best_validation=last.best_validation if (last := store.latest_info()) else None,
        checkpoint=store.latest_path(),
        message=f"run {run.path} is already finished",
    )
    packing, problems = run.ending["packing"], run.ending["problems"]
    finished = Finished(run.score, Packing(packing["unpacked_bpb"], packing["packed_bpb"]), problems)
    return RunResult(run.directory, outcome, finished, 1 if problems else 0)


def follow_run(spec: Spec, engine_name: str, ranks: Ranks) -> None:
    """The part of a rank other than 0 in `train_run`. Signals are left to rank 0, which decides when all stop."""
    with Interruption(quiet=True):
        limit_memory(engine_name)
        follow(_engine(_with_micro_batches(spec, engine_name, ranks), engine_name, ranks), TASKS)


def _with_micro_batches(spec: Spec, engine_name: str, ranks: Ranks | None, earlier: Path | None = None) -> Spec:
    """The spec with the size of its micro-batches, and their limit where the device shares its memory: those of the
    earlier start of the run, if there was one. Raises SpecError where not even one window fits."""
    package = engine_package(engine_name)
    before = RunDirectory(earlier).read_spec() if earlier and RunDirectory(earlier).spec_path.is_file() else None
    wanted = with_symbols(spec, before.training.micro_batch_symbols) if before is not None else spec
    if wanted.training.micro_batch_symbols and package.limit_memory is None:
        return wanted
    facts = package.device_facts()
    check_fits(wanted, engine_name, facts)
    if before is not None and facts.shares_memory:
        wanted = with_limit_of(wanted, before, facts)
    return with_micro_batches(wanted, engine_name, facts, (ranks or OneRank()).world_size)


def _engine(spec: Spec, engine_name: str, ranks: Ranks | None) -> Engine:
    ranks = ranks or OneRank()
    check_divisible(spec, ranks)
    return create_engine(engine_name, spec, ranks=ranks)


def _train_in(
    run: RunDirectory,
    spec: Spec,
    engine: Engine,
    sources: Sources,
    clock: PhaseClock,
    interruption: Interruption,
    finish: bool,
    on_event: Callable[[RunDirectory, Event], None] | None,
    pause_frac: float,
) -> RunResult:
    """Train from the last checkpoint on, if there is one, then finish; what each phase took is noted at any end."""
    observer = cast(Observer, clock)
    limits = limit_memory(engine.name)
    store = CheckpointStore(run.checkpoints_path, spec.training.keep_checkpoints)
    store.tidy()
    checkpoint = store.load_latest()
    position = start_or_resume(spec, engine, sources, store, checkpoint)
    if spec.training.loss.byte_weighted:
        table = tokenizer_by_hash(spec.vocabulary.tokenizer).table
        engine.use_symbol_weights(symbol_weights(table.in_text(), sources.bytes_per_symbol))
    run.write_environment({**describe_environment(engine), "memory_limits": limits, "data": sources.describe()})
    tell = None if on_event is None else partial(on_event, run)
    with MetricsLog(run.metrics_path, position.step, tell) as metrics:
        event = "resume" if checkpoint else "start"
        metrics.append(event, position.step, engine=engine.name, spec=spec.name, spec_id=spec_id(spec))
        opened = OpenRun(run, spec, engine, sources, metrics, observer, interruption)
        observer.on_start(_run_start(opened, position))
        if not run.has_locks:
            observer.on_warning(
                f"{run.path}: its file system has no locks: a second process in it would not be noticed"
            )
        if cut := cut_by_memory(spec):
            observer.on_warning(cut)
        for warning in checkpoint.warnings if checkpoint else ():
            observer.on_warning(f"{warning}; continuing from {checkpoint.path}" if checkpoint else warning)
        loop = TrainingLoop(
            spec,
            engine,
            sources.loader,
            make_validate(spec, engine, sources.validation),
            store,
            metrics,
            observer,
            interruption,
            position,
            bytes_per_symbol=sources.bytes_per_symbol,
            scored_shape=passes_shape(spec, sources.validation),
            pause_frac=pause_frac,
        )
        outcome = loop.run()
        if outcome.status == "finished" and finish:
            result = _finish_in(opened, outcome)
        else:
            status = interruption.exit_status if outcome.status == "interrupted" else int(outcome.status == "failed")
            result = RunResult(run, outcome, None, status)
        clock.stop()
        metrics.append("phases", outcome.step, seconds=clock.seconds())
        if result.finished is not None:
            write_report(run)
        return replace(result, phase_s=clock.seconds())


def _finish_in(opened: OpenRun, outcome: Outcome) -> RunResult:
    """Pack, score and report what was trained; after a signal as much of it as there is."""
    assert outcome.validation is not None
    finished = None
    try:
        # All that was trained is in the last checkpoint, and a score resumes where its state was written last.
        with opened.interruption.nothing_to_save(), opened.interruption.expected():
            finished = finish_run(opened, outcome.validation)
            finished = add_compressors(opened, finished)
    except StopRequested:
        if finished is None or not finished.score.compressors:
            missing = "training is done, the artifact is not scored yet"
            if finished is not None:
                missing = "the run is finished, its score lacks the general compressors"
            stopped = replace(outcome, status="interrupted", message=missing)
            return RunResult(opened.run, stopped, finished, opened.interruption.exit_status)
    except DeviceError as error:
        message = f"{error}; training is done, the artifact is not scored yet"
        return RunResult(opened.run, replace(outcome, status="failed", message=message, device_failed=True), None, 1)
    return RunResult(opened.run, outcome, finished, 1 if finished.problems else 0)


def start_or_resume(
    spec: Spec, engine: Engine, sources: Sources, store: CheckpointStore, checkpoint: Checkpoint | None
) -> Position:
    """Give the engine its weights: initial ones, or those of the checkpoint. Raises RunError if they do not fit."""
    if checkpoint is None:
        engine.initialise(initial_weights(spec, starting_text(spec, sources.train)))
        return Position()
    info = checkpoint.info
    check_same_training(stored_spec(info.spec, origin=str(checkpoint.path)), spec, str(checkpoint.path))
    sources.loader.check_state(info.loader)
    if info.loader.get("step") != info.step:
        raise RunError(f"{checkpoint.path}: its loader is at step {info.loader.get('step')}, not {info.step}")
    engine.load_state(checkpoint.state)
    store.set_aside_after(info.step)
    position = Position(
        step=info.step,
        elapsed_s=info.elapsed_s,
        last_validation=info.last_validation,
        best_validation=info.best_validation,
        step_s=info.step_s,
        slowest_step_s=info.slowest_step_s,
    )
    position.saved = position.stamp
    return position


def _run_start(opened: OpenRun, position: Position) -> RunStart:
    spec, sources = opened.spec, opened.sources
    history = [
        (event["progress_frac"], bits_per_byte(event["nats_per_symbol"], sources.bytes_per_symbol))
        for event in opened.metrics.kept
        if event["event"] == "step" and {"progress_frac", "nats_per_symbol"} <= event.keys()
    ]
    return RunStart(
        run_path=opened.run.path,
        spec=spec,
        engine=opened.engine.name,
        device=opened.engine.device_name(),
        parameters=parameter_counts(spec)["total"],
        data=sources.describe(),
        step=position.step,
        progress_frac=progress_frac(spec, position.step, position.elapsed_s),
        validation=position.last_validation,
        history=history,
    )
