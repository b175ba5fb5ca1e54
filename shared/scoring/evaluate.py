"""From a scorer and a text to a score document: score, audit, sizes, and known figures of general compressors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from data.compressed import find_results, measure
from data.compressors import Progress as BytesProgress
from data.stream import SymbolStream
from shared.artifact import code_bytes
from shared.engine.protocol import Scorer
from shared.model import parameter_counts
from shared.scoring.adaptation import score_text
from shared.scoring.audit import audit_scorer
from shared.scoring.bits_per_byte import Progress, Score
from shared.scoring.checks import Check, check_size
from shared.scoring.document import ChosenPart, ScoreDocument, WeightsName, validated_score
from shared.scoring.resume import ScoreState
from shared.spec import Spec, spec_id, spec_to_dict

# One fixed choice of documents, so that scores on a part of a text compare.
SAMPLE_SEED = 0


def evaluate(
    scorer: Scorer,
    stream: SymbolStream,
    *,
    engine: str,
    weights: WeightsName,
    artifact_bytes: int | None,
    artifact_sha256: str | None = None,
    chosen: ChosenPart | None = None,
    stride: int | None = None,
    max_symbols: int | None = None,
    progress: Progress | None = None,
    on_score: Callable[[Score], None] | None = None,
    data_checks: Sequence[Check] = (),
    state: ScoreState | None = None,
    weights_hash: str | None = None,
) -> ScoreDocument:
    """Score `stream` under the protocol of the scorer's spec and collect everything that qualifies the figure.

    `stride` replaces the spec's evaluation.stride_symbols; with `max_symbols` a fixed sample of documents
    is scored. `engine` and `weights` name what computed it from what; `artifact_bytes` and `artifact_sha256` belong to
    packed weights, `chosen` to those that held-out text chose. `on_score` gets the score itself, only a part of
    which is in the document. `data_checks` are the audit's checks of the text itself, such as whether it was trained
    on. General compressors are included only if they were measured before: `with_compressors` adds them. With `state`
    the score resumes where an earlier start of the same one ended, of the weights with `weights_hash` (by default the
    artifact's hash); its file is the caller's to remove. Raises DataError for an empty text and RunError for a score
    that is not a number.
    """
    spec = scorer.spec
    scored = sampled(stream, max_symbols)
    if state is not None:
        state.bind(
            {
                "spec": spec_to_dict(spec),
                "weights": weights_hash or artifact_sha256,
                "text": scored.sha256,
                "stride": stride,
                "engine": engine,
                "ranks": getattr(getattr(scorer, "ranks", None), "world_size", 1),
            }
        )
    score = score_text(scorer, scored, stride=stride, progress=progress, state=state)
    if on_score is not None:
        on_score(score)
    counted_code_bytes = code_bytes(engine, spec)
    size = check_size(artifact_bytes, counted_code_bytes, engine, spec)
    text_sha256 = hashlib.sha256(scored.text_bytes()).hexdigest()
    values = {
        "bpb": score.bpb,
        "nats": score.nats,
        "symbols": score.symbols,
        "bytes": score.bytes,
        "documents": score.documents,
        "window_symbols": score.seq_len,
        "stride_symbols": score.stride,
        "adaptation": _adaptation(spec, score),
        "confidence": asdict(score.confidence),
        "dataset": {
            "name": stream.name,
            "sha256": stream.sha256,
            "scored_sha256": scored.sha256,
            "text_sha256": text_sha256,
            "complete": scored is stream,
        },
        "audit": audit_scorer(scorer, scored, score).with_checks(size, *data_checks).to_document(),
        "compressors": {name: asdict(result) for name, result in find_results(text_sha256).items()},
        "artifact_bytes": artifact_bytes,
        "artifact_sha256": artifact_sha256,
        "code_bytes": counted_code_bytes,
        "limit_bytes": spec.budget.total_bytes,
        "parameters": parameter_counts(spec)["total"],
        "spec_name": spec.name,
        "spec_id": spec_id(spec),
        "engine": engine,
        "weights": weights,
        "chosen": chosen.model_dump() if chosen is not None else None,
    }
    return validated_score(values, "score")


def _adaptation(spec: Spec, score: Score) -> Any:
    """The adaptation and its journal as they stand in a score document."""
    settings = spec.evaluation.adaptation
    if not settings.is_on:
        return "none"
    journal = [line.to_document() for line in score.journal]
    return {"settings": settings.model_dump(mode="json"), "journal": journal}


def with_compressors(
    document: ScoreDocument, stream: SymbolStream, max_symbols: int | None, progress: BytesProgress
) -> ScoreDocument:
    """A document of `evaluate` on these symbols of `stream` with the figures of general compressors, which are kept
    with the dataset. `progress(done_bytes, total_bytes)` follows the work, which takes minutes for a large text."""
    if document.compressors:
        return document
    text = sampled(stream, max_symbols).text_bytes()
    return document.with_compressors(measure(stream.name.split("/")[0], text, progress))


def sampled(stream: SymbolStream, max_symbols: int | None) -> SymbolStream:
    """The stream, or where it is longer than `max_symbols` the fixed sample of its documents."""
    if max_symbols is None or stream.num_symbols <= max_symbols:
        return stream
    return stream.sample_documents(max_symbols, SAMPLE_SEED)
