"""The EnginePackage of the torch engine."""

from __future__ import annotations

from collections.abc import Sequence

from cuda_train.compiling import keep_compiled
from cuda_train.device import device_facts, float32_products, gpu_environments, matrix_product_flops_per_s
from cuda_train.distributed import connect
from cuda_train.engine import TrainingEngine
from cuda_train.ops import make_ops
from cuda_train.profiler import make_profiler
from shared.engine.package import EnginePackage
from shared.ops import Ops


def launch(words: Sequence[str], wanted: str, port: int | None) -> int:
    """Train with as many processes as `--ranks` wants; returns one exit status for all of them. Raises UserError."""
    # torch's launcher is needed for nothing else.
    from cuda_train import launch as launcher

    return launcher.launch(words, launcher.resolve_ranks(wanted), port)


def make_float64_ops() -> Ops:
    """The operations in float64, on the engine's default device."""
    # No script of a record codes text.
    from cuda_train import float64_ops

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
    launch=launch,
    keep_compiled=keep_compiled,
    gpu_environments=gpu_environments,
)
