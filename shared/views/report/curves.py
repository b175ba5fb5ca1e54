"""The training section of a report: how the loss fell, and at what speed."""

from __future__ import annotations

from collections.abc import Sequence

from shared.runs.finished_run import FinishedRun
from shared.runs.metrics import Event, number
from shared.units import bits_per_byte, format_bytes, format_count, format_duration
from shared.views.report.markup import Child, Element, element, facts, section
from shared.views.report.svg_chart import Format, Point, Series, line_chart


def training_section(run: FinishedRun) -> Element:
    """The section: facts, the loss curve, learning rate and speed."""
    steps, validations = run.by_step("step"), run.by_step("validation")
    bytes_per_symbol = run.bytes_per_symbol
    losses = [Point(x, bits_per_byte(nats, bytes_per_symbol)) for x, nats in _curve(steps, "nats_per_symbol")]
    loss = Series("training loss", losses)
    scored = [
        Point(event["step"], value, number(event, "low_bpb"), number(event, "high_bpb"))
        for event in validations
        if (value := number(event, "bpb")) is not None
    ]
    series = [loss, Series("validation", scored, "second", marked=True)] if scored else [loss]
    caption = "Training loss is that of single batches: nats per symbol divided by ln 2"
    caption += "." if bytes_per_symbol == 1.0 else f" and by the {bytes_per_symbol:.4f} bytes of an average symbol."
    if scored:
        weights = " and ".join(sorted({str(event["weights"]) for event in validations if "weights" in event}))
        whose = f" of the {weights} weights" if weights else ""
        caption += f" Validation is the score{whose} on a fixed sample of held-out documents, with its interval."
    factor = Series("learning-rate factor", [Point(x, y) for x, y in _curve(steps, "lr_factor")])
    speed = Series("speed", [Point(x, y) for x, y in _curve(steps, "bytes_per_s")])
    return section(
        "Training",
        facts(_facts(run, steps)),
        element(
            "figure",
            line_chart(series, x_name="step", y_name="bits per byte", axis="log"),
            element("figcaption", caption),
        ),
        element(
            "div",
            element("figure", _small_chart(factor, "learning-rate factor", "{:g}".format)),
            element("figure", _small_chart(speed, "bytes of text per second", format_bytes)),
            class_="pair",
        ),
    )


def _facts(run: FinishedRun, steps: Sequence[Event]) -> list[tuple[str, Child]]:
    rows: list[tuple[str, Child]] = []
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


def _small_chart(series: Series, y_name: str, y_format: Format) -> Element:
    return line_chart([series], x_name="step", y_name=y_name, width=360, height=190, axis="zero", y_format=y_format)


def _curve(events: Sequence[Event], name: str) -> list[tuple[float, float]]:
    return [(event["step"], value) for event in events if (value := number(event, name)) is not None]
