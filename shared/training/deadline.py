"""The end of a run: which step is its last, and how far along each step is.

A run by the clock begins no step that is expected to end after its limit. A step is expected to take as long as the
slowest of the recent ones and MARGIN more, so the run ends in time if its last step is no slower than that; a step
slower than all before it cannot be foreseen. The allowance is never more than MOST_STEPS mean steps: otherwise one slow
step in a thousand would cost a run more training than it is worth.
"""

from __future__ import annotations

from shared.model.stages import StepNumbers
from shared.optim import lr_factor, progress_frac, step_hyperparameters
from shared.spec import Spec
from shared.training.pace import Pace

# With these, none of 1,000 simulated runs whose steps vary by up to 20 % or sometimes take twice as long is late, and
# none leaves two steps unused (python -m tests.bench.deadline).
MARGIN = 0.05
MOST_STEPS = 1.9
# With less than so many allowances to the limit, what is in flight is read before the next step begins.
NEAR_STEPS = 3.0


class Deadline:
    """The end of a run whose steps have the lengths of `pace`. Times are seconds of training since the run began."""

    def __init__(self, spec: Spec, pace: Pace) -> None:
        self.spec, self.pace = spec, pace
        self.by_clock = spec.schedule.driver == "time"
        self.limit_s = spec.training.steps_limit_s
        # How long the first step will take, where that was measured before it.
        self.first_step_s = 0.0
        # The progress that the last step began with: however the end is estimated, no later one begins with less.
        self._begun_frac = 0.0

    @property
    def allowance_s(self) -> float:
        """Seconds that must be left for a step to begin; 0 before the first step."""
        return min((1.0 + MARGIN) * self.pace.slowest_s, MOST_STEPS * self.pace.step_s)

    def fits(self, step: int, begin_s: float) -> bool:
        """Whether there is a step after `step` steps, if it begins after `begin_s`."""
        if step >= self.spec.training.steps:
            return False
        return not self.by_clock or (begin_s < self.limit_s and begin_s + self.allowance_s <= self.limit_s)

    def is_near(self, begin_s: float) -> bool:
        """Whether it must be known exactly when the next step begins, to say whether it fits."""
        return self.by_clock and (not self.pace.is_known or begin_s + NEAR_STEPS * self.allowance_s > self.limit_s)

    def end_s(self, step: int, begin_s: float) -> float:
        """The end by the clock: that of the last step that fits, where the one after `step` steps begins at `begin_s`.

        The schedule ends there, so that the last step has the last rate.
        """
        if not self.fits(step, begin_s):
            return begin_s
        if not self.pace.step_s:
            return self.limit_s
        later_steps = int((self.limit_s - self.allowance_s - begin_s) / self.pace.step_s)
        return begin_s + (later_steps + 1) * self.pace.step_s

    def progress_frac(self, step: int, elapsed_s: float) -> float:
        """How far the run is after `step` steps and `elapsed_s`."""
        return progress_frac(self.spec, step, elapsed_s, self.end_s(step, elapsed_s) if self.by_clock else None)

    def left_s(self, step: int, elapsed_s: float) -> float | None:
        """Seconds to the end after `step` steps; None while the only step known may have compiled."""
        if not self.pace.is_known:
            return None
        by_steps = (self.spec.training.steps - step) * self.pace.step_s
        return min(by_steps, self.end_s(step, elapsed_s) - elapsed_s) if self.by_clock else by_steps

    def hyperparameters(self, step: int, begin_s: float) -> tuple[StepNumbers, float]:
        """(`step_hyperparameters`, the factor on learning rates) of the step that begins at `begin_s`, counted from
        0."""
        self._begun_frac = max(self._begun_frac, self.progress_frac(step, begin_s))
        step_frac = progress_frac(self.spec, 1, self.pace.step_s or self.first_step_s)
        numbers = step_hyperparameters(self.spec, step, self._begun_frac, step_frac)
        return numbers, lr_factor(self.spec.schedule, self._begun_frac, step_frac)
