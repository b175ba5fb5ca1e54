"""Rows about one measured step and what follows from it: memory, time, share of peak, dollars, score."""

from __future__ import annotations

from dataclasses import dataclass

from shared.artifact.calibration import window_length
from shared.engine.flops import training_flops
from shared.engine.hardware import TERA, Products, find_peak
from shared.errors import DataError
from shared.model.stages import training_stages
from shared.preflight.duration import steps_and_seconds
from shared.preflight.measure import StepFailure, StepMeasurement
from shared.preflight.question import Context
from shared.preflight.row import Row, go, judged, no_go, unknown
from shared.runs.scaling_curve import ScalingFit, matching_fit
from shared.training.calibration import calibrates_in_time
from shared.training.sources import open_training_text
from shared.units import format_bytes, format_duration

# A share of peak above one means that the peak or the count is wrong.
MAX_MFU = 1.0
# Fewer steps than this in the time limit train nothing.
MIN_STEPS = 20
S_PER_HOUR = 3600.0
# What the allocator does not count on a GPU: the CUDA context, NCCL's buffers, gaps between blocks.
GPU_RESERVE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Plan:
    """The length of the run. `symbols` is what it sees, None where that takes a GPU to know; never more than
    `most_symbols`. `train_s` is its time with what is reserved, with `at_most` where only the limit is known;
    None if nothing is."""

    steps: int | None
    symbols: int | None
    most_symbols: int
    train_s: float | None
    at_most: bool = False


def plan_run(context: Context) -> Plan:
    """Steps, symbols and seconds of the run, from the measured step where the clock decides."""
    training = context.spec.training
    most = training.steps * training.batch_symbols
    step_s = known_step_s(context)
    timed = context.spec.schedule.driver == "time"
    if step_s is None:
        limit_s = training.time_limit_s or None
        return Plan(None if timed else training.steps, None if timed else most, most, limit_s, at_most=True)
    steps, seconds = steps_and_seconds(context.spec, step_s)
    return Plan(steps, steps * training.batch_symbols, most, seconds + training.reserve_s)


def known_step_s(context: Context) -> float | None:
    """Seconds of a step of the real run in its last stage, if this machine can tell."""
    step = context.step
    return shared_step_s(context, step) if isinstance(step, StepMeasurement) and not context.needs_gpu else None


def shared_step_s(context: Context, step: StepMeasurement) -> float:
    """Seconds of a step where the ranks that share the device work at the same time."""
    return step.step_s * context.sharing


def memory_row(context: Context) -> Row:
    """Peak of one step, and on a GPU of a validation, against free memory; without a step if the estimate leaves no
    hope."""
    free, estimate, rows = context.facts.free_bytes, context.memory, context.workload
    device = f"{context.facts.names[0]}{f', for each of {context.sharing} ranks' if context.sharing > 1 else ''}"
    # A GPU's own memory has nothing else in it.
    alone = "" if context.on_gpu else " without the process itself"
    basis = (
        f"estimate{alone} {format_bytes(estimate.expected_bytes)}, {estimate.error}, for {rows.group_rows} windows; "
        f"free on {device}: {format_bytes(free)}"
    )
    values = {
        "free_bytes": free,
        "estimated_bytes": estimate.expected_bytes,
        "estimated_least_bytes": estimate.least_bytes,
        "estimated_most_bytes": estimate.most_bytes,
        "windows": rows.group_rows,
        "measured_symbols": rows.measured_symbols,
    }
    step = context.step
    if step is None:
        how = f"by estimate, nothing allocated: {basis}"
        return no_go("memory", f"at least {format_bytes(estimate.least_bytes)} needed", how, **values)
    if isinstance(step, StepFailure):
        if step.out_of_memory:
            return no_go("memory", "out of memory", f"{step.reason}; {basis}", **values)
        return unknown("memory", f"no step could be measured: {step.reason}; {basis}", **values)
    reserve = GPU_RESERVE_BYTES if context.on_gpu and not context.facts.shares_memory else 0
    peak = projected_peak_bytes(context, step) + reserve
    scored = step.scored_bytes > step.peak_bytes and peak == step.scored_bytes + reserve
    how = f"peak of {'a validation' if scored else 'one step'} on "
    how += f"evaluation.batch_symbols = {context.spec.evaluation.batch_symbols:,}" if scored else rows.measured
    how += f", {format_bytes(step.peak_bytes)}, scaled by symbols" if rows.left_out > 1 else ""
    how += ", at least the upper bound of the estimate" if rows.shortened else ""
    how += f", and {format_bytes(reserve)} for the driver" if reserve else ""
    values |= {"peak_bytes": peak, "measured_peak_bytes": step.peak_bytes}
    if context.needs_gpu:
        return unknown("memory", f"needs a GPU; here {how} in float32 on a CPU; {basis}", format_bytes(peak), **values)
    return judged(peak <= free, "memory", f"{format_bytes(peak)} of {format_bytes(free)}", f"{how}; {basis}", **values)


