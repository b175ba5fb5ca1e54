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

PACKAGE = EnginePackage(
    create=TrainingEngine,
    make_ops=make_ops,
    device_facts=device_facts,
    float32_products=float32_products,
    matrix_product_flops_per_s=matrix_product_flops_per_s,
    connect=connect,
    make_profiler=make_profiler,
    keep_compiled=keep_compiled,
    limit_memory=limit_memory,
)
