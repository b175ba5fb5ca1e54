"""Memory of a training step by estimate, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from shared.engine.activations import ActivationBytes, activation_bytes
from shared.model import trained_parameters
from shared.optim import state_bytes
from shared.spec import Spec


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: `state_bytes` of weights, gradients and optimizer state, exactly; `activations` of what is in memory at
    the same time beside them, for each of `workers`."""

    state_bytes: int
    activations: ActivationBytes
    workers: int

    @property
    def expected_bytes(self) -> int:
        """What a step is expected to need."""
        return self.state_bytes + self.workers * self.activations.expected

    @property
    def least_bytes(self) -> int:
        """What no step stays below."""
        return self.state_bytes + self.workers * self.activations.least

    @property
    def most_bytes(self) -> int:
        """What no step exceeds."""
        return self.state_bytes + self.workers * self.activations.most

    @property
    def error(self) -> str:
        """How far the truth may lie from what is expected, in words."""
        return f"{self.least_bytes / self.expected_bytes - 1:+.0%} to {self.most_bytes / self.expected_bytes - 1:+.0%}"


def estimate_memory(spec: Spec, engine: str, group_rows: int, workers: int = 1) -> MemoryEstimate:
    """The estimate for `group_rows` windows in memory at the same time, divided among workers of one device, each of
    which has gradients of its own."""
    rows = -(-group_rows // workers)
    busy = -(-group_rows // rows)
    state = state_bytes(spec) + busy * gradient_bytes(spec)
    return MemoryEstimate(state, activation_bytes(spec, engine, rows), busy)


def gradient_bytes(spec: Spec) -> int:
    """Float32 gradients of what is trained."""
    return sum(4 * parameter.count for parameter in trained_parameters(spec))
