"""The seam above the model: what the loop, the scores and the checks need from an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from shared.engine.ranks import Ranks
from shared.model.stages import StepNumbers
from shared.spec import Spec

Weights = Mapping[str, np.ndarray]
WeightsKind = Literal["trained", "averaged"]
# Waits for a step that was queued and gives (mean nats per symbol, gradient norm). Raises NonFiniteError.
StepResult = Callable[[], tuple[float, float]]


class NonFiniteError(Exception):
    """A loss or gradient that is not a number. `parameter` is the first, in manifest order, whose
    gradient is not finite; the engine's weights are unusable."""

    def __init__(self, parameter: str) -> None:
        super().__init__(f"not a finite number: gradient of {parameter}")
        self.parameter = parameter


class Stepper(Protocol):
    """The distribution of the next symbol in each of `rows` windows, advanced by one symbol at a time.

    A window never exceeds seq_len: who needs more begins anew. Log-probabilities are in nats, float32 from an engine
    and float64 from the oracle, and within the tolerance of logits those of `Scorer.log_probs`.
    """

    rows: int

    def start(self, x: np.ndarray) -> np.ndarray:
        """Begin new windows with the symbols x [rows, T0] int32, T0 >= 0 any length below seq_len: ln p [rows, V] of
        the symbol after them."""

    def advance(self, symbols: np.ndarray) -> np.ndarray:
        """Append one symbol to each window, int32 [rows]: ln p [rows, V] of the symbol after it."""


class Scorer(Protocol):
    """Anything that gives symbols a probability. `x` is [B, T] int32, T a multiple of patch_size."""

    spec: Spec

    def score(self, x: np.ndarray) -> np.ndarray:
        """-ln p(x[:, t] | x[:, :t]): [B, T] float32, nats."""

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        """ln p(v | x[:, :t]) for every symbol v: [B, T, V] float32, nats."""

    def stepper(self, rows: int) -> Stepper:
        """The same distributions symbol by symbol, for `rows` windows at a time, of the weights as they are now: when
        they change another one is needed. With several ranks rank 0 steps alone."""


class Engine(Scorer, Protocol):
    """A device with weights and optimizer state on it. Created with `create_engine(name, spec)`.

    With several ranks each process holds one; x is then this rank's share of the rows wherever a method takes
    the global batch, and weights, state and results are the same on every rank. `shared.engine.leader` shares them out.
    """

    name: str
    ranks: Ranks
    # Whether `warm_up` compiles: the spec may say not to, or the framework cannot on this device.
    compiles: bool

    def initialise(self, weights: Weights) -> None:
        """Start from float32 weights by parameter name, with a fresh optimizer state. Parameters of training only may
        be missing, as they are from an artifact: they start at their initial values."""

    def use_symbol_weights(self, weights: np.ndarray) -> None:
        """Set the weights of symbols in the training loss, float32 [V, 1]; `training.loss.byte_weighted` needs them."""

    def warm_up(self, x: np.ndarray, earlier: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """Compile what train_step needs for batches like x [B, T], in every stage of the run.

        Changes nothing but the time of a step. Returns what was chosen by measurement, if anything was: plain JSON
        values by what it was chosen for. `earlier` has the names that an earlier start of the run chose: they stay
        where they still work, so that a resumed run computes what it would have.
        """

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        """Queue one optimizer step on the global batch x [B, T]. On a GPU this returns before it is done.

        `numbers` is the result of `step_hyperparameters`; it also says which function is trained.
        The result is read after the next step is queued, so that the device never waits for the host.
        """

    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        """(mean nats per symbol, float32 gradients of the training loss by name) of the current weights on x [B, T].

        The function is the one that a step with `numbers` trains, by default the one at the end of training. What is
        frozen has no gradient.
        """

    def use_weights(self, kind: WeightsKind) -> None:
        """Choose the weights that `score` and `log_probs` use: the trained ones (at first) or their average."""

    def export_weights(self, kind: WeightsKind) -> dict[str, np.ndarray]:
        """A float32 copy by parameter name, also of those of training only; `averaged` is the same as `trained` where
        no average is kept."""

    def save_state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, float32: `weight/NAME` and the optimizer state's `KIND/NAME`."""

    def load_state(self, state: Weights) -> None:
        """Take over the result of `save_state`, of this or another engine. Raises RunError on other names or shapes."""

    def peak_memory_bytes(self) -> int:
        """Most memory used so far, by the device's own count (resident memory on a CPU)."""

    def synchronise(self) -> None:
        """Wait until all queued work is done."""

    def device_name(self) -> str:
        """A readable description of the device, for environment.json."""
