"""Scores with adaptation: text is learnt right after it was scored (docs/techniques.md 14).

`score_adapted` drives: it follows the passes of a plan, counts what an adapter scores, and lets it learn what was
counted. A coder follows the same passes with the same adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from data.stream import SymbolStream
from shared.engine.leader import another
from shared.engine.protocol import Engine, Scorer
from shared.errors import DataError, RunError, UserError
from shared.model import model_weights
from shared.scoring.bits_per_byte import Progress, Score, Seen, Tally, score_by_spec, score_together
from shared.scoring.journal import Journal
from shared.scoring.learner import Learner, adaptation_spec, lesson_rows, starting_weights
from shared.scoring.passes import Adapter, Pass, Span, Tallied
from shared.scoring.windows import Window, even_rows, plan_windows
from shared.spec import Spec

if TYPE_CHECKING:
    from shared.scoring.resume import ScoreState

# The names of what an adapter knows begin so, in the state of a score.
LEARNT = "learnt."
# Document ids that are read at a time.
_IDS = 1 << 22


@dataclass(frozen=True)
class Plan:
    """`passes` in order; every pass is scored as `rows` windows of `seq_len` symbols."""

    passes: Sequence[Pass]
    rows: int
    seq_len: int


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
    what = "factors" if spec.evaluation.adaptation.lora.rank else "weights"
    done, arrays = state.load(len(plan.passes)) if state is not None else (0, {})
    with adapter_of(scorer, stride) as adapter:
        for chosen in plan.passes[:done]:
            text.count_all(chosen)
            journal.add(chosen, what, closes=True)
        if done:
            tally.load_state(arrays, [window for chosen in plan.passes[:done] for window in chosen.windows])
            adapter.load_state(_under(LEARNT, arrays))
        for number, chosen in enumerate(plan.passes[done:], done + 1):
            try:
                adapter.reset(chosen)
                score_together(adapter.score, chosen.windows, plan.rows, tally)
                text.count_all(chosen)
                adapter.learn(chosen, text)
            except RunError as error:
                if not journal.lines:
                    raise
                rate = spec.evaluation.adaptation.rate
                raise RunError(f"{error}; evaluation.adaptation.rate {rate} is too high") from None
            journal.add(chosen, what, closes=True)
            if state is not None:
                state.offer(number, lambda: _state(tally, adapter))
            if progress is not None:
                progress(tally.symbols, stream.num_symbols)
    return replace(tally.result(stride, plan.rows, spec.evaluation.confidence), journal=tuple(journal.lines))


def _state(tally: Tally, adapter: Adapter) -> dict[str, np.ndarray]:
    return tally.save_state() | {f"{LEARNT}{name}": value for name, value in adapter.save_state().items()}


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


@contextlib.contextmanager
def adapter_of(scorer: Scorer, stride: int) -> Iterator[Adapter]:
    """The adapter of the scorer's spec with the scorer's weights, on an engine of its own of the same kind and ranks.

    Raises UserError for a scorer that has no gradients.
    """
    if not hasattr(scorer, "train_step"):
        raise UserError(
            "evaluation.adaptation needs gradients, which the engine numpy has not: use --engine mlx or torch"
        )
    engine, spec = cast(Engine, scorer), scorer.spec
    settings = spec.evaluation.adaptation
    rows = lesson_rows(settings, spec.model.seq_len, stride, engine.ranks.world_size)
    derived = adaptation_spec(spec, rows)
    weights = starting_weights(spec, derived, model_weights(spec, engine.export_weights("trained")))
    with another(engine, derived) as learner:
        yield Learner(learner, settings, weights, rows)


def make_plan(spec: Spec, num_symbols: int, starts: np.ndarray, stride: int) -> Plan:
    """The passes over a text of `num_symbols` whose documents begin at `starts` [D], under the spec's adaptation and
    window, and a stride. Nothing of the text itself is needed, so a decoder can make it too."""
    settings, seq_len = spec.evaluation.adaptation, spec.model.seq_len
    windows = plan_windows(num_symbols, seq_len, stride)
    chunks = list(_chunks(windows, settings.chunk_symbols, starts if settings.reset == "document" else starts[:1]))
    rows = even_rows(max(map(len, chunks)), spec.evaluation.batch_symbols // seq_len)
    return Plan(list(_score_first_passes(chunks, rows, settings.reset == "document", starts)), rows, seq_len)


def _chunks(windows: Sequence[Window], symbols: int, starts: np.ndarray) -> Iterator[list[Window]]:
    """Windows by chunk of `symbols`, counted from the last of `starts` before: each belongs to the chunk of the first
    symbol that it counts."""
    counted = np.array([window.count_start for window in windows])
    section = np.searchsorted(starts, counted, side="right") - 1
    chunk = (counted - starts[section]) // symbols
    begins = np.flatnonzero((np.diff(section, prepend=-1) != 0) | (np.diff(chunk, prepend=-1) != 0)).tolist()
    for first, stop in zip(begins, [*begins[1:], len(windows)], strict=True):
        yield list(windows[first:stop])


def _score_first_passes(
    chunks: Sequence[Sequence[Window]], rows: int, resets: bool, starts: np.ndarray
) -> Iterator[Pass]:
    """The passes of each chunk; after the last it is learnt, unless all is forgotten before anything is scored."""
    counted = np.searchsorted(starts, [chunk[0].count_start for chunk in chunks], side="right")
    forgets = [*(np.diff(counted, prepend=counted[0]) > 0) & resets, True]
    for index, chunk in enumerate(chunks):
        span = Span(chunk[0].count_start, chunk[-1].count_stop)
        for first in range(0, len(chunk), rows):
            learns = first + rows >= len(chunk) and not forgets[index + 1]
            yield Pass(
                tuple(chunk[first : first + rows]),
                (span,) if learns else (),
                bool(forgets[index]) and first == 0,
                progress=index / len(chunks),
            )


def document_starts(stream: SymbolStream) -> np.ndarray:
    """The positions at which the documents of a stream begin, int64 [D]."""
    found, last = [], -1
    for start in range(0, stream.num_symbols, _IDS):
        ids = stream.document_ids(start, min(_IDS, stream.num_symbols - start))
        found.append(start + np.flatnonzero(np.diff(ids, prepend=last)))
        last = int(ids[-1])
    return np.concatenate(found).astype(np.int64)
