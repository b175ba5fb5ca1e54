"""The EnginePackage of the MLX engine."""

from mlx_train.device import (
    device_facts,
    float32_products,
    keep_compiled,
    limit_memory,
    matrix_product_flops_per_s,
)
from mlx_train.distributed import connect
from mlx_train.engine import TrainingEngine
from mlx_train.ops import make_ops
from mlx_train.profiler import make_profiler
from shared.engine.package import EnginePackage
from shared.ops import Ops


def make_float64_ops() -> Ops:
    """The operations in float64, on a CPU. Raises UserError where MLX computes on a GPU."""
    # No script of a record codes text.
    from mlx_train import float64_ops

    return float64_ops.make_float64_ops()


PACKAGE = EnginePackage(
    create=TrainingEngine,
    make_ops=make_ops,
    make_float64_ops=make_float64_ops,
    device_facts=device_facts,
    float32_products=float32_products,
    matrix_product_flops_per_s=matrix_product_flops_per_s,
    connect=connect,
    make_profiler=make_profiler,
    keep_compiled=keep_compiled,
    limit_memory=limit_memory,
)
