"""Scores with adaptation that know later text: each a function that scores a stream as `score_adapted` does.

They keep what is honest of it: the plan, the engine that learns, the windows that count each symbol once.
"""

from __future__ import annotations

import numpy as np

from data.stream import SymbolStream
from shared.engine.protocol import Scorer
from shared.scoring.adaptation import Plan, adapter_of, document_starts, make_plan
from shared.scoring.bits_per_byte import Seen, Tally, read_windows
from shared.scoring.learner import lesson_rows
from shared.scoring.passes import Adapter, Pass, Span, Tallied
from shared.scoring.windows import Window


def _plan(scorer: Scorer, stream: SymbolStream) -> tuple[Plan, Tallied]:
    """The honest plan, and a text that says of all its symbols that they were scored."""
    plan = make_plan(scorer.spec, stream.num_symbols, document_starts(stream), scorer.spec.evaluation.stride_symbols)
    text = Tallied(stream.read, stream.num_symbols)
    text.count(Window(0, 0, stream.num_symbols))
    return plan, text


def _nats(adapter: Adapter, plan: Plan, chosen: Pass, stream: SymbolStream) -> np.ndarray:
    return adapter.score(read_windows(stream, chosen.windows, plan.rows, plan.seq_len))


def _count(tally: Tally, chosen: Pass, nats: np.ndarray) -> None:
    for window, row in zip(chosen.windows, nats, strict=False):
        tally.add(window, row[window.count_start - window.start : window.count_stop - window.start])


def _span(chosen: Pass) -> Span:
    return Span(chosen.windows[0].count_start, chosen.windows[-1].count_stop)


def learn_then_score(scorer: Scorer, stream: SymbolStream, *, seen: Seen) -> None:
    """Each chunk is learnt, then scored."""
    plan, text = _plan(scorer, stream)
    tally = Tally(stream, plan.seq_len, frozenset(), seen)
    with adapter_of(scorer, scorer.spec.evaluation.stride_symbols) as adapter:
        for chosen in plan.passes:
            adapter.learn(Pass((), (_span(chosen),)), text)
            _count(tally, chosen, _nats(adapter, plan, chosen, stream))


def last_epoch_of_several(scorer: Scorer, stream: SymbolStream, *, seen: Seen) -> None:
    """Each chunk is scored, learnt and scored again, and the last score is reported."""
    plan, text = _plan(scorer, stream)
    tally = Tally(stream, plan.seq_len, frozenset(), seen)
    with adapter_of(scorer, scorer.spec.evaluation.stride_symbols) as adapter:
        for chosen in plan.passes:
            for _ in range(2):
                nats = _nats(adapter, plan, chosen, stream)
                adapter.learn(Pass((), (_span(chosen),)), text)
            _count(tally, chosen, nats)


def best_of_two_passes(scorer: Scorer, stream: SymbolStream, *, seen: Seen) -> None:
    """The text is scored twice, what was learnt in the first pass is kept, and the better score of each pass counts."""
    plan, text = _plan(scorer, stream)
    tally = Tally(stream, plan.seq_len, frozenset(), seen)
    with adapter_of(scorer, scorer.spec.evaluation.stride_symbols) as adapter:
        both = []
        for _ in range(2):
            nats = []
            for chosen in plan.passes:
                nats.append(_nats(adapter, plan, chosen, stream))
                adapter.learn(chosen, text)
            both.append(nats)
    for chosen, first, second in zip(plan.passes, *both, strict=True):
        _count(tally, chosen, min(first, second, key=np.sum))


def other_rows_of_the_batch(scorer: Scorer, stream: SymbolStream, *, seen: Seen) -> None:
    """All documents are scored side by side, one window of each at a time, and learn into the same weights."""
    plan, text = _plan(scorer, stream)
    tally = Tally(stream, plan.seq_len, frozenset(), seen)
    ids = [int(stream.document_ids(each.windows[0].count_start, 1)[0]) for each in plan.passes]
    begins = np.array([ids.index(document) for document in ids])
    # The first chunk of each document, then the second of each.
    order = np.lexsort((ids, np.arange(len(ids)) - begins))
    with adapter_of(scorer, scorer.spec.evaluation.stride_symbols) as adapter:
        for index in order:
            chosen = plan.passes[index]
            _count(tally, chosen, _nats(adapter, plan, chosen, stream))
            adapter.learn(Pass((), (_span(chosen),)), text)


def state_of_a_later_document(scorer: Scorer, stream: SymbolStream, *, seen: Seen) -> None:
    """Documents are scored by length, the shortest first, and what one has taught is kept for the next."""
    plan, text = _plan(scorer, stream)
    tally = Tally(stream, plan.seq_len, frozenset(), seen)
    ids = np.array([stream.document_ids(each.windows[0].count_start, 1)[0] for each in plan.passes])
    with adapter_of(scorer, scorer.spec.evaluation.stride_symbols) as adapter:
        for index in np.argsort(np.bincount(ids)[ids], kind="stable"):
            chosen = plan.passes[index]
            _count(tally, chosen, _nats(adapter, plan, chosen, stream))
            adapter.learn(Pass((), (_span(chosen),)), text)


def warm_up_on_heldout(scorer: Scorer, stream: SymbolStream, *, seen: Seen) -> None:
    """Training steps that compile are made on the text that is about to be scored, and their weights stay."""
    plan, text = _plan(scorer, stream)
    tally = Tally(stream, plan.seq_len, frozenset(), seen)
    settings, stride = scorer.spec.evaluation.adaptation, scorer.spec.evaluation.stride_symbols
    with adapter_of(scorer, stride) as adapter:
        symbols = lesson_rows(settings, plan.seq_len, stride) * plan.seq_len
        adapter.learn(Pass((), (Span(0, min(symbols, stream.num_symbols)),)), text)
        for chosen in plan.passes:
            _count(tally, chosen, _nats(adapter, plan, chosen, stream))
            adapter.learn(chosen, text)
