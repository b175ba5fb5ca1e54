"""The seam above the model: what the loop, the scores and the checks need from an engine.

`load_engine("mlx")` imports an engine by name, so nothing in shared depends on a framework. The
third name, `numpy`, is the float64 oracle, which scores but does not train.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Literal, Protocol

import numpy as np

from shared.errors import RunError, UserError
from shared.model import Forward, forward, log_probs, symbol_nats
from shared.ops import NumpyOps
from shared.optim import WEIGHTS, state_shapes
from shared.ranks import OneRank, Ranks
from shared.spec import Spec

EngineName = Literal["mlx", "torch"]
ENGINE_PACKAGES: dict[str, str] = {"mlx": "mlx_train", "torch": "cuda_train"}

Weights = Mapping[str, np.ndarray]
WeightsKind = Literal["trained", "averaged"]
# Waits for a step that was queued and gives (mean nats per symbol, gradient norm). Raises NonFiniteError.
StepResult = Callable[[], tuple[float, float]]


class NonFiniteError(Exception):
    """A loss or gradient that is not a number. `parameter` is the first, in manifest order, whose
    gradient is not finite; the engine's weights are spoilt."""

    def __init__(self, parameter: str) -> None:
        super().__init__(f"not a finite number: gradient of {parameter}")
        self.parameter = parameter


class Scorer(Protocol):
    """Anything that gives symbols a probability. `x` is [B, T] int32, T a multiple of patch_size."""

    spec: Spec

    def score(self, x: np.ndarray) -> np.ndarray:
        """-ln p(x[:, t] | x[:, :t]): [B, T] float32, nats."""
        ...

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        """ln p(v | x[:, :t]) for every symbol v: [B, T, V] float32, nats."""
        ...


class Engine(Scorer, Protocol):
    """A device with weights and optimizer state on it. Created with `create_engine(name, spec)`.

    With several ranks each process holds one; x is then this rank's share of the rows wherever a method takes
    the global batch, and weights, state and results are the same on every rank. `shared.following` does the sharing.
    """

    name: str
    ranks: Ranks

    def initialise(self, weights: Weights) -> None:
        """Start from float32 weights by parameter name, with a fresh optimizer state. Parameters of training only may
        be missing, as they are from an artifact: they start at their initial values."""
        ...

    def use_symbol_weights(self, weights: np.ndarray) -> None:
        """What each symbol weighs in the training loss, float32 [V, 1]; needed with `training.loss.byte_weighted`."""
        ...

    def warm_up(self, x: np.ndarray) -> None:
        """Compile what train_step needs for batches like x [B, T], in every stage of the run.

        Changes nothing but the time of the first step.
        """
        ...

    def train_step(self, x: np.ndarray, hyper: Mapping[str, float]) -> StepResult:
        """Queue one optimizer step on the global batch x [B, T]. On a GPU this returns before it is done.

        `hyper` is the result of `step_hyperparameters`; it also says which function is trained (shared.model.stages).
        The result is asked for after the next step is queued, so that the device never waits for the host.
        """
        ...

    def gradients(self, x: np.ndarray, hyper: Mapping[str, float] | None = None) -> tuple[float, dict[str, np.ndarray]]:
        """(mean nats per symbol, float32 gradients of the training loss by name) of the current weights on x [B, T].

        The function is the one that a step with `hyper` trains, by default the one at the end of training. What is
        frozen has no gradient.
        """
        ...

    def use_weights(self, kind: WeightsKind) -> None:
        """Which weights `score` and `log_probs` use: the trained ones (at first) or their average."""
        ...

    def export_weights(self, kind: WeightsKind) -> dict[str, np.ndarray]:
        """A float32 copy by parameter name, also of those of training only; `averaged` is the same as `trained` where
        no average is kept."""
        ...

    def save_state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, float32: `weight/NAME` and the optimizer state's `KIND/NAME`."""
        ...

    def load_state(self, state: Weights) -> None:
        """Take over the result of `save_state`, of this or another engine. Raises RunError on other names or shapes."""
        ...

    def peak_memory_bytes(self) -> int:
        """Most memory used so far, by the device's own count (resident memory on a CPU)."""
        ...

    def synchronise(self) -> None:
        """Wait until all queued work is done."""
        ...

    def device_name(self) -> str:
        """The device in words, for environment.json."""
        ...


class Oracle:
    """The NumPy float64 Scorer: slow, plain, and independent of both frameworks."""

    def __init__(self, spec: Spec, weights: Weights, model: Forward = forward) -> None:
        self.spec, self.model, self.ops = spec, model, NumpyOps()
        self.params = {name: self.ops.asarray(value) for name, value in weights.items()}

    def score(self, x: np.ndarray) -> np.ndarray:
        return symbol_nats(self.ops, self.spec, self.params, x, self.model)

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return log_probs(self.ops, self.spec, self.params, x, self.model)


def split_state(spec: Spec, state: Weights) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(weights by parameter name, optimizer state) out of one `Engine.save_state`, checked against the spec.

    Raises RunError naming the first tensor that is missing, unknown or of another shape.
    """
    expected = state_shapes(spec)
    for name in sorted(expected.keys() ^ state.keys()):
        problem = "missing from" if name in expected else "unknown in"
        raise RunError(f"tensor {name} is {problem} the checkpoint: it belongs to another spec")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise RunError(f"tensor {name} has shape {state[name].shape} in the checkpoint, the spec wants {shape}")
    weights = {name.removeprefix(WEIGHTS): state[name] for name in expected if name.startswith(WEIGHTS)}
    return weights, {name: state[name] for name in expected if not name.startswith(WEIGHTS)}


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
