"""A text to a coded file and back, with one artifact (docs/coding.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.stream import Int32
from shared import tolerances
from shared.coding.coder import Coded, Progress, decode, encode
from shared.coding.container import FIXED_BYTES, NAME_BYTES, CodedFile, pack, parse, text_check
from shared.coding.intervals import MOST_TOLERANCE, cumulative, interval_bits
from shared.coding.streams import Streams, streams_for
from shared.coding.text import bytes_of
from shared.engine.package import create_float64_scorer
from shared.engine.protocol import Scorer
from shared.errors import DataError, UserError
from shared.scoring.windows import check_window
from shared.spec import Spec

# Half a step of float64.
HALF_STEP = 2.0**-53


@dataclass(frozen=True)
class Codec:
    """A model as a coder: its spec and float32 weights, the SHA-256 of its artifact, and the engine that computes the
    distributions in float64, or "numpy"."""

    spec: Spec
    weights: Mapping[str, np.ndarray]
    artifact_sha256: str
    engine: str

    def compress(self, symbols: Int32, progress: Progress | None = None) -> tuple[bytes, Coded]:
        """(the file, what it is made of) of the symbols [T] of a text."""
        streams = self._streams(len(symbols), streams_for(len(symbols)))
        scorer = self._scorer(self.weights)
        tolerance = self._tolerance(scorer, symbols) if len(symbols) else 0.0
        coded = encode(scorer, symbols, streams, tolerance, progress)
        file = CodedFile(self._name, b"", len(symbols), streams.count, coded.payload)
        check = text_check(self.artifact_sha256, file.head, file.payload, bytes_of(self.spec.vocabulary, symbols))
        return pack(CodedFile(file.artifact, check, file.num_symbols, file.streams, file.payload)), coded

    def decompress(self, content: bytes, progress: Progress | None = None) -> tuple[Int32, bytes]:
        """(symbols, text) of a file. Raises DataError for one that is damaged, or was coded with another artifact, or
        on a machine with which this one does not agree."""
        vocabulary = self.spec.vocabulary
        file = parse(content, vocabulary.size)
        if file.artifact != self._name:
            raise DataError(
                f"coded with the artifact whose SHA-256 begins with {file.artifact.hex()}, this one is "
                f"{self.artifact_sha256[: 2 * NAME_BYTES]}"
            )
        streams = self._streams(file.num_symbols, file.streams)
        symbols = decode(self._scorer(self.weights), file.payload, streams, progress)
        wrong = DataError("its text does not match its check: the file is damaged, or this machine computes otherwise")
        try:
            text = bytes_of(vocabulary, symbols)
        except DataError:
            raise wrong from None
        if text_check(self.artifact_sha256, file.head, file.payload, text) != file.check:
            raise wrong
        return symbols, text

    @property
    def _name(self) -> bytes:
        """What a file calls the artifact."""
        return bytes.fromhex(self.artifact_sha256)[:NAME_BYTES]

    def _scorer(self, weights: Mapping[str, np.ndarray]) -> Scorer:
        return create_float64_scorer(self.engine, self.spec, weights)

    def _streams(self, num_symbols: int, count: int) -> Streams:
        seq_len = self.spec.model.seq_len
        check_window(seq_len, num_symbols)
        return Streams(num_symbols, count, seq_len, self.spec.evaluation.stride_symbols)

    def _tolerance(self, scorer: Scorer, symbols: Int32) -> float:
        """What cumulative probabilities may be off, from their change when the weights are rounded otherwise, on the
        first window of a text. Raises UserError for a model on which no two machines agree."""
        x = np.zeros((1, self.spec.model.seq_len), np.int32)
        first = symbols[: x.shape[1]]
        x[0, : len(first)] = first
        rng = np.random.default_rng(0)
        moved = {
            name: np.asarray(value, np.float64) * (1.0 + 2 * HALF_STEP * rng.choice([-1.0, 1.0], np.shape(value)))
            for name, value in self.weights.items()
        }
        before, after = (cumulative(each.log_probs(x)) for each in (scorer, self._scorer(moved)))
        change = float(np.abs(after - before).max())
        tolerance = max(tolerances.CODING_CUMULATIVE_ABS, tolerances.CODING_OVER_ROUNDING * change)
        if tolerance * (1 << interval_bits(self.spec.vocabulary.size)) > MOST_TOLERANCE:
            raise UserError(f"this model multiplies rounding to {change:.1e}: its files could not be read elsewhere")
        return tolerance


def side_text(file_bytes: int, coded: Coded) -> str:
    """What a file is made of, in words."""
    head = file_bytes - len(coded.payload)
    return (
        f"head {head} bytes ({FIXED_BYTES} of them fixed), payload {len(coded.payload):,}, "
        f"of which {coded.escape_bytes:.1f} bytes are {coded.escapes} escapes"
    )
