"""Checks that a score is honest, each for one way in which published scores were not (docs/techniques.md 1.4).

Here: the result type, and the checks of a score's accounting. Those of the scorer are in `shared.scoring.leaks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data.stream import SymbolStream
from data.token_stream import TokenStream
from shared import tolerances
from shared.artifact import budget
from shared.scoring.bits_per_byte import Score
from shared.scoring.windows import times_counted
from shared.spec import Spec

# A model of fewer parameters than this that scores below the limit is stopped (docs/techniques.md 1.4).
PLAUSIBLE_PARAMETERS = 20_000_000
PLAUSIBLE_BPB = 1.0
_CHUNK_SYMBOLS = 1 << 20


@dataclass(frozen=True)
class Check:
    """The outcome of one check: what was measured, the limit for it, and a sentence about it.

    `warning` marks a measurement that passes but should not have been that large.
    """

    name: str
    passed: bool
    measured: float
    limit: float
    detail: str
    warning: bool = False


def limit_text(passed: bool, measured: float, limit: float) -> str:
    """`at most 1e-05`, `at least 1`: passing above a limit, or failing below it, means that more is asked for."""
    above = measured > limit
    return f"{'at least' if above == passed and measured != limit else 'at most'} {limit:.4g}"


def check_coverage(score: Score, num_symbols: int) -> Check:
    """Every symbol of the stream was counted exactly once (docs/techniques.md 1.4)."""
    times = times_counted(score.windows, num_symbols)
    missed, repeated = int(np.sum(times == 0)), int(np.sum(times > 1))
    wrong = missed + repeated + abs(score.symbols - int(times.sum()))
    detail = f"{score.symbols:,} symbols counted of {num_symbols:,}; {missed:,} never, {repeated:,} more than once"
    return Check("coverage", wrong == 0, float(wrong), 0.0, detail)


def check_denominator(score: Score) -> Check:
    """Bytes counted symbol by symbol against the bytes of the text itself (docs/techniques.md 1.2)."""
    off = abs(score.bytes / score.text_bytes - 1.0) if score.text_bytes else math.inf
    detail = f"{score.bytes:,} bytes counted by symbol, {score.text_bytes:,} in the text"
    limit = tolerances.DENOMINATOR_REL
    return Check("denominator", off <= limit, off, limit, detail, off > tolerances.DENOMINATOR_WARN_REL)


def check_document_starts(stream: SymbolStream) -> Check:
    """Each document of a stream, and nothing else, begins with the vocabulary's document start
    (docs/techniques.md 1.4). Without it a model reads on from one document to the next."""
    start_symbol, wrong, last = stream.vocabulary.document_start, 0, -1
    for start in range(0, stream.num_symbols, _CHUNK_SYMBOLS):
        count = min(_CHUNK_SYMBOLS, stream.num_symbols - start)
        begins = np.diff(stream.document_ids(start, count), prepend=last) > 0
        wrong += int(np.sum((stream.read(start, count) == start_symbol) != begins))
        last = int(stream.document_ids(start + count - 1, 1)[0])
    detail = (
        f"{wrong:,} symbols are a document start and begin none of {stream.num_documents:,} documents, or the reverse"
    )
    return Check("document_starts", wrong == 0, float(wrong), 0.0, detail)


def check_case(stream: TokenStream) -> Check:
    """The tokenizer of a text keeps its capital letters (docs/techniques.md 1.4): a score per byte of less text is
    none of the text."""
    folds = stream.folds_case
    detail = f"the tokenizer of {stream.name} {'loses' if folds else 'keeps'} capital letters"
    return Check("case", not folds, float(folds), 0.0, detail)


def check_size(artifact_bytes: int | None, counted_code_bytes: int, engine: str, spec: Spec) -> Check:
    """The size that a score counts against the code that there is (docs/techniques.md 1.1).

    The code is counted again here, whoever counted it for the score. Unpacked weights have no artifact. An artifact
    alone cannot score anything.
    """
    needed = budget.code_bytes(engine, spec)
    counted = "" if artifact_bytes is None else f"{artifact_bytes:,} of the artifact + "
    detail = f"{counted}{counted_code_bytes:,} bytes of code are counted; its script has {needed:,}"
    missing = max(0, needed - counted_code_bytes)
    return Check("size", missing == 0, float(missing), 0.0, detail)


def check_plausibility(score: Score, num_parameters: int) -> Check:
    """A small model below one bit per byte is a leak until shown otherwise (docs/techniques.md 1.4)."""
    small = num_parameters < PLAUSIBLE_PARAMETERS
    passed = math.isfinite(score.bpb) and not (small and score.bpb < PLAUSIBLE_BPB)
    detail = f"{num_parameters:,} parameters; below {PLAUSIBLE_PARAMETERS:,} no score under the limit is believed"
    return Check("plausibility", passed, score.bpb, PLAUSIBLE_BPB if small else 0.0, detail)
