"""A run in a process of its own: it starts with no compiled graph and no memory of another model, and leaves none.

A signal may reach one of the two processes or both: Ctrl-C on a terminal reaches both, `kill` the one it names, a
service manager both again. The process of the sweep therefore passes its own signals on to the run's process through a
pipe, and there a request counts as a first signal however many ways it comes. If the sweep's process is gone, its end
of the pipe is closed, and the run is stopped too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from shared.engine.ranks import killer_in_words
from shared.errors import UserError
from shared.runs.observer import Observer
from shared.sinks.following import Sinks
from shared.spec import Spec
from shared.study.places import Place
from shared.training.interruption import SIGNALS, Interruption
from shared.training.run import train_run

# A new interpreter, and not a copy of this one.
CONTEXT: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
# How long a signal may take to reach the run's process if nothing else brings it there.
POLL_S = 0.2


@dataclass(frozen=True)
class Ending:
    """How a run ended, as RunResult has it; `message` says why if it did not finish, `bpb` is the score if it did."""

    status: Literal["finished", "paused", "interrupted", "failed"]
    message: str
    exit_status: int
    bpb: float | None = None


@dataclass(frozen=True)
class Order:
    """A run to train, new or resumed, to its end or to `pause_frac` of its budget. `make_observer` is called in its
    process, so it is a function of a module; `log` names the sinks that get its numbers, in a group named after the
    folder."""

    spec: Spec
    engine_name: str
    folder: Path
    name: str
    make_observer: Callable[[], Observer]
    pause_frac: float = 1.0
    log: tuple[str, ...] = ()


def train_apart(
    orders: Iterable[Order], places: Sequence[Place], interruption: Interruption
) -> Generator[tuple[Order, Ending], None, None]:
    """Do what `train_run` does for each order, in another process with the same terminal: one at a time in each place.

    Yields how they ended as they end. After a signal no further order is taken. An error that is not the user's fault
    is printed in the run's process and is a failed run here; so is a process that was killed. Raises UserError and
    OSError as `train_run` does, after the other runs have saved and ended, as they do if the iterator is closed.
    `interruption` is that of this process, already entered.
    """
    waiting, free, live = iter(orders), list(places), list[_Started]()
    try:
        while True:
            while free and interruption.signal_number is None and (order := next(waiting, None)) is not None:
                live.append(_Started(order, free.pop(0)))
            if not live:
                return
            for run in _await_ends(live, interruption):
                live.remove(run)
                free.append(run.place)
                yield run.order, run.ending(interruption)
    finally:
        for run in live:
            run.pipe.close()
        for run in live:
            run.process.join()


class _Started:
    """The process of a run, and this end of the pipe to it."""

    def __init__(self, order: Order, place: Place) -> None:
        self.order, self.place, self.told = order, place, False
        self.pipe, theirs = CONTEXT.Pipe()
        self.process: BaseProcess = CONTEXT.Process(target=_train, args=(theirs, order, sys.orig_argv), name=order.name)
        # Started here, because starting it lets signals through.
        resource_tracker.ensure_running()
        # Signals wait meanwhile: here until it is started, in the other process until it is ready and unblocks them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            with place.taken():
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def tell(self, number: int) -> None:
        """Pass a signal on, once."""
        if not self.told:
            self.told = True
            with contextlib.suppress(OSError):
                self.pipe.send(number)

    def ending(self, interruption: Interruption) -> Ending:
        """How it ended, once it has sent an answer or is gone. Raises the error that it sent."""
        answer: Ending | Exception | None = None
        try:
            with contextlib.suppress(EOFError, OSError):
                answer = self.pipe.recv() if self.pipe.poll() else None
        finally:
            self.process.join()
            self.pipe.close()
        if isinstance(answer, Exception):
            raise answer
        return answer or _without_answer(self.process.exitcode, interruption)


def _await_ends(live: Sequence[_Started], interruption: Interruption) -> list[_Started]:
    """Wait until a run has sent its answer or is gone, and return all of these. Passes a signal on to every run."""
    while True:
        if interruption.signal_number is not None:
            for run in live:
                run.tell(interruption.signal_number)
        ready = wait([handle for run in live for handle in (run.pipe, run.process.sentinel)], POLL_S)
        if ready:
            return [run for run in live if run.pipe in ready or run.process.sentinel in ready]


def _without_answer(exit_code: int | None, interruption: Interruption) -> Ending:
    """Describe how a process ended that sent no answer."""
    assert exit_code is not None
    status = exit_code if exit_code >= 0 else 128 - exit_code
    if interruption.signal_number is not None:
        status = interruption.exit_status
    if status - 128 in SIGNALS:
        return Ending("interrupted", "ended at once; files saved before are intact", status)
    if exit_code < 0:
        return Ending("failed", f"its process was killed by {killer_in_words(-exit_code)}", 1)
    return Ending("failed", f"its process ended with exit status {exit_code}", 1)


def _train(pipe: Connection, order: Order, typed: list[str]) -> None:
    """Train, in the run's process, and send how it ended. `typed` is the command line of the sweep, for
    environment.json."""
    sys.orig_argv[:] = typed
    with Interruption() as interruption:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        threading.Thread(target=_listen, args=(pipe, interruption), name="requests", daemon=True).start()
        answer = _trained(order, interruption)
        with contextlib.suppress(OSError):
            pipe.send(answer)
    # All is said: a Ctrl-C that comes now would only print a trace.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _listen(pipe: Connection, interruption: Interruption) -> None:
    """Stop when the sweep's process says so or is gone; at once if it is gone while a stop is under way."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            interruption.request(pipe.recv())
    if interruption.signal_number is not None:
        os._exit(interruption.exit_status)
    interruption.request(signal.SIGTERM)


def _trained(order: Order, interruption: Interruption) -> Ending | UserError | OSError:
    """Train the run. Returns how it ended, or the error that the command line reports in one line."""
    try:
        with order.make_observer() as observer, Sinks(order.log, observer.on_warning, group=order.folder.name) as sinks:
            interruption.notify = observer.on_stop_requested
            result = train_run(
                order.spec,
                order.engine_name,
                observer,
                runs_dir=order.folder,
                run_name=order.name,
                resume=True,
                entered=interruption,
                on_event=sinks.on_event if order.log else None,
                pause_frac=order.pause_frac,
            )
    except (UserError, OSError) as error:
        return error
    except Exception as error:
        traceback.print_exc()
        return Ending("failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", 1)
    bpb = result.finished.score.bpb if result.finished is not None else None
    return Ending(result.outcome.status, result.outcome.message, result.exit_status, bpb)
