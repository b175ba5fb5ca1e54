"""Gradients: engine against engine, and against finite differences of the float64 oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np

from shared.engine.protocol import Engine
from shared.engine.synthetic import synthetic_tables
from shared.model import trained_parameters, training_loss
from shared.model.initialise import named_generator
from shared.model.qat import quantised_matrices, training_weights
from shared.model.stages import QAT, StepNumbers, final_numbers, training_stages
from shared.ops import NumpyOps
from shared.parity.function_checks import ROUNDING_DRAWS, is_sharp
from shared.parity.held_kinks import HeldKinks
from shared.parity.result import SMALL_GRADIENT_FRAC, ParityRow, relative_differences, relative_l2
from shared.spec import Spec
from shared.tolerances import (
    DIRECTIONAL_REL,
    GRADIENT_OVER_ROUNDING,
    GRADIENT_REL,
    GRADIENT_SHARP_REL,
    LOGITS_ABS,
)

Tensors = Mapping[str, np.ndarray]

# Relative to the parameter; float64 still gives the difference six digits.
STEP = 1e-6


class HeldConstants(NumpyOps):
    """NumpyOps that remembers the results of the operations that have no derivative, and the slopes of relu, in the
    order of their calls.

    The first evaluation of a function runs them; after `replay` the next one gets the same results at other weights.
    """

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._next: int | None = None

    def replay(self) -> None:
        """The next evaluation starts from the first constant."""
        self._next = 0

    def row_noise(self, x: np.ndarray, counter: np.ndarray, salt: int) -> np.ndarray:
        return self._held(lambda: super(HeldConstants, self).row_noise(x, counter, salt))

    def stop_gradient(self, x: np.ndarray) -> np.ndarray:
        return self._held(lambda: x)

    def relu(self, x: np.ndarray) -> np.ndarray:
        # Its slope: a unit that crosses zero between the two ends of a difference has none there.
        return x * self._held(lambda: (x > 0).astype(x.dtype))

    def _held(self, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if self._next is None:
            self._values.append(compute())
            return self._values[-1]
        self._next += 1
        return self._values[self._next - 1]


def loss_rows(losses: Mapping[str, float]) -> list[ParityRow]:
    """Mean nats per symbol of one batch, each pair of implementations."""
    return [
        ParityRow("loss of one batch", f"{left} - {right}", abs(losses[left] - losses[right]), LOGITS_ABS, "nats")
        for left, right in combinations(losses, 2)
    ]


def gradient_rows(
    spec: Spec,
    gradients: Mapping[str, Tensors],
    check: str = "gradients",
    kinks: HeldKinks | None = None,
    rounding: Callable[[], Mapping[str, float]] | None = None,
) -> list[ParityRow]:
    """Relative L2 difference of every parameter's gradient, each pair of engines; names the worst. `kinks`, where the
    engines used them, adds rows about the sides that the engines took. `rounding()` is `rounding_of_gradients`, asked
    for where the ordinary limit is not enough: the terms of a sum that ends near zero are rounded as any others."""
    ordinary = GRADIENT_SHARP_REL if is_sharp(spec) else GRADIENT_REL
    rows = []
    for left, right in combinations(gradients, 2):
        differences = relative_differences(gradients[left], gradients[right], SMALL_GRADIENT_FRAC)
        limits = dict.fromkeys(differences, ordinary)
        if rounding is not None and max(differences.values()) > ordinary:
            limits |= {name: max(ordinary, GRADIENT_OVER_ROUNDING * change) for name, change in rounding().items()}
        worst = max(differences, key=lambda name: (differences[name] / limits[name], name))
        rows.append(ParityRow(check, f"{left} - {right}", differences[worst], limits[worst], "relative L2", worst))
    return rows + (kinks.rows(check) if kinks is not None else [])


def rounding_of_gradients(engine: Engine, weights: Tensors, x: np.ndarray) -> dict[str, float]:
    """The relative L2 change of each parameter's gradient on symbols x [B, T] when every weight moves to the next
    float32 number, up or down at random. The most of a few draws. The engine is left with `weights`.

    Codes hardly ever change with so small a move, so where training reads rounded matrices it is these that move, and
    rounding is switched off.
    """
    original, numbers, spec = weights, final_numbers(engine.spec), engine.spec
    if spec.training.qat.form == "straight_through":
        read = training_weights(NumpyOps(), spec, weights, quantised_matrices(spec), x)
        weights = {name: np.asarray(value, np.float32) for name, value in read.items()}
        numbers = numbers.with_run({QAT: 0.0})
    engine.initialise(weights)
    before = engine.gradients(x, numbers)[1]
    most = dict.fromkeys(before, 0.0)
    for draw in range(ROUNDING_DRAWS):
        signs = np.random.default_rng(draw)
        moved = {
            name: np.nextafter(value, np.float32(np.inf) * signs.choice([-1, 1], np.shape(value)).astype(np.float32))
            for name, value in weights.items()
        }
        engine.initialise(moved)
        for name, value in engine.gradients(x, numbers)[1].items():
            most[name] = max(most[name], relative_l2(value, before[name]))
    engine.initialise(original)
    return most


def directional_rows(
    spec: Spec, weights: Tensors, x: np.ndarray, gradients: Mapping[str, Tensors], seed: int
) -> list[ParityRow]:
    """Each engine's gradient against central differences of the oracle along one random direction per
    optimizer group; names the worst group.

    The difference is divided by the standard deviation of such a derivative over random directions,
    so that a direction that happens to be flat does not count as a large relative error.
    """
    worst = dict.fromkeys(gradients, (0.0, ""))
    groups: dict[str, list[str]] = {}
    for parameter in trained_parameters(spec):
        groups.setdefault(parameter.group, []).append(parameter.name)
    for group, names in groups.items():
        direction = {name: _direction(name, weights[name], seed) for name in names}
        measured = _central_difference(spec, weights, direction, x)
        for engine, gradient in gradients.items():
            products = [np.asarray(gradient[name], np.float64) * direction[name] for name in names]
            expected = sum(float(product.sum()) for product in products)
            spread = float(np.sqrt(sum(float((product**2).sum()) for product in products)))
            # Gradients far below the spread of float64 differences say nothing.
            difference = abs(measured - expected) / max(spread, 1e-9)
            worst[engine] = max(worst[engine], (difference, f"group {group}"))
    return [
        ParityRow("directional derivative", f"numpy - {name}", measured, DIRECTIONAL_REL, "of its spread", group)
        for name, (measured, group) in worst.items()
    ]


def oracle_loss(spec: Spec, weights: Tensors, x: np.ndarray, numbers: StepNumbers | None = None) -> float:
    """Mean nats per symbol in float64, of the function that a step with `numbers` trains or of the final one."""
    ops, numbers = NumpyOps(), numbers or final_numbers(spec)
    params = {name: ops.asarray(value) for name, value in (dict(weights) | synthetic_tables(spec)).items()}
    return float(training_loss(ops, training_stages(spec)[numbers.stage], params | numbers.run, x)[1])


def oracle_objective(spec: Spec, weights: Tensors, x: np.ndarray, ops: NumpyOps | None = None) -> float:
    """The loss that gradients are taken of, in float64, at the end of training."""
    ops = ops or NumpyOps()
    params = {name: ops.asarray(value) for name, value in (dict(weights) | synthetic_tables(spec)).items()}
    return float(training_loss(ops, spec, params, x)[0])


def _central_difference(spec: Spec, weights: Tensors, direction: Tensors, x: np.ndarray) -> float:
    """d training loss / d h of weights + h * direction at 0, with what is constant to derivatives held as at 0."""
    losses, ops = [], HeldConstants()
    oracle_objective(spec, weights, x, ops)
    for sign in (1.0, -1.0):
        moved = {
            name: np.asarray(value, np.float64) + (sign * STEP * direction[name] if name in direction else 0.0)
            for name, value in weights.items()
        }
        ops.replay()
        losses.append(oracle_objective(spec, moved, x, ops))
    return (losses[0] - losses[1]) / (2.0 * STEP)


def _direction(name: str, value: np.ndarray, seed: int) -> np.ndarray:
    """A random direction of the size of the parameter itself, so that STEP is a relative change."""
    size = float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
    return named_generator(seed, f"direction of {name}").standard_normal(value.shape) * size
