"""What general compressors make of a text: the figures that stand beside a score."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import dataclass

import brotli
import zstandard

from shared.errors import DataError


@dataclass(frozen=True)
class CompressorResult:
    """Size of a compressed text and the same in bits per byte of the text."""

    compressed_bytes: int
    bpb: float


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz -9": lambda text: lzma.compress(text, preset=9),
    "zstd -19": lambda text: zstandard.ZstdCompressor(level=19).compress(text),
    "brotli -11": lambda text: brotli.compress(text, quality=11, lgwin=24),
}


def compressor_results(text: bytes) -> dict[str, CompressorResult]:
    """`xz -9`, `zstd -19` and `brotli -11` on one text, with the settings of the command-line tools.

    Raises DataError for an empty text.
    """
    if not text:
        raise DataError("cannot compress an empty text: there must be at least one byte")
    results = {}
    for name, compress in _COMPRESSORS.items():
        size = len(compress(text))
        results[name] = CompressorResult(size, 8 * size / len(text))
    return results
