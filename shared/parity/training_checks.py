"""Training: parameters after a few optimizer steps, and the loss curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from shared.engine.protocol import Engine, NonFiniteError
from shared.model import training_parameters
from shared.model.stages import StepNumbers
from shared.ops import NumpyOps
from shared.optim import by_muon, global_norm, initial_state, optimizer_step, progress_frac, step_hyperparameters
from shared.optim.rules import RULES
from shared.parity.gradient_checks import Tensors, oracle_loss
from shared.parity.result import ParityRow, max_abs_difference, worst_relative_l2
from shared.spec import Spec
from shared.tolerances import LOSS_CURVE_ABS, PARAMETERS_REL
from shared.units import counted

UPDATE_STEPS = 10

Locate = Callable[[str, str], str]
# Called with a name for the weights that come next: shared.parity.held_kinks.HeldKinks.begin.
Begin = Callable[[Hashable], None]


def hold_nothing(moment: Hashable) -> None:
    """The `Begin` of engines without held kinks."""


@dataclass(frozen=True)
class ShortRun:
    """One short run: mean nats of every step, parameters after `UPDATE_STEPS` steps (or the last, if
    fewer), and the parameter that stopped being a number, if one did."""

    losses: np.ndarray
    params: dict[str, np.ndarray]
    broken: str | None = None


def short_run(engine: Engine, weights: Tensors, batches: Sequence[np.ndarray], begin: Begin = hold_nothing) -> ShortRun:
    """Train from `weights` on every batch in turn with the spec's own schedule."""
    engine.initialise(weights)
    losses = np.full(len(batches), math.inf)
    params: dict[str, np.ndarray] = {}
    for step, x in enumerate(batches):
        begin(step)
        try:
            losses[step], _ = engine.train_step(x, _numbers(engine.spec, step))()
        except NonFiniteError as error:
            return ShortRun(losses, params or engine.export_weights("trained"), error.parameter)
        if step + 1 == min(UPDATE_STEPS, len(batches)):
            params = engine.export_weights("trained")
    return ShortRun(losses, params)


def rounds_in_training(spec: Spec) -> bool:
    """Whether two correct runs diverge in steps: straight-through quantisation turns rounding into jumps.

    A code changes where a weight crosses the border of two, and a row's scale where it is rounded to float16. Until
    the first of them changed, runs agreed to 4e-5; ten steps later to 2e-2, with hundreds of different codes.
    """
    return spec.training.qat.form == "straight_through"


def training_rows(
    spec: Spec,
    runs: Mapping[str, ShortRun],
    locate: Locate | None = None,
    step_by_step: Callable[[str, str], ParityRow] | None = None,
) -> list[ParityRow]:
    """Parameters after some steps, and the loss curve, for each pair of engines.

    On a failure `locate(left, right)` is asked where the two runs first diverge: ten steps later the
    difference has spread to every parameter, and the largest need not be the first. `step_by_step` makes the
    row of a pair's parameters where given.
    """
    parameters, curves = [], []
    for left, right in combinations(runs, 2):
        pair = f"{left} - {right}"
        if step_by_step is not None:
            row = step_by_step(left, right)
        else:
            row = _parameter_row(spec, pair, runs[left], runs[right])
        if not row.passed and locate is not None:
            row = replace(row, worst=locate(left, right))
        parameters.append(row)
        curves.append(_loss_row(runs[left], runs[right], pair))
    return parameters + curves


def first_deviation(
    pair: tuple[Engine, Engine], weights: Tensors, batches: Sequence[np.ndarray], begin: Begin = hold_nothing
) -> str:
    """Train two engines of one spec side by side and name the first step and parameter that are out of tolerance."""
    spec = pair[0].spec
    for engine in pair:
        engine.initialise(weights)
    for step, x in enumerate(batches[:UPDATE_STEPS]):
        begin(step)
        for engine in pair:
            try:
                engine.train_step(x, _numbers(spec, step))()
            except NonFiniteError as error:
                return f"{_described(spec, error.parameter)}, not a number in step {step + 1}"
        left, right = (engine.export_weights("trained") for engine in pair)
        measured, worst = worst_relative_l2(left, right)
        if not measured <= PARAMETERS_REL:
            return f"{_described(spec, worst)} after step {step + 1}"
    return "the two runs agree when repeated"


