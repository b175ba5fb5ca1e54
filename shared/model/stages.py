"""The functions that a run trains one after the other, each over the same parameters.

Most specs train a single one. With a loop that starts later the layers run in plain order first, then with the loop:
each stage is a spec of its own, and an engine compiles all of them before the clock starts. Which one a step trains
is decided on the host and travels with the step as StepNumbers. What changes within a stage is a number under a name
of RUN_PREFIX, which the engine puts next to the parameters as an array: nothing recompiles.
A forward pass without such numbers is the one at the end of training, as scores, checks and artifacts want it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from shared.spec import Spec

RUN_PREFIX = "run/"
# The factor on all loop gates, in [0, 1].
LOOP_RAMP = RUN_PREFIX + "loop_ramp"
# Whether quantisation-aware training acts, 0 or 1, and the step, from which its noise is made.
QAT, QAT_STEP = RUN_PREFIX + "qat", RUN_PREFIX + "qat_step"
# The factor on the weights of training.loss.multi_symbol, in [0, 1]; the step, from which directions are made.
MULTI_SYMBOL, DIRECTIONS_STEP = RUN_PREFIX + "multi_symbol", RUN_PREFIX + "directions_step"
# Whether the entropy of codes is minimised, 0 or 1, and the first row of each matrix that this step looks at.
CODE_ENTROPY, CODE_ENTROPY_ROW = RUN_PREFIX + "code_entropy", RUN_PREFIX + "code_entropy_row"
# The share of a batch's symbols that count, with training.loss.counts "marked".
COUNTED = RUN_PREFIX + "counted"
# What each symbol weighs in the loss [V, 1]: given to the engine once, not with the numbers of a step.
SYMBOL_WEIGHTS = RUN_PREFIX + "symbol_weights"


@dataclass(frozen=True)
class StepNumbers:
    """The hyperparameters of a step by their use: `stage` is an index into `training_stages`, `run` holds numbers of
    the forward pass, `optimizer` those of the update."""

    stage: int
    run: dict[str, float]
    optimizer: dict[str, float]

    def with_run(self, values: Mapping[str, float]) -> StepNumbers:
        """The same step with other numbers of the forward pass."""
        return replace(self, run={**self.run, **values})


def training_stages(spec: Spec) -> tuple[Spec, ...]:
    """The stages in order; the last one is the spec itself."""
    return (*(_with_extra_loops(spec, extra_loops) for extra_loops in _loop_counts(spec)[:-1]), spec)


def stage_of(spec: Spec, step: int, progress: float) -> int:
    """The stage of a step that begins with this progress; `step` counts from 0."""
    counts, loops = _loop_counts(spec), range(1, spec.model.loop.extra_loops + 1)
    if len(counts) == 1:
        return 0
    return counts.index(sum(spec.schedule.loop.is_running(loop, step, progress) for loop in loops))


def run_numbers(spec: Spec, step: int, progress: float) -> dict[str, float]:
    """The numbers of a step's forward pass, none for most specs; arguments as for `stage_of`."""
    values: dict[str, float] = {}
    loop, schedule, qat = spec.model.loop, spec.schedule.loop, spec.training.qat
    if loop.gates and loop.extra_loops > 0 and schedule.ramps:
        values[LOOP_RAMP] = schedule.ramp(step, progress)
    if qat.form != "off":
        values[QAT] = float(qat.is_acting(step, progress))
    if qat.form == "noise":
        values[QAT_STEP] = float(step)
    if spec.training.loss.counts == "marked":
        values[COUNTED] = 1.0
    return values | _auxiliary_numbers(spec, step, progress)


def final_numbers(spec: Spec) -> StepNumbers:
    """The function at the end of training, without an update."""
    return StepNumbers(len(_loop_counts(spec)) - 1, {}, {})


def warm_up_numbers(spec: Spec, names: Iterable[str]) -> list[StepNumbers]:
    """One step in each stage, all numbers 1: what must be compiled before training starts. `names` are those of the
    update."""
    run, optimizer = dict.fromkeys(run_numbers(spec, 0, 0.0), 1.0), dict.fromkeys(names, 1.0)
    return [StepNumbers(stage, run, optimizer) for stage in range(len(_loop_counts(spec)))]


def _loop_counts(spec: Spec) -> list[int]:
    """Extra loops of each stage, rising to all of them."""
    loops, schedule = spec.model.loop.extra_loops, spec.schedule.loop
    first = 0 if schedule.start_frac > 0.0 or schedule.start_step > 0 else 1
    if schedule.stagger_frac > 0.0 or schedule.stagger_steps > 0:
        return list(range(min(first, loops), loops + 1))
    return [0, loops] if first == 0 and loops else [loops]


def _auxiliary_numbers(spec: Spec, step: int, progress: float) -> dict[str, float]:
    """Numbers that the auxiliary losses of a step need."""
    loss, values = spec.training.loss, {}
    if loss.multi_symbol.weights and loss.multi_symbol.decay_end_frac > 0.0:
        values[MULTI_SYMBOL] = loss.multi_symbol.factor(progress)
    if loss.chunk_prediction.weight and loss.chunk_prediction.regulariser_weight:
        values[DIRECTIONS_STEP] = float(step)
    if loss.code_entropy.weight:
        values[CODE_ENTROPY] = float(progress >= loss.code_entropy.start_frac)
        values[CODE_ENTROPY_ROW] = float(step % loss.code_entropy.row_stride)
    return values


def _with_extra_loops(spec: Spec, extra_loops: int) -> Spec:
    """The spec with fewer loops, so with the function of an earlier stage."""
    loop = spec.model.loop.model_copy(update={"extra_loops": extra_loops})
    return spec.model_copy(update={"model": spec.model.model_copy(update={"loop": loop})})
