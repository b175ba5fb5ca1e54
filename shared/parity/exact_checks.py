"""What must be equal to the last bit: initial weights, batches, artifact bytes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from shared.parity.gradient_checks import Tensors
from shared.parity.result import EXACT, ParityRow


def weight_rows(weights: Mapping[str, Tensors]) -> list[ParityRow]:
    """Bitwise comparison of named float32 tensors, each pair; counts tensors that differ, names the first."""
    rows = []
    for left, right in combinations(weights, 2):
        a, b = weights[left], weights[right]
        names = sorted(a.keys() | b.keys())
        different = [name for name in names if name not in a or name not in b or _bits(a[name]) != _bits(b[name])]
        worst = different[0] if different else ""
        rows.append(ParityRow("initial weights", f"{left} - {right}", len(different), EXACT, "tensors differ", worst))
    return rows


def artifact_rows(artifacts: Mapping[str, bytes]) -> list[ParityRow]:
    """Bytes of the artifacts that each engine's weights pack to; names the first byte that differs."""
    rows = []
    for left, right in combinations(artifacts, 2):
        a, b = (np.frombuffer(artifacts[name], np.uint8) for name in (left, right))
        length = min(len(a), len(b))
        places = np.flatnonzero(a[:length] != b[:length])
        different = len(places) + abs(len(a) - len(b))
        worst = f"from byte {places[0] if len(places) else length}" if different else f"{len(a):,} bytes"
        rows.append(ParityRow("artifact", f"{left} - {right}", different, EXACT, "bytes differ", worst))
    return rows


def _bits(value: np.ndarray) -> tuple[object, ...]:
    return value.dtype, value.shape, np.ascontiguousarray(value).tobytes()
