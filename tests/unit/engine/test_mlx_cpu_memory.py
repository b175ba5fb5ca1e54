"""How much memory a micro-batch takes on a CPU, against the estimate."""

from __future__ import annotations

import pytest

from mlx_train import device
from shared.spec import Spec, spec_from_dict
from tests.measured_memory import assert_as_estimated

pytestmark = pytest.mark.skipif(device.on_gpu(), reason="MLX runs on a GPU here")


def memory_spec(seq_len: int, patch_size: int, dim: int, layers: int, decoder: dict) -> Spec:
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
            "training": {"steps": 1, "batch_symbols": seq_len},
        }
    )


AUTOREGRESSIVE = {"kind": "autoregressive", "dim": 64, "num_layers": 2, "num_heads": 2, "mlp_dim": 128}


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "compiled"), [("mlx", False), ("mlx", True), ("torch", False)])
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
def test_the_peak_of_a_pass_is_as_estimated(
    seq_len: int, patch_size: int, dim: int, layers: int, decoder: dict, engine: str, compiled: bool
):
    assert_as_estimated(memory_spec(seq_len, patch_size, dim, layers, decoder), engine, rows=1, compiled=compiled)
