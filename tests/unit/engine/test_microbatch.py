"""Micro-batches: every row once, in order, within the limits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.activations import activation_bytes, rows_within
from shared.engine.device_facts import DeviceFacts
from shared.engine.microbatch import CPU_SYMBOLS, MEMORY_FRAC, micro_batches, with_micro_batches, with_symbols
from shared.optim import state_bytes
from shared.spec import Spec, load_spec
from tests.implementations import examples

SEQ_LEN = 64


def tiny(micro_rows: int = 8, memory_limit_bytes: int = 0) -> Spec:
    sizes = [f"micro_batch_symbols={micro_rows * SEQ_LEN}", f"memory_limit_bytes={memory_limit_bytes}"]
    return load_spec("tiny", [f"training.{size}" for size in sizes])


# Bytes of one row's estimate are rounded, those of several with it.
SLACK = 10


def most_bytes(rows: int) -> int:
    """What a micro-batch may need in every engine; MLX needs more."""
    return activation_bytes(tiny(), "mlx", rows).most


ROW_BYTES = most_bytes(1)


@pytest.mark.slow
@settings(examples, max_examples=200)
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
        assert max(sizes) == 1 or workers * most_bytes(max(sizes)) <= limit_bytes
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
    assert sizes(tiny(8, most_bytes(5) + SLACK)) == [5, 3]
    assert sizes(tiny(8, 2 * most_bytes(2) + SLACK), workers=2) == [2, 2, 2, 2]
    assert sizes(tiny(8, most_bytes(5) - SLACK)) == [4, 4]
    assert sizes(tiny(8, 1)) == [1] * 8


def test_the_estimate_knows_the_type_and_who_keeps_scores():
    narrow, wide = (
        activation_bytes(load_spec("tiny", [f"training.dtype={dtype}"]), "torch", 1)
        for dtype in ("bfloat16", "float32")
    )
    assert narrow.expected < wide.expected
    for engine, quadratic in (("mlx", True), ("torch", False)):
        lengths = (load_spec("tiny", [f"model.seq_len={length}"]) for length in (64, 128))
        once, twice = (activation_bytes(spec, engine, 1).expected for spec in lengths)
        assert (twice > 2.01 * once) == quadratic, "scores, which MLX alone keeps, are quadratic, the rest linear"


@pytest.mark.parametrize("preset", ["tiny", "smoke", "hybrid-mini", "pr1855-mini"])
def test_the_rows_within_a_limit_are_the_most_that_are(preset: str):
    spec = load_spec(preset)
    for rows in (1, 3, 17):
        limit = max(activation_bytes(spec, engine, rows).most for engine in ("mlx", "torch"))
        assert rows_within(spec, limit + 10 * rows) == rows
        assert rows_within(spec, int(0.99 * limit)) < rows


def device(kind: Literal["cpu", "gpu"], memory_bytes: int) -> DeviceFacts:
    return DeviceFacts(kind, ("a device",), memory_bytes, memory_bytes, "a framework")


def rows_on(memory_bytes: int, ranks: int = 1, kind: Literal["cpu", "gpu"] = "gpu") -> int:
    spec = load_spec("tiny", ["training.micro_batch_symbols='auto'", f"training.batch_symbols={24 * SEQ_LEN}"])
    found = with_micro_batches(spec, "torch", device(kind, memory_bytes), ranks)
    assert found.training.micro_batch_symbols % SEQ_LEN == 0
    return found.training.micro_batch_symbols // SEQ_LEN


def test_micro_batches_fill_the_memory_in_equal_parts():
    spec = tiny()
    state = 2 * state_bytes(spec)

    def memory_for(rows: int) -> int:
        return int((activation_bytes(spec, "torch", rows).most + state + SLACK) / MEMORY_FRAC) + 1

    assert rows_on(10**12) == 24
    assert rows_on(10**12, ranks=2) == 12
    assert rows_on(memory_for(12)) == 12
    assert rows_on(memory_for(11)) == 8, "11 rows fit, and 8 are the most of them that divide 24"
    assert rows_on(memory_for(7), ranks=2) == 6
    assert rows_on(1) == 1
    assert rows_on(10**12, kind="cpu") == min(24, CPU_SYMBOLS // SEQ_LEN)


def test_a_run_keeps_the_micro_batches_it_began_with():
    left = load_spec("tiny", ["training.micro_batch_symbols=auto"])
    assert with_symbols(left, 3 * SEQ_LEN) == tiny(3)
    assert with_symbols(tiny(3), SEQ_LEN) == with_micro_batches(tiny(3), "torch", device("gpu", 10**12)) == tiny(3)


def test_left_to_the_device_a_batch_is_whole_until_the_device_is_known():
    spec = load_spec("tiny", ["training.micro_batch_symbols=auto"])
    assert spec.training.micro_batch_symbols == 0
    assert [len(part) for _, part in micro_batches(spec, np.zeros((5, SEQ_LEN), np.int32))] == [5]
