"""Cuts a global batch into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.engine.activations import activation_bytes, rows_within
from shared.engine.device_facts import DeviceFacts
from shared.errors import SpecError
from shared.optim import state_bytes
from shared.spec import Spec, spec_from_dict, spec_to_dict

# Of a device's memory, what training may fill; the rest is the framework's own, and what scoring and saving need.
MEMORY_FRAC = 0.85
# Symbols of a micro-batch on a CPU: beyond these its activations leave the cache, and nothing gets faster.
CPU_SYMBOLS = 2048


def micro_batches(spec: Spec, x: np.ndarray, workers: int = 1) -> Iterator[tuple[float, np.ndarray]]:
    """(share of the batch, rows) of each micro-batch of x [B, T], in order; the shares add up to 1.

    A micro-batch has at most training.micro_batch_symbols (0 is no limit), together with the other workers' at most
    training.memory_limit_bytes by the upper bound of the estimate, and few enough rows to give every worker one. The
    cut depends on the spec and the workers alone, so a resumed run sums in the same order.
    """
    rows = min(spec.training.micro_batch_symbols // spec.model.seq_len or len(x), -(-len(x) // workers))
    limit = spec.training.memory_limit_bytes
    if limit:
        rows = min(rows, rows_within(spec, limit // workers))
    rows = max(1, rows)
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        yield len(part) / len(x), part


def with_micro_batches(spec: Spec, engine: str, facts: DeviceFacts, ranks: int = 1) -> Spec:
    """The spec with micro-batches for a device: of the size it names, or where it leaves that open the fewest equal
    ones of a rank's share of the batch that fit the memory by the upper bound of the estimate. Where other programs
    share the memory, training.memory_limit_bytes limits them in any case."""
    if facts.shares_memory and not spec.training.memory_limit_bytes:
        spec = _with(spec, memory_limit_bytes=max(1, usable_bytes(spec, facts)))
    if spec.training.micro_batch_symbols:
        return spec
    seq_len = spec.model.seq_len
    share = max(1, spec.training.batch_symbols // seq_len // ranks)
    if facts.kind == "cpu":
        fitting = CPU_SYMBOLS // seq_len
    else:
        fitting = _rows_below(spec, engine, usable_bytes(spec, facts), share)
    # All of one size, because a compiler meets every other size anew.
    rows = next(rows for rows in range(max(1, min(fitting, share)), 0, -1) if share % rows == 0)
    return with_symbols(spec, rows * seq_len)


def with_limit_of(spec: Spec, before: Spec, facts: DeviceFacts) -> Spec:
    """The spec with the memory limit of an earlier start of its run, as far as this device has so much, unless it names
    one itself: so a resumed run sums in the same order."""
    limit = min(before.training.memory_limit_bytes, max(1, usable_bytes(spec, facts)))
    return spec if spec.training.memory_limit_bytes else _with(spec, memory_limit_bytes=limit)


def usable_bytes(spec: Spec, facts: DeviceFacts) -> int:
    """Bytes that a device has for the activations of micro-batches; not above 0 where the state does not fit."""
    # Twice the state: a step has its gradients and the update's new values beside it.
    free = int(MEMORY_FRAC * facts.total_bytes) - facts.in_flight_bytes - 2 * state_bytes(spec)
    return int(free / facts.activations_factor)


def check_fits(spec: Spec, engine: str, facts: DeviceFacts) -> None:
    """Raise SpecError if a device that shares its memory has too little for one window by estimate. A limit that a user
    has set is believed."""
    usable = usable_bytes(spec, facts)
    if not facts.shares_memory or spec.training.memory_limit_bytes > max(1, usable):
        return
    needed = activation_bytes(spec, engine, 1).expected
    if needed > usable:
        raise SpecError(
            f"{spec.name}: a window of model.seq_len = {spec.model.seq_len} needs {needed / 1e6:,.0f} MB by estimate, "
            f"and this device has {max(0, usable) / 1e6:,.0f} MB of its {facts.total_bytes / 1e6:,.0f} for it beside "
            f"the state; take a smaller spec, or try with --set training.memory_limit_bytes=N"
        )


def cut_by_memory(spec: Spec) -> str:
    """A line that says what the memory limit does to micro-batches; empty where it does nothing."""
    wanted, seq_len, limit = spec.training.micro_batch_symbols, spec.model.seq_len, spec.training.memory_limit_bytes
    if not limit or (symbols := max(1, rows_within(spec, limit)) * seq_len) >= wanted:
        return ""
    return f"micro-batches of {symbols} symbols instead of {wanted}: {limit / 1e6:,.0f} MB of memory hold no more"


def with_symbols(spec: Spec, micro_batch_symbols: int) -> Spec:
    """The spec with that number for micro-batches if it leaves them to the device, else as it is."""
    return spec if spec.training.micro_batch_symbols else _with(spec, micro_batch_symbols=micro_batch_symbols)


def _with(spec: Spec, **training: int) -> Spec:
    """The spec with these values in its section `training`."""
    values = spec_to_dict(spec)
    values["training"] |= training
    return spec_from_dict(values, origin=spec.name)


def _rows_below(spec: Spec, engine: str, limit_bytes: int, most: int) -> int:
    """The most rows, at least one and at most `most`, whose activations stay below a limit in an engine."""
    least = 1
    while least < most:
        middle = (least + most + 1) // 2
        if activation_bytes(spec, engine, middle).most <= limit_bytes:
            least = middle
        else:
            most = middle - 1
    return least
