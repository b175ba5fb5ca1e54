"""Text that a model writes itself, many windows at a time, the same symbols on every engine (docs/techniques.md 11.9).

A symbol is the argmax of its log-probabilities over the temperature plus Gumbel noise, which is a draw from that
distribution. The noise comes from a PCG64 stream of the window's own, so what is drawn depends on an engine only where
two sums are as close to each other as its rounding.

The trunk reads whole windows, which costs the same however few of their symbols are new. Where it reads patches it runs
once for each, and the decoder alone draws the symbols of the patch. Where a patch is one symbol, symbols are guessed
ahead, by what the model said after the same few symbols before, and one pass confirms as many guesses as are what it
draws. That changes the number of passes and nothing else, because the noise of a position is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from shared.model.adapters import with_adapters
from shared.model.decoder import decode_patches
from shared.model.forward import trunk_outputs
from shared.ops import Array, Ops
from shared.spec import Spec

Floats = NDArray[np.float64]
Symbols = NDArray[np.int32]
Progress = Callable[[int, int], None]

AHEAD_SYMBOLS = 16
CONTEXT_SYMBOLS = 3
# Numbers in each table to guess by: 16 MB.
TABLE_ENTRIES = 1 << 22
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Writer:
    """A model that writes windows of text. `weights`: float32 by parameter name."""

    def __init__(self, ops: Ops, spec: Spec, weights: Mapping[str, NDArray[np.float32]], temperature: float) -> None:
        assert temperature > 0.0
        self.ops, self.spec, self.temperature = ops, spec, temperature
        params = {name: ops.asarray(value) for name, value in weights.items()}
        self.params: Mapping[str, Array] = with_adapters(ops, spec.model, params)
        # Patches before another one of which its decoder reads symbols.
        self._back = -(-spec.model.decoder_reach // spec.model.patch_size)

    def write(
        self, windows: range, length: int, seed: int, progress: Progress = lambda done, total: None
    ) -> NDArray[np.int32]:
        """The windows of these numbers, each of `length` symbols: int32 [len(windows), length].

        `length` is a multiple of patch_size, at most seq_len. A window depends on the seed and its number and on
        nothing that was written beside it. Documents begin in it where the model says; other special symbols are never
        drawn. `progress` gets the symbols written and all of them.
        """
        x = np.zeros((len(windows), self.spec.model.seq_len + AHEAD_SYMBOLS), np.int32)
        noise = [_Noise(seed, window, self.spec.vocabulary.size) for window in windows]
        start = self.spec.vocabulary.document_start
        if start is not None:
            x[:, 0] = start
        first = 0 if start is None else 1
        if self.spec.model.patch_size > 1:
            self._write_patches(x, noise, first, length, progress)
        else:
            self._write_symbols(x, noise, first, length, progress)
        return x[:, :length]

    def _write_patches(self, x: Symbols, noise: list[_Noise], first: int, length: int, progress: Progress) -> None:
        """All windows at once, patch by patch."""
        size = self.spec.model.patch_size
        for begin in range(0, length, size):
            low = max(0, begin - self._back * size)
            trunk_BND = self._trunk(x, low // size, begin // size + 1)
            for position in range(max(begin, first), begin + size):
                at = slice(position - low, position - low + 1)
                said = self._said(trunk_BND, x[:, low : begin + size], at)
                gumbel = np.stack([each.at(position, 1) for each in noise])
                x[:, position] = np.argmax(said + gumbel, axis=-1)[:, 0]
            progress(len(x) * (begin + size), len(x) * length)

    def _write_symbols(self, x: Symbols, noise: list[_Noise], first: int, length: int, progress: Progress) -> None:
        """Each window as fast as its guesses are right."""
        done, guesses = np.full(len(x), first), _Guesses(self.spec.vocabulary.size)
        while (rows := np.flatnonzero(done < length)).size:
            gumbel = np.stack([noise[row].at(int(done[row]), AHEAD_SYMBOLS) for row in rows])
            guesses.fill(x, rows, done[rows], gumbel)
            low, high = max(0, int(done[rows].min()) - self._back), min(int(done[rows].max()) + AHEAD_SYMBOLS, length)
            found = self._said(self._trunk(x[rows], low, high), x[rows, low:high], slice(None))
            for row, said_TV, noise_TV in zip(rows, found, gumbel, strict=True):
                begin = int(done[row])
                said_TV = said_TV[begin - low :][:AHEAD_SYMBOLS]
                drawn = np.argmax(said_TV + noise_TV[: len(said_TV)], axis=1)
                wrong = np.flatnonzero(drawn != x[row, begin : begin + len(drawn)])
                count = int(wrong[0]) + 1 if wrong.size else len(drawn)
                x[row, begin : begin + count] = drawn[:count]
                guesses.learn(x[row], begin, said_TV[:count])
                done[row] += count
            progress(int(done.sum()), length * len(x))

    def _trunk(self, x: Symbols, first: int, stop: int) -> Array:
        """Trunk outputs of patches first to stop - 1, [B, stop - first, D], in passes as large as those of a score."""
        model = self.spec.model
        # The angles of RoPE may depend on the length of the window, and then all of it is needed.
        whole = 0 < model.attention.ntk_positions < model.num_patches
        window = model.seq_len if whole else stop * model.patch_size
        rows = max(1, self.spec.evaluation.batch_symbols // window)
        parts = [self.ops.asarray(x[row : row + rows, :window]) for row in range(0, len(x), rows)]
        outputs = [trunk_outputs(self.ops, self.spec, self.params, part)[:, first:stop] for part in parts]
        return self.ops.concatenate(outputs, axis=0)

    def _said(self, trunk_BND: Array, x: Symbols, at: slice) -> Floats:
        """Log-probabilities over the temperature at some positions of x, [B, positions, V], impossible ones -inf."""
        logits = decode_patches(self.ops, self.spec, self.params, trunk_BND, self.ops.asarray(x))[:, at]
        found = self.ops.softcapped_log_softmax(logits, self.spec.model.logit_softcap)
        said = self.ops.to_numpy(found).astype(np.float64) / self.temperature
        for symbol in range(self.spec.vocabulary.num_specials):
            if symbol != self.spec.vocabulary.document_start:
                said[..., symbol] = -np.inf
        return said


class _Noise:
    """Gumbel noise of one window, position by position."""

    def __init__(self, seed: int, window: int, size: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence((seed, window)))
        self._size, self._first = size, 0
        self._kept = np.empty((0, size))

    def at(self, position: int, count: int) -> Floats:
        """The noise [count, V] of positions from this one on, which is never before one asked for earlier."""
        missing = position + count - self._first - len(self._kept)
        # Raw bits are the same in every version of NumPy; halfway between two multiples of 2^-53, never 0 or 1.
        bits = self._bits.random_raw(missing * self._size) >> np.uint64(11)
        drawn = -np.log(-np.log((bits.astype(np.float64) + 0.5) * 2.0**-53)).reshape(missing, self._size)
        self._kept, self._first = np.concatenate([self._kept, drawn])[position - self._first :], position
        return self._kept


class _Guesses:
    """Sums of the probabilities that the model gave after the same last symbols, by a hash of them: one table for each
    number of last symbols."""

    def __init__(self, size: int) -> None:
        self._rows = TABLE_ENTRIES // size
        self._tables = np.zeros((CONTEXT_SYMBOLS, self._rows, size), np.float32)

    def fill(self, x: Symbols, rows: NDArray[np.int64], first: NDArray[np.int64], gumbel: Floats) -> None:
        """Write guesses into the next AHEAD_SYMBOLS positions of some rows of x, row i from first[i] on."""
        for ahead in range(AHEAD_SYMBOLS):
            indices = self._indices(x, rows, first + ahead)
            said = self._tables[0][indices[0]]
            for table, index in zip(self._tables[1:], indices[1:], strict=True):
                longer = table[index]
                said = np.where(longer.any(axis=1, keepdims=True), longer, said)
            with np.errstate(divide="ignore"):
                x[rows, first + ahead] = np.argmax(np.log(said) + gumbel[:, ahead], axis=1)

    def learn(self, x: Symbols, begin: int, said: Floats) -> None:
        """Add what the model said, [n, V], at n positions of a window x [T] from `begin` on."""
        shares = np.exp(said - said.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        positions = begin + np.arange(len(said))
        indices = self._indices(x[None], np.zeros(len(said), np.int64), positions)
        for table, index in zip(self._tables, indices, strict=True):
            np.add.at(table, index, shares)

    def _indices(self, x: Symbols, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The row of each table for the symbols before some positions."""
        index, found = np.zeros(len(rows), np.uint64), []
        for back in range(1, CONTEXT_SYMBOLS + 1):
            symbol = np.where(positions >= back, x[rows, np.maximum(positions - back, 0)] + 1, 0)
            index = (index + symbol.astype(np.uint64)) * HASH_FACTOR
            found.append(((index >> np.uint64(32)) % np.uint64(self._rows)).astype(np.int64))
        return found
