"""The row about the score at the end: how long the held-out text takes."""

from __future__ import annotations

from data.datasets import open_split
from shared.errors import DataError
from shared.preflight.measure import StepMeasurement
from shared.preflight.question import Context
from shared.preflight.row import Row, judged, unknown
from shared.units import format_duration


def evaluation_time_row(context: Context) -> Row:
    """Seconds of scoring all held-out text under the spec's protocol, against evaluation.time_limit_s."""
    spec, step = context.spec, context.step
    if not isinstance(step, StepMeasurement):
        return unknown("evaluation_time", "no step was measured, see rows memory and step_time")
    try:
        symbols = open_split(spec.data.heldout, "heldout", spec.vocabulary).num_symbols
    except DataError as error:
        return unknown("evaluation_time", f"needs the held-out text: {error}")
    adaptation, limit_s = spec.evaluation.adaptation, spec.evaluation.time_limit_s
    evaluation_s = step.evaluated_s * symbols * context.sharing / context.question.ranks
    figure = format_duration(evaluation_s) + (f" of {format_duration(limit_s)}" if limit_s else "")
    how = f"{step.evaluated_s * 1e6:,.1f} us for a symbol, measured in passes"
    how += f" that learn {adaptation.epochs} times" if adaptation.is_on else ""
    how += f", x {symbols:,} symbols of {spec.data.heldout}"
    how += f" / {context.question.trainers}" if context.question.ranks > 1 else ""
    values = {"evaluation_s": evaluation_s, "symbols": symbols, "limit_s": limit_s}
    if context.needs_gpu:
        return unknown("evaluation_time", f"needs a GPU; on this CPU in float32: {how}", figure, **values)
    return judged(not limit_s or evaluation_s <= limit_s, "evaluation_time", figure, how, **values)
