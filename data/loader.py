"""Training batches as a pure function of (seed, step, global batch).

An epoch cuts the stream into windows of `seq_len` symbols at a random phase and visits each once, in
random order. Window number k = step * batch_rows + row belongs to epoch k // windows_per_epoch. Nothing
else enters: ranks and micro-batches slice the same batch, so neither changes the data. A window is
only `x`; there is no shifted target array.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from data.stream import TrainingText, random_bits, random_permutation
from shared.errors import DataError, RunError

Int32 = npt.NDArray[np.int32]

# Independent random streams of one epoch.
_ORDER_KEY, _PHASE_KEY = 0, 1


class Loader:
    """Batches of windows of one stream.

    Attributes: `windows_per_epoch`, the same for every epoch; the symbols left over by the phase
    (fewer than 2 * seq_len) differ from epoch to epoch.
    """

    def __init__(self, stream: TrainingText, seq_len: int, batch_rows: int, seed: int) -> None:
        """`batch_rows` is the global batch in windows. Raises DataError if the stream has no full window."""
        if stream.num_symbols < seq_len:
            raise DataError(
                f"{stream.name}: {stream.num_symbols} symbols are fewer than one window of model.seq_len = {seq_len}"
            )
        assert seq_len > 0 and batch_rows > 0 and seed >= 0
        self.stream = stream
        self.seq_len = seq_len
        self.batch_rows = batch_rows
        self.seed = seed
        self.windows_per_epoch = max(1, (stream.num_symbols - (seq_len - 1)) // seq_len)
        spare_symbols = stream.num_symbols - self.windows_per_epoch * seq_len
        self._num_phases = min(seq_len, spare_symbols + 1)
        self._starts: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def batch(self, step: int) -> Int32:
        """The whole batch of a step (counted from 0), int32 `[batch_rows, seq_len]`."""
        return self.rows(step, 0, self.batch_rows)

    def rows(self, step: int, first: int, count: int) -> Int32:
        """Rows [first, first + count) of the batch of a step, int32 `[count, seq_len]`."""
        assert step >= 0 and 0 <= first <= first + count <= self.batch_rows
        window = step * self.batch_rows + first
        out = np.empty((count, self.seq_len), dtype=np.int32)
        for row in range(count):
            epoch, index = divmod(window + row, self.windows_per_epoch)
            out[row] = self.stream.read(int(self._window_starts(epoch)[index]), self.seq_len)
        return out

    def state(self, step: int) -> dict[str, Any]:
        """The position before a step as plain JSON values; `check_state` accepts it, the step resumes it."""
        return {
            "step": step,
            "dataset": self.stream.name,
            "dataset_sha256": self.stream.sha256,
            "vocabulary": self.stream.vocabulary.kind,
            "num_symbols": self.stream.num_symbols,
            "seed": self.seed,
            "batch_rows": self.batch_rows,
            "seq_len": self.seq_len,
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise RunError if a stored state belongs to other data or another batch.

        The dataset's name may differ: its content counts.
        """
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise RunError(f"loader state: step = {step!r}; a checkpoint holds a step of 0 or more")
        for field, expected in self.state(step).items():
            if field != "dataset" and state.get(field) != expected:
                raise RunError(
                    f"loader state: {field} is {state.get(field)!r} in the checkpoint and {expected!r} in this run; "
                    "resume with the same data and batch"
                )

    def _window_starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """First symbol of every window of an epoch in visiting order, int64 `[windows_per_epoch]`."""
        starts = self._starts
        if starts[0] != epoch:
            phase = int(random_bits(1, (self.seed, epoch, _PHASE_KEY))[0] % np.uint64(self._num_phases))
            order = random_permutation(self.windows_per_epoch, (self.seed, epoch, _ORDER_KEY))
            # Assigned once, whole: another thread may be at the windows of another epoch.
            self._starts = starts = (epoch, phase + order * self.seq_len)
        return starts[1]


class ReadAhead:
    """The batches of a loader, in a thread that reads the next one while the last one is trained on.

    Where eight GPUs share a batch, a step takes hardly longer than reading it.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[Int32]] | None = None

    def batch(self, step: int) -> Int32:
        """`Loader.batch` of a step; raises what that raises."""
        ahead = self._next
        if ahead is None or ahead[0] != step:
            ahead = step, self._thread.submit(self._loader.batch, step)
        found = ahead[1].result()
        self._next = step + 1, self._thread.submit(self._loader.batch, step + 1)
        return found

    def close(self) -> None:
        """End the thread, once it has read what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)
