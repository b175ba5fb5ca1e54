"""How MLX multiplies float32 matrices: exactly, or in TF32 where the GPU can (M5 and later, NVIDIA).

MLX reads an environment variable once, at the first such product of the process, and takes TF32 if it is not set. So
importing mlx_train sets it to exact, and only the first engine can still choose otherwise.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shared.errors import RunError

if TYPE_CHECKING:
    # Importing mlx_train comes before everything else of `python -m mlx_train`.
    from shared.spec.base import Float32Products

VARIABLE = "MLX_ENABLE_TF32"

_chosen: Float32Products | None = None


def start_exact() -> None:
    """Exact until an engine chooses, whatever the user's environment says: the spec decides."""
    os.environ[VARIABLE] = "0"


def choose(products: Float32Products, on_gpu: bool) -> None:
    """Multiply like this from now on. Raises RunError on a GPU if the process already multiplies otherwise."""
    global _chosen
    if _chosen is None:
        _chosen = products
        os.environ[VARIABLE] = "1" if products == "fast" else "0"
    elif products != _chosen and on_gpu:
        raise RunError(
            f"training.float32_products = {products!r}: this process already multiplies {_chosen!r}, which MLX cannot "
            "change; give specs that differ in it a process each"
        )


def settle() -> None:
    """End the choice, as the first product does: exact if no engine has chosen."""
    global _chosen
    _chosen = _chosen or "exact"
