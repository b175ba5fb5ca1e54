"""Where the runs of a sweep compute: one after the other anywhere, or several at once, each in a place of its own.

The last digits of a score depend on the number of threads that computed it on a CPU. A run therefore has as many
threads next to others as it has alone, so that how many run at once changes nothing but the time; `--threads` chooses
another number, for any number of jobs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shared.errors import UserError
from shared.units import counted

ALL_GPUS = "gpus"
MOST_JOBS = 64
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Threads that wait for each other must not keep the cores busy that another run could use.
SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Place:
    """A GPU, or cores: `environment` is added to that of a process, which runs on `cores` alone if there are any."""

    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """While entered, processes that this thread starts belong to the place."""
        before = {name: os.environ.get(name) for name in self.environment}
        cores = own_cores() if self.cores else []
        os.environ.update(self.environment)
        if cores:
            os.sched_setaffinity(0, self.cores)
        try:
            yield
        finally:
            if cores:
                os.sched_setaffinity(0, cores)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


ANYWHERE = Place()


def places(jobs: str, threads: int | None, gpus: Sequence[Mapping[str, str]]) -> list[Place]:
    """A place for each run that `--jobs` wants at the same time: a number, or `gpus` for one on each GPU.

    `gpus` are the environments in which a process sees one GPU each, none on a machine without. Raises UserError for
    anything else, for more jobs than GPUs, for `gpus` where there is none, and for more threads than cores.
    """
    cores = own_cores()
    if threads is not None and threads > (len(cores) or os.cpu_count() or 1):
        raise UserError(f"--threads {threads}: this machine has {len(cores) or os.cpu_count()} cores")
    if jobs == ALL_GPUS:
        if not gpus:
            raise UserError("no NVIDIA GPU found on this machine: --jobs N trains N runs at once on the CPU")
        number = min(len(gpus), MOST_JOBS)
    elif jobs.isdecimal() and 1 <= int(jobs) <= MOST_JOBS:
        number = int(jobs)
    else:
        raise UserError(f"--jobs {jobs}: must be a number from 1 to {MOST_JOBS}, or {ALL_GPUS} for one on each GPU")
    if gpus and number > len(gpus):
        raise UserError(f"--jobs {jobs}: this machine has {counted(len(gpus), 'NVIDIA GPU')}")
    waiting = {} if number == 1 or gpus else SHARED_CORES
    return [
        Place({**waiting, **(gpus[job] if gpus else {}), **_thread_variables(threads)}, _share(cores, job, threads))
        for job in range(number)
    ]


def own_cores() -> list[int]:
    """The cores that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _thread_variables(threads: int | None) -> dict[str, str]:
    return {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))


def _share(cores: Sequence[int], job: int, threads: int | None) -> frozenset[int]:
    """As many cores as threads, those behind the ones of the job before, from the first again after the last."""
    if threads is None or not cores:
        return frozenset()
    return frozenset(cores[(job * threads + index) % len(cores)] for index in range(threads))
