"""The curves of a report: loss, gradient norm, learning rate and speed over steps, seconds and bytes seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shared.runs.metrics import Event, number
from shared.runs.run_files import RunFiles
from shared.spec import Spec
from shared.units import bits_per_byte, format_bytes, format_count, format_duration
from shared.views.report.markup import Child, Element, clean, data_block, element, facts, section
from shared.views.report.style import RUNS

# More points than this cannot be told apart at any size a report is read at; with several runs on one page, fewer.
MOST_POINTS, MOST_POINTS_OF_MANY = 600, 240
AXES = (("step", "steps"), ("seconds", "seconds of training"), ("bytes", "bytes of text seen"))
# The columns of `step_rows` after those of AXES, and all columns of a validation.
CURVES = ("bpb", "grad_norm", "rate", "speed")
VALIDATION = ("step", "seconds", "bytes", "bpb", "low", "high")
RATES = {"matrix_lr": "matrices", "embed_lr": "tables of symbols", "head_lr": "output matrices", "scalar_lr": "scalars"}
Row = tuple[float, ...]


def training_section(runs: Sequence[RunFiles], names: Sequence[str]) -> Element:
    """The section: facts of a single run, a choice of the axis, the charts, and their data. `names` are unique."""
    one = runs[0] if len(runs) == 1 else None
    found = section("Training")
    if one is not None:
        found.append(facts(_facts(one)))
    choices = [
        element("label", _choice(axis, checked=index == 0), label, class_="axis")
        for index, (axis, label) in enumerate(AXES)
    ]
    found.append(element("div", "over ", *choices, class_="axes"))
    if one is None:
        chips = [
            element(
                "button",
                element("span", class_=f"key run{index % RUNS}"),
                name,
                type="button",
                class_="chip",
                aria_pressed="true",
                data_run=index,
            )
            for index, name in enumerate(names)
        ]
        found.append(element("div", *chips, class_="chips"))
    found.append(element("noscript", element("p", "The curves need JavaScript. All figures are in the tables.")))
    found.append(_figure("bpb", "bits per byte", _loss_caption(runs)))
    small = [
        _figure("grad_norm", "gradient norm, before clipping", small=True),
        _figure("rate", "learning rate of the matrices", _rate_caption(one.spec) if one else "", small=True),
        _figure("speed", "bytes of text per second", small=True),
    ]
    found.append(element("div", *small, class_="pair"))
    found.append(data_block("curves", curve_data(runs, names)))
    return found


def curve_data(runs: Sequence[RunFiles], names: Sequence[str]) -> dict[str, Any]:
    """What charts.js draws, as JSON values: for each run the curves, thinned, along every axis."""
    most = MOST_POINTS if len(runs) == 1 else MOST_POINTS_OF_MANY
    found = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        rows = thinned(step_rows(run), most)
        along = [_column(rows, position) for position in range(3)]
        curves = {key: _column(rows, 3 + position) for position, key in enumerate(CURVES)}
        scored = _validations(run, rows)
        validation = {key: _column(scored, position) for position, key in enumerate(VALIDATION)}
        axes = {axis: values for (axis, _), values in zip(AXES, along, strict=True)}
        found.append({"name": clean(name), "colour": index % RUNS, "x": axes, "y": curves, "validation": validation})
    return {"runs": found}


def step_rows(run: RunFiles) -> list[Row]:
    """(step, seconds, bytes, bits per byte, gradient norm, rate, bytes per second) of each logged step along which the
    clock runs forward; nan for what is not known."""
    per_symbol, batch = run.bytes_per_symbol, run.spec.training.batch_symbols
    rows: list[Row] = []
    for event in run.by_step("step"):
        nats, factor = number(event, "nats_per_symbol"), number(event, "lr_factor")
        seconds, symbols = number(event, "elapsed_s"), number(event, "symbols") or event["step"] * batch
        row = (
            float(event["step"]),
            math.nan if seconds is None else seconds,
            symbols * per_symbol,
            math.nan if nats is None else bits_per_byte(nats, per_symbol),
            _or_nan(number(event, "grad_norm")),
            math.nan if factor is None else factor * run.spec.optimizer.matrix_lr,
            _or_nan(number(event, "bytes_per_s")),
        )
        if math.isfinite(row[1]) and (not rows or row[1] > rows[-1][1]):
            rows.append(row)
    return rows


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows: groups of neighbours, each at its end, with the means of its known values."""
    size = math.ceil(len(rows) / most) if rows else 1
    groups = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [(*group[-1][:3], *(_mean(column) for column in list(zip(*group, strict=True))[3:])) for group in groups]


