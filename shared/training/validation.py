"""Validation: the score of the run's best guess at its final weights, on a fixed sample of held-out documents."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from data.stream import SymbolStream
from shared.engine.protocol import Engine
from shared.errors import RunError
from shared.optim import keeps_average
from shared.runs.observer import ValidationReport
from shared.scoring.bits_per_byte import score_by_spec
from shared.spec import Spec

Progress = Callable[[int, int], None]
Validate = Callable[[int, Progress], ValidationReport]


class NonFiniteScoreError(Exception):
    """A validation score that is not a number; the message names the symbol."""


def make_validate(spec: Spec, engine: Engine, stream: SymbolStream) -> Validate:
    """A function from (step, progress) to the score of `stream` under the spec's protocol.

    With an average of the weights the average is scored, because it is what will be packed. The engine
    is back at its trained weights afterwards. Raises NonFiniteScoreError.
    """
    averages = False

    def validate(step: int, progress: Progress) -> ValidationReport:
        nonlocal averages
        begin = time.perf_counter()
        # Checked until true: what was averaged once stays averaged, and the check copies the weights to the host.
        averages = averages or _averages(spec, engine)
        engine.use_weights("averaged")
        try:
            score = score_by_spec(engine, stream, progress=progress)
        except RunError as error:
            raise NonFiniteScoreError(str(error)) from None
        finally:
            engine.use_weights("trained")
        return ValidationReport(
            step=step,
            bpb=score.bpb,
            low_bpb=score.confidence.low_bpb,
            high_bpb=score.confidence.high_bpb,
            nats=score.nats,
            symbols=score.symbols,
            bytes=score.bytes,
            documents=score.documents,
            weights="averaged" if averages else "trained",
            seconds=time.perf_counter() - begin,
        )

    return validate


def _averages(spec: Spec, engine: Engine) -> bool:
    """Whether the averaged weights of the engine are an average by now: of snapshots alone there may be none yet."""
    if spec.training.ema_decay > 0.0 or not keeps_average(spec.training):
        return keeps_average(spec.training)
    averaged, trained = (engine.export_weights(kind) for kind in ("averaged", "trained"))
    return any(not np.array_equal(averaged[name], trained[name]) for name in trained)
