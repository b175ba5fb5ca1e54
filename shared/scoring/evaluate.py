"""From a scorer and a text to a complete score document: score, audit, compressors, sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from shared.artifact import code_bytes
from shared.engine import Scorer
from shared.scoring.audit import audit_scorer
from shared.scoring.bits_per_byte import Progress, Score, score_by_spec
from shared.scoring.checks import Check
from shared.scoring.compressors import compressor_results
from shared.scoring.report import ScoreDocument, WeightsName, score_document
from shared.scoring.stream import SymbolStream

# One fixed choice of documents, so that scores on a part of a text compare.
SAMPLE_SEED = 0


def evaluate(
    scorer: Scorer,
    stream: SymbolStream,
    *,
    engine: str,
    weights: WeightsName,
    artifact_bytes: int | None,
    stride: int | None = None,
    max_symbols: int | None = None,
    progress: Progress | None = None,
    on_score: Callable[[Score], None] | None = None,
    data_checks: Sequence[Check] = (),
) -> ScoreDocument:
    """Score `stream` under the protocol of the scorer's spec and say everything that qualifies the figure.

    `stride` replaces the spec's evaluation.stride_symbols; with `max_symbols` a fixed sample of documents
    is scored. `engine` and `weights` name what computed it from what; `artifact_bytes` belongs to packed
    weights. `on_score` is given the score itself, of which the document holds only a part. `data_checks` are what the
    audit says of the text itself, such as that it was trained on. Raises DataError for an empty text and RunError for
    a score that is not a number.
    """
    spec = scorer.spec
    scored = sampled(stream, max_symbols)
    score = score_by_spec(scorer, scored, stride=stride, progress=progress)
    if on_score is not None:
        on_score(score)
    text = scored.text_bytes()
    return score_document(
        spec=spec,
        score=score,
        dataset={
            "name": stream.name,
            "sha256": stream.sha256,
            "scored_sha256": scored.sha256,
            "text_sha256": hashlib.sha256(text).hexdigest(),
            "complete": scored is stream,
        },
        audit=audit_scorer(scorer, scored, score).with_checks(data_checks),
        compressors=compressor_results(text),
        engine=engine,
        weights=weights,
        artifact_bytes=artifact_bytes,
        code_bytes=code_bytes(),
    )


def sampled(stream: SymbolStream, max_symbols: int | None) -> SymbolStream:
    """The stream, or where it is longer than `max_symbols` the fixed sample of its documents."""
    if max_symbols is None or stream.num_symbols <= max_symbols:
        return stream
    return stream.sample_documents(max_symbols, SAMPLE_SEED)
