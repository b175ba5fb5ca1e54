"""The device of the MLX engine: streams, memory, compiler."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_train.blas import set_blas_threads
from mlx_train.float32_products import choose, settle
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
from shared.spec.base import Float32Products

# mallopt parameters of glibc.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8

# Metal frees a buffer when its command buffer is done. Some 10 of these are in flight, each of at most 50 MB before it
# is committed (MAX_ACTIVE_TASKS in mlx/transforms.cpp, max_mb_per_buffer in mlx/backend/metal/device.cpp).
IN_FLIGHT_BYTES = 11 * 50 * 2**20
# The estimate was fitted with the operations of a CPU. With those of a GPU compiled passes took up to 1.15 times its
# upper bound (records/2026-11-26-mlx-launches.md).
ACTIVATIONS_FACTOR = 1.25
# Uncompiled passes need up to so many times the bytes of compiled ones (shared.engine.registry).
UNCOMPILED_FACTOR = 1.8
# Of a Mac's memory, what MLX keeps of freed buffers instead of giving it back.
CACHE_FRAC = 1 / 8
# Where MLX keeps the kernels that it compiles for an NVIDIA GPU.
KERNELS_VARIABLE = "MLX_PTX_CACHE_DIR"


def on_gpu() -> bool:
    """Whether MLX runs on a GPU here, through Metal or CUDA. Raises UserError where BYTETWIN_DEVICE asks in vain."""
    wanted = wanted_device()
    # A build for GPUs takes one for granted, also where there is none (a virtual Mac, a node without its driver).
    found = mx.is_available(mx.Device(mx.gpu))
    if wanted == "gpu" and not found:
        raise no_gpu("MLX")
    if wanted == "cpu" or not found:
        mx.set_default_device(mx.cpu)
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def on_metal() -> bool:
    """Whether MLX runs on the GPU of a Mac."""
    return on_gpu() and mx.metal.is_available()


def compiles() -> bool:
    """Whether functions are compiled where the spec says so: not on a CPU without g++, which MLX calls there, and not
    through CUDA.

    There MLX compiles each fused kernel in 42 forms, one kernel after the other, before it first runs
    (mlx/backend/cuda/compiled.cpp): on an H200 `smoke` had not trained a step after four minutes.
    """
    return on_metal() if on_gpu() else shutil.which("g++") is not None


@lru_cache(maxsize=1)
def compute_streams() -> tuple[mx.Stream, ...]:
    """The streams that work side by side: the GPU's one, or one for each available CPU core.

    On a CPU an MLX operation is one thread, apart from matrix products. So each stream gets its own work
    and single-threaded matrix products. They run at the same time if one `mx.eval` is given all of it.
    """
    if on_gpu():
        return (mx.default_stream(mx.default_device()),)
    _keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    set_blas_threads(1)
    return tuple(mx.new_stream(mx.cpu) for _ in range(cores))


def float32_products() -> Multiplied:
    """How this process multiplies float32 matrices from now on."""
    settle()
    return multiplied(lambda a, b: np.array(mx.array(a) @ mx.array(b)))


def device_name() -> str:
    """A readable description of the device."""
    if on_gpu():
        return f"{mx.device_info().get('device_name', 'GPU')} ({gpu_backend()})"
    compiled = "" if compiles() else ", no g++: MLX runs uncompiled and slower"
    return f"CPU, {len(compute_streams())} threads, {platform.machine()}{compiled}"


def gpu_backend() -> str:
    """The backend through which MLX reaches its GPU."""
    return "Metal" if mx.metal.is_available() else "CUDA"


def use_float32_products(products: Float32Products) -> None:
    """Multiply float32 matrices as a spec says, for the rest of the process. Raises RunError where it is too late."""
    choose(products, on_gpu())


def peak_memory_bytes() -> int:
    """Peak memory in bytes: MLX's own count on a GPU, the process's resident memory on a CPU."""
    if on_gpu():
        return int(mx.get_peak_memory())
    return peak_resident_bytes()


def device_facts() -> DeviceFacts:
    """The GPU, or the CPU."""
    framework = f"mlx {mx.__version__}"
    if not on_gpu():
        available, total = host_memory_bytes()
        return DeviceFacts("cpu", (device_name(),), available, total, framework, workers=len(compute_streams()))
    free, total = _gpu_memory_bytes()
    return DeviceFacts(
        kind="gpu",
        names=(device_name(),),
        free_bytes=free,
        total_bytes=total,
        framework=framework,
        driver=gpu_backend(),
        float32_products=float32_products(),
        activations_factor=ACTIVATIONS_FACTOR * (1.0 if compiles() else UNCOMPILED_FACTOR),
        in_flight_bytes=IN_FLIGHT_BYTES if on_metal() else 0,
        shares_memory=on_metal(),
    )


def limit_memory() -> dict[str, int]:
    """Limit MLX to what Metal recommends; returns what was set, in bytes by name. On other devices nothing.

    A Mac's memory is that of its GPU and of all programs. By itself MLX takes up to 1.5 times what Metal recommends,
    which swaps, and keeps what is freed until it has 0.95 times that (mlx/backend/metal/allocator.cpp).
    """
    if not on_metal():
        return {}
    info = mx.device_info()
    recommended = int(info["max_recommended_working_set_size"])
    limits = {"memory": recommended, "cache": int(CACHE_FRAC * int(info["memory_size"])), "wired": recommended}
    # Above its limit MLX waits for what is in flight before it allocates more.
    mx.set_memory_limit(limits["memory"])
    mx.set_cache_limit(limits["cache"])
    # What is wired is never paged out (from macOS 15 on).
    mx.set_wired_limit(limits["wired"])
    return limits


def keep_compiled(folder: Path) -> None:
    """Keep the kernels that MLX compiles for an NVIDIA GPU in a folder; where a user has named another, that one stays.

    Those of scattering and gathering, because no function is compiled there (`compiles`). MLX keeps them by a name that
    leaves out for which GPU they are.
    """
    if not on_gpu() or on_metal() or KERNELS_VARIABLE in os.environ:
        return
    kernels = (folder / "mlx" / f"{mx.__version__}-{mx.device_info()['architecture']}").absolute()
    os.environ[KERNELS_VARIABLE] = str(kernels)
    # MLX writes .ptx, .txt, .cu in this order and reads what a process that was killed meanwhile has left.
    for kernel in kernels.rglob("*.ptx"):
        source = kernel.with_suffix(".cu")
        if not source.is_file() or not source.stat().st_size:
            kernel.unlink()


def matrix_product_flops_per_s(dtype: str) -> float:
    """Operations per second of large matrix products in float32 or bfloat16, one per stream, the best of a few."""
    size, streams = (4096 if on_gpu() else 1024), compute_streams()
    a, b = (mx.ones((size, size), dtype=getattr(mx, dtype)) for _ in range(2))
    mx.eval(a, b)
    best_s = quickest_s(lambda: mx.eval([mx.matmul(a, b, stream=stream) for stream in streams]))
    return len(streams) * 2 * size**3 / best_s


def _gpu_memory_bytes() -> tuple[int, int]:
    """(free, total). A Mac's GPU has a share of main memory; what other programs hold of it is not known."""
    info = mx.device_info()
    if gpu_backend() == "CUDA":
        return int(info["free_memory"]), int(info["total_memory"])
    total = int(info["max_recommended_working_set_size"])
    return total - int(mx.get_active_memory()), total


def _keep_freed_memory() -> None:
    """Tell glibc to reuse large freed blocks. By default each is mapped, cleared and unmapped again by the
    kernel, a quarter of a training step."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in (
            (M_MMAP_MAX, 0),
            (M_TRIM_THRESHOLD, 2**31 - 1),
            (M_TOP_PAD, 1 << 26),
            (M_ARENA_MAX, 1),
        ):
            libc.mallopt(parameter, value)
