"""The registry of engines, and the only place in Python that lists them.

This module says what can be known of an engine without importing it. What it does is the EnginePackage in module
`package` of its own package, which `shared.engine.package.engine_package` loads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeakFit:
    """The peak memory of a pass (shared.engine.activations) is `kept` times what its gradients read, plus what it works
    on: `logits` times the largest logits in float32, of which a loss makes several arrays at once, or `scores` times
    the largest attention scores. Every peak that was measured lies between `least` and `most` times that."""

    kept: float
    logits: float
    scores: float
    least: float
    most: float


@dataclass(frozen=True)
class Registration:
    """`package` is the engine's top-level package and `framework` the module that must be installed for it, which the
    extra `extra` of pyproject.toml does. environment.json notes the versions of `distributions`. `rank_variable` is
    where a launcher tells a process its rank; `launcher` starts several, empty where `bytetwin train --ranks` does.
    `fit` and `compiled_fit` say what memory a pass takes, see records/2026-11-26-house.md; `keeps_scores` is
    whether the gradient of attention reads its scores."""

    package: str
    framework: str
    extra: str
    distributions: tuple[str, ...]
    rank_variable: str
    fit: PeakFit
    compiled_fit: PeakFit
    keeps_scores: bool = False
    launcher: str = ""


# In the order they are preferred.
ENGINES = {
    "mlx": Registration(
        package="mlx_train",
        framework="mlx.core",
        extra="mlx",
        distributions=("mlx", "mlx-metal", "mlx-cuda-13", "ngsolve-openblas"),
        rank_variable="MLX_RANK",
        fit=PeakFit(kept=1.12, logits=11.0, scores=2.25, least=0.4, most=1.4),
        compiled_fit=PeakFit(kept=1.0, logits=7.0, scores=1.25, least=0.4, most=1.5),
        keeps_scores=True,
        launcher="mlx.launch",
    ),
    "torch": Registration(
        package="cuda_train",
        framework="torch",
        extra="cuda",
        distributions=("torch",),
        rank_variable="RANK",
        fit=PeakFit(kept=1.0, logits=2.0, scores=0.0, least=0.85, most=1.4),
        compiled_fit=PeakFit(kept=0.83, logits=1.66, scores=0.0, least=0.6, most=1.4),
    ),
}

ENGINE_EXTRAS = " or ".join(f"`{engine.extra}`" for engine in ENGINES.values())
