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
from collections.abc import Callable
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
from shared.spec import Spec
from shared.training.interruption import SIGNALS, Interruption
from shared.training.run import train_run

# A new interpreter, and not a copy of this one.
CONTEXT: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
# How long a signal may take to reach the run's process if nothing else brings it there.
POLL_S = 0.2


@dataclass(frozen=True)
class Ending:
    """How a run ended, as RunResult has it; `message` says why if it did not finish."""

    status: Literal["finished", "interrupted", "failed"]
    message: str
    exit_status: int


@dataclass(frozen=True)
class Order:
    """A run to train, new or resumed. `make_observer` is called in its process, so it is a function of a module."""

    spec: Spec
    engine_name: str
    folder: Path
    name: str
    make_observer: Callable[[], Observer]


def train_apart(order: Order, interruption: Interruption) -> Ending:
    """Do what `train_run` does, in another process with the same terminal.

    An error that is not the user's fault is printed there and is a failed run here; so is a process that was killed.
    Raises UserError and OSError as `train_run` does. `interruption` is that of this process, already entered.
    """
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_train, args=(theirs, order, sys.orig_argv), name=order.name)
    # Started here, because starting it lets signals through.
    resource_tracker.ensure_running()
    # Signals wait meanwhile: here until it is started, in the other process until it is ready and unblocks them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    try:
        answer = _await_answer(ours, process, interruption)
    except BaseException:
        ours.close()
        raise
    finally:
        process.join()
    ours.close()
    if isinstance(answer, Exception):
        raise answer
    return answer or _without_answer(process.exitcode, interruption)


def _await_answer(pipe: Connection, process: BaseProcess, interruption: Interruption) -> Ending | Exception | None:
    """Return the answer of the run's process at its end, None if it sends none. Passes a signal on to it once."""
    sent = False
    while not wait([pipe, process.sentinel], POLL_S):
        if interruption.signal_number is not None and not sent:
            sent = True
            with contextlib.suppress(OSError):
                pipe.send(interruption.signal_number)
    with contextlib.suppress(EOFError, OSError):
        answer: Ending | Exception | None = pipe.recv() if pipe.poll() else None
        return answer
    return None


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
        with order.make_observer() as observer:
            interruption.notify = observer.on_stop_requested
            result = train_run(
                order.spec,
                order.engine_name,
                observer,
                runs_dir=order.folder,
                run_name=order.name,
                resume=True,
                entered=interruption,
            )
    except (UserError, OSError) as error:
        return error
    except Exception as error:
        traceback.print_exc()
        return Ending("failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", 1)
    return Ending(result.outcome.status, result.outcome.message, result.exit_status)
