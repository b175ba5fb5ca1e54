"""Sampling text from a scorer, one symbol after the other.

Each symbol is drawn from the distribution that `Scorer.stepper` gives after the context, at most seq_len symbols of it:
up to there it is the scored one. Where the window is full its older half is dropped, in whole patches, and it begins
anew with the rest.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

from data.tokenizer import tokenizer_by_hash
from shared.engine.protocol import Scorer
from shared.errors import UserError
from shared.spec import Spec, VocabularySpec


def encode_prompt(vocabulary: VocabularySpec, text: bytes) -> list[int]:
    """Symbols of a prompt that begins a document. Raises DataError if its tokenizer is missing."""
    if vocabulary.reads_tokens:
        tokens: list[int] = tokenizer_by_hash(vocabulary.tokenizer).encode_prompt(text)
        return tokens
    start = [] if vocabulary.document_start is None else [vocabulary.document_start]
    return start + [byte + vocabulary.byte_offset for byte in text]


def sample(
    scorer: Scorer,
    prompt_symbols: Iterable[int],
    count: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Up to `count` symbols of text that continue the prompt; fewer where the model starts another document.

    `temperature` divides the log-probabilities, 0 takes the likeliest symbol; `top_p` keeps the likeliest
    symbols that together reach this probability. The same arguments on the same engine give the same
    symbols. Raises UserError for values out of range.
    """
    if count < 0:
        raise UserError(f"number of symbols {count}: must be 0 or more")
    if not 0.0 <= temperature < float("inf"):
        raise UserError(f"temperature {temperature}: must be 0 or more")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top-p {top_p}: must be above 0 and at most 1")
    if seed < 0:
        raise UserError(f"seed {seed}: must be 0 or more")
    return _continue(scorer, list(prompt_symbols), count, temperature, top_p, np.random.default_rng(seed))


def decode_text(symbols: Iterable[int], vocabulary: VocabularySpec, prompt: Iterable[int] = ()) -> Iterator[str]:
    """The text of symbols that continue those of a prompt, as soon as each character is complete; what is not UTF-8
    becomes U+FFFD."""
    if vocabulary.reads_tokens:
        yield from tokenizer_by_hash(vocabulary.tokenizer).decode_stream(symbols, prompt)
        return
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for symbol in symbols:
        if text := decoder.decode(bytes([symbol - vocabulary.byte_offset])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def first_bytes(pieces: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The pieces of a text up to `max_bytes` of UTF-8; later pieces are not requested. No character is cut."""
    left = max_bytes
    for piece in pieces:
        content = piece.encode()
        if len(content) > left:
            piece = content[:left].decode("utf-8", errors="ignore")
        if piece:
            yield piece
        left -= len(content)
        if left <= 0:
            return


def _continue(
    scorer: Scorer, context: list[int], count: int, temperature: float, top_p: float, rng: np.random.Generator
) -> Iterator[int]:
    spec, stepper, begin = scorer.spec, scorer.stepper(rows=1), -1
    for _ in range(count):
        before, begin = begin, window_start(spec, len(context))
        if begin == before:
            log_probs = stepper.advance(np.array(context[-1:], np.int32))
        else:
            log_probs = stepper.start(np.array([context[begin:]], np.int32))
        symbol = _draw(_allowed(spec.vocabulary, log_probs[0].astype(np.float64)), temperature, top_p, rng)
        if symbol == spec.vocabulary.document_start:
            return
        yield symbol
        context.append(symbol)


def window_start(spec: Spec, length: int) -> int:
    """The first symbol that the window after `length` symbols begins with: a multiple of half a window, in whole
    patches, the first one that leaves the next symbol a place in the window."""
    half = -(-spec.model.num_patches // 2) * spec.model.patch_size
    return -(-max(0, length + 1 - spec.model.seq_len) // half) * half


def _allowed(vocabulary: VocabularySpec, log_probs: np.ndarray) -> np.ndarray:
    """The log-probabilities with special symbols other than a document start made impossible."""
    log_probs = log_probs.copy()
    for symbol in range(vocabulary.num_specials):
        if symbol != vocabulary.document_start:
            log_probs[symbol] = -np.inf
    return log_probs


def _draw(log_probs: np.ndarray, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """One symbol drawn from log_probs [V] by inversion, in float64."""
    if temperature == 0.0:
        return int(np.argmax(log_probs))
    scaled = (log_probs - log_probs.max()) / temperature
    probs = np.exp(scaled)
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    cumulative = np.cumsum(probs[order])
    kept = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
    index = np.searchsorted(cumulative[:kept], rng.random() * cumulative[:kept][-1], side="right")
    return int(order[min(int(index), kept - 1)])
