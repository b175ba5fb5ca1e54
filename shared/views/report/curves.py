"""The training section of a report: how the loss fell, and at what speed."""

from __future__ import annotations

from collections.abc import Sequence

from shared.runs.finished_run import FinishedRun, number
from shared.runs.metrics import Record
from shared.views.report.markup import Child, Element, element, facts, section
from shared.views.report.svg_chart import Format, Point, Series, line_chart
from shared.views.units import bits_per_byte, in_bytes, in_count, in_time


def training_section(run: FinishedRun) -> Element:
    """The section: facts, the loss curve, learning rate and speed."""
    steps, validations = run.by_step("step"), run.by_step("validation")
    bytes_per_symbol = run.bytes_per_symbol
    losses = [Point(x, bits_per_byte(nats, bytes_per_symbol)) for x, nats in _curve(steps, "nats")]
    loss = Series("training loss", losses)
    scored = [
        Point(record["step"], value, number(record, "low_bpb"), number(record, "high_bpb"))
        for record in validations
        if (value := number(record, "bpb")) is not None
    ]
    series = [loss, Series("validation", scored, "second", marked=True)] if scored else [loss]
    caption = "Training loss is that of single batches: nats per symbol divided by ln 2"
    caption += "." if bytes_per_symbol == 1.0 else f" and by the {bytes_per_symbol:.4f} bytes of an average symbol."
    if scored:
        weights = " and ".join(sorted({str(record["weights"]) for record in validations if "weights" in record}))
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
            element("figure", _small_chart(speed, "bytes of text per second", in_bytes)),
            class_="pair",
        ),
    )


def _facts(run: FinishedRun, steps: Sequence[Record]) -> list[tuple[str, Child]]:
    rows: list[tuple[str, Child]] = []
    if steps:
        last = steps[-1]
        length = f"{last['step']:,} of {run.spec.training.steps:,} steps"
        symbols = number(last, "symbols")
        rows.append(("length", length if symbols is None else f"{length}, {in_count(symbols)} symbols"))
        if (seconds := number(last, "elapsed_s")) is not None:
            rows.append(
                (
                    "time",
                    f"{seconds:.1f} s of training alone" if seconds < 60.0 else f"{in_time(seconds)} of training alone",
                )
            )
        peaks = [peak for record in steps if (peak := number(record, "peak_memory_bytes")) is not None]
        if peaks:
            rows.append(("peak memory", in_bytes(max(peaks))))
    resumed = run.events("resume")
    if resumed:
        places = ", ".join(f"step {record['step']:,} ({record.get('engine', 'unknown engine')})" for record in resumed)
        rows.append(("resumed at", places))
    return rows


def _small_chart(series: Series, y_name: str, y_format: Format) -> Element:
    return line_chart([series], x_name="step", y_name=y_name, width=360, height=190, axis="zero", y_format=y_format)


def _curve(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(record["step"], value) for record in records if (value := number(record, name)) is not None]
