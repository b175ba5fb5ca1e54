"""A text to a coded file and back, with one artifact (docs/coding.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data.stream import Int32
from shared import tolerances
from shared.coding.adapted import AnyLearner, decode_adapted, encode_adapted, fingerprint
from shared.coding.coder import Coded, Progress, decode, encode
from shared.coding.container import (
    COMMON,
    COMMON_SETTINGS,
    MAX_LEARNT_SYMBOLS,
    NAME_BYTES,
    OWN,
    TOLD,
    CodedFile,
    Learning,
    parse,
)
from shared.coding.intervals import MOST_TOLERANCE, cumulative, interval_bits
from shared.coding.streams import Streams, streams_for
from shared.coding.text import bytes_of
from shared.engine.package import available_engines, create_float64_scorer, create_scorer
from shared.engine.protocol import Scorer, Weights
from shared.errors import DataError, UserError
from shared.scoring.adaptation import Plan, adapter_of, make_plan
from shared.scoring.windows import check_window
from shared.spec import Spec
from shared.spec.adaptation import AdaptationSpec

# Half a step of float64.
HALF_STEP = 2.0**-53


@dataclass(frozen=True)
class Codec:
    """A model as a coder: its spec and float32 weights, and the SHA-256 of its artifact.

    `engine` computes distributions and, with adaptation, learns; None takes what is fastest and installed, and "numpy"
    learns nothing. `adaptation` replaces that of the spec where something is compressed; a file knows its own.
    """

    spec: Spec
    weights: Weights
    artifact_sha256: str
    engine: str | None = None
    adaptation: AdaptationSpec | None = None

    def compress(
        self, symbols: Int32, starts: tuple[int, ...] = (0,), progress: Progress | None = None
    ) -> tuple[bytes, Coded]:
        """(the file, what it is made of) of the symbols [T] of a text whose documents begin at `starts`. Raises
        UserError for settings or a model with which nothing can be coded."""
        content = bytes_of(self.spec.vocabulary, symbols)
        settings = self.adaptation or self.spec.evaluation.adaptation
        check_window(self.spec.model.seq_len, len(symbols))
        tolerance = self._tolerance(symbols) if len(symbols) else 0.0
        if settings.is_on and len(symbols):
            learning, coded = self._learn(settings, symbols, starts, tolerance, progress)
            file = CodedFile(self._name, len(symbols), 1, coded.payload, learning)
        else:
            streams = self._streams(len(symbols), streams_for(len(symbols)))
            coded = encode(self._writer(self.spec, self.weights), symbols, streams, tolerance, progress)
            file = CodedFile(self._name, len(symbols), streams.count, coded.payload)
        return replace(file, check=file.text_check(self.artifact_sha256, content)).pack(), coded

    def decompress(self, content: bytes, progress: Progress | None = None) -> tuple[Int32, bytes]:
        """(symbols, text) of a file. Raises DataError for one that is damaged, or was coded with another artifact, or
        on a machine with which this one does not agree."""
        file = parse(content, self.spec.vocabulary.size)
        if file.artifact != self._name:
            raise DataError(
                f"coded with the artifact whose SHA-256 begins with {file.artifact.hex()}, this one is "
                f"{self.artifact_sha256[: 2 * NAME_BYTES]}"
            )
        check_window(self.spec.model.seq_len, file.num_symbols)
        if file.learning is None:
            streams = self._streams(file.num_symbols, file.streams)
            symbols = decode(self._reader(self.spec, self.weights), file.payload, streams, progress)
        else:
            symbols = self._relearn(file, file.learning, progress)
        wrong = DataError("its text does not match its check: the file is damaged, or this machine computes otherwise")
        try:
            text = bytes_of(self.spec.vocabulary, symbols)
        except DataError:
            raise wrong from None
        if file.text_check(self.artifact_sha256, text) != file.check:
            raise wrong
        return symbols, text

    def learner_name(self) -> str:
        """The engine that learns, where one does."""
        return self.engine or next(iter(available_engines()), "numpy")

    def adapted_spec(self, settings: AdaptationSpec | None = None) -> Spec:
        """The spec with the adaptation of a file, or with that of what is compressed."""
        settings = settings or self.adaptation
        if settings is None:
            return self.spec
        evaluation = self.spec.evaluation.model_copy(update={"adaptation": settings})
        return self.spec.model_copy(update={"evaluation": evaluation})

    @property
    def _name(self) -> bytes:
        """What a file calls the artifact."""
        return bytes.fromhex(self.artifact_sha256)[:NAME_BYTES]

    def _learn(
        self,
        settings: AdaptationSpec,
        symbols: Int32,
        starts: tuple[int, ...],
        tolerance: float,
        progress: Progress | None,
    ) -> tuple[Learning, Coded]:
        """(what the file says of the adaptation, what was coded) with adaptation."""
        if len(symbols) > MAX_LEARNT_SYMBOLS:
            raise UserError(f"{len(symbols):,} symbols: with adaptation at most {MAX_LEARNT_SYMBOLS:,} are coded")
        own = settings == self.spec.evaluation.adaptation
        protocol = OWN if own else COMMON if settings == COMMON_SETTINGS else TOLD
        by_document = settings.kind == "document" or settings.reset == "document"
        starts = starts if by_document else (0,)
        plan = self._plan(settings, len(symbols), starts)
        with self._learner(settings, self.learner_name(), plan) as learner:
            print_of = fingerprint(learner)
            if fingerprint(learner) != print_of:
                raise UserError(f"engine {learner.engine.name} does not learn the same twice: nothing can be read back")
            make = replace(self, engine=None)._writer
            coded = encode_adapted(learner, plan, make, symbols, tolerance, progress)
            return Learning(protocol, settings, learner.engine.name, print_of, starts), coded

    def _relearn(self, file: CodedFile, learning: Learning, progress: Progress | None) -> Int32:
        """The symbols of a file with adaptation. Raises DataError where this machine would learn otherwise."""
        settings = learning.settings or self.spec.evaluation.adaptation
        if not settings.is_on:
            raise DataError("coded with the adaptation of the artifact, which has none")
        if self.engine not in (None, learning.engine):
            raise DataError(f"coded while engine {learning.engine} learnt, which {self.engine} cannot do the same way")
        plan = self._plan(settings, file.num_symbols, learning.starts)
        with self._learner(settings, learning.engine, plan) as learner:
            if fingerprint(learner) != learning.fingerprint:
                raise DataError(
                    f"coded while engine {learning.engine} learnt on a machine that computes otherwise than this one: "
                    "another processor, number of threads or version"
                )
            make = replace(self, engine=None)._reader
            return decode_adapted(learner, plan, make, file.payload, file.num_symbols, progress)

    @contextlib.contextmanager
    def _learner(self, settings: AdaptationSpec, engine: str, plan: Plan) -> Iterator[AnyLearner]:
        """The learner of the score with these settings. Raises UserError for an engine that cannot learn."""
        spec = self.adapted_spec(settings)
        scorer = create_scorer(engine, spec, self.weights)
        with adapter_of(scorer, spec.evaluation.stride_symbols, plan.rows) as adapter:
            assert isinstance(adapter, AnyLearner)
            yield adapter

    def _plan(self, settings: AdaptationSpec, num_symbols: int, starts: tuple[int, ...]) -> Plan:
        stride = self.spec.evaluation.stride_symbols
        return make_plan(self.adapted_spec(settings), num_symbols, np.array(starts, np.int64), stride)

    def _writer(self, spec: Spec, weights: Weights) -> Scorer:
        """The scorer in float64 that computes whole windows."""
        fastest = "torch" if "torch" in available_engines() else "numpy"
        return create_float64_scorer(self.engine or fastest, spec, weights)

    def _reader(self, spec: Spec, weights: Weights) -> Scorer:
        """The scorer in float64 that steps, for which NumPy is fastest."""
        return create_float64_scorer(self.engine or "numpy", spec, weights)

    def _streams(self, num_symbols: int, count: int) -> Streams:
        return Streams(num_symbols, count, self.spec.model.seq_len, self.spec.evaluation.stride_symbols)

    def _tolerance(self, symbols: Int32) -> float:
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
        before, after = (cumulative(self._writer(self.spec, weights).log_probs(x)) for weights in (self.weights, moved))
        change = float(np.abs(after - before).max())
        tolerance = max(tolerances.CODING_CUMULATIVE_ABS, tolerances.CODING_OVER_ROUNDING * change)
        if tolerance * (1 << interval_bits(self.spec.vocabulary.size)) > MOST_TOLERANCE:
            raise UserError(f"this model multiplies rounding to {change:.1e}: its files could not be read elsewhere")
        return tolerance


def parts_text(file_bytes: int, coded: Coded) -> str:
    """What a file is made of, in words."""
    return (
        f"head {file_bytes - len(coded.payload)} bytes, payload {len(coded.payload):,}, of which "
        f"{coded.escape_bytes:.1f} bytes are {coded.escapes} escapes"
    )
