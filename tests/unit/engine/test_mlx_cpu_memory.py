"""How much memory a micro-batch takes on a CPU, against the estimate."""

from __future__ import annotations

import pytest

from mlx_train import device
from tests.measured_memory import assert_as_estimated
from tests.techniques import tiny

pytestmark = pytest.mark.skipif(device.on_gpu(), reason="MLX runs on a GPU here")


AUTOREGRESSIVE = ["kind=autoregressive", "dim=64", "num_layers=2", "num_heads=2", "mlp_dim=128"]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "compiled"), [("mlx", False), ("mlx", True), ("torch", False)])
@pytest.mark.parametrize(
    ("seq_len", "patch_size", "dim", "layers", "decoder"),
    [
        (512, 1, 128, 2, ["kind=linear"]),
        (1024, 1, 64, 1, ["kind=linear"]),
        (384, 1, 128, 3, ["kind=linear"]),
        (1024, 4, 128, 3, AUTOREGRESSIVE),
        (1024, 4, 128, 2, ["kind=mlp", "dim=128"]),
        (1024, 4, 128, 2, ["kind=linear"]),
    ],
)
def test_the_peak_of_a_pass_is_as_estimated(
    seq_len: int, patch_size: int, dim: int, layers: int, decoder: list[str], engine: str, compiled: bool
):
    sizes = [f"model.model_dim={dim}", f"model.head_dim={dim // 4}", f"model.num_layers={layers}"]
    sizes += [f"model.patch_size={patch_size}", *(f"model.decoder.{size}" for size in decoder)]
    batch = [f"{part}={seq_len}" for part in ("model.seq_len", "training.batch_symbols", "evaluation.batch_symbols")]
    assert_as_estimated(tiny(*sizes, *batch), engine, rows=1, compiled=compiled)
