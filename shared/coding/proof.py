"""The score of an artifact as the size of a file that gives the text back (docs/coding.md)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.stream import SymbolStream
from shared import tolerances
from shared.coding.codec import Codec
from shared.coding.coder import Coded, Progress
from shared.scoring.adaptation import document_starts
from shared.scoring.bits_per_byte import Score


@dataclass(frozen=True)
class Proof:
    """A text coded to `file_bytes`, of which `coded` says what they are, beside its score. `verified`: the file gave
    the same symbols and the same text."""

    text_bytes: int
    file_bytes: int
    coded: Coded
    score: Score
    verified: bool
    compress_s: float
    decompress_s: float

    @property
    def head_bytes(self) -> int:
        """Bytes of the file that are not payload."""
        return self.file_bytes - len(self.coded.payload)

    @property
    def file_bpb(self) -> float:
        """Bits of the file for each byte of text."""
        return 8 * self.file_bytes / self.text_bytes

    @property
    def difference(self) -> float:
        """Bits of the file over those of the score, minus 1."""
        return self.file_bpb / self.score.bpb - 1.0

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the most that the difference may be: PROOF_REL either way and, because a short text feels them,
        a byte that is not full and above the head of the file."""
        byte = 8 / self.text_bytes / self.score.bpb
        return -tolerances.PROOF_REL - byte, tolerances.PROOF_REL + byte * (1 + self.head_bytes)

    @property
    def passed(self) -> bool:
        """Whether the text came back and the file has the bits of the score."""
        return self.verified and self.limits[0] <= self.difference <= self.limits[1]

    def to_document(self) -> dict[str, Any]:
        """All figures."""
        return {
            "text_bytes": self.text_bytes,
            "symbols": self.score.symbols,
            "file_bytes": self.file_bytes,
            "head_bytes": self.head_bytes,
            "payload_bytes": len(self.coded.payload),
            "escapes": self.coded.escapes,
            "escape_bytes": self.coded.escape_bytes,
            "file_bpb": self.file_bpb,
            "score_bpb": self.score.bpb,
            "float64_bpb": self.coded.nats / math.log(2.0) / self.text_bytes,
            "difference_frac": self.difference,
            "limits_frac": list(self.limits),
            "verified": self.verified,
            "passed": self.passed,
            "compress_s": self.compress_s,
            "decompress_s": self.decompress_s,
        }


def prove(codec: Codec, stream: SymbolStream, score: Score, progress: Progress | None = None) -> Proof:
    """Code all symbols of a stream, decode the file and compare; `score` is that of the same text. `progress` counts
    symbols, first those coded and then those decoded."""
    symbols, total = stream.read(0, stream.num_symbols), stream.num_symbols
    starts = tuple(document_starts(stream).tolist())
    begin = time.perf_counter()
    content, coded = codec.compress(symbols, starts, progress and (lambda done, _: progress(done, 2 * total)))
    middle = time.perf_counter()
    again, text = codec.decompress(content, progress and (lambda done, _: progress(total + done, 2 * total)))
    end = time.perf_counter()
    verified = np.array_equal(again, symbols) and text == stream.text_bytes()
    return Proof(len(text), len(content), coded, score, verified, middle - begin, end - middle)
