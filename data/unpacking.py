"""The contents of a file, as it is or compressed by gzip, xz or zstd, in pieces that are small whatever it says."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from shared.errors import DataError

COMPRESSIONS = (".gz", ".xz", ".zst")
PIECE_BYTES = 1 << 20
# 4 bytes of zstd can stand for 128 KiB, and what one call unpacks cannot be limited otherwise.
ZSTD_INPUT_BYTES = 1 << 9
# The longest header of a frame.
ZSTD_HEAD_BYTES = 18
# zstd and xz keep this much of the text while they unpack; the tools' own defaults need no more.
MAX_WINDOW_BYTES = 1 << 27
# What a file may unpack to: this many times its size, and as much besides.
MAX_RATIO, FREE_BYTES = 500, 1 << 24

Advance = Callable[[int], None]

_UNPACK = {".xz": "xz -dc", ".zst": "zstd -dc --long=31"}
_PADDING = "zero bytes behind a stream that are not a multiple of 4"


class _WindowError(Exception):
    """A compressed file that can only be unpacked with too much memory."""


def unpacked(path: Path, advance: Advance) -> Iterator[bytes]:
    """The decompressed contents in pieces of at most PIECE_BYTES, none empty.

    Raises DataError for a file that is damaged, truncated or cannot be read.
    """
    unpacked_bytes, packing = 0, path.suffix.lower()
    try:
        with path.open("rb") as raw:
            match packing:
                case ".gz":
                    pieces = _unpacked_gzip(raw, advance)
                case ".xz":
                    pieces = _unpacked_xz(raw, advance)
                case ".zst":
                    pieces = _unpacked_zstd(raw, advance)
                case _:
                    pieces = _read_all(raw, raw, advance)
            if packing in COMPRESSIONS and not os.fstat(raw.fileno()).st_size:
                raise EOFError("it has no bytes")
            for piece in pieces:
                unpacked_bytes += len(piece)
                check_ratio(path, unpacked_bytes, raw.tell())
                for start in range(0, len(piece), PIECE_BYTES):
                    yield piece[start : start + PIECE_BYTES]
    except _WindowError as error:
        raise DataError(
            f"{path}: {error} to unpack; allowed are {MAX_WINDOW_BYTES:,}: compress it again, "
            f"`{_UNPACK[packing]} FILE | {_UNPACK[packing].split()[0]} > NEW`"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged {packing[1:]} file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None


def check_ratio(path: Path, unpacked_bytes: int, packed_bytes: int) -> None:
    """Raise DataError for a file that unpacks to far more than a text does."""
    if unpacked_bytes > MAX_RATIO * packed_bytes + FREE_BYTES:
        raise DataError(
            f"{path}: {packed_bytes:,} bytes of it unpack to {unpacked_bytes:,} or more; allowed are {MAX_RATIO:,} "
            f"times as many and {FREE_BYTES:,}"
        )


def _read_all(file: Any, raw: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """Pieces of `file`; progress is the position in the file below it."""
    position = 0
    while piece := file.read(PIECE_BYTES):
        advance(raw.tell() - position)
        position = raw.tell()
        yield piece


def _unpacked_gzip(raw: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """Pieces of a gzip file of any number of members."""
    with gzip.open(raw) as file:
        yield from _read_all(file, raw, advance)


def _unpacked_xz(raw: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """Pieces of an xz file of any number of streams, with padding of 4 n zero bytes behind any of them.

    `lzma.open` takes a damaged stream behind a good one for padding.
    """
    stream, num_streams, padding = None, 0, 0
    while data := raw.read(PIECE_BYTES):
        advance(len(data))
        while data:
            if stream is None:
                begin = data.lstrip(b"\0") if num_streams else data
                padding += len(data) - len(begin)
                if not begin:
                    break
                if padding % 4:
                    raise EOFError(_PADDING)
                stream = lzma.LZMADecompressor(memlimit=MAX_WINDOW_BYTES)
                data, num_streams, padding = begin, num_streams + 1, 0
            while data or not (stream.eof or stream.needs_input):
                try:
                    piece = stream.decompress(data, PIECE_BYTES)
                except lzma.LZMAError as error:
                    if "limit" in str(error):
                        raise _WindowError("it needs too much memory") from None
                    raise
                if piece:
                    yield piece
                data = b""
            if stream.eof:
                data, stream = stream.unused_data, None
    if stream is not None:
        raise EOFError("it ends within a stream")
    if padding % 4:
        raise EOFError(_PADDING)


def _unpacked_zstd(raw: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """Pieces of a zstd file of any number of frames. Small inputs bound what one call can unpack."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame, head = None, b""
    while data := raw.read(ZSTD_INPUT_BYTES):
        advance(len(data))
        while data:
            if frame is None:
                frame, head = decompressor.decompressobj(), b""
            head = (head + data)[:ZSTD_HEAD_BYTES] if len(head) < ZSTD_HEAD_BYTES else head
            try:
                piece = frame.decompress(data)
            except zstandard.ZstdError as error:
                if "too much memory" in str(error):
                    window_bytes = zstandard.get_frame_parameters(head).window_size
                    raise _WindowError(f"it needs a window of {window_bytes:,} bytes") from None
                raise
            if piece:
                yield piece
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("it ends within a frame")
