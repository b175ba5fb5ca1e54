"""How much memory a micro-batch takes when MLX runs on a CPU, against the estimate."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_train import device
from mlx_train.engine import TrainingEngine
from shared.engine.microbatch import activation_bytes_per_row
from shared.model import random_weights
from shared.spec import Spec, spec_from_dict
from shared.tolerances import MEMORY_ESTIMATE_FACTOR

import mlx.core as mx  # isort: skip  # after mlx_train, which loads the BLAS

pytestmark = pytest.mark.skipif(device.on_gpu(), reason="MLX runs on a GPU here")


def memory_spec(seq_len: int, patch_size: int, dim: int, layers: int, decoder: dict, compiled: bool) -> Spec:
    return spec_from_dict(
        {
            "name": "memory",
            "model": {
                "num_layers": layers,
                "model_dim": dim,
                "num_heads": 4,
                "num_kv_heads": 2,
                "seq_len": seq_len,
                "patch_size": patch_size,
                "decoder": decoder,
            },
            "training": {
                "steps": 1,
                "batch_symbols": seq_len * len(device.compute_streams()),
                "compile": compiled,
            },
        }
    )


AUTOREGRESSIVE = {"kind": "autoregressive", "dim": 64, "num_layers": 2, "num_heads": 2, "mlp_dim": 128}


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("seq_len", "patch_size", "dim", "layers", "decoder"),
    [
        (512, 1, 128, 2, {"kind": "linear"}),
        (1024, 1, 64, 1, {"kind": "linear"}),
        (384, 1, 128, 3, {"kind": "linear"}),
        (1024, 4, 128, 3, AUTOREGRESSIVE),
        (1024, 4, 128, 2, {"kind": "mlp", "dim": 128}),
        (1024, 4, 128, 2, {"kind": "linear"}),
    ],
)
def test_the_estimated_memory_is_an_upper_bound_and_not_far_off(
    seq_len: int, patch_size: int, dim: int, layers: int, decoder: dict, compiled: bool
):
    spec = memory_spec(seq_len, patch_size, dim, layers, decoder, compiled)
    engine = TrainingEngine(spec)
    engine.initialise(random_weights(spec, 0))
    rows = len(engine.streams)
    x = np.random.default_rng(0).integers(0, 256, (rows, seq_len)).astype(np.int32)
    _, grads = engine.gradients(x)  # compiles
    gradient_bytes = sum(grad.nbytes for grad in grads.values())
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    engine.gradients(x)
    used = mx.get_peak_memory() - before - rows * gradient_bytes
    estimate = rows * activation_bytes_per_row(spec)
    assert used <= estimate <= MEMORY_ESTIMATE_FACTOR * used, f"{estimate / used:.2f}"
