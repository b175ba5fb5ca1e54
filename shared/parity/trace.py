"""Finds where two forward passes diverge: the outputs of all coarse operations, compared in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from shared.model import forward
from shared.ops import Array, Ops, WrappedOps
from shared.parity.result import relative_l2
from shared.spec import Spec

COARSE_OPS = frozenset(
    {
        "linear",
        "embedding",
        "rms_norm",
        "rope",
        "attention",
        "leaky_relu_squared_mlp",
        "softcapped_cross_entropy",
        "softcapped_log_softmax",
        "relu",
    }
)

# Relative differences below this are the rounding of float32; a jump is counted from here.
ROUNDING_REL = 1e-6


@dataclass(frozen=True)
class TracedOutput:
    """The result of one operation. `label` says which, by the parameter it reads or that was read last."""

    label: str
    value: np.ndarray


class RecordingOps(WrappedOps):
    """Keeps what the coarse operations return."""

    def __init__(self, ops: Ops, params: Mapping[str, Array]) -> None:
        super().__init__(ops, params)
        self._last = "the input"
        self.outputs: list[TracedOutput] = []

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        return self._recorded(name, attribute) if callable(attribute) else attribute

    def _recorded(self, name: str, operation: Callable[..., Array]) -> Callable[..., Array]:
        def call(*args: Any, **kwargs: Any) -> Array:
            read = [named for value in (*args, *kwargs.values()) if (named := self.name_of(value)) is not None]
            self._last = read[-1] if read else self._last
            result = operation(*args, **kwargs)
            if name in COARSE_OPS:
                label = f"{name} of {', '.join(read)}" if read else f"{name} after {self._last}"
                self.outputs.append(TracedOutput(label, self.ops.to_numpy(result)))
            return result

        return call


def trace_forward(ops: Ops, spec: Spec, weights: Mapping[str, np.ndarray], x: np.ndarray) -> list[TracedOutput]:
    """Outputs of every coarse operation of one forward pass over x [B, T], in order."""
    params = {name: ops.asarray(value) for name, value in weights.items()}
    recorder = RecordingOps(ops, params)
    forward(cast(Ops, recorder), spec, params, ops.asarray(x))
    return recorder.outputs


def first_deviation(a: list[TracedOutput], b: list[TracedOutput]) -> str:
    """Names the operation at which the difference of two traces grows most."""
    if [output.label for output in a] != [output.label for output in b]:
        return "the two engines run different operations"
    before, jump, where = ROUNDING_REL, 1.0, ""
    for left, right in zip(a, b, strict=True):
        difference = relative_l2(left.value, right.value)
        if difference / before > jump:
            jump = difference / before
            where = f"first deviates at {left.label} (relative {difference:.1e}, before {before:.0e})"
        before = max(before, difference)
    return where or "every operation agrees when traced: the difference is in the engine's own path"