def step_by_step_row(
    pair: tuple[Engine, Engine], weights: Tensors, batches: Sequence[np.ndarray], begin: Begin = hold_nothing
) -> ParityRow:
    """The largest difference of a parameter after any of some steps, each made by both engines from the first one's
    state. They read the same codes, so the tolerance is the ordinary one where `rounds_in_training`."""
    left, right = pair
    spec = left.spec
    left.initialise(weights)
    measured, worst = 0.0, ""
    for step, x in enumerate(batches[:UPDATE_STEPS]):
        begin(f"step {step} alone")
        right.load_state(left.save_state())
        try:
            for engine in pair:
                engine.train_step(x, _numbers(spec, step))()
        except NonFiniteError as error:
            measured, worst = math.inf, f"{_described(spec, error.parameter)}, not a number in step {step + 1}"
            break
        difference, name = worst_relative_l2(left.export_weights("trained"), right.export_weights("trained"))
        if not difference <= measured:
            measured, worst = difference, f"{_described(spec, name)} in step {step + 1}"
    pair_name = f"{left.name} - {right.name}"
    return ParityRow("parameters step by step", pair_name, measured, PARAMETERS_REL, "relative L2", worst)


def oracle_training_rows(engine: Engine, weights: Tensors, batches: Sequence[np.ndarray]) -> list[ParityRow]:
    """The same two rows for a machine with one engine: the oracle takes over the engine's gradients, does the
    updates in float64, and gives the loss at the engine's weights before every step."""
    spec, ops = engine.spec, NumpyOps()
    params = {name: ops.asarray(value) for name, value in weights.items()}
    state = {name: ops.asarray(value) for name, value in initial_state(spec, weights).items()}
    engine.initialise(weights)
    pair = f"numpy - {engine.name}"
    measured, expected = np.zeros(len(batches)), np.zeros(len(batches))
    row: ParityRow | None = None
    for step, x in enumerate(batches):
        numbers = _numbers(spec, step)
        expected[step] = oracle_loss(spec, engine.export_weights("trained"), x, numbers)
        if step < UPDATE_STEPS:
            grads = {name: ops.asarray(value) for name, value in engine.gradients(x, numbers)[1].items()}
            params, state = optimizer_step(ops, spec, params, grads, state, global_norm(ops, grads), numbers.optimizer)
        measured[step], _ = engine.train_step(x, numbers)()
        if step < UPDATE_STEPS and (row is None or row.passed):
            ours = ShortRun(measured[: step + 1], engine.export_weights("trained"))
            row = _parameter_row(spec, pair, ShortRun(expected[: step + 1], params), ours)
    assert row is not None
    return [row, _loss_row(ShortRun(expected, {}), ShortRun(measured, {}), pair)]


def _numbers(spec: Spec, step: int) -> StepNumbers:
    return step_hyperparameters(spec, step, progress_frac(spec, step, 0.0))


def _parameter_row(spec: Spec, pair: str, left: ShortRun, right: ShortRun) -> ParityRow:
    steps = min(UPDATE_STEPS, len(left.losses))
    check = f"parameters after {counted(steps, 'step')}"
    broken = left.broken or right.broken
    if broken:
        worst = f"{_described(spec, broken)}, not a number"
        return ParityRow(check, pair, math.inf, PARAMETERS_REL, "relative L2", worst)
    measured, worst = worst_relative_l2(left.params, right.params)
    return ParityRow(check, pair, measured, PARAMETERS_REL, "relative L2", _described(spec, worst))


def _loss_row(left: ShortRun, right: ShortRun, pair: str) -> ParityRow:
    measured, (step,) = max_abs_difference(left.losses, right.losses)
    check = f"loss curve, {counted(len(left.losses), 'step')}"
    return ParityRow(check, pair, measured, LOSS_CURVE_ABS, "nats", f"step {step + 1}")


def _described(spec: Spec, name: str) -> str:
    """A parameter and what updates it."""
    groups = {parameter.name: parameter.group for parameter in training_parameters(spec)}
    if by_muon(spec.optimizer, groups[name]):
        return f"{name} (Muon)"
    return f"{name} ({RULES[spec.optimizer.form].label}, {groups[name]} group)"
