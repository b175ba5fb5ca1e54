"""What a scorer says of each symbol of any text, in the windows of a score (docs/techniques.md 1.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from shared.scoring.bits_per_byte import read_windows
from shared.scoring.excerpt import Excerpt
from shared.scoring.windows import check_window, even_rows, plan_windows
from shared.spec import Spec


def of_each_symbol(
    ask: Callable[[np.ndarray], np.ndarray], spec: Spec, symbols: np.ndarray, stride: int | None = None
) -> np.ndarray:
    """What `ask`, a scorer's `score` or `log_probs`, gives for each of the symbols [T] int32: [T] or [T, V].

    `stride` in symbols, by default that of the spec. Raises UserError as `plan_windows` and `check_window` do.
    """
    seq_len, evaluation = spec.model.seq_len, spec.evaluation
    check_window(seq_len, len(symbols))
    windows = plan_windows(len(symbols), seq_len, evaluation.stride_symbols if stride is None else stride)
    text: Any = Excerpt("a text", symbols, np.zeros(len(symbols), bool), np.zeros(1, np.int64))
    rows = even_rows(len(windows), evaluation.batch_symbols // seq_len)
    found = []
    for first in range(0, len(windows), max(1, rows)):
        some = windows[first : first + rows]
        for window, said in zip(some, ask(read_windows(text, some, rows, seq_len)), strict=False):
            found.append(said[window.count_start - window.start : window.count_stop - window.start])
    return np.concatenate(found) if found else ask(np.zeros((1, seq_len), np.int32))[0, :0]
