"""Checks of equality to the last bit: initial weights, batches, artifact bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np

from data.loader import Loader
from shared.parity.gradient_checks import Tensors
from shared.parity.result import EXACT, ParityRow

CHECKED_STEPS = 12


def batch_rows(make_loader: Callable[[], Loader], num_rows: int) -> list[ParityRow]:
    """The hashes of whole batches, against a second loader that reads the steps backwards, and in slices as
    every number of ranks would. Names the first step whose hash differs."""
    first = make_loader()
    whole = {step: batch_hash(first.batch(step)) for step in range(CHECKED_STEPS)}
    second = make_loader()
    backwards = {step: batch_hash(second.batch(step)) for step in reversed(range(CHECKED_STEPS))}
    rows = [_row("whole - backwards", whole, backwards)]
    for ranks in range(2, num_rows + 1):
        loader = make_loader()
        sliced = {step: batch_hash(_gathered(loader, step, num_rows, ranks)) for step in range(CHECKED_STEPS)}
        rows.append(_row(f"whole - {ranks} slices", whole, sliced))
    return rows


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
        positions = np.flatnonzero(a[:length] != b[:length])
        different = len(positions) + abs(len(a) - len(b))
        worst = f"from byte {positions[0] if len(positions) else length}" if different else f"{len(a):,} bytes"
        rows.append(ParityRow("artifact", f"{left} - {right}", different, EXACT, "bytes differ", worst))
    return rows


def batch_hash(x: np.ndarray) -> str:
    """SHA-256 of a batch [B, T] int32 with its shape."""
    return hashlib.sha256(repr((x.dtype.str, x.shape)).encode() + np.ascontiguousarray(x).tobytes()).hexdigest()


def _gathered(loader: Loader, step: int, count: int, ranks: int) -> np.ndarray:
    """One batch joined from what each rank reads, the last rank first."""
    bounds = [count * rank // ranks for rank in range(ranks + 1)]
    parts = [loader.rows(step, bounds[rank], bounds[rank + 1] - bounds[rank]) for rank in reversed(range(ranks))]
    return np.concatenate(parts[::-1])


def _row(pair: str, left: dict[int, str], right: dict[int, str]) -> ParityRow:
    different = [step for step in left if left[step] != right[step]]
    worst = f"step {different[0]}" if different else f"sha256 {left[0][:12]} of step 0"
    return ParityRow("batches", pair, len(different), EXACT, "steps differ", worst)


def _bits(value: np.ndarray) -> tuple[object, ...]:
    return value.dtype, value.shape, np.ascontiguousarray(value).tobytes()
