"""Rank 0 leads, the others follow: shares of the rows, the messages, and what happens when ranks part."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.leader import LeadingEngine, check_divisible, follow, share_of_rows
from shared.engine.protocol import StepResult, Weights
from shared.engine.ranks import OneRank
from shared.errors import RanksError, RunError, SpecError
from shared.model.stages import LOOP_RAMP, StepNumbers
from shared.spec import load_spec
from tests.fake_training import tiny_spec
from tests.implementations import examples
from tests.processes import WAIT_S


class ThreadRanks:
    """shared.engine.ranks.Ranks between the threads of one process."""

    def __init__(self, rank: int, world_size: int, slots: list, barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._slots, self._barrier = rank, world_size, slots, barrier

    def broadcast(self, content: bytes) -> bytes:
        return self._exchange(content)[0]

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        return self._exchange(values.copy())

    def _exchange(self, value: object) -> list:
        self._slots[self.rank] = value
        self._barrier.wait(timeout=WAIT_S)
        values = list(self._slots)
        self._barrier.wait(timeout=WAIT_S)
        return values


class NotingEngine:
    """An engine that notes what it was asked and scores each symbol by its own value."""

    name = "noting"
    compiles = True

    def __init__(self, ranks: ThreadRanks) -> None:
        self.spec, self.ranks = tiny_spec(), ranks
        self.weights: dict[str, np.ndarray] = {}
        self.calls: list[tuple] = []
        self.shapes: set[tuple[int, ...]] = set()

    def initialise(self, weights: Weights) -> None:
        self.weights = {name: value.copy() for name, value in weights.items()}

    load_state = initialise

    def use_weights(self, kind: str) -> None:
        self.calls.append(("use_weights", kind))

    def warm_up(self, x: np.ndarray, earlier: object = None) -> None:
        self.calls.append(("warm_up", x.tolist()))

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        self.calls.append(("train_step", x.tolist(), numbers))
        return lambda: (float(x.mean()), 1.0)

    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        self.calls.append(("gradients", x.tolist(), numbers))
        return float(x.mean()), {}

    def score(self, x: np.ndarray) -> np.ndarray:
        self.shapes.add(x.shape)
        return x.astype(np.float32)

    log_probs = score

    def export_weights(self, kind: str) -> dict[str, np.ndarray]:
        return self.weights

    save_state = lambda self: self.weights  # noqa: E731


def together(world_size: int, lead: Callable[[LeadingEngine], object]) -> tuple[object, list[NotingEngine]]:
    """The result of `lead` on rank 0 while the others follow, and the engines of all."""
    slots, barrier = [None] * world_size, threading.Barrier(world_size)
    engines = [NotingEngine(ThreadRanks(rank, world_size, slots, barrier)) for rank in range(world_size)]
    threads = [threading.Thread(target=follow, args=(engine,)) for engine in engines[1:]]
    for thread in threads:
        thread.start()
    leader = LeadingEngine(engines[0])
    result = lead(leader)
    leader.dismiss()
    for thread in threads:
        thread.join(timeout=WAIT_S)
        assert not thread.is_alive()
    return result, engines


@examples
@given(
    world_size=st.integers(1, 5),
    rows=st.integers(1, 11),
    symbols=st.sampled_from([(0, 256), (0, 257), (255, 65536), (-1, 256)]),
    seed=st.integers(0, 99),
)
def test_scores_do_not_depend_on_the_number_of_ranks(world_size: int, rows: int, symbols: tuple[int, int], seed: int):
    x = np.random.default_rng(seed).integers(*symbols, (rows, 6)).astype(np.int32)
    both, engines = together(world_size, lambda leader: (leader.score(x), leader.log_probs(x)))
    assert all(np.array_equal(values, x.astype(np.float32)) for values in both)
    # Whole distributions come from passes of the same shape as scores, so that the audit may compare them.
    assert {shape for engine in engines for shape in engine.shapes} == {(-(-rows // world_size), 6)}


@examples
@given(world_size=st.integers(1, 5), rows_each=st.integers(1, 4))
def test_every_row_of_a_batch_goes_to_one_rank(world_size: int, rows_each: int):
    x = np.arange(world_size * rows_each * 3, dtype=np.int32).reshape(-1, 3)
    numbers = StepNumbers(1, {LOOP_RAMP: 2 / 3}, {"matrix_lr": 0.1 + 0.2, "momentum": 1 / 3})

    def lead(leader: LeadingEngine) -> None:
        leader.warm_up(x)
        leader.train_step(x, numbers)
        leader.gradients(x)
        leader.gradients(x, numbers)
        leader.use_weights("averaged")

    _, engines = together(world_size, lead)
    for call in range(4):
        assert [row for engine in engines for row in engine.calls[call][1]] == x.tolist()
    # Floats arrive to the last bit, also through JSON.
    assert all([call[2] for call in engine.calls[1:4]] == [numbers, None, numbers] for engine in engines)
    assert all(engine.calls[4] == ("use_weights", "averaged") for engine in engines)


def test_weights_reach_every_rank_to_the_last_bit():
    rng = np.random.default_rng(0)
    weights = {"b.weight": rng.standard_normal((3, 4)).astype(np.float32), "a": np.float32([np.pi])}
    saved, engines = together(3, lambda leader: (leader.initialise(weights), leader.save_state())[1])
    assert saved == engines[0].weights
    for engine in engines:
        assert engine.weights.keys() == weights.keys()
        assert all(np.array_equal(engine.weights[name], weights[name]) for name in weights)


def test_ranks_that_part_are_not_saved():
    def lead(leader: LeadingEngine) -> None:
        leader.initialise({"w": np.ones(4, np.float32)})
        leader.engine.weights["w"][2] = np.nextafter(np.float32(1), np.float32(2))
        with pytest.raises(RunError, match="rank 1 no longer has the weights of rank 0"):
            leader.save_state()

    # The follower finds it too and ends with the same error.
    slots, barrier = [None] * 2, threading.Barrier(2)
    engines = [NotingEngine(ThreadRanks(rank, 2, slots, barrier)) for rank in range(2)]
    caught: list[Exception] = []

    def follower() -> None:
        try:
            follow(engines[1])
        except RunError as error:
            caught.append(error)

    thread = threading.Thread(target=follower)
    thread.start()
    lead(LeadingEngine(engines[0]))
    thread.join(timeout=WAIT_S)
    assert len(caught) == 1


def test_a_state_is_saved_although_another_rank_is_gone():
    class Gone(ThreadRanks):
        def _exchange(self, value: object) -> list:
            raise RanksError("rank 0 lost contact with another rank")

    engine = NotingEngine(Gone(0, 2, [], threading.Barrier(2)))
    engine.weights = {"w": np.ones(2, np.float32)}
    leader = LeadingEngine(engine)
    assert leader.save_state() == engine.weights
    leader.dismiss()
    with pytest.raises(RanksError):
        leader.use_weights("trained")


def test_batches_that_cannot_be_shared_are_refused():
    spec = load_spec("tiny", ["training.batch_symbols=512", "model.seq_len=64"])
    for world_size in (1, 2, 4, 8):
        check_divisible(spec, ThreadRanks(0, world_size, [], threading.Barrier(1)))
    with pytest.raises(SpecError, match=r"training.batch_symbols = 512: its 8 rows .* must divide 8"):
        check_divisible(spec, ThreadRanks(0, 3, [], threading.Barrier(1)))


def test_one_rank_has_everything():
    x = np.arange(6).reshape(2, 3)
    assert share_of_rows(x, OneRank()) is not None and np.array_equal(share_of_rows(x, OneRank()), x)
    assert OneRank().broadcast(b"word") == b"word" and OneRank().gather(x)[0] is x
