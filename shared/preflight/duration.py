"""Steps and duration of a run, where a loop that starts later makes the first steps shorter."""

from __future__ import annotations

from functools import lru_cache

from shared.engine.flops import training_flops
from shared.model.stages import stage_of, training_stages
from shared.optim import progress_frac
from shared.spec import Spec

# Steps of a run with several stages are taken together in about so many parts.
PARTS = 1000


def steps_and_seconds(spec: Spec, step_s: float) -> tuple[int, float]:
    """(steps, seconds of them) of a run whose steps take `step_s` in its last stage, and in an earlier one less in
    proportion to its operations."""
    training, timed = spec.training, spec.schedule.driver == "time"
    seconds = [step_s * share for share in _stage_shares(spec)]
    most = min(training.steps, training.steps_limit_s / min(seconds)) if timed else training.steps
    together = training.steps if len(seconds) == 1 else max(1, int(most / PARTS))
    step, elapsed_s = 0, 0.0
    while step < training.steps:
        each_s = seconds[stage_of(spec, step, progress_frac(spec, step, elapsed_s))]
        count = min(together, training.steps - step)
        if timed:
            count = min(count, int((training.steps_limit_s - elapsed_s) / each_s))
        if count < 1:
            break
        step, elapsed_s = step + count, elapsed_s + count * each_s
    return step, elapsed_s


@lru_cache(maxsize=8)
def _stage_shares(spec: Spec) -> tuple[float, ...]:
    """Operations of a step in each stage over those in the last."""
    stages = training_stages(spec)
    if len(stages) == 1:
        return (1.0,)
    operations = [training_flops(stage).per_symbol for stage in stages]
    return tuple(count / operations[-1] for count in operations)
