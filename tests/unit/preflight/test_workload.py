"""What preflight runs in place of the whole: smaller models, shorter windows, fewer of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.activations import activation_bytes
from shared.engine.device_facts import DeviceFacts
from shared.engine.flops import scoring_flops, training_flops
from shared.engine.microbatch import micro_batches
from shared.model import initial_weights, parameter_counts
from shared.optim import state_bytes
from shared.preflight import function_rows as functions
from shared.preflight.function_rows import audit_seq_len, shrunken_spec
from shared.preflight.memory import estimate_memory, gradient_bytes
from shared.preflight.workload import CPU_FLOPS, Workload, measured_spec, plan_workload, resized, rows_of_rank
from tests.fake_training import tiny_spec
from tests.unit.preflight.test_figures import CPU, h100


@settings(max_examples=30)
@given(
    layers=st.integers(1, 12),
    width=st.sampled_from([32, 96, 128, 512]),
    patch=st.sampled_from([1, 4, 12]),
    most=st.integers(20_000, 3_000_000),
    kind=st.sampled_from(["autoregressive", "mlp", "linear", "experts"]),
)
def test_a_smaller_model_is_still_one(layers: int, width: int, patch: int, most: int, kind: str) -> None:
    spec = tiny_spec(
        f"model.num_layers={layers}",
        f"model.model_dim={width}",
        f"model.patch_size={patch}",
        f"model.decoder.kind={kind}",
        "model.seq_len=96",
        "training.batch_symbols=960",
        "evaluation.batch_symbols=960",
    )
    small, changes = shrunken_spec(spec, most, 64)
    model, smaller = spec.model, small.model
    total = parameter_counts(small)["total"]
    assert smaller.seq_len <= 64 + patch and smaller.patch_size == patch and smaller.decoder.kind == kind
    assert smaller.num_heads == model.num_heads and smaller.num_layers >= min(layers, functions.MIN_LAYERS)
    assert total <= parameter_counts(spec)["total"] and changes
    if total > most:
        assert smaller.head_dim % 4 or smaller.model_dim // 2 < smaller.num_heads


def test_a_small_model_stays_whole() -> None:
    spec = tiny_spec()
    assert shrunken_spec(spec, 10**9, 10**6) == (spec, ())


@settings(max_examples=30)
@given(seq=st.sampled_from([48, 64, 1024]), patch=st.sampled_from([1, 4, 16]), flops=st.floats(1e6, 1e13))
def test_audited_windows_fit_the_work(seq: int, patch: int, flops: float) -> None:
    spec = tiny_spec(
        f"model.seq_len={seq}",
        f"model.patch_size={patch}",
        f"training.batch_symbols={seq}",
        f"evaluation.batch_symbols={seq}",
    )
    chosen = audit_seq_len(spec, flops)
    assert seq % chosen == 0 and chosen % patch == 0
    per_window = functions.AUDIT_ROWS * scoring_flops(spec)

    def work(window: int) -> float:
        return window * functions.audit_passes(window, patch) * per_window

    assert chosen == seq or work(2 * chosen) > flops
    assert work(chosen) <= flops or chosen <= 4 * patch or (chosen // patch) % 2 == 1


@settings(max_examples=40)
@given(
    ranks=st.sampled_from([1, 2, 4, 8]),
    workers=st.integers(1, 5),
    micro_rows=st.integers(1, 8),
    free=st.integers(2**20, 2**36),
    kind=st.sampled_from(["cpu", "gpu"]),
)
def test_workload_is_that_of_the_run(ranks: int, workers: int, micro_rows: int, free: int, kind: Any) -> None:
    spec = tiny_spec(f"training.micro_batch_symbols={64 * micro_rows}")
    facts = DeviceFacts(kind, ("X",), free, free, "torch", workers=workers)
    rank_rows, group_rows = rows_of_rank(spec, ranks, workers)
    share = np.zeros((8 // ranks, 64), np.int32)
    first = next(micro_batches(spec, share, workers))[1]
    assert rank_rows == len(share) and group_rows == min(len(share), workers * len(first))
    work = plan_workload(spec, ranks, facts, estimate_memory(spec, "torch", group_rows))
    assert (work.rank_rows, work.group_rows) == (rank_rows, group_rows)
    assert 1 <= work.measured_rows <= group_rows
    assert work.measured_seq_len == 64 or (kind == "cpu" and work.measured_rows == min(workers, group_rows))
    assert kind == "cpu" or work == Workload(64, rank_rows, group_rows, group_rows, 64)
    assert work.passes == 8 // ranks * 64 / work.measured_symbols >= work.left_out >= 1


def test_a_window_too_long_for_a_cpu_is_shortened() -> None:
    spec = measured_spec(h100(), CPU)
    work = plan_workload(spec, 1, CPU, estimate_memory(spec, "torch", 64))
    assert work.measured_rows == 1 and work.measured_seq_len < 2048 and 2048 % work.measured_seq_len == 0
    assert training_flops(spec).per_symbol * work.measured_symbols <= CPU_FLOPS
    assert work.measured == f"1 window of {work.measured_seq_len} symbols"
    assert resized(spec, work.measured_seq_len, 1).model.seq_len == work.measured_seq_len


@pytest.mark.parametrize(
    ("windows", "workers", "rows", "busy"), [(1, 1, 1, 1), (5, 2, 3, 2), (4, 3, 2, 2), (2, 4, 1, 2), (8, 4, 2, 4)]
)
def test_each_worker_that_has_windows_has_gradients_and_activations(
    windows: int, workers: int, rows: int, busy: int
) -> None:
    spec = tiny_spec()
    found, each = estimate_memory(spec, "mlx", windows, workers), activation_bytes(spec, "mlx", rows)
    assert gradient_bytes(spec) == sum(value.nbytes for value in initial_weights(spec).values())
    assert found.state_bytes == state_bytes(spec) + busy * gradient_bytes(spec)
    of_activations = (
        value - found.state_bytes for value in (found.expected_bytes, found.least_bytes, found.most_bytes)
    )
    assert list(of_activations) == [busy * part for part in (each.expected, each.least, each.most)]
