"""Several torch processes as one run: `torchrun --nproc_per_node N -m cuda_train SPEC`.

A step exchanges all gradients at once, after its backward pass: those of a model that fits the budget take well under a
millisecond between the GPUs of one machine, and on GPUs the exchange is part of the recorded step. Messages from rank 0
travel over gloo on the host, so they never wait for the GPU.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from cuda_train import device, step_graph
from shared.engine.leader import check_alike
from shared.engine.ranks import MAX_RANKS, OneRank, Ranks
from shared.engine.registry import ENGINES
from shared.errors import RanksError, RunError, UserError, one_line
from shared.ops import Ops
from shared.optim import orthogonalise
from shared.spec.optimizer import NSCoefficients

# The variables in which torchrun gives a process its rank, and the number of ranks.
RANK, WORLD_SIZE = ENGINES["torch"].rank_variable, "WORLD_SIZE"

# A collective of a step is quick. While rank 0 packs, the others wait for its next message.
STEP_TIMEOUT = timedelta(minutes=5)
CONTROL_TIMEOUT = timedelta(hours=2)
# How long the end of a process may take.
GOODBYE_S = 10.0

# The name since torch 2.12, and the older one.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

LOST = re.compile(r"connection|closed|reset by peer|timed out|timeout|gloo|nccl|socket", re.IGNORECASE)


class TorchRanks:
    """shared.engine.ranks.Ranks over torch.distributed's default process group, and a gloo group for messages."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    def broadcast(self, content: bytes) -> bytes:
        with contact(self.rank):
            length = torch.tensor([len(content)])
            dist.broadcast(length, 0, group=self.control)
            buffer = torch.empty(int(length), dtype=torch.uint8)
            if self.rank == 0:
                buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(buffer, 0, group=self.control)
        return content if self.rank == 0 else buffer.numpy().tobytes()

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        mine = torch.from_numpy(device.in_order(values))
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        with contact(self.rank):
            dist.all_gather(parts, mine, group=self.control)
        return [part.numpy() for part in parts]


@contextlib.contextmanager
def contact(rank: int) -> Iterator[None]:
    """Turn the errors of a collective whose other end is gone into a RanksError, with what torch says of it."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and LOST.search(str(error)):
            reason = one_line(str(error).strip().splitlines()[0])
            raise RanksError(f"rank {rank} lost contact with another rank: {reason}") from None
        raise


def connect() -> Ranks:
    """The processes that torchrun started with this one, or this one alone.

    Raises UserError where they are too many, cannot reach each other, or run on different devices.
    """
    world_size = int(os.environ.get(WORLD_SIZE, "1"))
    if world_size == 1 or RANK not in os.environ:
        return OneRank()
    if world_size > MAX_RANKS:
        raise UserError(f"{world_size} ranks: at most {MAX_RANKS} are allowed")
    device.check_local_rank()
    if not dist.is_initialized():
        _initialise()
    ranks = TorchRanks()
    check_alike(ranks, device.device_name())
    return ranks


def disconnect() -> None:
    """Leave the process group, so that the process can end quietly; returns after GOODBYE_S even if that cannot be."""
    if dist.is_initialized():
        # NCCL waits for graphs that hold its collectives, for as long as they exist.
        step_graph.forget_all()
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(GOODBYE_S)


def shared_orthogonalise(
    ops: Ops, update: torch.Tensor, steps: int, dtype: str, coefficients: NSCoefficients = "quintic"
) -> torch.Tensor:
    """`shared.optim.orthogonalise` of a stack [K, R, C], each rank doing ceil(K / world size) of its matrices.

    The stack is padded with zero matrices, which stay zero. All ranks end with the same bits.
    """
    count, world_size = len(update), dist.get_world_size()
    per_rank = -(-count // world_size)
    padded = F.pad(update, (0, 0, 0, 0, 0, per_rank * world_size - count))
    first = per_rank * dist.get_rank()
    mine = orthogonalise(ops, padded[first : first + per_rank], steps, dtype, coefficients).contiguous()
    gathered = torch.empty_like(padded)
    all_gather_single(gathered, mine)
    return gathered[:count]


def means_over_ranks(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The means over the ranks of arrays of one dtype, in one exchange. All ranks end with the same bits."""
    joined = torch.cat([value.reshape(-1) for value in values])
    dist.all_reduce(joined)
    parts = (joined / dist.get_world_size()).split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def _initialise() -> None:
    """Join the process group, over NCCL with GPUs and gloo without. Raises RunError."""
    chosen = device.default_device()
    try:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            dist.init_process_group("nccl", timeout=STEP_TIMEOUT, device_id=chosen)
        else:
            dist.init_process_group("gloo", timeout=STEP_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"rank {os.environ[RANK]} cannot join the others at {where}: {reason}") from None
