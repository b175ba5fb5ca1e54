"""What is wished for, and how fast a device trains: by rows of records/, or by a step that is measured here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.engine.flops import training_flops
from shared.engine.hardware import PEAKS, find_peak
from shared.engine.package import engine_package
from shared.errors import UserError
from shared.preflight.ask_rows import preferred_engine, prepare
from shared.preflight.measure import StepMeasurement
from shared.preflight.question import Question
from shared.runs.measured import MeasuredRow, measured_rows
from shared.spec import Spec

THIS = "this"
# Devices of rows without a GPU. Of a machine that is measured those of the first have the scores.
LAPTOPS = {"laptop": "2 x86-64 cores", "core": "1 x86-64 core"}
DEVICES = (THIS, *LAPTOPS, *(name for name, _ in PEAKS))
# What a symbol takes on a CPU beside its operations, in operations that take as long: 0.46 to 0.72 M by three shapes
# and narrower forms of them (records/2026-11-26-plan.md).
OVERHEAD_FLOPS = 600_000
# The GPU whose rows stand for all.
MEASURED_GPU = "H200"


@dataclass(frozen=True)
class Wish:
    """`total_bytes` for artifact and code, `minutes` of training on `gpus` GPUs of a device of DEVICES."""

    total_bytes: int
    minutes: float
    gpus: int = 1
    device: str = THIS
    tokens: bool = False
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Speed:
    """How fast the device of a wish trains: `factor` times the rows, all GPUs together. `engine` trains there; `text`
    says what was measured and what is taken for granted."""

    on_gpu: bool
    engine: str
    factor: float
    rows: tuple[MeasuredRow, ...]
    text: str

    def per_s(self, spec: Spec, source: MeasuredRow) -> float:
        """Symbols trained on per second: operations as fast as those of `source`, and on a CPU a fixed time for each
        symbol; on GPUs as those of the measured shape with the most similar number of them, in its fastest run."""
        flops, fixed = training_flops(spec).per_symbol, OVERHEAD_FLOPS
        if self.on_gpu:
            fixed = 0
            source = min(self.rows, key=lambda row: (abs(math.log(row.flops_per_symbol / flops)), -row.per_s))
        return self.factor * source.per_s * (source.flops_per_symbol + fixed) / (flops + fixed)


def find_speed(wish: Wish) -> Speed:
    """The speed of the device. Raises UserError for GPUs that a device does not have, or a step that fails."""
    engine = preferred_engine() if wish.device == THIS else "mlx" if wish.device in LAPTOPS else "torch"
    facts = engine_package(engine).device_facts() if wish.device == THIS else None
    name = facts.names[0] if facts else wish.device
    on_gpu = find_peak(name) is not None
    if wish.gpus > 1 and not on_gpu:
        options = ", ".join(DEVICES[1 + len(LAPTOPS) :])
        raise UserError(f"--gpus {wish.gpus}: {name} counts as 1; name a GPU with --device: {options}")
    same = [row for row in measured_rows() if row.spec.vocabulary.reads_tokens == wish.tokens]
    asked = MEASURED_GPU if on_gpu else LAPTOPS.get(wish.device, LAPTOPS["laptop"])
    # Tokens were not measured on every laptop.
    device = next(name for name in (asked, *LAPTOPS.values()) if any(row.device == name for row in same))
    rows = [row for row in same if row.device == device]
    base = max(rows, key=lambda row: (row.label == row.preset, row.per_s))
    page = f"{base.record} ({base.device})"
    many = f"; {wish.gpus} GPUs taken as {wish.gpus} times one, not measured" if wish.gpus > 1 else ""
    if wish.device == THIS:
        measured = _measured_per_s(base.spec, engine)
        text = f"measured here: {base.label} {measured:,.0f} symbols/s, {measured / base.per_s:.2f} times {page}; "
        return Speed(
            on_gpu, engine, wish.gpus * measured / base.per_s, tuple(rows), f"{text}others scaled like it{many}"
        )
    factor, text = float(wish.gpus), page
    if on_gpu:
        peak, reference = find_peak(name), find_peak(MEASURED_GPU)
        assert peak is not None and reference is not None
        factor *= peak[1].bfloat16 / reference[1].bfloat16
        if name != MEASURED_GPU:
            text += f"; {name} taken to reach the same share of its peak, not measured"
    return Speed(on_gpu, engine, factor, tuple(rows), f"{text}{many}")


def _measured_per_s(spec: Spec, engine: str) -> float:
    """Symbols per second of one rank, by preflight's measurement of a step."""
    context = prepare(Question(spec, engine, ranks=1))
    if not isinstance(context.step, StepMeasurement):
        reason = "it does not fit in memory" if context.step is None else context.step.reason
        raise UserError(f"--device this: no step of {spec.name} could be measured: {reason}")
    return context.workload.rank_symbols / context.step.step_s
