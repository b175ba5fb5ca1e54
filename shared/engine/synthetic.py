"""Inputs for comparing implementations: random weights, and synthetic text read by the real loader."""

from __future__ import annotations

import hashlib

import numpy as np

from data.byte_stream import ByteStream, ByteText
from data.loader import Loader
from data.sketch import Sketch, sketch_documents
from data.stream import TrainingText
from shared.engine.package import create_engine
from shared.engine.protocol import Engine
from shared.model import (
    Forward,
    forward,
    initial_weights,
    random_weights,
    reads_text,
    symbol_weights,
    training_parameters,
)
from shared.model.initialise import named_generator
from shared.model.stages import SYMBOL_WEIGHTS
from shared.spec import Spec, VocabularySpec

NUM_BYTES = 60_000
NUM_WORDS = 300
WORDS_PER_DOCUMENT = 40

# Random tables give logits of up to 10, whose own float32 rounding would use up half of the tolerance.
# Every input embedding is normalised, so a smaller table changes nothing before the logits.
TABLE_SCALE = np.float32(0.5)


# Bytes of the synthetic tokens: 0 to 6, the mean of a symbol being the middle.
MOST_SYMBOL_BYTES, MEAN_SYMBOL_BYTES = 6, 3.0


def comparison_weights(spec: Spec, seed: int) -> dict[str, np.ndarray]:
    """float32 weights by name in which nothing is zero: a fresh model lets no input reach any logit."""
    tables = {parameter.name for parameter in training_parameters(spec) if parameter.group in ("embedding", "head")}
    weights = random_weights(spec, seed)
    return {name: value * TABLE_SCALE if name in tables else value for name, value in weights.items()}


def synthetic_tables(spec: Spec) -> dict[str, np.ndarray]:
    """Tables that a spec's loss reads, by the names of shared.model.stages: weights of tokens from byte counts."""
    if not spec.training.loss.byte_weighted:
        return {}
    symbol_bytes = np.arange(spec.vocabulary.size) % (MOST_SYMBOL_BYTES + 1)
    return {SYMBOL_WEIGHTS: symbol_weights(symbol_bytes, MEAN_SYMBOL_BYTES)}


def synthetic_engine(name: str, spec: Spec, model: Forward = forward) -> Engine:
    """The named engine, ready except for weights, for a comparison without a tokenizer."""
    engine = create_engine(name, spec, model)
    for weights in synthetic_tables(spec).values():
        engine.use_symbol_weights(weights)
    return engine


def synthetic_start(spec: Spec) -> dict[str, np.ndarray]:
    """Initial weights for a comparison without a dataset: those that read the training text read synthetic text."""
    return initial_weights(spec, synthetic_loader(spec, 0).batch(0).reshape(-1) if reads_text(spec) else None)


def synthetic_documents(num_bytes: int, seed: int) -> list[bytes]:
    """Documents of lower-case words and blanks that end in a newline, at least `num_bytes` together."""
    generator = named_generator(seed, "parity text")
    words = [_word(generator) for _ in range(NUM_WORDS)]
    frequency = 1.0 / np.arange(1, NUM_WORDS + 1)
    documents: list[bytes] = []
    while sum(map(len, documents)) < num_bytes:
        picked = generator.choice(NUM_WORDS, WORDS_PER_DOCUMENT, p=frequency / frequency.sum())
        documents.append(b" ".join(words[index] for index in picked) + b"\n")
    return documents


def synthetic_loader(spec: Spec, seed: int) -> Loader:
    """A new loader of the spec's global batches over synthetic text."""
    documents = synthetic_documents(max(NUM_BYTES, 2 * spec.model.seq_len), seed)
    text = SyntheticTokens(documents, spec.vocabulary) if spec.vocabulary.reads_tokens else _bytes(documents, spec)
    return Loader(text, spec.model.seq_len, spec.training.batch_symbols // spec.model.seq_len, spec.training.seed)


class SyntheticTokens:
    """Synthetic documents as tokens, a TrainingText. Parity must not need a tokenizer, so every byte becomes a token,
    spread over the vocabulary."""

    def __init__(self, documents: list[bytes], vocabulary: VocabularySpec) -> None:
        specials = vocabulary.num_specials
        start = np.array([vocabulary.document_start], np.int32)
        parts = []
        for document in documents:
            spread = np.frombuffer(document, np.uint8).astype(np.int32) * 31 % (vocabulary.size - specials)
            parts += [start, spread + specials]
        self.symbols = np.concatenate(parts)
        self.name, self.vocabulary, self.documents = "synthetic tokens", vocabulary, documents
        self.num_symbols, self.num_documents = len(self.symbols), len(documents)
        self.num_bytes = sum(map(len, documents))
        self.sha256 = hashlib.sha256(self.symbols.tobytes()).hexdigest()

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int32."""
        return self.symbols[start : start + count]

    def sketch(self) -> Sketch:
        """The sketch by which the documents are found in another text."""
        return sketch_documents(self.documents)


def _bytes(documents: list[bytes], spec: Spec) -> TrainingText:
    text = b"".join(documents)
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])], dtype=np.int64)
    array, sha256 = np.frombuffer(text, np.uint8), hashlib.sha256(text).hexdigest()
    return ByteStream(ByteText([array]), starts, spec.vocabulary, "synthetic text", sha256)


def _word(generator: np.random.Generator) -> bytes:
    letters = generator.integers(ord("a"), ord("z") + 1, generator.integers(2, 9))
    return bytes(letters.astype(np.uint8))
