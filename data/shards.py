"""The binary shard format, read strictly and memory-mapped (docs/techniques.md 2.1).

A shard is a header of 256 little-endian int32, `20240520, version, count, 0...`, then `count` symbols:
little-endian uint16 under version 1 (the community's token shards), uint8 under version 2 (raw bytes).
Some writers put a vocabulary size into the fourth header field; it and the rest are ignored.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import DataError

MAGIC = 20240520
HEADER_BYTES = 1024
TOKENS_VERSION = 1
BYTES_VERSION = 2
MAX_SHARD_SYMBOLS = 100_000_000

_DTYPES: dict[int, np.dtype[Any]] = {TOKENS_VERSION: np.dtype("<u2"), BYTES_VERSION: np.dtype("u1")}


@dataclass(frozen=True)
class ShardHeader:
    """The header of a shard: version and number of symbols."""

    version: int
    num_symbols: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one stored symbol."""
        return _DTYPES[self.version]

    def encoded(self) -> bytes:
        """The 1024 header bytes."""
        fields = np.zeros(HEADER_BYTES // 4, dtype="<i4")
        fields[:3] = MAGIC, self.version, self.num_symbols
        return fields.tobytes()


def read_header(path: Path) -> ShardHeader:
    """The checked header of a shard file. Raises DataError naming the file, what is wrong and what is allowed."""
    try:
        with require_regular(path).open("rb") as file:
            head = file.read(HEADER_BYTES)
            file_bytes = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise DataError(f"{path}: the shard is missing") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the shard ({error.strerror or error})") from None
    if len(head) < HEADER_BYTES:
        raise DataError(f"{path}: only {len(head)} bytes; a shard is a header of {HEADER_BYTES} bytes and symbols")
    magic, version, count = (int(field) for field in np.frombuffer(head, dtype="<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"{path}: magic number {magic}, not {MAGIC}: not a shard file")
    if version not in _DTYPES:
        raise DataError(f"{path}: shard version {version}; known are 1 (uint16 tokens) and 2 (bytes)")
    if count <= 0:
        raise DataError(f"{path}: the header counts {count} symbols; a shard has at least one")
    header = ShardHeader(version, count)
    expected_bytes = HEADER_BYTES + count * header.dtype.itemsize
    if file_bytes != expected_bytes:
        raise DataError(
            f"{path}: the file has {file_bytes} bytes but its header counts {count} symbols, "
            f"which makes {expected_bytes}: truncated or damaged"
        )
    return header


def require_regular(path: Path) -> Path:
    """The path. Raises DataError if it is a pipe, a socket or a device: to open one may take forever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: a pipe, socket or device; it must be a regular file")
    return path


def read_shard(path: Path) -> npt.NDArray[Any]:
    """Symbols of a shard as a read-only memory map: uint16 or uint8 `[count]`. Raises DataError."""
    header = read_header(path)
    return np.memmap(path, dtype=header.dtype, mode="r", offset=HEADER_BYTES, shape=(header.num_symbols,))


class ShardWriter:
    """Writes a shard piece by piece. `close` completes the header, so an interrupted file is not a shard.

    `num_symbols` is the count so far.
    """

    def __init__(self, path: Path, version: int = BYTES_VERSION) -> None:
        self.num_symbols = 0
        self._version = version
        self._file = path.open("xb")
        self._file.write(bytes(HEADER_BYTES))

    def write(self, data: bytes | memoryview) -> None:
        """Append symbols given as their little-endian bytes. Raises OSError when the disk is full."""
        self._file.write(data)
        self.num_symbols += len(data) // _DTYPES[self._version].itemsize

    def close(self) -> None:
        """Complete the header and force the file to the disk."""
        self._file.seek(0)
        self._file.write(ShardHeader(self._version, self.num_symbols).encoded())
        sync_and_close(self._file)

    def abandon(self) -> None:
        """Close the file without its header, so that it is not a shard."""
        with contextlib.suppress(OSError):
            self._file.close()


def sync_and_close(file: Any) -> None:
    """Flush a file object to the disk and close it, also when the disk is full."""
    try:
        file.flush()
        os.fsync(file.fileno())
    finally:
        file.close()
