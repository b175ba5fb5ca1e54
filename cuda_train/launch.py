"""Starts the ranks of a run on this machine: torch's elastic launcher with `python -m cuda_train` as every process.

The launcher watches: when one rank fails the others are ended too, and a signal is passed on to all of them,
with 30 s to save. Ranks write to this process's own stdout and stderr, so that rank 0's live view, its one line
for an error and its JSON document arrive as if there were no launcher. For several machines use torchrun.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from shared.engine.ranks import MAX_RANKS, killer_in_words
from shared.errors import UserError
from shared.units import counted

ALL_GPUS = "gpus"
HOST = "127.0.0.1"
# The launcher and the ranks connect at once or never, because all of them are on this machine.
MEETING_TIMEOUT_S = 60
# Failures seen within this time are one event: a rank that died, and the others that lost contact with it.
SAME_EVENT_S = 2


def resolve_ranks(wanted: str) -> int:
    """The number of processes that `--ranks` asks for: a number, or `gpus` for one on every GPU.

    Raises UserError for anything else, for more ranks than GPUs, and for `gpus` where there is none.
    """
    gpus = torch.cuda.device_count()
    if wanted == ALL_GPUS:
        if not gpus:
            raise UserError("no NVIDIA GPU found on this machine: --ranks N runs N processes on the CPU")
        return min(gpus, MAX_RANKS)
    if not wanted.isdecimal() or not 1 <= int(wanted) <= MAX_RANKS:
        raise UserError(f"--ranks {wanted}: must be a number from 1 to {MAX_RANKS}, or {ALL_GPUS} for every GPU")
    if gpus and int(wanted) > gpus:
        raise UserError(f"--ranks {wanted}: this machine has {counted(gpus, 'NVIDIA GPU')}")
    return int(wanted)


def launch(words: Sequence[str], ranks: int, port: int | None = None) -> int:
    """Run `python -m cuda_train WORDS` as `ranks` processes and return one exit status for all of them.

    The status is 0, that of the rank that failed first, or 128 + the number of a signal. `port` is the
    rendezvous port, by default any free one. Raises UserError, before anything starts, if it is in use.
    """
    if port is not None:
        check_port(port)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{HOST}:{port or 0}",
        rdzv_configs={"timeout": MEETING_TIMEOUT_S, "is_host": True},
        local_addr=HOST,
        max_restarts=0,
        # Nothing is redirected, and no folder for logs is left behind.
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        signals_to_handle="SIGTERM,SIGINT",
        # Each sees its own GPU alone, as number 0: torch keeps what it compiled by that number, and otherwise no rank
        # but the first would find what preflight or an earlier run compiled.
        virtual_local_rank=torch.cuda.device_count() >= ranks,
    )
    threads = max(1, (os.cpu_count() or 1) // ranks)
    with _environment({"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}), _quiet(), _own_signals():
        try:
            elastic_launch(config, sys.executable)("-m", "cuda_train", *words)
        except ChildFailedError as error:
            return _status_of(error.failures)
        except SignalException as error:
            return 128 + error.sigval
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


def check_port(port: int) -> None:
    """Raise UserError unless a server can be opened at a port of this machine."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 1 to 65535")
    # macOS opens a port on all addresses even if a server has it on one, so the address of the ranks is tried too.
    for address in (HOST, ""):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise UserError(
                    f"--port {port}: cannot be used ({(error.strerror or str(error)).lower()}); "
                    "choose another, or omit it for a free one"
                ) from None


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """(rank, failure) that explains the others.

    When a rank is killed the others lose contact with it and may be found ended before it, so a death by a
    signal goes first. SIGTERM does not count as one: the launcher sends it itself to those that are left.
    """
    begin = min(failure.timestamp for failure in failures.values())
    together = {rank: failure for rank, failure in failures.items() if failure.timestamp <= begin + SAME_EVENT_S}
    killed = {rank: item for rank, item in together.items() if item.exitcode < 0 and item.exitcode != -signal.SIGTERM}
    return next(iter((killed or together).items()))


def _status_of(failures: Mapping[int, ProcessFailure]) -> int:
    """The exit status of the first failure. A rank that was killed could not say so itself."""
    rank, failure = first_failure(failures)
    if failure.exitcode >= 0:
        return failure.exitcode
    number = -failure.exitcode
    print(f"bytetwin: rank {rank} was killed by {killer_in_words(number)}", file=sys.stderr, flush=True)
    return 128 + number


@contextlib.contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the ranks, where the user has not set them."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the launcher's log: the ranks and the exit status say it better."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Treat a lost terminal as SIGTERM, on which ranks save, unless nohup has it ignored.

    The launcher replaces the handlers of SIGINT and SIGTERM; they are restored afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
