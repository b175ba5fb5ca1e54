"""The score to expect of a shape after so much text: a measured row, and a step from it (docs/techniques.md 12.9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.runs.curve_fit import profile_interval
from shared.runs.measured import MeasuredRow

LEVEL = 0.95
# Exponents of text that the curve over measured rows may have.
BETAS = np.geomspace(0.02, 2.0, 80)
# Two deviations of a score over seeds in the ablations of records/, where they are 0.006 to 0.032.
SEED_BPB = 0.03
# How wrong a step by the published law may be, as a share of it.
LAW_ERROR = 0.5
# Loss in nats a token, less a constant: 406.4 / N^0.34 + 410.7 / D^0.28 (Hoffmann et al. 2022, approach 3). A token of
# that vocabulary has some 4.3 bytes.
TOKEN_BYTES = 4.3


@dataclass(frozen=True)
class Expectation:
    """Bits per byte, between `low_bpb` and `high_bpb`: at LEVEL on a measured curve, and where a step is by the
    published law, as far as half of that step may be wrong. `beyond` is how many times the text of the nearest row of
    this shape it is; `basis` says what that rests on."""

    bpb: float
    low_bpb: float
    high_bpb: float
    beyond: float
    basis: str


def expected_score(row: MeasuredRow, parameters: int, text_bytes: float, rows: Sequence[MeasuredRow]) -> Expectation:
    """The score of the shape of `row`, or of one like it of another size, after `text_bytes` of text like that of
    `row`; `rows` are those of like devices."""
    own = [each for each in rows if each.bpb is not None and (each.shape, each.text) == (row.shape, row.text)]
    nearest = min(own, key=lambda each: abs(math.log(each.text_bytes / text_bytes)))
    assert nearest.bpb is not None
    beyond = text_bytes / nearest.text_bytes
    found = _on_curve(nearest, own, rows, text_bytes)
    if found is None:
        step = law_bpb(row.parameters, text_bytes) - law_bpb(row.parameters, nearest.text_bytes)
        half = SEED_BPB + LAW_ERROR * abs(step)
        bpb, low, high, basis = (
            nearest.bpb + step,
            nearest.bpb + step - half,
            nearest.bpb + step + half,
            "published law",
        )
    else:
        (bpb, low, high), basis = found, "measured curve"
    size = law_bpb(parameters, text_bytes) - law_bpb(row.parameters, text_bytes)
    half = LAW_ERROR * abs(size)
    basis += f", {parameters / row.parameters:.2f} times the weights by the published law" if size else ""
    return Expectation(bpb + size, max(0.0, low + size - half), high + size + half, beyond, f"{row.label}: {basis}")


def law_bpb(parameters: int, text_bytes: float) -> float:
    """The part of the published law that depends on weights and text, in bits per byte: good for differences."""
    nats = 406.4 / parameters**0.34 + 410.7 / (text_bytes / TOKEN_BYTES) ** 0.28
    return nats / math.log(2.0) / TOKEN_BYTES


def _on_curve(
    nearest: MeasuredRow, own: Sequence[MeasuredRow], rows: Sequence[MeasuredRow], text_bytes: float
) -> tuple[float, float, float] | None:
    """(best, low, high) of bpb = c_shape + b T^-beta, where every shape on every text has a c of its own and all
    share b and beta; None where too few shapes were measured for several lengths to tell these.

    The rows may be means over seeds, so the interval has SEED_BPB on both sides at least. Shapes do not share b exactly
    (left out, 105 s of one is 0.06 off what its 600 s and the others say), so half of the step from the nearest row
    may be wrong as well."""
    groups: dict[tuple[tuple[str, ...], str], list[MeasuredRow]] = {}
    for row in rows:
        if row.bpb is not None:
            groups.setdefault((row.shape, row.text), []).append(row)
    kept = [group for group in groups.values() if len({each.text_bytes for each in group}) > 1 or group[0] in own]
    used = [(index, each) for index, group in enumerate(kept) for each in group]
    parameters = len(kept) + 2
    if len(used) < parameters:
        return None
    text = np.array([each.text_bytes for _, each in used])
    falling = (text / text.min()) ** -BETAS[:, None]
    which = np.eye(len(kept))[[index for index, _ in used]]
    designs = np.concatenate([np.broadcast_to(which, (len(BETAS), *which.shape)), falling[:, :, None]], axis=2)
    own_column = which[next(at for at, (_, each) in enumerate(used) if each is nearest)]
    new = (text_bytes / text.min()) ** -BETAS[:, None]
    news = np.concatenate([np.broadcast_to(own_column, (len(BETAS), len(kept))), new], axis=1)
    y = np.array([each.bpb for _, each in used], np.float64)
    best, low, high = profile_interval(designs, news, y, min(parameters, len(used) - 1), LEVEL)
    assert nearest.bpb is not None
    half = SEED_BPB + LAW_ERROR * abs(best - nearest.bpb)
    return best, min(low, best - half), max(high, best + half)
