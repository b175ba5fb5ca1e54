"""Micro-batches: every row once, in order, within the limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.microbatch import activation_bytes_per_row, micro_batches
from shared.spec import Spec, load_spec

SEQ_LEN = 64


def tiny(micro_rows: int = 8, memory_limit_bytes: int = 0, **model: Any) -> Spec:
    overrides = [
        f"training.micro_batch_symbols={micro_rows * SEQ_LEN}",
        f"training.memory_limit_bytes={memory_limit_bytes}",
        *(f"model.{name}={value}" for name, value in model.items()),
    ]
    return load_spec("tiny", overrides)


ROW_BYTES = activation_bytes_per_row(tiny())


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    rows=st.integers(1, 40),
    micro_rows=st.integers(1, 50),
    workers=st.integers(1, 9),
    limit_bytes=st.one_of(st.just(0), st.integers(1, 60 * ROW_BYTES)),
)
def test_every_row_once_in_order_within_the_limits(rows: int, micro_rows: int, workers: int, limit_bytes: int):
    spec = tiny(micro_rows, limit_bytes)
    x = np.arange(rows * SEQ_LEN, dtype=np.int32).reshape(rows, SEQ_LEN)
    parts = list(micro_batches(spec, x, workers))
    assert (np.concatenate([part for _, part in parts]) == x).all()
    assert sum(share for share, _ in parts) == pytest.approx(1.0, abs=1e-12)
    assert all(share == len(part) / rows for share, part in parts)
    sizes = [len(part) for _, part in parts]
    assert max(sizes) <= micro_rows
    assert all(size == sizes[0] for size in sizes[:-1]) and sizes[-1] <= sizes[0]
    # No worker has several rows in one part while another could have taken some.
    assert max(sizes) == 1 or len(parts) >= min(workers, -(-rows // max(sizes)))
    assert max(sizes) <= -(-rows // workers)
    if limit_bytes:
        assert max(sizes) == 1 or max(sizes) * workers * ROW_BYTES <= limit_bytes
    again = list(micro_batches(spec, x, workers))
    assert [share for share, _ in again] == [share for share, _ in parts]
    assert all((left == right).all() for (_, left), (_, right) in zip(parts, again, strict=True))


def test_the_largest_cut_that_is_allowed_is_taken():
    x = np.zeros((8, SEQ_LEN), np.int32)

    def sizes(spec: Spec, workers: int = 1) -> list[int]:
        return [len(part) for _, part in micro_batches(spec, x, workers)]

    assert sizes(tiny()) == [8]
    assert sizes(tiny(3)) == [3, 3, 2]
    assert sizes(tiny(), workers=2) == [4, 4]
    assert sizes(tiny(), workers=3) == [3, 3, 2]
    assert sizes(tiny(), workers=16) == [1] * 8
    assert sizes(tiny(8, 5 * ROW_BYTES)) == [5, 3]
    assert sizes(tiny(8, 5 * ROW_BYTES), workers=2) == [2, 2, 2, 2]
    assert sizes(tiny(8, 5 * ROW_BYTES - 1)) == [4, 4]
    assert sizes(tiny(8, 1)) == [1] * 8


def test_the_estimate_grows_with_everything_that_costs_memory():
    smaller = [
        tiny(),
        tiny(num_layers=4),
        tiny(num_layers=4, mlp_dim=200),
        tiny(num_layers=4, mlp_dim=200, head_dim=16),
        load_spec("tiny", ["model.num_layers=4", "model.mlp_dim=200", "model.head_dim=16", "model.decoder.dim=64"]),
    ]
    estimates = [activation_bytes_per_row(spec) for spec in smaller]
    assert all(left < right for left, right in pairwise(estimates))
    assert activation_bytes_per_row(load_spec("tiny", ["training.dtype=bfloat16"])) < estimates[0]
    twice = activation_bytes_per_row(load_spec("tiny", ["model.seq_len=128"]))
    assert 2 * estimates[0] < twice < 4 * estimates[0], "attention scores are quadratic, the rest linear"
