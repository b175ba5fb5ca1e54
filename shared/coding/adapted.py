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
from shared.scoring.adaptation import Plan
from shared.scoring.learner import Learner
from shared.scoring.passes import Pass, Span, Tallied
from shared.scoring.windows import Window
from shared.spec import Spec

# A float64 scorer of weights of the learner's spec.
MakeScorer = Callable[[Spec, Weights], Scorer]
LESSONS = 2


def encode_adapted(
    learner: Learner, plan: Plan, make: MakeScorer, symbols: Int32, tolerance: float, progress: Progress | None
) -> Coded:
    """Code symbols [num_symbols] pass by pass; arguments as those of `encode`."""
    coded, coder = Coded(interval_bits(learner.engine.spec.vocabulary.size)), RangeEncoder()

    def code(scorer: Scorer, window: Window) -> None:
        encode_window(coded, coder, scorer, window, symbols[None], [len(symbols)], tolerance)

    _follow(learner, plan, make, symbols, code, progress)
    coded.payload = coder.finish()
    return coded


def decode_adapted(
    learner: Learner, plan: Plan, make: MakeScorer, payload: bytes, num_symbols: int, progress: Progress | None
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
    learner: Learner,
    plan: Plan,
    make: MakeScorer,
    symbols: Int32,
    code: Callable[[Scorer, Window], None],
    progress: Progress | None,
) -> None:
    """Do what `score_adapted` does, with `code` in place of the score. Only what was coded is learnt."""
    text, scorer, done = Tallied(lambda start, count: symbols[start : start + count], len(symbols)), None, 0
    for chosen in plan.passes:
        learner.reset(chosen)
        if scorer is None or chosen.resets:
            scorer = make(learner.engine.spec, learner.engine.export_weights("trained"))
        for window in chosen.windows:
            code(scorer, window)
            text.count(window)
            done += window.count_stop - window.count_start
        learner.learn(chosen, text)
        if chosen.learnt:
            scorer = None
        if progress is not None:
            progress(done, len(symbols))


def fingerprint(learner: Learner) -> bytes:
    """The hash of the weights after a few lessons on fixed symbols, which the learner then forgets."""
    model, vocabulary = learner.engine.spec.model, learner.engine.spec.vocabulary
    count = LESSONS * learner.rows * model.seq_len
    symbols = (random_bits(count, (0,)) % vocabulary.size).astype(np.int32)
    text = Tallied(lambda start, length: symbols[start : start + length], count)
    text.count(Window(0, 0, count))
    learner.learn(Pass((), (Span(0, count),)), text)
    digest = hashlib.sha256()
    for name, value in sorted(learner.engine.export_weights("trained").items()):
        digest.update(name.encode() + b"\n" + np.ascontiguousarray(value, "<f4").tobytes())
    learner.reset(Pass((), resets=True))
    return digest.digest()[:FINGERPRINT_BYTES]
