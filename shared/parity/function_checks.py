"""The function itself: logits, and hidden states in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np

from shared.engine.oracle import Oracle
from shared.model.forward import trunk_outputs
from shared.ops import Ops
from shared.parity.result import ParityRow, max_abs_difference, relative_l2
from shared.parity.trace import TracedOutput, first_deviation
from shared.spec import Spec
from shared.tolerances import (
    BF16_HIDDEN_REL,
    BF16_SHARP_HIDDEN_REL,
    LOGITS_ABS,
    LOGITS_OVER_ROUNDING,
    NATS_ABS,
    SHARP_GAIN,
)

Trace = Callable[[str], list[TracedOutput]]
Rounding = Callable[[], float]

# Half a step of float32, relative.
HALF_STEP = 2.0**-24
ROUNDING_DRAWS = 3


def logit_rows(
    log_probs: Mapping[str, np.ndarray], trace: Trace, rounding: Rounding, check: str = "logits"
) -> list[ParityRow]:
    """One row per pair of implementations for their log-probabilities [B, T, V] of the same symbols.

    Log-probabilities are logits up to a constant per position, so they are compared after subtracting their
    mean over the vocabulary. `rounding()` is `rounding_of_logits`, asked for where LOGITS_ABS is not enough.
    On a failure `trace(name)` is asked for the operations of both, and the row says where they diverge.
    """
    logits = {name: values - values.mean(axis=-1, keepdims=True) for name, values in log_probs.items()}
    rows = []
    for left, right in combinations(logits, 2):
        measured, (row, position, symbol) = max_abs_difference(logits[left], logits[right])
        limit = _limit(measured, LOGITS_ABS, rounding)
        worst = f"row {row}, position {position}, symbol {symbol}"
        if not measured <= limit:
            worst = first_deviation(trace(left), trace(right))
        rows.append(ParityRow(check, f"{left} - {right}", measured, limit, "nats, max abs", worst))
    return rows


def nats_rows(nats: Mapping[str, np.ndarray], rounding: Rounding) -> list[ParityRow]:
    """One row per pair for the nats [B, T] of the symbols themselves: the loss has kernels of its own."""
    rows = []
    for left, right in combinations(nats, 2):
        measured, (row, position) = max_abs_difference(nats[left], nats[right])
        limit = _limit(measured, NATS_ABS, lambda: NATS_ABS / LOGITS_ABS * rounding())
        worst = f"row {row}, position {position}"
        rows.append(ParityRow("nats of symbols", f"{left} - {right}", measured, limit, "nats, max abs", worst))
    return rows


def rounding_of_logits(spec: Spec, weights: Mapping[str, np.ndarray], x: np.ndarray) -> float:
    """The largest change of a logit of the float64 oracle on symbols x [B, T] when every weight moves by half a step of
    float32, up or down at random: how much a function multiplies rounding. The most of a few draws."""
    before, most = Oracle(spec, weights).log_probs(x), 0.0
    for draw in range(ROUNDING_DRAWS):
        signs = np.random.default_rng(draw)
        moved = {
            name: np.asarray(value, np.float64) * (1.0 + HALF_STEP * signs.choice([-1.0, 1.0], np.shape(value)))
            for name, value in weights.items()
        }
        change = Oracle(spec, moved).log_probs(x) - before
        most = max(most, float(np.abs(change - change.mean(axis=-1, keepdims=True)).max()))
    return most


def _limit(measured: float, limit: float, rounding: Rounding) -> float:
    """The ordinary limit where it is enough, else that of the function's own rounding if it is larger."""
    return limit if measured <= limit else max(limit, LOGITS_OVER_ROUNDING * rounding())


def hidden_states(ops: Ops, spec: Spec, weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Normalised trunk outputs [B, N, D] of symbols x [B, T] in the spec's compute dtype."""
    params = {name: ops.asarray(value) for name, value in weights.items()}
    return ops.to_numpy(trunk_outputs(ops, spec, params, ops.asarray(x)))


def bf16_rows(spec: Spec, reference: np.ndarray, outputs: Mapping[str, np.ndarray]) -> list[ParityRow]:
    """bfloat16 hidden states [B, N, D] of each engine against the float64 oracle's; names the worst position."""
    rows = []
    limit = BF16_SHARP_HIDDEN_REL if is_sharp(spec) else BF16_HIDDEN_REL
    for name, output in outputs.items():
        measured = relative_l2(output, reference)
        per_position = np.linalg.norm(output - reference, axis=-1)
        row, position = np.unravel_index(int(np.argmax(per_position)), per_position.shape)
        worst = f"row {row}, patch {position}"
        rows.append(ParityRow("bf16 hidden states", f"numpy - {name}", measured, limit, "relative L2", worst))
    return rows


def is_sharp(spec: Spec) -> bool:
    """Whether attention multiplies rounding so much that wider tolerances hold."""
    return spec.model.q_gain_init > SHARP_GAIN
