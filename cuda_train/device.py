"""The device of the torch engine, and how much memory it used."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable

import numpy as np
import torch

from shared.engine.device_facts import (
    DeviceFacts,
    Multiplied,
    host_memory_bytes,
    multiplied,
    no_gpu,
    peak_resident_bytes,
    quickest_s,
    wanted_device,
)
from shared.engine.ranks import is_launched
from shared.errors import RanksError, UserError
from shared.spec.base import Float32Products

# Which of this machine's GPUs a rank takes; set by torchrun.
LOCAL_RANK_VARIABLE = "LOCAL_RANK"
# The GPUs that CUDA shows to a process, by number or identifier.
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
# How often an event is asked for; the next step is queued meanwhile.
POLL_S = 2e-4


def default_device() -> torch.device:
    """This rank's CUDA GPU, or the CPU. Raises UserError where BYTETWIN_DEVICE asks for a GPU in vain."""
    wanted, found = wanted_device(), torch.cuda.is_available()
    if wanted == "gpu" and not found:
        raise no_gpu("torch")
    if wanted == "cpu" or not found:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get(LOCAL_RANK_VARIABLE, "0")))


def check_local_rank() -> None:
    """Raise UserError if there are GPUs, but none for this rank."""
    local_rank, count = int(os.environ.get(LOCAL_RANK_VARIABLE, "0")), torch.cuda.device_count()
    if count and local_rank >= count:
        raise UserError(f"local rank {local_rank} has no GPU: this machine has {count}, one rank each is allowed")


def gpu_environments() -> list[dict[str, str]]:
    """The environments in which a process sees one each of the GPUs that this process sees. Starts nothing on them."""
    count, visible = torch.cuda.device_count(), os.environ.get(VISIBLE_VARIABLE)
    names = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    return [{VISIBLE_VARIABLE: name.strip()} for name in names]


def in_order(values: np.ndarray) -> np.ndarray:
    """Values in the only layout that torch takes, without a copy where they have it: of one row of a reversed batch
    ascontiguousarray keeps the stride below zero."""
    return np.ascontiguousarray(values).ravel().reshape(values.shape)


def host_symbols(x: np.ndarray) -> np.ndarray:
    """Symbols as int32, `in_order`."""
    return in_order(np.asarray(x, np.int32))


def to_device(values: np.ndarray) -> torch.Tensor:
    """A copy on the device. On a GPU it is queued from pinned memory, and the host does not wait."""
    host = torch.from_numpy(values)
    return host.pin_memory().to(default_device(), non_blocking=True) if on_gpu() else host.clone()


def read_later(values: torch.Tensor, patience_s: float | None = None) -> Callable[[], np.ndarray]:
    """Queue a copy to the host; the function returned waits for that copy alone and gives it.

    It raises RanksError after `patience_s` seconds, where it is given.
    """
    if not on_gpu():
        host = values.numpy().copy()
        return lambda: host
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> np.ndarray:
        wait_for(copied, patience_s)
        return pinned.numpy()

    return read


def wait_for(event: torch.cuda.Event, patience_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
    """Wait until the GPU has come to an event; where a patience is given, no longer than that. In a recorded step torch
    does not watch over its collectives. Raises RanksError."""
    if patience_s is None:
        event.synchronize()
        return
    end_s = clock() + patience_s
    while not event.query():
        if clock() > end_s:
            raise RanksError(f"no step has ended for {patience_s:g} s: a rank, or the network between them, is stuck")
        time.sleep(POLL_S)


def on_gpu() -> bool:
    """Whether torch runs on a GPU here."""
    return default_device().type == "cuda"


def use_float32_products(products: Float32Products) -> None:
    """Multiply float32 matrices as a spec says, until the next call. A CPU always multiplies exactly."""
    torch.set_float32_matmul_precision("high" if products == "fast" and on_gpu() else "highest")


def float32_products() -> Multiplied:
    """How this process multiplies float32 matrices now."""
    chosen = default_device()
    return multiplied(lambda a, b: (torch.from_numpy(a).to(chosen) @ torch.from_numpy(b).to(chosen)).cpu().numpy())


def device_name() -> str:
    """A readable description of the device."""
    if on_gpu():
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"CPU, {os.cpu_count()} threads, {platform.machine()}"


def peak_memory_bytes() -> int:
    """Peak memory in bytes: torch's own count on a GPU, the process's resident memory on a CPU."""
    if on_gpu():
        return int(torch.cuda.max_memory_allocated())
    return peak_resident_bytes()


def device_facts() -> DeviceFacts:
    """The GPUs of this machine that torch may use, or its CPU."""
    framework = f"torch {torch.__version__}"
    if not on_gpu():
        available, total = host_memory_bytes()
        return DeviceFacts("cpu", (device_name(),), available, total, framework)
    devices = range(torch.cuda.device_count())
    # A rank asks its own GPU alone: what asks takes some hundred megabytes there, of which other ranks would be short.
    asked = [default_device().index] if is_launched() else devices
    memory = [torch.cuda.mem_get_info(index) for index in asked]
    return DeviceFacts(
        kind="gpu",
        names=tuple(torch.cuda.get_device_name(index) for index in devices),
        free_bytes=min(free for free, _ in memory),
        total_bytes=min(total for _, total in memory),
        framework=framework,
        driver=f"NVIDIA driver {_driver_version()}, CUDA {torch.version.cuda}",
        float32_products=float32_products(),
    )


def matrix_product_flops_per_s(dtype: str) -> float:
    """Operations per second of a large matrix product in float32 or bfloat16, the best of a few."""
    size, chosen = (8192 if on_gpu() else 1024), default_device()
    a, b = (torch.ones((size, size), dtype=getattr(torch, dtype), device=chosen) for _ in range(2))
    return 2 * size**3 / quickest_s(lambda: (a @ b)[0, 0].item())


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "of unknown version (nvidia-smi does not answer)"
    return ", ".join(sorted(set(done.stdout.split())))
