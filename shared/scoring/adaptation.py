"""Scores with adaptation: text is learnt right after it was scored (docs/techniques.md 14).

`score_adapted` drives: it follows the passes of a plan, counts what an adapter scores, and lets it learn what was
counted. A coder follows the same passes with the same adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from data.stream import SymbolStream
from shared.engine.leader import another
from shared.engine.protocol import Engine, Scorer
from shared.errors import DataError, RunError, UserError
from shared.model import model_weights
from shared.scoring.bits_per_byte import Progress, Score, Seen, Tally, score_by_spec, score_together
from shared.scoring.document_learner import check_document_learner, document_learner
from shared.scoring.journal import Journal
from shared.scoring.learner import Learner, adaptation_spec, lesson_rows, starting_weights
from shared.scoring.passes import Adapter, Pass, Tallied
from shared.scoring.plans import Plan, document_starts, make_plan
from shared.spec import Spec
from shared.spec.adaptation import AdaptationSpec

if TYPE_CHECKING:
    from shared.scoring.resume import ScoreState

__all__ = [
    "Plan",
    "adapter_of",
    "check_adaptation",
    "check_learner",
    "do_pass",
    "document_starts",
    "make_plan",
    "score_adapted",
    "score_text",
]

# The names of what an adapter knows begin so, in the state of a score.
LEARNT = "learnt."
NO_GRADIENTS = "evaluation.adaptation needs gradients, which the engine numpy has not: use --engine mlx or torch"


def check_adaptation(spec: Spec) -> None:
    """Raise SpecError for settings of adaptation that name no parameter, before anything is trained."""
    settings = spec.evaluation.adaptation
    if settings.kind == "document":
        check_document_learner(spec)
    elif settings.is_on:
        adaptation_spec(spec, 1)


def check_learner(spec: Spec, engine: str) -> None:
    """Raise UserError, before anything is done for it, if the score of a spec learns and the engine named cannot."""
    if spec.evaluation.adaptation.is_on and engine == "numpy":
        raise UserError(NO_GRADIENTS)


def score_text(
    scorer: Scorer,
    stream: SymbolStream,
    *,
    stride: int | None = None,
    progress: Progress | None = None,
    state: ScoreState | None = None,
) -> Score:
    """Score a stream under the protocol of the scorer's spec, adaptation included; arguments as for `score_by_spec`."""
    score = score_adapted if scorer.spec.evaluation.adaptation.is_on else score_by_spec
    return score(scorer, stream, stride=stride, progress=progress, state=state)


def score_adapted(
    scorer: Scorer,
    stream: SymbolStream,
    *,
    stride: int | None = None,
    progress: Progress | None = None,
    seen: Seen | None = None,
    state: ScoreState | None = None,
) -> Score:
    """Score every symbol of a stream once under the adaptation of the scorer's spec. It starts from the scorer's
    weights, which stay as they are. Arguments and errors as those of `score_by_spec`; `seen` is told what counts."""
    spec = scorer.spec
    if stream.num_symbols == 0 or stream.num_bytes == 0:
        raise DataError(f"{stream.name}: no text to score")
    stride = spec.evaluation.stride_symbols if stride is None else stride
    plan = make_plan(spec, stream.num_symbols, document_starts(stream), stride)
    tally = Tally(stream, plan.seq_len, frozenset(), seen)
    text, journal = Tallied(stream.read, stream.num_symbols), Journal()
    what = _what_learns(spec.evaluation.adaptation)
    done, arrays = state.load(len(plan.passes)) if state is not None else (0, {})
    with adapter_of(scorer, stride, plan.rows) as adapter:
        for chosen in plan.passes[:done]:
            text.count_all(chosen)
            journal.add(chosen, what)
        if done:
            tally.load_state(arrays, [window for chosen in plan.passes[:done] for window in chosen.windows])
            adapter.load_state(_under(LEARNT, arrays))
        for number, chosen in enumerate(plan.passes[done:], done + 1):
            try:
                do_pass(adapter, chosen, plan.rows, tally, text)
            except RunError as error:
                if not journal.lines:
                    raise
                rate = spec.evaluation.adaptation.rate
                raise RunError(f"{error}; evaluation.adaptation.rate {rate} is too high") from None
            journal.add(chosen, what)
            if state is not None:
                state.offer(number, lambda: _state(tally, adapter))
            if progress is not None:
                progress(tally.symbols, stream.num_symbols)
    return replace(tally.result(plan.stride, plan.rows, spec.evaluation.confidence), journal=tuple(journal.lines))


def do_pass(adapter: Adapter, chosen: Pass, rows: int, tally: Tally, text: Tallied) -> None:
    """Forget, score, count and learn as a pass says, in that order; its windows are padded to `rows`."""
    adapter.reset(chosen)
    score_together(adapter.score, chosen.windows, rows, tally, chosen.width)
    text.count_all(chosen)
    adapter.learn(chosen, text)


def _state(tally: Tally, adapter: Adapter) -> dict[str, np.ndarray]:
    return tally.save_state() | {f"{LEARNT}{name}": value for name, value in adapter.save_state().items()}


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


@contextlib.contextmanager
def adapter_of(scorer: Scorer, stride: int, rows: int = 1) -> Iterator[Adapter]:
    """The adapter of the scorer's spec with the scorer's weights, on an engine of its own of the same kind and ranks.
    `stride` is that of the score's windows, `rows` how many documents are scored side by side.

    Raises UserError for a scorer that has no gradients.
    """
    if not hasattr(scorer, "train_step"):
        raise UserError(NO_GRADIENTS)
    engine, spec = cast(Engine, scorer), scorer.spec
    settings, world_size = spec.evaluation.adaptation, engine.ranks.world_size
    weights = model_weights(spec, engine.export_weights("trained"))
    if settings.kind == "document":
        with document_learner(engine, spec, weights, rows) as adapter:
            yield adapter
        return
    rows = lesson_rows(settings, spec.model.seq_len, stride, world_size)
    derived = adaptation_spec(spec, rows)
    with another(engine, derived) as learner:
        yield Learner(learner, settings, starting_weights(spec, derived, weights), rows)


def _what_learns(settings: AdaptationSpec) -> str:
    """What learns, as the journal calls it."""
    if settings.kind == "document":
        return "factors of each document" + (", first ones go on" if settings.warm_start else "")
    return "factors" if settings.lora.rank else "weights"
