"""Runs every check for one spec on every implementation that is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shared.artifact import pack_bytes, unpack_bytes
from shared.engine.oracle import Oracle
from shared.engine.package import available_engines, engine_package
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINE_EXTRAS
from shared.engine.synthetic import comparison_weights, synthetic_engine, synthetic_loader, synthetic_start
from shared.errors import UserError
from shared.ops import NumpyOps, Ops
from shared.parity.batch_checks import batch_rows
from shared.parity.exact_checks import artifact_rows, weight_rows
from shared.parity.function_checks import bf16_rows, hidden_states, logit_rows, nats_rows, rounding_of_logits
from shared.parity.gradient_checks import Tensors, directional_rows, gradient_rows, loss_rows, oracle_loss
from shared.parity.held_kinks import HeldKinks
from shared.parity.result import ParityReport, Row
from shared.parity.trace import TracedOutput, trace_forward
from shared.parity.training_checks import (
    first_deviation,
    oracle_training_rows,
    rounds_in_training,
    step_by_step_row,
    train_record,
    training_rows,
)
from shared.spec import Spec
from shared.spec.reduced import reduced_spec, with_dtype
from shared.tolerances import KINK_REL, KINK_TRAINING_REL

DEFAULT_STEPS = 50
WEIGHTS_SEED, TEXT_SEED, DIRECTION_SEED = 1, 2, 3

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What the checks of one spec share: the engines by name, random weights, and batches of text."""

    spec: Spec
    engines: dict[str, Engine]
    weights: Tensors
    batches: list[np.ndarray]

    @property
    def names(self) -> list[str]:
        """The oracle, then the engines."""
        return ["numpy", *self.engines]


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
    bench = Bench(
        small, engines, comparison_weights(small, WEIGHTS_SEED), [loader.batch(step) for step in range(steps)]
    )
    checks: dict[str, Callable[[Bench], list[Row]]] = {
        "initial weights": _initial_weights,
        "batches": _batches,
        "logits": _logits,
        "gradients": _gradients,
        "full length": lambda bench: _full_length(bench, spec),
        "optimizer steps and loss curve": _training,
        "artifact": _artifact,
        "bf16 hidden states": _bf16,
    }
    rows: list[Row] = []
    for name, check in checks.items():
        announce(name)
        rows += check(bench)
    return ParityReport(
        name=spec.name,
        spec=small,
        reductions=reductions,
        implementations=tuple(bench.names),
        rows=tuple(rows),
        elapsed_s=time.monotonic() - started,
    )


def make_ops(name: str) -> Ops:
    """The operations of an implementation: `numpy`, or an engine."""
    if name == "numpy":
        return NumpyOps()
    return engine_package(name).make_ops()


def _initial_weights(bench: Bench) -> list[Row]:
    weights = synthetic_start(bench.spec)
    exported: dict[str, Tensors] = {"numpy": weights}
    for name, engine in bench.engines.items():
        engine.initialise(weights)
        exported[name] = engine.export_weights("trained")
    return weight_rows(exported)


def _batches(bench: Bench) -> list[Row]:
    return batch_rows(lambda: synthetic_loader(bench.spec, TEXT_SEED), len(bench.batches[0]))


def _logits(bench: Bench) -> list[Row]:
    rows = _compare_logits(bench, bench.weights, "logits")
    x = bench.batches[0]
    nats = {"numpy": Oracle(bench.spec, bench.weights).score(x)}
    nats |= {name: engine.score(x) for name, engine in bench.engines.items()}
    return rows + nats_rows(nats, partial(rounding_of_logits, bench.spec, bench.weights, x))


def _compare_logits(bench: Bench, weights: Tensors, check: str) -> list[Row]:
    x = bench.batches[0]
    outputs = {"numpy": Oracle(bench.spec, weights).log_probs(x)}
    for name, engine in bench.engines.items():
        engine.initialise(weights)
        outputs[name] = engine.log_probs(x)

    def trace(name: str) -> list[TracedOutput]:
        return trace_forward(make_ops(name), bench.spec, weights, x)

    return logit_rows(outputs, trace, partial(rounding_of_logits, bench.spec, weights, x), check)


def _gradients(bench: Bench) -> list[Row]:
    x, kinks = bench.batches[0], HeldKinks(bench.spec, KINK_REL)
    losses = {"numpy": oracle_loss(bench.spec, bench.weights, x)}
    gradients: dict[str, Tensors] = {}
    for name, engine in kinks.engines(bench.engines).items():
        engine.initialise(bench.weights)
        losses[name], gradients[name] = engine.gradients(x)
    return [
        *loss_rows(losses),
        *gradient_rows(bench.spec, gradients, kinks=kinks),
        *directional_rows(bench.spec, bench.weights, x, gradients, seed=DIRECTION_SEED),
    ]


def _full_length(bench: Bench, spec: Spec) -> list[Row]:
    """Logits and gradients of one window of the spec's own length: engines have kernels for long sequences."""
    seq_len = spec.model.seq_len
    if seq_len == bench.spec.model.seq_len:
        return []
    long, _ = reduced_spec(spec, steps=1, seq_len=seq_len)
    engines = {name: synthetic_engine(name, long) for name in bench.engines}
    x = synthetic_loader(long, TEXT_SEED).rows(0, 0, 1)
    one = Bench(long, engines, bench.weights, [x])
    rows = _compare_logits(one, one.weights, f"logits, {seq_len} symbols")
    kinks, gradients = HeldKinks(long, KINK_REL), {}
    for name, engine in kinks.engines(engines).items():
        engine.initialise(one.weights)
        gradients[name] = engine.gradients(x)[1]
    return rows + gradient_rows(long, gradients, f"gradients, {seq_len} symbols", kinks)


def _training(bench: Bench) -> list[Row]:
    weights = synthetic_start(bench.spec)
    if len(bench.engines) == 1:
        return oracle_training_rows(next(iter(bench.engines.values())), weights, bench.batches)
    kinks = HeldKinks(bench.spec, KINK_TRAINING_REL)
    engines, begin = kinks.engines(bench.engines), kinks.begin
    records = {name: train_record(engine, weights, bench.batches, begin) for name, engine in engines.items()}
    note = kinks.note

    def locate(left: str, right: str) -> str:
        return first_deviation(bench.spec, (engines[left], engines[right]), weights, bench.batches, begin)

    def step_by_step(left: str, right: str) -> Row:
        return step_by_step_row(bench.spec, (engines[left], engines[right]), weights, bench.batches, begin)

    rounds = rounds_in_training(bench.spec)
    rows = training_rows(bench.spec, records, locate, step_by_step if rounds else None)
    return [replace(row, worst=f"{row.worst}; {note}") if note else row for row in rows]


def _artifact(bench: Bench) -> list[Row]:
    """The artifact of the same weights by way of the host and of each engine, and what it scores."""
    artifacts = {"numpy": pack_bytes(bench.spec, bench.weights)}
    for name, engine in bench.engines.items():
        engine.initialise(bench.weights)
        artifacts[name] = pack_bytes(bench.spec, engine.export_weights("trained"))
    unpacked = unpack_bytes(artifacts["numpy"]).weights
    return [*artifact_rows(artifacts), *_compare_logits(bench, unpacked, "logits, packed")]


def _bf16(bench: Bench) -> list[Row]:
    x = bench.batches[0]
    reference = hidden_states(make_ops("numpy"), bench.spec, bench.weights, x)
    narrow = with_dtype(bench.spec, "bfloat16")
    return bf16_rows(
        bench.spec, reference, {name: hidden_states(make_ops(name), narrow, bench.weights, x) for name in bench.engines}
    )
