"""Every symbol counts exactly once, with as much context as the stride leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from shared.scoring.windows import Window, plan_windows, times_counted

sizes = st.integers(1, 40).flatmap(
    lambda length: st.tuples(st.integers(0, 300), st.just(length), st.integers(1, length))
)


@given(sizes)
def test_every_symbol_counts_exactly_once_with_the_context_that_the_stride_leaves(size: tuple[int, int, int]) -> None:
    num_symbols, seq_len, stride = size
    windows = plan_windows(num_symbols, seq_len, stride)
    assert (times_counted(windows, num_symbols) == 1).all()
    for index, window in enumerate(windows):
        assert window.start == index * stride < num_symbols
        assert window.start <= window.count_start < window.count_stop <= window.start + seq_len
        assert index == 0 or window.count_start - window.start == seq_len - stride
    assert not windows or windows[-1].count_stop == num_symbols


@pytest.mark.parametrize("stride", [0, -1, 5])
def test_impossible_stride(stride: int) -> None:
    with pytest.raises(UserError, match=rf"stride {stride}: must be from 1 to the window of 4 symbols"):
        plan_windows(10, 4, stride)


def test_times_counted_sees_gaps_and_repeats() -> None:
    assert times_counted([Window(0, 0, 3), Window(2, 2, 4)], 6).tolist() == [1, 1, 2, 1, 0, 0]
