"""Adaptation: what engines have learnt after ten chunks of text, and the score of that text (docs/techniques.md 14)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import cast

import numpy as np

from data.stream import SymbolStream
from shared.engine.protocol import Engine
from shared.optim import WEIGHTS
from shared.parity.gradient_checks import Tensors
from shared.parity.result import ParityRow, worst_relative_l2
from shared.scoring.adaptation import Plan, adapter_of, do_pass, make_plan
from shared.scoring.bits_per_byte import Tally
from shared.scoring.excerpt import Excerpt, with_adaptation, with_spec
from shared.scoring.passes import Tallied
from shared.spec import Spec
from shared.tolerances import ADAPTED_BPB_ABS, PARAMETERS_REL

CHUNKS = 10
# Epochs make a chunk take longer and add nothing to compare.
MOST_EPOCHS = 2


def adaptation_rows(
    spec: Spec, engines: Mapping[str, Engine], weights: Tensors, symbols: np.ndarray
) -> list[ParityRow]:
    """Two rows for each pair of engines, none where the spec does not adapt: each scores the same text of `symbols` [T]
    and learns it, chunk by chunk, from the same weights."""
    if not spec.evaluation.adaptation.is_on:
        return []
    epochs = min(spec.evaluation.adaptation.epochs, MOST_EPOCHS)
    short = with_adaptation(spec, chunk_symbols=spec.model.seq_len, epochs=epochs)
    length = (CHUNKS + 1) * short.evaluation.adaptation.chunk_symbols
    text = np.resize(symbols, length).astype(np.int32)
    # With a state for each document all of it is learnt in one: a second one would begin anew.
    excerpt = Excerpt("synthetic text", text, np.zeros(length, bool), np.zeros(1, np.int64))
    plan = make_plan(short, length, excerpt.starts, short.evaluation.stride_symbols)
    learnt = {name: _learnt(short, engine, weights, excerpt, plan) for name, engine in engines.items()}
    rows = []
    for left, right in combinations(learnt, 2):
        measured, worst = worst_relative_l2(learnt[left][0], learnt[right][0])
        pair, check = f"{left} - {right}", f"weights adapted to {CHUNKS} chunks"
        rows.append(ParityRow(check, pair, measured, PARAMETERS_REL, "relative L2", worst))
        apart = abs(learnt[left][1] - learnt[right][1])
        rows.append(ParityRow("score of adapted weights", pair, apart, ADAPTED_BPB_ABS, "bits per symbol", ""))
    return rows


def _learnt(spec: Spec, engine: Engine, weights: Tensors, excerpt: Excerpt, plan: Plan) -> tuple[Tensors, float]:
    """(the weights after ten chunks, or factors where these learn; bits for each symbol of what was scored by then)."""
    engine.initialise(weights)
    text = Tallied(excerpt.read, excerpt.num_symbols)
    tally = Tally(cast(SymbolStream, excerpt), plan.seq_len, frozenset())
    with adapter_of(with_spec(engine, spec), plan.stride, plan.rows) as adapter:
        # The last chunk is scored and never learnt, and a document that ends takes its factors with it.
        for chosen in plan.passes[:-1]:
            do_pass(adapter, chosen, plan.rows, tally, text)
        state = adapter.save_state()
    after = {name.removeprefix(WEIGHTS): value for name, value in state.items() if name.startswith(WEIGHTS)}
    return after, float(tally.by_document[0].sum()) / math.log(2.0) / tally.symbols