def _validations(run: RunFiles, rows: Sequence[Row]) -> list[Row]:
    """(step, seconds, bytes, bits per byte, ends of the interval) of each validation; seconds are those of the steps
    around it."""
    per_step = run.spec.training.batch_symbols * run.bytes_per_symbol
    found: list[Row] = []
    for event in run.by_step("validation"):
        value = number(event, "bpb")
        if value is not None:
            low, high = (_or_nan(number(event, name)) for name in ("low_bpb", "high_bpb"))
            step = event["step"]
            found.append((float(step), _seconds_at(rows, step), step * per_step, value, low, high))
    return found


def _seconds_at(rows: Sequence[Row], step: int) -> float:
    """Seconds of training after a step: on straight lines between those that are known."""
    before = (0.0, 0.0)
    for row in rows:
        if row[0] >= step:
            span = row[0] - before[0]
            return before[1] + (row[1] - before[1]) * (step - before[0]) / span if span else row[1]
        before = (row[0], row[1])
    return before[1]


def _column(rows: Sequence[Row], index: int) -> list[float | None]:
    """Values for JSON, in six digits; None for what is not a number."""
    return [float(f"{row[index]:.6g}") if math.isfinite(row[index]) else None for row in rows]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _choice(axis: str, *, checked: bool) -> Element:
    given = {"checked": "checked"} if checked else {}
    return element("input", type="radio", name="axis", value=axis, **given)


def _figure(key: str, name: str, caption: str = "", *, small: bool = False) -> Element:
    box = element("div", class_="chart small" if small else "chart", data_y=key, role="img", aria_label=name)
    parts: list[Child] = [element("p", name, class_="name"), box]
    if caption:
        parts.append(element("figcaption", caption))
    return element("figure", *parts)


def _loss_caption(runs: Sequence[RunFiles]) -> str:
    """How the two curves came about."""
    sizes = {run.bytes_per_symbol for run in runs}
    caption = "Training loss is that of single batches: nats per symbol divided by ln 2"
    if sizes == {1.0}:
        caption += "."
    elif len(sizes) == 1:
        caption += f" and by the {min(sizes):.4f} bytes of an average symbol."
    else:
        caption += " and by the bytes of an average symbol."
    validations = [event for run in runs for event in run.by_step("validation")]
    if validations:
        weights = " and ".join(sorted({str(event["weights"]) for event in validations if "weights" in event}))
        whose = f" of the {weights} weights" if weights else ""
        caption += f" Validation (dots) is the score{whose} on a fixed sample of held-out documents."
    return f"{caption} The first twentieth is left out of the scale; drag to zoom, double-click for the whole."


def _rate_caption(spec: Spec) -> str:
    """The other rates, which follow the same factor."""
    rates = ", ".join(f"{meaning} {getattr(spec.optimizer, key):g}" for key, meaning in RATES.items())
    return f"Peak rates: {rates}; all follow one factor."


def _facts(run: RunFiles) -> list[tuple[str, Child]]:
    rows: list[tuple[str, Child]] = []
    steps: list[Event] = run.by_step("step")
    if steps:
        last = steps[-1]
        length = f"{last['step']:,} of {run.spec.training.steps:,} steps"
        symbols = number(last, "symbols")
        rows.append(("length", length if symbols is None else f"{length}, {format_count(symbols)} symbols"))
        if (seconds := number(last, "elapsed_s")) is not None:
            rows.append(("time", f"{format_duration(seconds)} of training alone"))
        peaks = [peak for event in steps if (peak := number(event, "peak_memory_bytes")) is not None]
        if peaks:
            rows.append(("peak memory", format_bytes(max(peaks))))
    resumed = run.events("resume")
    if resumed:
        steps_at = ", ".join(f"step {event['step']:,} ({event.get('engine', 'unknown engine')})" for event in resumed)
        rows.append(("resumed at", steps_at))
    return rows
