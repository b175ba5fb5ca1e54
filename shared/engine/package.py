"""Engines by name: `create_engine("mlx", spec)` imports one, so nothing in shared depends on a framework."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.engine.device_facts import DeviceFacts, Multiplied
from shared.engine.oracle import Oracle
from shared.engine.protocol import Engine, Scorer, Weights
from shared.engine.ranks import OneRank, Ranks
from shared.engine.registry import ENGINE_EXTRAS, ENGINES
from shared.engine.step_profiler import StepProfiler
from shared.errors import UserError
from shared.imports import import_by_name
from shared.model import Forward, forward
from shared.ops import NumpyOps, Ops
from shared.spec import Spec

# Of a folder of runs. No name of a run begins with a dot.
COMPILED_FOLDER = ".compiled"


@dataclass(frozen=True)
class EnginePackage:
    """Everything that an engine provides: the twin table of the README as code.

    Each engine fills one in, as PACKAGE in module `package` of its own package.
    """

    # An engine for a spec, without weights yet.
    create: Callable[[Spec, Forward, Ranks], Engine]
    # The operations of the model on the engine's default device.
    make_ops: Callable[[], Ops]
    # The same in float64, as the oracle computes. Raises UserError where the device has none.
    make_float64_ops: Callable[[], Ops]
    device_facts: Callable[[], DeviceFacts]
    # How this process multiplies float32 matrices now.
    float32_products: Callable[[], Multiplied]
    # Operations per second of large matrix products in float32 or bfloat16.
    matrix_product_flops_per_s: Callable[[str], float]
    # The processes that a launcher started together with this one, or this one alone. Raises UserError.
    connect: Callable[[], Ranks]
    make_profiler: Callable[[Engine], StepProfiler]
    # Trains with several processes: (command line after `train`, --ranks, --port) to an exit status. None where the
    # engine's registration names another launcher.
    launch: Callable[[Sequence[str], str, int | None], int] | None = None
    # Keeps what this process compiles in a folder, and uses what is there. None where compiling takes no time.
    keep_compiled: Callable[[Path], None] | None = None
    # Limits the framework's memory in this process to what the device has; returns what was set, in bytes by name. None
    # where the framework needs no limit.
    limit_memory: Callable[[], dict[str, int]] | None = None
    # The environments in which a process sees one of this machine's GPUs each, empty without any. None where all
    # processes use the same device.
    gpu_environments: Callable[[], Sequence[Mapping[str, str]]] | None = None


def available_engines() -> list[str]:
    """Names of the engines whose framework is installed, in the order they are preferred. None is imported."""
    return [name for name, engine in ENGINES.items() if _is_installed(engine.framework)]


def default_engine() -> str:
    """The preferred engine that is installed, or the NumPy oracle where none is."""
    return next(iter(available_engines()), "numpy")


def default_training_engine() -> str:
    """The preferred engine that is installed."""
    names = available_engines()
    if not names:
        raise UserError(f"training needs an engine and none is installed; install the extra {ENGINE_EXTRAS}")
    return names[0]


def engine_package(name: str) -> EnginePackage:
    """Import an engine, and no other. Raises UserError for an unknown name or a framework that is not installed."""
    if name not in ENGINES:
        raise UserError(f"no engine {name!r}; engines: {', '.join(ENGINES)}")
    engine = ENGINES[name]
    if not _is_installed(engine.framework):
        installed = ", ".join(available_engines()) or "none"
        raise UserError(
            f"engine {name!r} needs the package {engine.distributions[0]}, which is not installed (extra "
            f"`{engine.extra}`); engines installed: {installed}"
        )
    package: EnginePackage = import_by_name(f"{engine.package}.package").PACKAGE
    return package


def keep_compiled(name: str, runs_dir: Path) -> None:
    """Let the named engine keep what it compiles beside the runs: what `preflight` compiled is ready in training."""
    keep = engine_package(name).keep_compiled
    if keep is not None:
        keep(runs_dir / COMPILED_FOLDER)


def limit_memory(name: str) -> dict[str, int]:
    """Let the named engine limit its memory in this process; returns the limits in bytes by name, {} without any."""
    limit = engine_package(name).limit_memory
    return limit() if limit is not None else {}


def create_engine(name: str, spec: Spec, model: Forward = forward, ranks: Ranks | None = None) -> Engine:
    """The named engine for a spec, without weights yet. `model` replaces the forward pass (planted bugs);
    `ranks` is the result of `connect`, None for a process on its own. Raises UserError as `engine_package`."""
    return engine_package(name).create(spec, model, ranks or OneRank())


def create_scorer(name: str, spec: Spec, weights: Weights) -> Scorer:
    """A Scorer of fixed weights on the named engine, or on the NumPy oracle with "numpy"."""
    if name == "numpy":
        return Oracle(spec, weights)
    engine = create_engine(name, spec)
    engine.initialise(weights)
    return engine


def create_float64_scorer(name: str, spec: Spec, weights: Weights) -> Scorer:
    """The oracle on the operations of the named engine, or with "numpy" on its own: all agree to some 1e-14. Raises
    UserError as `engine_package`, and for an engine whose device has no float64."""
    ops = None if name == "numpy" else engine_package(name).make_float64_ops()
    return Oracle(spec, weights, ops=ops)


def make_scorer_of(name: str, spec: Spec) -> Callable[[Weights], Scorer]:
    """A function from weights to a Scorer of them. An engine is made and compiled once: it holds the weights that were
    given last."""
    if name == "numpy":
        return lambda weights: Oracle(spec, weights)
    engine = create_engine(name, spec)

    def scorer_of(weights: Weights) -> Scorer:
        engine.initialise(weights)
        return engine

    return scorer_of


def make_ops(name: str) -> Ops:
    """The operations of an implementation: `numpy`, or an engine."""
    if name == "numpy":
        return NumpyOps()
    return engine_package(name).make_ops()


def _is_installed(module: str) -> bool:
    """Whether a module can be found. It is not imported, which takes seconds."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
