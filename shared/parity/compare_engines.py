"""Runs every check for one spec on every implementation that is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.calibration import needs_statistics
from shared.artifact.statistics import input_statistics
from shared.engine.oracle import Oracle
from shared.engine.package import available_engines, make_ops
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINE_EXTRAS
from shared.engine.synthetic import comparison_weights, synthetic_engine, synthetic_loader, synthetic_start
from shared.errors import UserError
from shared.parity.adaptation_checks import adaptation_rows
from shared.parity.exact_checks import artifact_rows, batch_rows, weight_rows
from shared.parity.function_checks import bf16_rows, hidden_states, logit_rows, nats_rows, rounding_of_logits
from shared.parity.gradient_checks import (
    Tensors,
    directional_rows,
    gradient_rows,
    loss_rows,
    oracle_loss,
    rounding_of_gradients,
)
from shared.parity.held_kinks import HeldKinks
from shared.parity.result import ParityReport, ParityRow
from shared.parity.trace import TracedOutput, trace_forward
from shared.parity.training_checks import (
    first_deviation,
    oracle_training_rows,
    rounds_in_training,
    short_run,
    step_by_step_row,
    training_rows,
)
from shared.spec import Spec
from shared.spec.reduced import reduced_spec, with_dtype
from shared.tolerances import KINK_REL, KINK_TRAINING_REL

DEFAULT_STEPS = 50
WEIGHTS_SEED, TEXT_SEED, DIRECTION_SEED = 1, 2, 3

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """Shared inputs of the checks of one spec: the engines by name, random weights, and batches of text."""

    spec: Spec
    engines: dict[str, Engine]
    weights: Tensors
    batches: list[np.ndarray]


def run_parity(
    spec: Spec, steps: int = DEFAULT_STEPS, seq_len: int | None = None, announce: Announce = lambda check: None
) -> ParityReport:
    """All rows for one spec, at full width and depth on short sequences.

    `announce` is called with the name of each check before it starts. Raises UserError if no engine is
    installed, SpecError for a `seq_len` that does not fit.
    """
    started = time.monotonic()
    small, reductions = reduced_spec(spec, steps, seq_len)
    engines = {name: synthetic_engine(name, small) for name in available_engines()}
    if not engines:
        raise UserError(f"nothing to compare: no engine is installed; install the extra {ENGINE_EXTRAS}")
    loader = synthetic_loader(small, TEXT_SEED)
    setup = Setup(
        small, engines, comparison_weights(small, WEIGHTS_SEED), [loader.batch(step) for step in range(steps)]
    )
    checks: dict[str, Callable[[Setup], list[ParityRow]]] = {
        "initial weights": _initial_weights,
        "batches": _batches,
        "logits": _logits,
        "gradients": _gradients,
        "full length": lambda setup: _full_length(setup, spec),
        "optimizer steps and loss curve": _training,
        "adaptation": _adaptation,
        "artifact": _artifact,
        "bf16 hidden states": _bf16,
    }
    rows: list[ParityRow] = []
    for name, check in checks.items():
        announce(name)
        rows += check(setup)
    return ParityReport(
        name=spec.name,
        spec=small,
        reductions=reductions,
        implementations=("numpy", *engines),
        rows=tuple(rows),
        elapsed_s=time.monotonic() - started,
    )


def _initial_weights(setup: Setup) -> list[ParityRow]:
    weights = synthetic_start(setup.spec)
    exported: dict[str, Tensors] = {"numpy": weights}
    for name, engine in setup.engines.items():
        engine.initialise(weights)
        exported[name] = engine.export_weights("trained")
    return weight_rows(exported)


def _batches(setup: Setup) -> list[ParityRow]:
    return batch_rows(lambda: synthetic_loader(setup.spec, TEXT_SEED), len(setup.batches[0]))


def _logits(setup: Setup) -> list[ParityRow]:
    rows = _compare_logits(setup, setup.weights, "logits")
    x = setup.batches[0]
    nats = {"numpy": Oracle(setup.spec, setup.weights).score(x)}
    nats |= {name: engine.score(x) for name, engine in setup.engines.items()}
    return rows + nats_rows(nats, partial(rounding_of_logits, setup.spec, setup.weights, x))


def _compare_logits(setup: Setup, weights: Tensors, check: str) -> list[ParityRow]:
    x = setup.batches[0]
    outputs = {"numpy": Oracle(setup.spec, weights).log_probs(x)}
    for name, engine in setup.engines.items():
        engine.initialise(weights)
        outputs[name] = engine.log_probs(x)

    def trace(name: str) -> list[TracedOutput]:
        return trace_forward(make_ops(name), setup.spec, weights, x)

    return logit_rows(outputs, trace, partial(rounding_of_logits, setup.spec, weights, x), check)


def _gradients(setup: Setup) -> list[ParityRow]:
    x, kinks = setup.batches[0], HeldKinks(setup.spec, KINK_REL)
    losses = {"numpy": oracle_loss(setup.spec, setup.weights, x)}
    gradients: dict[str, Tensors] = {}
    for name, engine in kinks.engines(setup.engines).items():
        engine.initialise(setup.weights)
        losses[name], gradients[name] = engine.gradients(x)
    rounding = partial(rounding_of_gradients, next(iter(setup.engines.values())), setup.weights, x)
    return [
        *loss_rows(losses),
        *gradient_rows(setup.spec, gradients, kinks=kinks, rounding=rounding),
        *directional_rows(setup.spec, setup.weights, x, gradients, seed=DIRECTION_SEED),
    ]


def _full_length(setup: Setup, spec: Spec) -> list[ParityRow]:
    """Logits and gradients of one window of the spec's own length: engines have kernels for long sequences."""
    seq_len = spec.model.seq_len
    if seq_len == setup.spec.model.seq_len:
        return []
    long, _ = reduced_spec(spec, steps=1, seq_len=seq_len)
    engines = {name: synthetic_engine(name, long) for name in setup.engines}
    x = synthetic_loader(long, TEXT_SEED).rows(0, 0, 1)
    one = Setup(long, engines, setup.weights, [x])
    rows = _compare_logits(one, one.weights, f"logits, {seq_len} symbols")
    kinks, gradients = HeldKinks(long, KINK_REL), {}
    for name, engine in kinks.engines(engines).items():
        engine.initialise(one.weights)
        gradients[name] = engine.gradients(x)[1]
    rounding = partial(rounding_of_gradients, next(iter(engines.values())), one.weights, x)
    return rows + gradient_rows(long, gradients, f"gradients, {seq_len} symbols", kinks, rounding)


