"""The sizes that general compressors reach on a text: the figures shown with a score.

They depend on the text alone and take minutes for a large one, so each text is compressed once: `data.compressed`
keeps the figures with the dataset.
"""

from __future__ import annotations

import lzma
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import brotli
import zstandard

from shared.errors import DataError

# Bytes that a compressor gets at once. They delay a stop by half a second at most.
CHUNK_BYTES = 1 << 18
POLL_S = 0.1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CompressorResult:
    """Size of a compressed text and the same in bits per byte of the text."""

    compressed_bytes: int
    bpb: float

    @classmethod
    def of(cls, compressed_bytes: int, text_bytes: int) -> CompressorResult:
        """The result for a text of `text_bytes` bytes."""
        return cls(compressed_bytes, 8 * compressed_bytes / text_bytes)


# Two functions of one stream: take the next part of the text, end the stream. Both return compressed bytes.
_Stream = tuple[Callable[[bytes], bytes], Callable[[], bytes]]


def _xz(text_bytes: int) -> _Stream:
    stream = lzma.LZMACompressor(preset=9)
    return stream.compress, stream.flush


def _zstd(text_bytes: int) -> _Stream:
    stream = zstandard.ZstdCompressor(level=19).compressobj(size=text_bytes)
    return stream.compress, stream.flush


def _brotli(text_bytes: int) -> _Stream:
    stream = brotli.Compressor(quality=11, lgwin=24)
    return stream.process, stream.finish


_COMPRESSORS: dict[str, Callable[[int], _Stream]] = {"xz -9": _xz, "zstd -19": _zstd, "brotli -11": _brotli}
NAMES = tuple(_COMPRESSORS)


def compressor_results(text: bytes, progress: Progress = lambda _done, _total: None) -> dict[str, CompressorResult]:
    """`xz -9`, `zstd -19` and `brotli -11` on one text, with the settings of the command-line tools.

    They run in parallel, as the libraries release the interpreter. `progress(done_bytes, total_bytes)` follows the
    slowest; what it raises (a stop) ends all of them soon. Raises DataError for an empty text.
    """
    if not text:
        raise DataError("cannot compress an empty text: there must be at least one byte")
    done = dict.fromkeys(_COMPRESSORS, 0)
    stop = threading.Event()

    def compressed_bytes(name: str) -> int:
        feed, end = _COMPRESSORS[name](len(text))
        size = 0
        for start in range(0, len(text), CHUNK_BYTES):
            if stop.is_set():
                return 0
            chunk = text[start : start + CHUNK_BYTES]
            size += len(feed(chunk))
            done[name] += len(chunk)
        return size + len(end())

    with ThreadPoolExecutor(len(_COMPRESSORS)) as pool:
        working: dict[str, Future[int]] = {name: pool.submit(compressed_bytes, name) for name in _COMPRESSORS}
        try:
            progress(0, len(text))
            while wait(working.values(), POLL_S).not_done:
                progress(min(done.values()), len(text))
        except BaseException:
            stop.set()
            raise
    return {name: CompressorResult.of(size.result(), len(text)) for name, size in working.items()}
