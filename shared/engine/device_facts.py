"""The devices of an engine as plain values: `device_facts()` of each EnginePackage returns a DeviceFacts."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shared.errors import UserError

# Which device an engine takes, where there is a choice: cpu or gpu.
DEVICE_VARIABLE = "BYTETWIN_DEVICE"
CGROUP = Path("/sys/fs/cgroup")

Multiplied = Literal["float32", "tf32"]
# float32 holds this exactly; TF32, with 10 bits after the point, does not.
FINE = 1.0 + 2.0**-12
# Matrices of this size go to the kernels of large products.
PROBE_SIZE = 512


@dataclass(frozen=True)
class DeviceFacts:
    """One entry of `names` per device a rank could use. `free_bytes` and `total_bytes` are of the device that
    has least. `workers` share a batch at the same time. `float32_products` is how this process multiplies float32
    matrices there, as `float32_products()` of the engine's package says. `driver` is empty where there is none.
    `in_flight_bytes` is what a step may hold beyond the estimate because the device frees it late, `activations_factor`
    how much more than the estimate's upper bound a pass may take there. `shares_memory`: the memory is also that of all
    other programs, so that a step that needs too much does not fail but stops the machine.
    """

    kind: Literal["cpu", "gpu"]
    names: tuple[str, ...]
    free_bytes: int
    total_bytes: int
    framework: str
    driver: str = ""
    workers: int = 1
    float32_products: Multiplied = "float32"
    in_flight_bytes: int = 0
    activations_factor: float = 1.0
    shares_memory: bool = False

    @property
    def alike(self) -> bool:
        """Whether all devices have one name."""
        return len(set(self.names)) == 1


def wanted_device() -> Literal["", "cpu", "gpu"]:
    """The device that BYTETWIN_DEVICE asks for; empty leaves it to the engine. Raises UserError."""
    wanted = os.environ.get(DEVICE_VARIABLE, "")
    if wanted not in ("", "cpu", "gpu"):
        raise UserError(f"{DEVICE_VARIABLE} = {wanted!r}: must be cpu or gpu; empty takes a GPU where there is one")
    return wanted  # type: ignore[return-value]


def no_gpu(framework: str) -> UserError:
    """The error where BYTETWIN_DEVICE asks for a GPU in vain."""
    return UserError(
        f"{DEVICE_VARIABLE} = 'gpu': {framework} finds no GPU here; cpu, or no such variable, takes the CPU"
    )


def multiplied(product: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Multiplied:
    """How a device multiplies float32 matrices, found from a product that TF32 would round."""
    fine = np.full((PROBE_SIZE, PROBE_SIZE), FINE, np.float32)
    return "float32" if np.array_equal(product(fine, np.eye(PROBE_SIZE, dtype=np.float32)), fine) else "tf32"


def quickest_s(run: Callable[[], object]) -> float:
    """Seconds of the quickest of six calls, or of as many as begin within a second: bfloat16 products take a hundred
    times as long as others on a CPU that has no instructions for them."""
    end_s, best_s = time.perf_counter() + 1.0, float("inf")
    for _ in range(6):
        begin_s = time.perf_counter()
        if begin_s > end_s:
            break
        run()
        best_s = min(best_s, time.perf_counter() - begin_s)
    return best_s


def host_memory_bytes() -> tuple[int, int]:
    """(available, total) main memory, with the limit of a container where there is one."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    available = total
    if sys.platform == "linux":
        available = _meminfo_bytes("MemAvailable")
        limit = _cgroup_bytes("memory.max")
        if limit is not None and limit < total:
            total, used = limit, (_cgroup_bytes("memory.current") or 0) - _cgroup_cache_bytes()
            available = min(available, limit - max(0, used))
    return available, total


def peak_resident_bytes() -> int:
    """Most main memory this process has used.

    On Linux from VmHWM: the maximum that getrusage gives starts at that of the process which started this one.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _meminfo_bytes(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {field}")


def _cgroup_bytes(name: str) -> int | None:
    """A number of the container's memory controller; None where there is none or no limit."""
    try:
        text = (CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cgroup_cache_bytes() -> int:
    """File cache that counts as used and is released on demand."""
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
