"""Low-rank adapters that no gradient ever reaches: planted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.model import forward, initial_weights
from shared.model.manifest import ADAPTER_A, ADAPTER_B
from shared.ops import Array, Ops
from shared.spec import Spec


def gated_adapters(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """W + gate * (up down), a gate for each row of W. Gate and up are columns of B, of which all are zero at first."""
    adapted = dict(params)
    for name in params:
        if name.endswith(ADAPTER_A):
            stem = name.removesuffix(ADAPTER_A)
            down, b = params[name], params[f"{stem}{ADAPTER_B}"]
            gate, up = b[:, :1], b[:, 1:]
            adapted[f"{stem}.weight"] = params[f"{stem}.weight"] + gate * ops.linear(up, ops.transpose(down[1:]))
            del adapted[name], adapted[f"{stem}{ADAPTER_B}"]
    return forward(ops, spec, adapted, x)


def zero_factors(spec: Spec) -> dict[str, np.ndarray]:
    """Initial weights with A of every adapter zero beside the zero B."""
    return {name: 0.0 * value if name.endswith(ADAPTER_A) else value for name, value in initial_weights(spec).items()}
