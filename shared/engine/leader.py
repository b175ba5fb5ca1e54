"""Rank 0 leads, the other ranks follow: the same engine calls in the same order on every rank.

A message is one engine call: its name and arguments as JSON, its arrays as safetensors.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from safetensors.numpy import load as arrays_from_bytes
from safetensors.numpy import save as arrays_to_bytes

from shared.engine.package import create_engine
from shared.engine.protocol import Engine, Stepper, StepResult, Weights, WeightsKind
from shared.engine.ranks import Ranks
from shared.errors import RanksError, RunError, SpecError, UserError
from shared.model.stages import StepNumbers
from shared.spec import Spec, spec_from_dict, spec_to_dict

HEADER_LENGTH_BYTES = 4
DEVICE_NAME_BYTES = 256

# Work of several collectives, done by every rank on its own engine: (engine, arrays from rank 0).
Task = Callable[[Engine, dict[str, np.ndarray]], object]


class LeadingEngine:
    """Rank 0's engine, an Engine for whoever uses it: batches are global ones, and the followers are kept in step.

    What needs no other rank (weights, state, memory, whole distributions) is answered by rank 0 alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ranks = engine, engine.ranks
        self.spec, self.name, self.compiles = engine.spec, engine.name, engine.compiles

    def initialise(self, weights: Weights) -> None:
        self._tell("initialise", weights)
        self.engine.initialise(weights)

    def warm_up(self, x: np.ndarray, earlier: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        self._tell("warm_up", {"x": packed_symbols(x)})
        return self.engine.warm_up(share_of_rows(x, self.ranks), earlier)

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        self._tell("train_step", {"x": packed_symbols(x)}, numbers=asdict(numbers))
        return self.engine.train_step(share_of_rows(x, self.ranks), numbers)

    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        self._tell("gradients", {"x": packed_symbols(x)}, numbers=asdict(numbers) if numbers else None)
        return self.engine.gradients(share_of_rows(x, self.ranks), numbers)

    def score(self, x: np.ndarray) -> np.ndarray:
        self._tell("score", {"x": packed_symbols(x)})
        return score_together(self.engine, x)

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        """Distributions from this rank alone, in passes of as many rows as `score` gives to one rank: in bfloat16 the
        audit could not compare them with a score from a pass of another shape."""
        shares = [rows_to_score(x, rank, self.ranks) for rank in range(self.ranks.world_size)]
        return np.concatenate([self.engine.log_probs(x[share]) for share in shares])[: len(x)]

    def stepper(self, rows: int) -> Stepper:
        return self.engine.stepper(rows)

    def use_symbol_weights(self, weights: np.ndarray) -> None:
        self._tell("use_symbol_weights", {"weights": weights})
        self.engine.use_symbol_weights(weights)

    def use_weights(self, kind: WeightsKind) -> None:
        self._tell("use_weights", {}, kind=kind)
        self.engine.use_weights(kind)

    def export_weights(self, kind: WeightsKind) -> dict[str, np.ndarray]:
        return self.engine.export_weights(kind)

    def save_state(self) -> dict[str, np.ndarray]:
        """The state of rank 0, after checking that all ranks hold the same. Raises RunError if they do not."""
        # A rank that is gone takes nothing with it: the state of rank 0 is complete.
        with contextlib.suppress(RanksError):
            self._tell("compare", {})
            compare(self.engine)
        return self.engine.save_state()

    def load_state(self, state: Weights) -> None:
        self._tell("load_state", state)
        self.engine.load_state(state)

    def peak_memory_bytes(self) -> int:
        return self.engine.peak_memory_bytes()

    def synchronise(self) -> None:
        self.engine.synchronise()

    def device_name(self) -> str:
        return self.engine.device_name()

    def together(self, task: str, arrays: Weights) -> Engine:
        """Have every follower do a task of `follow`; returns rank 0's own engine, on which the caller does it too."""
        self._tell(task, arrays)
        return self.engine

    def dismiss(self) -> None:
        """Dismiss the followers that are left. The engine cannot be used afterwards."""
        with contextlib.suppress(RanksError):
            self._tell("dismiss", {})

    def _tell(self, call: str, arrays: Weights, **arguments: Any) -> None:
        header = json.dumps({"call": call, "arguments": arguments}).encode()
        length = len(header).to_bytes(HEADER_LENGTH_BYTES, "little")
        body = arrays_to_bytes({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        self.ranks.broadcast(length + header + body)


@contextlib.contextmanager
def another(engine: Engine, spec: Spec) -> Iterator[Engine]:
    """An engine of the same kind on the same ranks for another spec, for as long as it is needed. Meanwhile nobody uses
    the first one."""
    if engine.ranks.world_size == 1:
        yield create_engine(engine.name, spec)
        return
    text = json.dumps(spec_to_dict(spec)).encode()
    own = cast(LeadingEngine, engine).together("another", {"spec": np.frombuffer(text, np.uint8)})
    with leading(create_engine(own.name, spec, ranks=own.ranks)) as other:
        yield other


@contextlib.contextmanager
def leading(engine: Engine) -> Iterator[Engine]:
    """Rank 0's engine for as long as the followers are needed; the engine itself where there are none."""
    if engine.ranks.world_size == 1:
        yield engine
        return
    leader = LeadingEngine(engine)
    try:
        yield leader
    finally:
        leader.dismiss()


def follow(engine: Engine, tasks: Mapping[str, Task] | None = None) -> None:
    """Do on this rank what rank 0 does, until it dismisses us. `tasks`: what it may ask for by name, beside the calls
    of an Engine."""
    ranks = engine.ranks
    while True:
        message = ranks.broadcast(b"")
        first = HEADER_LENGTH_BYTES + int.from_bytes(message[:HEADER_LENGTH_BYTES], "little")
        header = json.loads(message[HEADER_LENGTH_BYTES:first])
        if header["call"] == "dismiss":
            return
        arrays = arrays_from_bytes(message[first:])
        task = (tasks or {}).get(header["call"])
        if task is not None:
            task(engine, arrays)
        else:
            _obey(engine, header["call"], arrays, header["arguments"])


def check_alike(ranks: Ranks, device: str) -> None:
    """Raise UserError on every rank unless all name the same kind of device: others round otherwise, and the weights of
    the ranks would differ."""
    name = device.encode()[:DEVICE_NAME_BYTES]
    # Of a bytearray, because torch warns of an array that it may not write to.
    padded = np.frombuffer(bytearray(name.ljust(DEVICE_NAME_BYTES, b"\0")), np.uint8)
    names = [part.tobytes().rstrip(b"\0").decode(errors="replace") for part in ranks.gather(padded)]
    odd = next((rank for rank, other in enumerate(names) if other != names[0]), None)
    if odd is not None:
        raise UserError(
            f"rank 0 runs on {names[0]} and rank {odd} on {names[odd]}: all ranks need the same kind of device"
        )


def check_divisible(spec: Spec, ranks: Ranks) -> None:
    """Raise SpecError if the rows of a batch cannot be shared out evenly."""
    rows, count = spec.training.batch_symbols // spec.model.seq_len, ranks.world_size
    if rows % count:
        raise SpecError(
            f"training.batch_symbols = {spec.training.batch_symbols}: its {rows} rows of model.seq_len "
            f"{spec.model.seq_len} cannot be shared by {count} ranks; the number of ranks must divide {rows}"
        )


def share_of_rows(x: np.ndarray, ranks: Ranks) -> np.ndarray:
    """This rank's rows of a global batch x [B, T], B a multiple of the world size."""
    rows = len(x) // ranks.world_size
    return x[rows * ranks.rank : rows * (ranks.rank + 1)]


def score_together(engine: Engine, x: np.ndarray) -> np.ndarray:
    """`engine.score` of any number of rows x [B, T], each rank scoring some: [B, T] float32, on every rank."""
    ranks = engine.ranks
    return np.concatenate(ranks.gather(engine.score(x[rows_to_score(x, ranks.rank, ranks)])))[: len(x)]


def rows_to_score(x: np.ndarray, rank: int, ranks: Ranks) -> np.ndarray:
    """The indices of the rows of x [B, T] that a rank scores, equally many; a rank without its own repeats the last."""
    rows = -(-len(x) // ranks.world_size)
    return np.minimum(np.arange(rows * rank, rows * (rank + 1)), len(x) - 1)


def compare(engine: Engine) -> None:
    """Raise RunError, on every rank, if the ranks no longer hold the same weights to the last bit."""
    weights = engine.export_weights("trained")
    sums = [weights[name].view(np.uint32).sum(dtype=np.uint64) for name in sorted(weights)]
    others = engine.ranks.gather(np.array(sums, np.uint64).view(np.int64))
    odd = next((rank for rank, other in enumerate(others) if not np.array_equal(other, others[0])), None)
    if odd is not None:
        raise RunError(f"rank {odd} no longer has the weights of rank 0: its device computes other values")


def packed_symbols(x: np.ndarray) -> np.ndarray:
    """Symbols for a message, in as few bytes as hold them: the step waits for it. A negative one does not count
    (shared.model.counted)."""
    if x.min(initial=0) < 0:
        return x.astype(np.int32)
    return x.astype(np.uint8 if x.max(initial=0) < 256 else np.uint16)


def _obey(engine: Engine, call: str, arrays: dict[str, np.ndarray], arguments: dict[str, Any]) -> None:
    """One call of rank 0, on this rank's share."""
    x = arrays["x"].astype(np.int32) if "x" in arrays else np.zeros((0, 0), np.int32)
    if call == "initialise":
        engine.initialise(arrays)
    elif call == "load_state":
        engine.load_state(arrays)
    elif call == "use_symbol_weights":
        engine.use_symbol_weights(arrays["weights"])
    elif call == "use_weights":
        engine.use_weights(arguments["kind"])
    elif call == "compare":
        compare(engine)
    elif call == "another":
        follow(create_engine(engine.name, spec_from_dict(json.loads(arrays["spec"].tobytes())), ranks=engine.ranks))
    elif call == "score":
        score_together(engine, x)
    elif call == "train_step":
        engine.train_step(share_of_rows(x, engine.ranks), StepNumbers(**arguments["numbers"]))
    elif call == "warm_up":
        engine.warm_up(share_of_rows(x, engine.ranks))
    elif call == "gradients":
        numbers = arguments["numbers"]
        engine.gradients(share_of_rows(x, engine.ranks), StepNumbers(**numbers) if numbers else None)
    else:
        raise RanksError(f"rank 0 asks for {call!r}, which is unknown here: the ranks run different versions")
