"""Every engine there is: the one place in Python where an engine is registered.

This module says what can be known of an engine without importing it. What it does is the EnginePackage in module
`package` of its own package, which `shared.engine.package.engine_package` loads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Registration:
    """`package` is the engine's top-level package and `framework` the module that must be installed for it, which the
    extra `extra` of pyproject.toml does. environment.json notes the versions of `distributions`. `rank_variable` is
    where a launcher tells a process its rank; `launcher` starts several, empty where `bytetwin train --ranks` does."""

    package: str
    framework: str
    extra: str
    distributions: tuple[str, ...]
    rank_variable: str
    launcher: str = ""


# In the order they are preferred.
ENGINES = {
    "mlx": Registration("mlx_train", "mlx.core", "mlx", ("mlx", "ngsolve-openblas"), "MLX_RANK", "mlx.launch"),
    "torch": Registration("cuda_train", "torch", "cuda", ("torch",), "RANK"),
}

ENGINE_EXTRAS = " or ".join(f"`{engine.extra}`" for engine in ENGINES.values())
