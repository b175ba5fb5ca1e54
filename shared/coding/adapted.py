"""Coding with adaptation: in the order of the score's own plan, with the weights as learnt so far (docs/coding.md).

The learner is a training engine in float32. Its weights depend on the machine, so the file is bound to an engine and a
kind of machine; a fingerprint of what the learner makes of fixed symbols tells before anything is decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from data.stream import Int32, random_bits
from shared.coding.coder import Coded, Progress, decode_window, encode_window
from shared.coding.container import FINGERPRINT_BYTES
from shared.coding.intervals import interval_bits
from shared.coding.range_coder import RangeDecoder, RangeEncoder
from shared.engine.protocol import Scorer, Weights
from shared.model.manifest import ADAPTER_A, ADAPTER_B
from shared.scoring.adaptation import Plan
from shared.scoring.document_learner import DocumentLearner
from shared.scoring.learner import Learner
from shared.scoring.passes import Pass, Span, Tallied
from shared.scoring.windows import Window
from shared.spec import Spec

AnyLearner = Learner | DocumentLearner
# A float64 scorer of weights of the learner's spec.
MakeScorer = Callable[[Spec, Weights], Scorer]
LESSONS = 2


def encode_adapted(
    learner: AnyLearner, plan: Plan, make: MakeScorer, symbols: Int32, tolerance: float, progress: Progress | None
) -> Coded:
    """Code symbols [num_symbols] pass by pass; arguments as those of `encode`."""
    coded, coder = Coded(interval_bits(learner.engine.spec.vocabulary.size)), RangeEncoder()

    def code(scorer: Scorer, window: Window) -> None:
        encode_window(coded, coder, scorer, window, symbols[None], [len(symbols)], tolerance)

    _follow(learner, plan, make, symbols, code, progress)
    coded.payload = coder.finish()
    return coded


def decode_adapted(
    learner: AnyLearner, plan: Plan, make: MakeScorer, payload: bytes, num_symbols: int, progress: Progress | None
) -> Int32:
    """The symbols [num_symbols] of a payload of `encode_adapted`."""
    coder, symbols = RangeDecoder(payload), np.zeros(num_symbols, np.int32)

    def code(scorer: Scorer, window: Window) -> None:
        known = symbols[None, window.start : window.count_start]
        symbols[window.count_start : window.count_stop] = decode_window(
            coder, scorer.stepper(1), window, known, [num_symbols]
        )[0]

    _follow(learner, plan, make, symbols, code, progress)
    return symbols


def _follow(
    learner: AnyLearner,
    plan: Plan,
    make: MakeScorer,
    symbols: Int32,
    code: Callable[[Scorer, Window], None],
    progress: Progress | None,
) -> None:
    """Do what `score_adapted` does, with `code` in place of the score. Only what was coded is learnt."""
    text, scorer_of, done = Tallied(lambda start, count: symbols[start : start + count], len(symbols)), None, 0
    for chosen in plan.passes:
        learner.reset(chosen)
        if scorer_of is None or chosen.resets:
            scorer_of = _scorers(learner, make)
        for row, window in enumerate(chosen.windows):
            code(scorer_of(row), window)
            done += window.count_stop - window.count_start
        text.count_all(chosen)
        learner.learn(chosen, text)
        if chosen.learnt or chosen.base is not None:
            scorer_of = None
        if progress is not None:
            progress(done, len(symbols))


def _scorers(learner: AnyLearner, make: MakeScorer) -> Callable[[int], Scorer]:
    """The scorer of each row of a pass by what was learnt so far: one for all, or with factors for each row its own."""
    spec, weights = learner.engine.spec, learner.engine.export_weights("trained")
    lora = spec.model.lora
    if not lora.rows:
        scorer = make(spec, weights)
        return lambda row: scorer
    one = lora.model_copy(update={"rows": 0})
    alone = spec.model_copy(update={"model": spec.model.model_copy(update={"lora": one})})

    def scorer_of(row: int) -> Scorer:
        factors = (ADAPTER_A, ADAPTER_B)
        return make(alone, {name: value[row] if name.endswith(factors) else value for name, value in weights.items()})

    return scorer_of


def fingerprint(learner: AnyLearner) -> bytes:
    """The hash of the weights after a few lessons on fixed symbols, which the learner then forgets."""
    size, rows = learner.engine.spec.model.seq_len, min(learner.rows, LESSONS)
    symbols = (random_bits(rows * size, (0,)) % learner.engine.spec.vocabulary.size).astype(np.int32)
    text = Tallied(lambda start, count: symbols[start : start + count], len(symbols))
    windows = tuple(Window(start, start, start + size) for start in range(0, len(symbols), size))
    spans = tuple(Span(window.start, window.count_stop) for window in windows)
    lesson = Pass(windows, spans, width=size)
    text.count_all(lesson)
    before = learner.save_state()
    for _ in range(LESSONS):
        learner.learn(lesson, text)
    digest = hashlib.sha256()
    for name, value in sorted(learner.engine.export_weights("trained").items()):
        digest.update(name.encode() + b"\n" + np.ascontiguousarray(value, "<f4").tobytes())
    learner.load_state(before)
    return digest.digest()[:FINGERPRINT_BYTES]
