"""The loader: a pure function of (seed, step, batch) that visits every window of an epoch once."""

from __future__ import annotations

import json
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.byte_stream import ByteStream, ByteText
from data.loader import Loader, ReadAhead
from shared.errors import DataError, RunError
from shared.spec import VocabularySpec
from tests.processes import WAIT_S


def counting_stream(num_symbols: int) -> ByteStream:
    """A stream of two documents in which position t < 65536 can be told from the two bytes at t, t + 1."""
    rng = np.random.Generator(np.random.PCG64(5))
    text = rng.integers(0, 256, num_symbols, dtype=np.uint8)
    starts = np.array([0, num_symbols // 2] if num_symbols > 1 else [0])
    return ByteStream(ByteText([text[:7], text[7:]]), starts, VocabularySpec(), "toy/train", "ab" * 32)


def start_of(stream: ByteStream, window: np.ndarray) -> int:
    """The only place where a window of random bytes occurs."""
    text = stream.text_bytes()
    needle = window.astype(np.uint8).tobytes()
    assert text.count(needle) == 1
    return text.index(needle)


@given(st.integers(30, 600), st.integers(8, 24), st.integers(1, 9), st.integers(0, 2**31), st.data())
def test_batches_are_pure_and_rows_slice_them(
    num_symbols: int, seq_len: int, batch_rows: int, seed: int, data: st.DataObject
) -> None:
    stream = counting_stream(num_symbols)
    loader = Loader(stream, seq_len, batch_rows, seed)
    steps = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=4))
    batches = [loader.batch(step) for step in steps]
    for step, batch in zip(steps, batches, strict=True):
        assert batch.shape == (batch_rows, seq_len)
        assert batch.dtype == np.int32
        # A fresh loader that has read nothing before gives the same batch, whole or in slices.
        fresh = Loader(stream, seq_len, batch_rows, seed)
        cuts = sorted(data.draw(st.lists(st.integers(0, batch_rows), max_size=3)))
        parts = [fresh.rows(step, start, stop - start) for start, stop in pairwise([0, *cuts, batch_rows])]
        assert np.array_equal(np.concatenate(parts), batch)
        # Windows follow each other from batch to batch, over the ends of epochs too.
        one_by_one = Loader(stream, seq_len, 1, seed)
        rows = [one_by_one.batch(step * batch_rows + row) for row in range(batch_rows)]
        assert np.array_equal(np.concatenate(rows), batch)


@given(st.integers(30, 500), st.integers(8, 24), st.integers(0, 1000))
def test_an_epoch_visits_each_window_once(num_symbols: int, seq_len: int, seed: int) -> None:
    stream = counting_stream(num_symbols)
    loader = Loader(stream, seq_len, 1, seed)
    for epoch in range(2):
        first = epoch * loader.windows_per_epoch
        starts = [start_of(stream, loader.batch(first + step)[0]) for step in range(loader.windows_per_epoch)]
        phase = min(starts)
        assert sorted(starts) == [phase + index * seq_len for index in range(loader.windows_per_epoch)]
        assert phase < seq_len
        # What an epoch leaves out is less than two windows.
        assert num_symbols - loader.windows_per_epoch * seq_len < 2 * seq_len


def test_seed_and_epoch_change_order_and_phase() -> None:
    stream = counting_stream(3000)
    orders = {
        (seed, epoch): tuple(
            start_of(stream, Loader(stream, 30, 1, seed).batch(epoch * 99 + step)[0]) for step in range(99)
        )
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert Loader(stream, 30, 1, 0).windows_per_epoch == 99
    assert len(set(orders.values())) == 4
    assert len({min(order) for order in orders.values()}) > 1
    assert all(order != tuple(sorted(order)) for order in orders.values())


def test_byte260_windows_carry_document_starts() -> None:
    stream = ByteStream(
        ByteText([np.full(40, 65, np.uint8)]),
        np.arange(0, 40, 4),
        VocabularySpec(kind="byte260"),
        "toy/train",
        "0" * 64,
    )
    batch = Loader(stream, 10, 4, 0).batch(0)
    assert ((batch == 1).sum(axis=1) == 2).all()
    assert set(np.unique(batch)) == {1, 69}


def test_a_stream_of_exactly_one_window_is_enough_and_one_less_is_not() -> None:
    stream = counting_stream(64)
    assert Loader(stream, 64, 2, 0).batch(5).tolist() == [stream.read(0, 64).tolist()] * 2
    with pytest.raises(DataError, match=r"toy/train: 64 symbols are fewer than one window of model.seq_len = 65"):
        Loader(stream, 65, 2, 0)


def test_state_survives_json_and_is_accepted() -> None:
    loader = Loader(counting_stream(500), 16, 4, 9)
    state = json.loads(json.dumps(loader.state(12)))
    assert state["step"] == 12
    loader.check_state(state)
    loader.check_state({**state, "dataset": "the same text under another name"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset_sha256", "cd" * 32),
        ("vocabulary", "byte260"),
        ("num_symbols", 501),
        ("seed", 10),
        ("batch_rows", 8),
        ("seq_len", 32),
        ("seed", None),
        ("step", -1),
        ("step", "12"),
    ],
)
def test_a_state_of_another_run_is_refused(field: str, value: object) -> None:
    loader = Loader(counting_stream(500), 16, 4, 9)
    with pytest.raises(RunError, match=f"loader state: {field}") as caught:
        loader.check_state({**loader.state(12), field: value})
    assert "\n" not in str(caught.value)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 99))
def test_reading_ahead_changes_no_batch(steps: list[int], seed: int) -> None:
    loader = Loader(counting_stream(100), 8, 3, seed)  # an epoch is a few steps
    expected = [loader.batch(step) for step in steps]
    ahead = ReadAhead(Loader(counting_stream(100), 8, 3, seed))
    for step, batch in zip(steps, expected, strict=True):
        assert np.array_equal(ahead.batch(step), batch)
    ahead.close()


def test_the_next_batch_is_read_meanwhile_and_what_it_raises_comes_when_it_is_asked_for() -> None:
    stream, began = counting_stream(100), threading.Event()
    loader = Loader(stream, 8, 3, 0)

    def batch(step: int) -> np.ndarray:
        if step == 1:
            began.set()
            raise DataError("a damaged shard")
        return Loader.batch(loader, step)

    loader.batch = batch  # type: ignore[method-assign]
    ahead = ReadAhead(loader)
    assert np.array_equal(ahead.batch(0), Loader.batch(loader, 0))
    assert began.wait(WAIT_S)
    with pytest.raises(DataError, match="a damaged shard"):
        ahead.batch(1)
    ahead.close()
