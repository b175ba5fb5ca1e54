"""What mac.sh and gpu.sh ask of MLX: `python -m tests.mlx_checks facts`, `products 0|1`, `gradients`.

Each prints what it found, and ends with status 1 where that is not what it should be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np

import mlx_train  # noqa: F401  before mlx.core
from mlx_train import device
from mlx_train.float32_products import VARIABLE
from mlx_train.table_gradient import read_rows

import mlx.core as mx  # isort: skip

# Exact products of this size are off by 3e-7, those in TF32 by 3e-4 and more.
MOST_ERROR = 1e-5
REPEATS = 20
ROWS, WIDTH, READS = 256, 192, 4096


def facts() -> None:
    """The device as MLX and as bytetwin see it, and what memory is limited to."""
    print(f"mlx {mx.__version__}: {mx.device_info()}")
    found = device.device_facts()
    print(found)
    print(f"limits in bytes: {device.limit_memory()}")


def products(enable_tf32: str) -> None:
    """The relative error of a float32 product with that value of MLX_ENABLE_TF32, which MLX reads at the first one."""
    os.environ[VARIABLE] = enable_tf32
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((512, 512)).astype(np.float32) for _ in "ab")
    exact = a.astype(np.float64) @ b
    error = np.linalg.norm(np.array(mx.array(a) @ mx.array(b)) - exact) / np.linalg.norm(exact)
    print(f"relative error of a float32 product with {VARIABLE}={enable_tf32}: {error:.1e}")
    if enable_tf32 == "0" and error > MOST_ERROR:
        sys.exit("float32 products are not exact")


def gradients() -> None:
    """How many different gradients of a table REPEATS equal calls give: MLX's own and ours, which must be 1."""
    rng = np.random.default_rng(0)
    index = mx.array(rng.integers(0, ROWS, READS))
    table, slopes = (mx.array(rng.standard_normal((rows, WIDTH)).astype(np.float32)) for rows in (ROWS, READS))

    def different(read: Callable[[mx.array, mx.array], mx.array]) -> int:
        gradient = mx.grad(lambda table: mx.sum(read(table, index) * slopes))
        return len({np.array(gradient(table)).tobytes() for _ in range(REPEATS)})

    own = different(read_rows)
    print(f"different results of {REPEATS}: MLX's {different(lambda table, index: table[index])}, ours {own}")
    if own != 1:
        sys.exit("the gradient of a table is not repeatable")


CHECKS: dict[str, Callable[..., None]] = {check.__name__: check for check in (facts, products, gradients)}

if __name__ == "__main__":
    CHECKS[sys.argv[1]](*sys.argv[2:])