def projected_peak_bytes(context: Context, step: StepMeasurement) -> int:
    """The peak of a validation, or of a step with all windows in memory, where that is more: what grew in the measured
    backward pass grows with the windows. Attention scores grow faster with their length, so for windows that were
    shortened it is no less than the upper bound of the estimate."""
    growth = max(0, step.backward_bytes - step.start_bytes)
    scaled = step.start_bytes + int(growth * context.workload.left_out)
    return max(step.scored_bytes, scaled, context.memory.most_bytes if context.workload.shortened else 0)


def step_time_row(context: Context) -> Row:
    """Seconds of a step, and how many steps and symbols the run has."""
    step, training = context.step, context.spec.training
    if step is None:
        return unknown("step_time", "not measured: a step does not fit in memory, see row memory")
    if isinstance(step, StepFailure):
        if step.out_of_memory:
            return unknown("step_time", f"not measured: {step.reason}")
        return no_go("step_time", "no step", step.reason)
    step_s = shared_step_s(context, step)
    symbols_per_s = context.workload.rank_symbols * context.question.ranks / step_s
    values = {"step_s": step_s, "symbols_per_s": symbols_per_s, "first_step_s": step.first_s}
    values |= {"optimizer_s": step.fixed_s, "reduced": not step.full}
    figure, how = f"{format_duration(step_s)}, {symbols_per_s:,.0f} symbols/s", _how_timed(context, step)
    if context.needs_gpu:
        return unknown("step_time", f"needs a GPU; on this CPU in float32: {how}", figure, **values)
    plan = plan_run(context)
    assert plan.steps is not None and plan.symbols is not None and plan.train_s is not None
    limited = f" in the limit of {training.time_limit_s:g} s" if context.spec.schedule.driver == "time" else ""
    limited += f", {training.reserve_s:g} s of which are reserved" if training.reserve_s else ""
    calibration_s = most_calibration_s(context, step) if calibrates_in_time(context.spec) else 0.0
    if calibration_s:
        values |= {"calibration_s": calibration_s}
        limited += f" for at most {format_duration(calibration_s)} of calibration on training text"
    figure += f"; {plan.steps:,} steps, {plan.symbols:,} symbols{limited}, {format_duration(plan.train_s)} of training"
    enough = plan.steps >= min(MIN_STEPS, training.steps)
    if not enough:
        how = f"fewer than {MIN_STEPS} steps train nothing; {how}"
    if calibration_s > training.reserve_s:
        enough, how = False, f"training.reserve_s = {training.reserve_s:g} may be too short for calibration; {how}"
    return judged(
        enough, "step_time", figure, how, **values, steps=plan.steps, symbols=plan.symbols, train_s=plan.train_s
    )


def most_calibration_s(context: Context, step: StepMeasurement) -> float:
    """The most seconds that calibration takes: as long as steps on so many symbols. It runs forward alone, and X'X of
    all matrices takes fewer operations than their gradients."""
    spec = context.spec
    symbols = spec.artifact.calibration.windows * window_length(spec)
    return shared_step_s(context, step) * symbols / spec.training.batch_symbols


def average_row(context: Context) -> Row:
    """Steps of the run against the memory of the weights' average: of an EMA 1 / (1 - decay) steps."""
    training, plan = context.spec.training, plan_run(context)
    if training.ema_decay == 0.0:
        return go("average", "no EMA", "training.ema_decay is 0", memory_steps=0.0)
    memory_steps = round(1.0 / (1.0 - training.ema_decay), 6)
    at_most = "" if plan.steps is not None else "at most "
    steps = training.steps if plan.steps is None else plan.steps
    figure = f"memory of {memory_steps:,.0f} steps, {at_most}{steps:,} in the run"
    how = f"1 / (1 - training.ema_decay), {training.ema_decay:g}"
    values = {"memory_steps": memory_steps, "steps": plan.steps}
    if steps < memory_steps:
        longest = max(0.0, 1.0 - 1.0 / steps) if steps else 0.0
        advice = f"the average would still hold the first weights; at most {longest:.4g} fits {steps:,} steps"
        return no_go("average", figure, f"{how}: {advice}", **values)
    if plan.steps is None:
        return unknown("average", f"needs a GPU to know the number of steps; {how}", figure, **values)
    return go("average", figure, how, **values)


