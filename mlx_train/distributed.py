"""Several MLX processes as one run: `mlx.launch -n N -- python -m mlx_train SPEC`, over the ring backend."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.nn.utils import average_gradients

from mlx_train import device
from shared.engine.leader import check_alike
from shared.engine.ranks import OneRank, Ranks
from shared.engine.registry import ENGINES
from shared.errors import RunError

# The variable in which mlx.launch gives a process its rank.
RANK = ENGINES["mlx"].rank_variable


class MLXRanks:
    """`Ranks` over an MLX group. Bytes travel as sums in which only one rank has anything but zeros.

    `sockets` are those of the ring. MLX asks them without a pause whether something has arrived (SocketThread in
    mlx/distributed/ring/ring.cpp), which takes a core; a follower may wait for rank 0 for minutes.
    """

    def __init__(self, group: mx.distributed.Group, sockets: Sequence[int] = ()) -> None:
        self.group, self.rank, self.world_size = group, group.rank(), group.size()
        self.sockets = sockets

    def broadcast(self, content: bytes) -> bytes:
        if self.rank > 0 and self.sockets:
            # The sum begins at rank 0 and reaches each rank through its neighbour.
            select.select(self.sockets, [], [])
        mine = np.frombuffer(content if self.rank == 0 else b"", np.uint8)
        length = int(self._sum(np.array([len(mine)], np.int32))[0])
        padded = np.zeros(length, np.uint8)
        padded[: len(mine)] = mine
        return self._sum(padded).tobytes()

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        # Under a new first axis, because all_gather joins arrays along the first one.
        gathered = mx.distributed.all_gather(mx.array(values[None]), group=self.group, stream=mx.cpu)
        return list(np.array(gathered))

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.array(mx.distributed.all_sum(mx.array(values), group=self.group, stream=mx.cpu))


def connect() -> Ranks:
    """The processes that mlx.launch started with this one, or this one alone. Raises RunError where they cannot be
    reached, UserError where their devices differ."""
    if RANK not in os.environ:
        return OneRank()
    before = _sockets()
    try:
        group = mx.distributed.init(strict=True, backend="ring")
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RunError(f"rank {os.environ[RANK]} cannot reach the other ranks: {reason}") from None
    if group.size() == 1:
        return OneRank()
    ranks = MLXRanks(group, sorted(_sockets() - before))
    check_alike(ranks, device.device_name())
    return ranks


def _sockets() -> set[int]:
    """The file descriptors of this process that are connected to another one's sockets."""
    found = set()
    for number in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        # No socket, or one whose connection was refused at first: MLX leaves those open, and they always seem ready.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:
            copy.getpeername()
            found.add(number)
    return found


def average(ranks: Ranks, loss: mx.array, grads: dict[str, mx.array]) -> tuple[mx.array, dict[str, mx.array]]:
    """Mean of loss and gradients over the ranks, each of which has an equal share of the batch."""
    if not isinstance(ranks, MLXRanks):
        return loss, grads
    # A list, because MLX's tree functions would read a name with dots as a path.
    values = [loss.reshape(1), *grads.values()]
    mx.eval(values)
    # All on the CPU, also the division: what waits on a GPU for a slower rank is ended after some seconds.
    with mx.stream(mx.cpu):
        averaged = average_gradients(values, group=ranks.group, communication_stream=mx.cpu)
        mx.eval(averaged)
    return averaged[0][0], dict(zip(grads, averaged[1:], strict=True))
