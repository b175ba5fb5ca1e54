"""Several processes, one experiment: rank 0 leads, the others follow.

Rank 0 runs the loop as if it were alone. Each engine call that needs all ranks is sent to the followers, who
make the same call on their share of the rows; the collectives inside the engine join the shares. So nothing
above the engine knows how many ranks there are: only rank 0 reads data, decides by the clock and writes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Protocol

from shared.engine.registry import ENGINES

if TYPE_CHECKING:
    # Every command line imports this module, also one that ends before it needs an array.
    import numpy as np

MAX_RANKS = 64

# The variables in which launchers give a process its rank.
RANK_VARIABLES = [engine.rank_variable for engine in ENGINES.values()]
PATIENCE_S = 5.0


class Ranks(Protocol):
    """The processes of one run, all calling the same methods in the same order."""

    rank: int
    world_size: int

    def broadcast(self, content: bytes) -> bytes:
        """Rank 0's content, on every rank; what the others pass is ignored."""

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks, in rank order, on every rank; all of one shape and dtype."""


class OneRank:
    """A process on its own."""

    rank = 0
    world_size = 1

    def broadcast(self, content: bytes) -> bytes:
        return content

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        return [values]


def own_rank() -> int:
    """This process's rank as its launcher has set it; 0 for a process on its own."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), 0)


def is_launched() -> bool:
    """Whether torchrun, mlx.launch or the like started this process."""
    return any(name in os.environ for name in RANK_VARIABLES)


def stop_with_parent(poll_s: float = 0.5) -> None:
    """Send this process SIGTERM, on which it saves and ends, once the process that started it is gone.

    A launcher that is killed cannot end its ranks. Nothing tells a process of that on all systems, so a thread looks.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_s)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def killer_in_words(number: int) -> str:
    """Name the signal that killed another process, and its likely cause."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return name + (" (the system does this when memory runs out)" if number == signal.SIGKILL else "")


def let_rank_0_speak() -> None:
    """Delay a follower's error message so that rank 0 reports first. Most errors are those of all ranks: rank 0 reports
    them once and ends, and the launcher ends the others meanwhile. A follower still alive has an error of its own."""
    if own_rank() > 0:
        time.sleep(PATIENCE_S)