def mfu_row(context: Context) -> Row:
    """Share of hardware peak: training operations per symbol (shared.engine.flops) x symbols per second of one rank /
    the device's peak for dense products of the compute dtype."""
    step = context.step
    if not isinstance(step, StepMeasurement):
        return unknown("mfu", "no step was measured, see rows memory and step_time")
    flops = training_flops(context.spec)
    products: Products = "bfloat16" if context.spec.training.dtype == "bfloat16" else step.float32_products
    known = find_peak(context.facts.names[0]) if context.on_gpu else None
    if known:
        peak, source = known[1].flops_per_s(products), f"{known[0]} data sheet, dense {products}"
    else:
        peak, source = step.product_flops_per_s, "measured matrix product of large squares"
    per_s = context.workload.rank_symbols / step.step_s
    mfu = per_s * flops.per_symbol / peak
    with_optimizer = mfu + flops.optimizer / step.step_s / peak
    figure = f"{mfu:.1%}"
    how = (
        f"{flops.per_symbol / 1e6:.1f} MFLOP per symbol (products and attention, forward and backward) x "
        f"{per_s:,.0f} symbols/s / {peak / TERA:,.2f} TFLOP/s ({source}); with Newton-Schulz {with_optimizer:.1%}"
    )
    values = {
        "mfu": mfu,
        "mfu_with_optimizer": with_optimizer,
        "flops_per_symbol": flops.per_symbol,
        "optimizer_flops_per_step": flops.optimizer,
        "peak_flops_per_s": peak,
    }
    if context.needs_gpu:
        return unknown("mfu", f"needs a GPU; on this CPU in float32: {how}", figure, **values)
    return judged(mfu <= MAX_MFU, "mfu", figure, how, **values)


def cost_row(context: Context) -> Row:
    """Dollars of the training alone: ranks x hours x price."""
    question, plan = context.question, plan_run(context)
    if question.price is None:
        return unknown("cost", "needs --price, dollars per GPU-hour")
    if plan.train_s is None:
        return unknown("cost", "needs a GPU: without a time limit the step time decides")
    hours = question.ranks * plan.train_s / S_PER_HOUR
    dollars = hours * question.price
    bound = "at most " if plan.at_most else ""
    how = (
        f"{question.ranks} x {format_duration(plan.train_s)} of training x ${question.price:g} per GPU-hour; "
        "set-up, compilation, packing and scoring come on top"
    )
    return go("cost", f"{bound}${dollars:,.2f}", how, dollars=dollars, gpu_hours=hours)


def projected_score_row(context: Context) -> Row:
    """bits per byte = c + a T^-alpha at the symbols of the run (docs/techniques.md 12.1)."""
    fit, plan = context.question.fit or _matching_fit(context), plan_run(context)
    if fit is None:
        how = "needs --fit, or a run that trains this spec's function on its text and has a fit.json of `bytetwin fit`"
        return unknown("projected_score", how)
    curve = fit.curve
    formula = f"{curve.c:g} + {curve.a:g} T^-{curve.alpha:g} bits per byte after T training symbols"
    formula += f", {'--fit' if context.question.fit else 'found in'} {fit.source}" if fit.source else ""
    if plan.symbols is None:
        best = fit.at(plan.most_symbols)
        how = f"needs a GPU to know T; {formula}, at most {plan.most_symbols:,} symbols"
        return unknown("projected_score", how, f"not below {best.bpb:.4f}", best_bpb=best.bpb)
    if plan.symbols == 0:
        return unknown("projected_score", "no step fits in the time limit, see row step_time")
    score = fit.at(plan.symbols)
    how = f"{formula}, T = {plan.symbols:,}, {score.distance}; at constant rate: a warm-down makes it better"
    values = {"bpb": score.bpb, "low_bpb": score.low_bpb, "high_bpb": score.high_bpb, "fit": fit.source}
    return go("projected_score", score.text, how, **values)


def _matching_fit(context: Context) -> ScalingFit | None:
    """The fit of a run whose curve is that of the spec, if the training text is here."""
    try:
        text = open_training_text(context.spec).sha256
    except DataError:
        return None
    return matching_fit(context.spec, text, context.question.runs_dir)


def _how_timed(context: Context, step: StepMeasurement) -> str:
    """How the seconds were measured, and what was scaled."""
    rows, ranks = context.workload, context.question.ranks
    how = f"measured on {step.device}: {rows.rank_rows} windows"
    if not step.full:
        how = (
            f"scaled by symbols from {rows.measured} to {rows.rank_rows} windows on {step.device}: "
            f"{format_duration(step.group_s)} each time, optimizer {format_duration(step.fixed_s)}"
        )
    if len(training_stages(context.spec)) > 1:
        how += ", in the last stage; earlier ones by their operations"
    if ranks > 1:
        how += f", the share of one of {context.question.trainers}, whose exchange of gradients is not included"
        how += f"; {context.sharing} of them share this CPU" if context.sharing > 1 else ""
    return how
