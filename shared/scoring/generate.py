"""Sampling text from a scorer, one symbol after the other.

Each symbol is drawn from `Scorer.log_probs` at the position after the context. The window behind that position
is padding, which a causal model cannot see; window lengths come from a short list, so that a compiled
engine compiles a few times and not once per symbol. They are windows that compute the function that is scored.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

from data.tokenizer import tokenizer_by_hash
from shared.engine.protocol import Scorer
from shared.errors import UserError
from shared.spec import Spec, VocabularySpec

_SHORTEST_WINDOW = 32


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
    vocabulary = scorer.spec.vocabulary
    for _ in range(count):
        log_probs = _next_log_probs(scorer, context)
        symbol = _draw(_allowed(vocabulary, log_probs), temperature, top_p, rng)
        if symbol == vocabulary.document_start:
            return
        yield symbol
        context.append(symbol)


def _next_log_probs(scorer: Scorer, context: list[int]) -> np.ndarray:
    """ln p of the symbol after the context, [V] float64. Of a long context the end is used, whole patches
    dropped, so that patches stay aligned."""
    spec = scorer.spec
    patch_size, seq_len = spec.model.patch_size, spec.model.seq_len
    excess = max(0, len(context) + 1 - seq_len)
    recent = context[-(-excess // patch_size) * patch_size :]
    x = np.zeros((1, _window_symbols(spec, len(recent) + 1)), np.int32)
    x[0, : len(recent)] = recent
    return scorer.log_probs(x)[0, len(recent)].astype(np.float64)


def _window_symbols(spec: Spec, needed: int) -> int:
    """The shortest allowed window of at least `needed` symbols: patch_size times a power of two, or seq_len.

    Only seq_len where the angles of RoPE depend on the length of the window, so that the function is the scored one.
    """
    if 0 < spec.model.attention.ntk_positions < spec.model.num_patches:
        return spec.model.seq_len
    length = spec.model.patch_size
    while length < max(needed, _SHORTEST_WINDOW):
        length *= 2
    return min(length, spec.model.seq_len)


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
