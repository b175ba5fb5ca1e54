"""One training step, measured in a process of its own: `python -m shared.preflight.measure` reads a request.

A step may run out of memory, and the system then kills the process; so it is never preflight's own. The new
process also starts with no memory in use but its own, which makes its peak the step's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shared.engine.device_facts import Multiplied
from shared.engine.package import engine_package
from shared.engine.protocol import Engine, NonFiniteError
from shared.engine.synthetic import synthetic_engine, synthetic_loader, synthetic_start
from shared.errors import UserError
from shared.model.stages import StepNumbers
from shared.optim import step_hyperparameters
from shared.scoring.adaptation import score_text
from shared.scoring.excerpt import Excerpt, with_adaptation, with_spec
from shared.spec import Spec, spec_from_dict, spec_to_dict

T = TypeVar("T")

TIMEOUT_S = 600
# A full step of a rank is measured if by the first micro-batch it takes less than this.
FULL_STEP_S = 4.0
TIMED_S = 2.0
MAX_TIMED_STEPS = 10
# Where nothing is compiled and the first step takes longer than this, its warm-up is lost in it: no second is made.
SLOW_S = 4.0
TEXT_SEED = 2
OUT_OF_MEMORY = re.compile(r"out of memory|alloc|memory", re.IGNORECASE)


@dataclass(frozen=True)
class StepMeasurement:
    """One step of one rank. Seconds: `step_s` of the whole share of the batch, measured if `full`, else
    `fixed_s` (the optimizer) plus one `group_s` for each pass over the measured rows. Bytes: `start_bytes` with
    weights and optimizer state in place, `backward_bytes` at the peak of a backward pass, `peak_bytes` at the
    peak of a step, `scored_bytes` at the peak of a validation between two steps, which only a GPU makes here.
    `first_s` is what the first step took, and on a GPU a validation before it, compilation included.
    `float32_products` is how float32 matrices were multiplied."""

    device: str
    full: bool
    step_s: float
    fixed_s: float
    group_s: float
    first_s: float
    start_bytes: int
    backward_bytes: int
    peak_bytes: int
    scored_bytes: int
    nats: float
    product_flops_per_s: float
    float32_products: Multiplied = "float32"
    # Seconds for a symbol of the held-out text, scored under the spec's protocol by one rank.
    evaluated_s: float = 0.0


@dataclass(frozen=True)
class StepFailure:
    """Why no step could be measured, in one line."""

    reason: str
    out_of_memory: bool


def measure_step(spec: Spec, engine: str, rows: int, passes: float) -> StepMeasurement | StepFailure:
    """Measure a step of `rows` windows in a new process; a rank's share of the batch has `passes` times as many
    symbols."""
    request = {"spec": spec_to_dict(spec), "engine": engine, "rows": rows, "passes": passes}
    command = [sys.executable, "-m", "shared.preflight.measure"]
    try:
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return StepFailure(f"no step was done within {TIMEOUT_S} s", out_of_memory=False)
    if done.returncode < 0:
        killed = done.returncode == -9
        ended = "killed by the system, as it does when memory runs out" if killed else "ended"
        return StepFailure(f"the measuring process was {ended} (signal {-done.returncode})", out_of_memory=killed)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return StepFailure(f"the measuring process failed: {lines[-1]}", out_of_memory=False)
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return StepFailure(**values) if "reason" in values else StepMeasurement(**values)


def measure_here(spec: Spec, engine_name: str, rows: int, passes: float) -> StepMeasurement:
    """Measure in this process. Raises what the engine raises."""
    engine, package = synthetic_engine(engine_name, spec), engine_package(engine_name)
    facts = package.device_facts()
    on_gpu = facts.kind == "gpu"
    engine.initialise(synthetic_start(spec))
    engine.synchronise()
    start_bytes = engine.peak_memory_bytes()
    x = synthetic_loader(spec, TEXT_SEED).rows(0, 0, rows)
    # Before any step, whose peak may be higher.
    score_s, score_bytes = _measured_score(engine, x) if on_gpu else (0.0, start_bytes)
    nats, group_s = _timed(lambda: engine.gradients(x)[0])
    backward_bytes = engine.peak_memory_bytes()
    _, one_s = _timed(lambda: engine.train_step(x, largest_step(spec))())
    peak_bytes = engine.peak_memory_bytes()
    first_s = score_s + group_s + one_s
    if on_gpu or spec.training.compile or first_s < SLOW_S:
        _, group_s = _timed(lambda: engine.gradients(x))
        one_s = _timed_steps(engine, x)
    fixed_s = max(0.0, one_s - group_s)
    full = passes == 1 or (on_gpu and passes * one_s < FULL_STEP_S)
    step_s = one_s if full else fixed_s + passes * group_s
    if full and passes > 1:
        step_s = _timed_steps(engine, synthetic_loader(spec, TEXT_SEED).rows(0, 0, round(passes * rows)))
    # The memory of a recorded step stays its own, also while a validation needs some.
    records = on_gpu and spec.training.compile and not facts.shares_memory
    scored_bytes = peak_bytes + score_bytes - start_bytes if records else max(peak_bytes, score_bytes)
    return StepMeasurement(
        evaluated_s=measure_evaluation(engine, x.size),
        device=engine.device_name(),
        full=full,
        step_s=step_s,
        fixed_s=fixed_s,
        group_s=group_s,
        first_s=first_s,
        start_bytes=start_bytes,
        backward_bytes=backward_bytes,
        peak_bytes=peak_bytes,
        scored_bytes=scored_bytes,
        nats=nats,
        product_flops_per_s=package.matrix_product_flops_per_s(spec.training.dtype),
        float32_products=package.float32_products(),
    )


def _measured_score(engine: Engine, x: np.ndarray) -> tuple[float, int]:
    """(seconds, peak in bytes so far) of a pass of a validation with the symbols of x [B, T]: of
    evaluation.batch_symbols, which may be many more than a micro-batch."""
    rows, seq_len = engine.spec.evaluation.batch_symbols // engine.spec.model.seq_len, engine.spec.model.seq_len
    _, score_s = _timed(lambda: engine.score(np.resize(x, (rows, seq_len))))
    return score_s, engine.peak_memory_bytes()


def measure_evaluation(engine: Engine, symbols: int) -> float:
    """Seconds for a symbol of a text under the protocol of the engine's spec, in passes of `symbols` at most.

    Every window reads seq_len symbols, of which a stride counts. What is learnt is learnt once here, and takes
    `epochs` times as long.
    """
    spec, settings = engine.spec, engine.spec.evaluation.adaptation
    plain_s = _seconds_for_a_symbol(engine, _in_passes(spec, symbols, kind="none"), symbols)
    if not settings.is_on:
        return plain_s
    chunk = min(settings.chunk_symbols, symbols)
    once = _in_passes(spec, symbols, chunk_symbols=chunk, epochs=1)
    learnt_s = _seconds_for_a_symbol(engine, once, max(chunk, spec.evaluation.stride_symbols)) - plain_s
    return plain_s + settings.epochs * max(0.0, learnt_s)


def _in_passes(spec: Spec, symbols: int, **changes: object) -> Spec:
    """The spec with passes of `symbols` at most, and other settings of its adaptation."""
    spec = with_adaptation(spec, **changes)
    batch = max(min(spec.evaluation.batch_symbols, symbols), spec.model.seq_len)
    update = {"batch_symbols": batch // spec.model.seq_len * spec.model.seq_len}
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update=update)})


def _seconds_for_a_symbol(engine: Engine, spec: Spec, symbols: int) -> float:
    """Of a protocol whose passes or chunks count `symbols`, after the first, in which an engine compiles."""
    x = synthetic_loader(spec, TEXT_SEED).rows(0, 0, 1).reshape(-1)
    text = np.resize(x, 4 * symbols)
    starts = np.arange(0, len(text), 2 * symbols)
    stream: Any = Excerpt("synthetic text", text, np.zeros(len(text), bool), starts)
    ticks: list[tuple[int, float]] = []
    score_text(with_spec(engine, spec), stream, progress=lambda done, _: ticks.append((done, time.perf_counter())))
    first = next(index for index, (done, _) in enumerate(ticks) if done >= symbols or index == len(ticks) - 2)
    (some, some_s), (most, most_s) = ticks[first], ticks[-1]
    return (most_s - some_s) / (most - some)


def _timed_steps(engine: Engine, x: np.ndarray) -> float:
    """Seconds of one step: the best single one, or the mean of several queued behind each other if they are short."""
    numbers = largest_step(engine.spec)
    engine.synchronise()
    _, one_s = _timed(lambda: engine.train_step(x, numbers)())
    count = min(MAX_TIMED_STEPS, int(TIMED_S / one_s))
    if count < 2:
        return one_s

    def steps() -> None:
        result = engine.train_step(x, numbers)
        for _ in range(count - 1):
            following = engine.train_step(x, numbers)
            result()
            result = following
        result()

    return min(one_s, _timed(steps)[1] / count)


def largest_step(spec: Spec) -> StepNumbers:
    """Return the numbers of a first step, but of the function that the run ends with, the largest."""
    last = step_hyperparameters(spec, spec.training.steps - 1, 1.0)
    return replace(last, optimizer=step_hyperparameters(spec, 0, 0.0).optimizer)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """(result, seconds)."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _offer_to_be_killed_first() -> None:
    """Make Linux end this process and no other if it runs out of memory."""
    path = Path("/proc/self/oom_score_adj")
    if path.exists():
        path.write_text("1000")


def main() -> int:
    """Request on stdin, result as the last line on stdout."""
    _offer_to_be_killed_first()
    request = json.load(sys.stdin)
    spec = spec_from_dict(request["spec"])
    result: StepMeasurement | StepFailure
    try:
        result = measure_here(spec, request["engine"], request["rows"], request["passes"])
    except NonFiniteError as error:
        result = StepFailure(f"the first steps broke down: {error}", out_of_memory=False)
    except (RuntimeError, MemoryError, UserError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        result = StepFailure(reason, isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(reason)))
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
