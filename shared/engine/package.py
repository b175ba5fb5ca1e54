"""Engines by name: `create_engine("mlx", spec)` imports one, so nothing in shared depends on a framework."""

from __future__ import annotations

import importlib
from types import ModuleType

from shared.engine.oracle import Oracle
from shared.engine.protocol import Engine, Scorer, Weights
from shared.engine.ranks import OneRank, Ranks
from shared.errors import UserError
from shared.model import Forward, forward
from shared.spec import Spec

ENGINE_PACKAGES: dict[str, str] = {"mlx": "mlx_train", "torch": "cuda_train"}


def available_engines() -> list[str]:
    """Names of the engines whose framework can be imported here, in the order they are preferred."""
    return [name for name in ENGINE_PACKAGES if _import_engine(name) is not None]


def create_engine(name: str, spec: Spec, model: Forward = forward, ranks: Ranks | None = None) -> Engine:
    """The named engine for a spec, without weights yet. `model` replaces the forward pass (planted bugs);
    `ranks` is the result of `connect_ranks`, None for a process on its own.

    Raises UserError for an unknown name or a framework that is not installed.
    """
    engine: Engine = _engine_module(name).TrainingEngine(spec, model, ranks or OneRank())
    return engine


def connect_ranks(name: str) -> Ranks:
    """The processes that torchrun (torch) or mlx.launch (MLX) started together with this one, or just this one.

    Raises UserError where they cannot find each other or do not fit together.
    """
    _engine_module(name)
    ranks: Ranks = importlib.import_module(f"{ENGINE_PACKAGES[name]}.distributed").connect()
    return ranks


def create_scorer(name: str, spec: Spec, weights: Weights) -> Scorer:
    """A Scorer of fixed weights on the named engine, or on the NumPy oracle with "numpy"."""
    if name == "numpy":
        return Oracle(spec, weights)
    engine = create_engine(name, spec)
    engine.initialise(weights)
    return engine


def _installed() -> str:
    return ", ".join(available_engines()) or "none"


def _engine_module(name: str) -> ModuleType:
    if name not in ENGINE_PACKAGES:
        raise UserError(f"no engine {name!r}; engines: {', '.join(ENGINE_PACKAGES)}")
    module = _import_engine(name)
    if module is None:
        raise UserError(f"engine {name!r} needs a package that is not installed; installed: {_installed()}")
    return module


def _import_engine(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"{ENGINE_PACKAGES[name]}.engine")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("mlx", "torch"):
            return None
        raise