def _training(setup: Setup) -> list[ParityRow]:
    weights = synthetic_start(setup.spec)
    if len(setup.engines) == 1:
        return oracle_training_rows(next(iter(setup.engines.values())), weights, setup.batches)
    kinks = HeldKinks(setup.spec, KINK_TRAINING_REL)
    engines, begin = kinks.engines(setup.engines), kinks.begin
    runs = {name: short_run(engine, weights, setup.batches, begin) for name, engine in engines.items()}
    note = kinks.note

    def locate(left: str, right: str) -> str:
        return first_deviation((engines[left], engines[right]), weights, setup.batches, begin)

    def step_by_step(left: str, right: str) -> ParityRow:
        return step_by_step_row((engines[left], engines[right]), weights, setup.batches, begin)

    rounds = rounds_in_training(setup.spec)
    rows = training_rows(setup.spec, runs, locate, step_by_step if rounds else None)
    return [replace(row, worst=f"{row.worst}; {note}") if note else row for row in rows]


def _adaptation(setup: Setup) -> list[ParityRow]:
    return adaptation_rows(setup.spec, setup.engines, setup.weights, setup.batches[0].reshape(-1))


def _artifact(setup: Setup) -> list[ParityRow]:
    """The artifact packed from the same weights on the host and through each engine, and the logits of its weights."""
    statistics = None
    if needs_statistics(setup.spec):
        # Once, in float64: engines round them each in its own way, and a few codes would differ.
        statistics = input_statistics(make_ops("numpy"), setup.spec, setup.weights, setup.batches[:1])
    artifacts = {"numpy": pack_bytes(setup.spec, setup.weights, statistics=statistics)}
    for name, engine in setup.engines.items():
        engine.initialise(setup.weights)
        artifacts[name] = pack_bytes(setup.spec, engine.export_weights("trained"), statistics=statistics)
    unpacked = unpack_bytes(artifacts["numpy"]).weights
    return [*artifact_rows(artifacts), *_compare_logits(setup, unpacked, "logits, packed")]


def _bf16(setup: Setup) -> list[ParityRow]:
    x = setup.batches[0]
    reference = hidden_states(make_ops("numpy"), setup.spec, setup.weights, x)
    narrow = with_dtype(setup.spec, "bfloat16")
    return bf16_rows(
        setup.spec, reference, {name: hidden_states(make_ops(name), narrow, setup.weights, x) for name in setup.engines}
    )
