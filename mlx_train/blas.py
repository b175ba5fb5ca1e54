"""A fast BLAS for MLX on Linux.

The mlx-cpu wheel brings the reference BLAS: 3 GFLOP/s on two cores where OpenBLAS reaches 280. The
wheel `ngsolve-openblas` carries an OpenBLAS with plain symbol names, so it can stand in for the
reference one. On a Mac nothing is loaded, and nothing needs to be.

The dynamic loader takes a library that is already loaded under the wanted name (its SONAME) instead
of searching for a file. So OpenBLAS is loaded from memory under the name of the reference BLAS, and MLX
links to it. Nothing is made global: the simpler way, RTLD_GLOBAL, also replaces half of torch's own
BLAS in the same process, and torch crashes. OpenBLAS in turn needs libgfortran.so.5, which a bare Linux
lacks; the copy inside the mlx-cpu wheel is loaded under that name.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import struct
import sys
import warnings
from fnmatch import fnmatch
from pathlib import Path

PT_LOAD, PT_DYNAMIC = 1, 2
DT_STRTAB, DT_SONAME = 5, 14
GFORTRAN_SONAME = "libgfortran.so.5"
# A function of OpenBLAS that nothing calls: its name in the string table is room for a longer library name.
SPARE_NAME = b"openblas_set_threads_callback_function"

_library: ctypes.CDLL | None = None


def is_cpu_build() -> bool:
    """Whether the MLX installed here is the one for Linux without a GPU."""
    return bool(_files_of("mlx-cpu", "libmlx.so"))


def load_openblas() -> bool:
    """Give MLX an OpenBLAS, once. Returns whether it has one: not where it is not needed or not installed.

    Must run before the first `import mlx.core` of the process; `import mlx_train` does that.
    """
    global _library
    if _library is not None:
        return True
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    openblas = _files_of("ngsolve-openblas", "libopenblas*.so*")
    reference = _files_of("mlx-cpu", "libblas-*.so*")
    gfortran = _files_of("mlx-cpu", "libgfortran-*.so*")
    if not (openblas and reference and gfortran):
        return False
    if "mlx.core" in sys.modules:
        warnings.warn("mlx.core was imported before mlx_train: matrix products stay 90 times slower", stacklevel=2)
        return False
    try:
        for quadmath in _files_of("mlx-cpu", "libquadmath-*.so*"):
            ctypes.CDLL(str(quadmath))
        _load_image(_shorten_name(gfortran[0].read_bytes(), gfortran[0].name, GFORTRAN_SONAME))
        _library = _load_image(_set_soname(openblas[0].read_bytes(), reference[0].name))
    except (OSError, ValueError, StopIteration) as error:
        warnings.warn(f"no OpenBLAS for MLX, matrix products stay 90 times slower: {error!r}", stacklevel=2)
    return _library is not None


def set_blas_threads(count: int) -> None:
    """Threads one matrix product may use. Does nothing where no OpenBLAS was loaded."""
    if _library is not None:
        _library.openblas_set_num_threads(count)


def _shorten_name(elf: bytes, name: str, new_name: str) -> bytes:
    """A shared library in which every whole string `name` is the shorter `new_name`."""
    old = name.encode() + b"\0"
    return elf.replace(old, new_name.encode().ljust(len(old), b"\0"))


def _set_soname(elf: bytes, name: str) -> bytes:
    """A shared library with another SONAME, which may be longer than its own.

    The SONAME entry of the dynamic section holds an offset into the string table: the new name
    overwrites a spare routine name there, and the entry is pointed at it.
    """
    image = bytearray(elf)
    segments = _program_headers(image)
    _, start, _, size = next(segment for segment in segments if segment[0] == PT_DYNAMIC)
    entries = {offset: struct.unpack_from("<qQ", image, offset) for offset in range(start, start + size, 16)}
    address = next(value for tag, value in entries.values() if tag == DT_STRTAB)
    strings = next(
        offset + address - virtual
        for kind, offset, virtual, size in segments
        if kind == PT_LOAD and virtual <= address < virtual + size
    )
    position = image.index(b"\0" + SPARE_NAME + b"\0", strings) + 1
    image[position : position + len(SPARE_NAME)] = name.encode().ljust(len(SPARE_NAME), b"\0")
    entry = next(offset for offset, (tag, _) in entries.items() if tag == DT_SONAME)
    struct.pack_into("<qQ", image, entry, DT_SONAME, position - strings)
    return bytes(image)


def _program_headers(image: bytearray) -> list[tuple[int, int, int, int]]:
    """(type, file offset, virtual address, file size) of every ELF64 segment."""
    (table,) = struct.unpack_from("<Q", image, 32)
    entry_size, count = struct.unpack_from("<HH", image, 54)
    headers = []
    for index in range(count):
        kind, _, offset, virtual, _, size = struct.unpack_from("<IIQQQQ", image, table + index * entry_size)
        headers.append((kind, offset, virtual, size))
    return headers


def _load_image(image: bytes) -> ctypes.CDLL:
    """Load a shared library that exists only in memory.

    The descriptor stays open for the life of the process: the loader knows a library by its path, and
    a reused descriptor number would return the earlier library.
    """
    descriptor = os.memfd_create("bytetwin")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(image)
    return ctypes.CDLL(f"/proc/self/fd/{descriptor}")


def _files_of(distribution: str, pattern: str) -> list[Path]:
    """Paths of the installed distribution's files whose name matches; empty where it is not installed."""
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return sorted(Path(str(file.locate())) for file in files if fnmatch(file.name, pattern))
