"""Memory of a training step by estimate, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from shared.engine.microbatch import activation_bytes_per_row
from shared.model import trained_parameters
from shared.model.code_entropy import code_entropy_values
from shared.optim import state_bytes
from shared.spec import Spec

# How far below the estimate of shared.engine.microbatch an engine's real activations may lie: the largest ratio seen
# for torch, whose attention keeps no scores, and for MLX (see there, and tolerances.MEMORY_ESTIMATE_FACTOR).
ACTIVATIONS_OVERSTATED = {"torch": 8.0, "mlx": 3.5}

# Values alive at the peak for each softmax value of training.loss.code_entropy, whatever the number of rows.
ENTROPY_COPIES = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: `state_bytes` of weights, gradients and optimizer state, exactly; `activation_bytes` of the rows in
    memory at the same time, at most; `least_bytes` that no run of the engine stays below."""

    state_bytes: int
    activation_bytes: int
    least_bytes: int

    @property
    def most_bytes(self) -> int:
        """State and activations at their highest."""
        return self.state_bytes + self.activation_bytes


def estimate_memory(spec: Spec, engine: str, group_rows: int) -> MemoryEstimate:
    """The estimate for `group_rows` windows in memory at the same time."""
    state = state_bytes(spec) + gradient_bytes(spec)
    activations = group_rows * activation_bytes_per_row(spec) + 4 * ENTROPY_COPIES * code_entropy_values(spec)
    return MemoryEstimate(state, activations, state + int(activations / ACTIVATIONS_OVERSTATED[engine]))


def gradient_bytes(spec: Spec) -> int:
    """Float32 gradients of what is trained."""
    return sum(4 * parameter.count for parameter in trained_parameters(spec))
