"""What implementations are compared on: random weights, and made-up text read by the real loader."""

from __future__ import annotations

import hashlib
import importlib
from typing import Any, Protocol

import numpy as np

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
from shared.spec import Spec

NUM_BYTES = 60_000
NUM_WORDS = 300
WORDS_PER_DOCUMENT = 40

# Random tables give logits of up to 10, whose own float32 rounding would use up half of the tolerance.
# Every input embedding is normalised, so a smaller table changes nothing before the logits.
TABLE_SCALE = np.float32(0.5)


# Bytes of the made-up tokens: 0 to 6, the mean of a symbol being the middle.
MOST_SYMBOL_BYTES, MEAN_SYMBOL_BYTES = 6, 3.0


class SlicingLoader(Protocol):
    """`data.loader.Loader`, as far as the batch check needs it."""

    def batch(self, step: int) -> np.ndarray:
        """The whole batch of a step, int32 [B, T]."""
        ...

    def rows(self, step: int, first: int, count: int) -> np.ndarray:
        """Rows [first, first + count) of it."""
        ...


def comparison_weights(spec: Spec, seed: int) -> dict[str, np.ndarray]:
    """float32 weights by name in which nothing is zero: a fresh model lets no input reach any logit."""
    tables = {parameter.name for parameter in training_parameters(spec) if parameter.group in ("embedding", "head")}
    weights = random_weights(spec, seed)
    return {name: value * TABLE_SCALE if name in tables else value for name, value in weights.items()}


def made_up_tables(spec: Spec) -> dict[str, np.ndarray]:
    """What a spec's loss reads beside weights, under the names of shared.model.stages: a byte count for every token."""
    if not spec.training.loss.byte_weighted:
        return {}
    symbol_bytes = np.arange(spec.vocabulary.size) % (MOST_SYMBOL_BYTES + 1)
    return {SYMBOL_WEIGHTS: symbol_weights(symbol_bytes, MEAN_SYMBOL_BYTES)}


def made_up_engine(name: str, spec: Spec, model: Forward = forward) -> Engine:
    """The named engine, ready but for weights, for a comparison without a tokenizer."""
    engine = create_engine(name, spec, model)
    for weights in made_up_tables(spec).values():
        engine.use_symbol_weights(weights)
    return engine


def made_up_start(spec: Spec) -> dict[str, np.ndarray]:
    """Initial weights for a comparison without a dataset: those that read the training text read made-up text."""
    return initial_weights(spec, made_up_loader(spec, 0).batch(0).reshape(-1) if reads_text(spec) else None)


def made_up_documents(num_bytes: int, seed: int) -> list[bytes]:
    """Documents of lower-case words and blanks that end in a newline, at least `num_bytes` together."""
    generator = named_generator(seed, "parity text")
    words = [_word(generator) for _ in range(NUM_WORDS)]
    frequency = 1.0 / np.arange(1, NUM_WORDS + 1)
    documents: list[bytes] = []
    while sum(map(len, documents)) < num_bytes:
        picked = generator.choice(NUM_WORDS, WORDS_PER_DOCUMENT, p=frequency / frequency.sum())
        documents.append(b" ".join(words[index] for index in picked) + b"\n")
    return documents


def made_up_loader(spec: Spec, seed: int) -> SlicingLoader:
    """A new loader of the spec's global batches over made-up text. `data` is imported by name, never statically."""
    documents = made_up_documents(max(NUM_BYTES, 2 * spec.model.seq_len), seed)
    if spec.vocabulary.reads_tokens:
        stream: Any = MadeUpTokens(documents, spec)
        return _loader(stream, spec)
    text = b"".join(documents)
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])], dtype=np.int64)
    stream_module = importlib.import_module("data.stream")
    stream = stream_module.SymbolStream(
        stream_module.ByteText([np.frombuffer(text, np.uint8)]),
        starts,
        spec.vocabulary,
        "made-up text",
        hashlib.sha256(text).hexdigest(),
    )
    return _loader(stream, spec)


class MadeUpTokens:
    """Made-up documents as tokens, with what a loader reads of a stream. Parity must not need a tokenizer, so every
    byte becomes a token, spread over the vocabulary."""

    def __init__(self, documents: list[bytes], spec: Spec) -> None:
        specials = spec.vocabulary.num_specials
        start = np.array([spec.vocabulary.document_start], np.int32)
        parts = []
        for document in documents:
            spread = np.frombuffer(document, np.uint8).astype(np.int32) * 31 % (spec.vocabulary.size - specials)
            parts += [start, spread + specials]
        self.symbols = np.concatenate(parts)
        self.num_symbols, self.name, self.vocabulary = len(self.symbols), "made-up tokens", spec.vocabulary
        self.sha256 = hashlib.sha256(self.symbols.tobytes()).hexdigest()

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int32."""
        return self.symbols[start : start + count]


def _loader(stream: Any, spec: Spec) -> SlicingLoader:
    rows = spec.training.batch_symbols // spec.model.seq_len
    module = importlib.import_module("data.loader")
    loader: SlicingLoader = module.Loader(stream, spec.model.seq_len, rows, spec.training.seed)
    return loader


def _word(generator: np.random.Generator) -> bytes:
    letters = generator.integers(ord("a"), ord("z") + 1, generator.integers(2, 9))
    return bytes(letters.astype(np.uint8))
