"""Memory of a training step by estimate, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from shared.engine.activations import activation_bytes
from shared.model import trained_parameters
from shared.optim import state_bytes
from shared.spec import Spec


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step: `state_bytes` of weights, gradients and optimizer state, exactly; `expected_bytes` with
    everything in memory at the same time, certainly no less than `least_bytes` and no more than `most_bytes`."""

    state_bytes: int
    expected_bytes: int
    least_bytes: int
    most_bytes: int

    @property
    def error(self) -> str:
        """The bounds relative to the expected bytes, as text."""
        return f"{self.least_bytes / self.expected_bytes - 1:+.0%} to {self.most_bytes / self.expected_bytes - 1:+.0%}"


def estimate_memory(spec: Spec, engine: str, group_rows: int, workers: int = 1) -> MemoryEstimate:
    """The estimate for `group_rows` windows in memory at the same time, divided among workers of one device, each of
    which has gradients of its own."""
    rows = -(-group_rows // workers)
    busy = -(-group_rows // rows)
    state = state_bytes(spec) + busy * gradient_bytes(spec)
    each = activation_bytes(spec, engine, rows)
    return MemoryEstimate(state, *(state + busy * part for part in (each.expected, each.least, each.most)))


def gradient_bytes(spec: Spec) -> int:
    """Float32 gradients of what is trained."""
    return sum(4 * parameter.count for parameter in trained_parameters(spec))
