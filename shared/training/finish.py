"""After training: pack the weights, score what was packed, and compare it with the unpacked weights.

The packed weights are read back from the artifact, so the score is that of the file. What packing costs is
measured on the validation sample, where the unpacked weights were scored at the end of training.

GPUs wait for all of this, so the most important comes first: score.json is on disk before anything optional begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shared.artifact import ArtifactInfo, read_artifact
from shared.artifact.calibration import LOGITS_KEY, Calibration
from shared.engine.protocol import Engine, Weights
from shared.optim import keeps_average
from shared.runs.metrics import MetricsLog
from shared.runs.observer import Observer, ValidationReport
from shared.runs.run_directory import RunDirectory
from shared.scoring.average_check import check_average
from shared.scoring.calibration_check import check_calibration
from shared.scoring.checks import Check
from shared.scoring.document import ScoreDocument, write_score
from shared.scoring.documents import write_document_scores
from shared.scoring.evaluate import evaluate, with_compressors
from shared.scoring.overlap import check_overlap
from shared.scoring.qat_check import check_qat_acts, check_qat_codes
from shared.scoring.resume import ScoreState
from shared.spec import Spec
from shared.tolerances import PACKING_BPB
from shared.training.calibration import (
    calibrate_engine,
    calibrates_in_time,
    check_calibration_time,
    is_calibrated,
)
from shared.training.interruption import Interruption
from shared.training.packing import pack_weights
from shared.training.sources import Sources
from shared.training.validation import make_validate
from shared.views.report import write_report


@dataclass(frozen=True)
class Packing:
    """Bits per byte of the same documents before and after quantisation."""

    unpacked_bpb: float
    packed_bpb: float

    @property
    def difference_bpb(self) -> float:
        """The cost of packing; above zero is worse."""
        return self.packed_bpb - self.unpacked_bpb

    @property
    def acceptable(self) -> bool:
        """Whether it costs no more than the tolerance."""
        return self.difference_bpb <= PACKING_BPB

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "difference_bpb": self.difference_bpb, "limit_bpb": PACKING_BPB}


@dataclass(frozen=True)
class Finished:
    """The score of the artifact on all held-out text, what packing cost, and the problems that a check found, one line
    each; `checks` are those of what was trained: an average of the weights, quantisation-aware training."""

    score: ScoreDocument
    packing: Packing
    problems: list[str]
    checks: Sequence[Check] = ()


@dataclass(frozen=True)
class OpenRun:
    """Everything that a run holds while it trains and is finished."""

    run: RunDirectory
    spec: Spec
    engine: Engine
    sources: Sources
    metrics: MetricsLog
    observer: Observer
    interruption: Interruption

    def on_phase(self, phase: str, step: int) -> None:
        """A phase behind the last step begins: for who sees the run, and for who reads its files meanwhile."""
        self.metrics.append("phase", step, phase=phase)
        self.observer.on_phase(phase)

    def on_progress(self, done: int, total: int) -> None:
        """Pass progress on to the observer. Raises StopRequested after a signal."""
        self.interruption.check()
        self.observer.on_progress(done, total)


def find_problems(score: ScoreDocument, packing: Packing, checks: Sequence[Check] = ()) -> list[str]:
    """Why a finished run is refused, one line each; empty when all is well."""
    found = [*score.problems, *(f"{check.name}: {check.detail}" for check in checks if not check.passed)]
    if not packing.acceptable:
        cost = packing.difference_bpb
        found.append(f"packing: costs {cost:.4f} bits per byte, at most {PACKING_BPB} is allowed")
    return found


def finish_run(opened: OpenRun, unpacked: ValidationReport) -> Finished:
    """Write artifact.btw, score.json and report.html for the trained engine, which holds the packed weights afterwards.

    `unpacked` is the validation at the last step. Raises StopRequested between two passes after a signal, and
    ArtifactError or RunError where something cannot be written.
    """
    run, engine, sources, observer = opened.run, opened.engine, opened.sources, opened.observer

    def scoring_progress(done: int, total: int) -> None:
        opened.on_progress(done, total)
        if done == total:
            opened.on_phase("audit", unpacked.step)

    checks = []
    if keeps_average(opened.spec.training):
        checks.append(check_average(engine, sources.loader.batch(0)))
    if opened.spec.training.qat.form != "off":
        checks.append(check_qat_acts(engine, sources.loader.batch(0)))
    weights = engine.export_weights("averaged")
    info, time_checks, text_checks = _pack(opened, weights, unpacked.step)
    checks += time_checks
    if opened.spec.training.qat.form == "straight_through":
        checks.append(check_qat_codes(engine, weights, sources.loader.batch(0)))
    engine.initialise(read_artifact(run.artifact_path).weights)
    opened.interruption.check()
    opened.on_phase("validation of the artifact", unpacked.step)
    packed = make_validate(opened.spec, engine, sources.validation)(unpacked.step, opened.on_progress)
    packing = Packing(unpacked.bpb, packed.bpb)
    opened.on_phase("scoring", unpacked.step)
    state = ScoreState.beside(run.score_path, observer.on_warning)
    document = evaluate(
        engine,
        sources.heldout,
        engine=engine.name,
        weights="packed",
        artifact_bytes=info.artifact_bytes,
        artifact_sha256=info.sha256,
        progress=scoring_progress,
        on_score=lambda score: write_document_scores(run.documents_path, score.by_document),
        data_checks=[check_overlap(sources.heldout, sources.train), *text_checks],
        state=state,
    )
    opened.interruption.check()
    write_score(run.score_path, document)
    state.remove()
    finished = Finished(document, packing, find_problems(document, packing, checks), checks)
    opened.metrics.append(
        "finished", unpacked.step, bpb=document.bpb, packing=packing.to_document(), problems=finished.problems
    )
    opened.on_phase("report", unpacked.step)
    write_report(run)
    return finished


def _pack(opened: OpenRun, weights: Weights, step: int) -> tuple[ArtifactInfo, list[Check], list[Check]]:
    """Calibrate and write the artifact of weights: its facts, the check of the time that this took where that counts as
    training, and those of the texts that were read for it. The engine may have other weights afterwards."""
    spec, engine, sources = opened.spec, opened.engine, opened.sources
    calibration, seconds = _calibrate(opened, step)

    def scorer_of(packed: Weights) -> Engine:
        opened.on_phase("fitting logits", step)
        engine.initialise(packed)
        return engine

    opened.on_phase("packing", step)
    text, path = sources.train, opened.run.artifact_path
    info, logits = pack_weights(path, spec, weights, calibration, scorer_of, text=text, progress=opened.on_progress)
    text_checks = []
    if calibration is not None:
        text_checks.append(check_calibration(calibration.record, sources.heldout, calibration.windows))
    if logits is not None:
        text_checks.append(check_calibration(logits.record, sources.heldout, logits.windows, LOGITS_KEY))
        opened.metrics.append("logits", step, seconds=logits.seconds, **logits.record.model_dump(exclude_none=True))
        seconds += logits.seconds if spec.schedule.driver == "time" else 0.0
    return info, [check_calibration_time(spec, seconds)] if seconds else [], text_checks


def _calibrate(opened: OpenRun, step: int) -> tuple[Calibration | None, float]:
    """The calibration of the trained weights where the artifact needs one, noted in the metrics, and the seconds that
    it took where these count as training, else 0."""
    spec = opened.spec
    if not is_calibrated(spec):
        return None, 0.0
    opened.on_phase("calibration", step)
    timed = calibrate_engine(opened.engine, opened.sources.train, opened.on_progress)
    opened.interruption.check()
    record = timed.calibration.record
    opened.metrics.append("calibration", step, seconds=timed.seconds, **record.model_dump(exclude_none=True))
    return timed.calibration, timed.seconds if calibrates_in_time(spec) else 0.0


def add_compressors(opened: OpenRun, finished: Finished) -> Finished:
    """Add to score.json what general compressors achieve on the text, if that was not known when it was written.

    Needed for a dataset made by an older version or elsewhere; it takes minutes for a large text. Raises StopRequested
    after a signal: the score stands without them.
    """
    if finished.score.compressors:
        return finished

    def progress(done: int, total: int) -> None:
        # Views count symbols.
        opened.on_progress(done * finished.score.symbols // total, finished.score.symbols)

    opened.observer.on_phase("compressors")
    document = with_compressors(finished.score, opened.sources.heldout, None, progress)
    write_score(opened.run.score_path, document)
    return replace(finished, score=document)
