"""Whether a score depends on text that comes later: the whole protocol runs again with other text behind a cut
(docs/techniques.md 14.4).

A model that learns while it is scored may know of earlier text alone, and that is a property of the order in which
everything happens: of passes, batches, sorted documents, epochs and resets. So the function that makes the score is
called as a whole, on an excerpt of the text, and no score before the cut may change.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol, cast

import numpy as np

from data.stream import SymbolStream
from shared import tolerances
from shared.engine.protocol import Scorer
from shared.scoring.bits_per_byte import Seen
from shared.scoring.checks import Check
from shared.scoring.excerpt import Excerpt, with_adaptation, with_spec
from shared.scoring.windows import Window
from shared.spec import Spec

NAME = "later_text"
# A chunk of the excerpt is at most so many windows, and learnt at most so often: the order is the same, and it is
# looked at more often for the same money.
MOST_WINDOWS, MOST_EPOCHS = 2, 2
NUM_DOCUMENTS, CHUNKS = 5, 4
# Cuts that are made whatever they cost.
FEWEST_CUTS = 3
SECONDS = 20.0


class ScoreText(Protocol):
    """A function that scores a stream as `score_adapted` does, and tells `seen` what it counts."""

    def __call__(self, scorer: Scorer, stream: SymbolStream, *, seen: Seen) -> object: ...


def check_later_text(
    score_text: ScoreText, scorer: Scorer, stream: SymbolStream, *, seed: int = 0, seconds: float = SECONDS
) -> Check:
    """Score an excerpt, then with everything from symbol t on replaced, for many t: no nats before t may change.

    The excerpt is the beginnings of documents, in their order and of different lengths, which stay as they are; so do
    document starts. What a second run on the very same text changes is noise of the device, and allowed three times.
    """
    rng = np.random.default_rng(seed)
    spec = _cheaper(scorer.spec)
    scorer = with_spec(scorer, spec)
    excerpt = _excerpt(spec, stream)
    before = _nats(score_text, scorer, excerpt, excerpt.num_symbols)
    again = _nats(score_text, scorer, excerpt, excerpt.num_symbols)
    limit = tolerances.CAUSALITY_ABS + 3.0 * float(np.abs(again - before).max())
    worst, where, done = 0.0, "", 0
    begin = time.perf_counter()
    for cut in _cuts(spec, excerpt, rng):
        if done >= FEWEST_CUTS and time.perf_counter() - begin >= seconds:
            break
        change = np.abs(_nats(score_text, scorer, excerpt.replaced(cut, rng), cut) - before[:cut])
        most = int(np.argmax(change))
        if not change[most] <= worst:
            worst, where = float(change[most]), f" at symbol {most} when text from symbol {cut} on changed"
        done += 1
    detail = (
        f"largest change of an earlier score {worst:.1e} nats{where}; {done} cuts in {excerpt.num_symbols:,} symbols"
    )
    return Check(NAME, worst <= limit, worst, limit, detail)


def _nats(score_text: ScoreText, scorer: Scorer, text: Excerpt, count: int) -> np.ndarray:
    """The nats of the first `count` symbols as they were counted, float64; the run ends with the last of them."""
    nats, missing = np.full(text.num_symbols, np.nan), count

    def seen(window: Window, values: np.ndarray) -> None:
        nonlocal missing
        span = slice(window.count_start, window.count_stop)
        missing -= int(np.count_nonzero(np.isnan(nats[span])[: max(0, count - window.count_start)]))
        nats[span] = values
        if missing == 0:
            raise _Enough

    with contextlib.suppress(_Enough):
        score_text(scorer, cast(SymbolStream, text), seen=seen)
    assert missing == 0, f"{missing} symbols were not counted"
    return nats[:count]


def _cuts(spec: Spec, excerpt: Excerpt, rng: np.random.Generator) -> Iterator[int]:
    """Positions from which text is replaced: inside the first chunk and at the borders of chunks and documents, where
    mistakes are likely, then any."""
    settings, last = spec.evaluation.adaptation, excerpt.num_symbols - 1
    chunk = max(settings.chunk_symbols, spec.evaluation.stride_symbols)
    likely = [chunk // 2, last, excerpt.starts[-1], chunk + 1, *excerpt.starts[1:2], 2 * chunk - 1, chunk]
    yield from dict.fromkeys(int(cut) for cut in likely if 0 < cut <= last)
    while last > 0:
        yield int(rng.integers(1, last + 1))


def _cheaper(spec: Spec) -> Spec:
    """The spec with smaller chunks and fewer epochs, and nothing compiled for the few steps of an excerpt."""
    settings, seq_len = spec.evaluation.adaptation, spec.model.seq_len
    chunk, epochs = min(settings.chunk_symbols, MOST_WINDOWS * seq_len), min(settings.epochs, MOST_EPOCHS)
    training = spec.training.model_copy(update={"compile": False})
    return with_adaptation(spec, chunk_symbols=chunk, epochs=epochs).model_copy(update={"training": training})


class _Enough(Exception):
    """Everything that is compared was counted."""


def _excerpt(spec: Spec, stream: SymbolStream) -> Excerpt:
    """The beginnings of the first documents, long and short ones by turns, several chunks in all."""
    settings = spec.evaluation.adaptation
    chunk = max(settings.chunk_symbols, spec.evaluation.stride_symbols)
    ids = stream.document_ids(0, min(stream.num_symbols, 1 << 22))
    firsts = np.flatnonzero(np.diff(ids, prepend=-1))[:NUM_DOCUMENTS]
    ends = np.searchsorted(ids, ids[firsts], side="right")
    # 5 lengths, none of them a multiple of a chunk, not in order: sorting by length moves them.
    wanted = [int(chunk * CHUNKS * share) + 1 for share in (0.55, 0.2, 0.45, 0.3, 0.15)]
    parts = [
        stream.read(int(first), min(int(end - first), size))
        for first, end, size in zip(firsts, ends, wanted, strict=False)
    ]
    symbols = np.concatenate(parts).astype(np.int32)
    start = spec.vocabulary.document_start
    fixed = np.zeros(len(symbols), bool) if start is None else symbols == start
    return Excerpt(f"an excerpt of {stream.name}", symbols, fixed, np.cumsum([0, *map(len, parts)])[:-1])
