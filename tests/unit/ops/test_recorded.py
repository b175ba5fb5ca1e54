"""A recorded pass gives what the pass gives, with constants made once and nothing done that nobody reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from shared.ops import Ops, SteppingOps
from shared.ops.recorded import Recorded
from tests.implementations import OPS, every_implementation, normal

SHAPE = (2, 1, 6)


def a_pass(ops: Ops, params: dict[str, Any], x: Any, y: Any) -> Any:
    """Every way in which a model uses arrays: operators on both sides, slices, several results, lists of arrays."""
    gain = ops.sigmoid(params["gain"]) * 2.0
    total, normed = ops.residual_norm(x, y, None, None, 1e-6)
    ops.exp(total)  # Read by nobody.
    joined = ops.concatenate([1.0 - normed, gain * ops.cast_like(total, x)], axis=-1)
    rows = joined.reshape((2, 12))[:, :6] @ ops.transpose(params["weight"])
    return ops.sum(rows / (2.0 + rows * rows) - params["gain"], axes=(-1,), keepdims=True) + ops.delayed(x, y)[:, 0]


def steps_of(name: str) -> SteppingOps:
    """Operations at their second position."""
    ops = SteppingOps(OPS[name], 3, 1)
    ops.begin(0)
    ops.delayed(ops.asarray(normal(9, *SHAPE)), ops.asarray(normal(8, *SHAPE)))
    ops.begin(1)
    return ops


@every_implementation
def test_a_recording_gives_what_the_pass_gives(name: str) -> None:
    ops, other = steps_of(name), steps_of(name)
    params = {"gain": ops.asarray(normal(1, 6)), "weight": ops.asarray(normal(2, 6, 6))}
    recorded: Recorded | None = None
    for step in range(1, 4):
        x, y = (ops.asarray(normal(seed, *SHAPE)) for seed in (10 * step, 10 * step + 1))
        for each in (ops, other):
            each.begin(step)
        if recorded is None:
            recorded = Recorded([ops], a_pass, params, [x, y])
            found = recorded.result
        else:
            found = recorded(x, y)
        np.testing.assert_array_equal(ops.to_numpy(found), ops.to_numpy(a_pass(other, params, x, y)))


def test_constants_are_made_once_and_what_nobody_reads_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, calls = steps_of("numpy"), Counter[str]()
    for verb in ("sigmoid", "exp", "transpose", "cast_like", "sum"):
        method = getattr(ops.ops, verb)
        monkeypatch.setattr(ops.ops, verb, lambda *a, v=verb, m=method, **k: calls.update([v]) or m(*a, **k))
    x = normal(3, *SHAPE).astype(np.float64)
    recorded = Recorded([ops], a_pass, {"gain": x[0, 0], "weight": normal(2, 6, 6)}, [x, x])
    calls.clear()
    ops.begin(2)
    recorded(x, x)
    assert calls == {"sum": 1}
