"""The best path of codes through a trellis, with feedback along the row (docs/techniques.md 11.10).

The states are those of shared.quantisers.trellis_states. For every row the Viterbi algorithm keeps the cheapest path
into each state: its codes so far. A code costs its squared error and, at a price, its length by the order-0 statistics
of its quantiser, which a first search without the price tells. Without feedback that finds the best row of codes there
is. With feedback (GPTQ) what a column wants depends on the errors before it, so each survivor has its own wishes, and a
path that would have paid off later may be gone: the result is good, not the best.

Columns are visited from the first to the last, because the reader of the codes follows the states in that order. With
steps of 1 / sqrt(D) by column the order hardly matters: the product of all D is the determinant of the Gram matrix,
whatever it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.quantisers.trellis_states import TRELLISES, Trellis, quantisers_of

RATE = 0.1
"""Price of a bit, in squared steps. On the curve of error over bits a bit is worth 0.09 of them: 2 ln 2 of the error,
which is 0.065 with 8 states."""

BLOCK_COLUMNS = 32
"""Columns whose feedback to all later ones is added in one product. It changes the speed and no code."""

BLOCK_ROWS = 512
"""Rows that are searched at a time: the survivors of more do not fit a cache."""


def best_codes(
    weights_RC: NDArray[np.floating],
    steps_RC: NDArray[np.float64],
    num_states: int,
    limit: int,
    feedback: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    rate: float = RATE,
) -> NDArray[np.int8]:
    """Codes -limit to limit of every row, given the step of every weight, all above 0.

    `feedback`: M [C, C] and D [C] of shared.quantisers.gptq, with columns in their own order.
    """
    codes_RC = np.empty(weights_RC.shape, np.int8)
    bits_QK: NDArray[np.float64] | None = None
    for _ in range(2 if rate else 1):
        for top in range(0, len(codes_RC), BLOCK_ROWS):
            rows = slice(top, top + BLOCK_ROWS)
            values_CR, halves_CR = (np.ascontiguousarray(of[rows].T, np.float64) for of in (weights_RC, steps_RC / 2))
            search = _Search(TRELLISES[num_states], limit, bits_QK, len(values_CR[0]))
            codes_RC[rows] = search.codes(values_CR, halves_CR, feedback).T
        # In squared half steps, as the search counts errors.
        bits_QK = 4 * rate * _lengths(codes_RC, num_states, limit)
    return codes_RC


def _lengths(codes: NDArray[np.int8], num_states: int, limit: int) -> NDArray[np.float64]:
    """Bits of a code by its quantiser and magnitude, [2, limit + 1], under the shares of both in some codes."""
    index = quantisers_of(codes, num_states) * np.int64(limit + 1) + np.abs(codes.astype(np.int64))
    counts_QK = np.bincount(index.reshape(-1), minlength=2 * (limit + 1)).reshape(2, -1) + 0.5
    bits_QK = -np.log2(counts_QK / counts_QK.sum(axis=1, keepdims=True))
    bits_QK[:, 1:] += 1.0  # the sign
    return bits_QK


class _Search:
    """Survivors of a block of rows: of each state the cheapest path that ends in it."""

    def __init__(self, trellis: Trellis, limit: int, bits_QK: NDArray[np.float64] | None, rows: int) -> None:
        self._limit, self._bits_QK = limit, bits_QK
        self._quantiser_S1 = trellis.quantiser[:, None].astype(np.int64)
        self._row_R = np.arange(rows)
        into: list[list[tuple[int, int]]] = [[] for _ in trellis.quantiser]
        for state, targets in enumerate(trellis.next_state.tolist()):
            for parity, target in enumerate(targets):
                into[target].append((parity, state))
        # The two ways into each state: parities and states that they come from.
        self._ways = [(way[:, 0], way[:, 1]) for way in np.array(into).transpose(1, 0, 2)]

    def codes(
        self,
        values_CR: NDArray[np.float64],
        halves_CR: NDArray[np.float64],
        feedback: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    ) -> NDArray[np.int8]:
        """The codes on the cheapest path of every row, [C, R]."""
        columns, states = len(values_CR), len(self._quantiser_S1)
        importance_C = np.ones(columns) if feedback is None else feedback[1]
        fed = None if feedback is None else _Feedback(feedback[0], states, len(self._row_R))
        cost_SR = np.full((states, len(self._row_R)), np.inf)
        cost_SR[0] = 0.0
        parents_CSR = np.empty((columns, *cost_SR.shape), np.uint8)
        codes_CSR = np.empty((columns, *cost_SR.shape), np.int8)
        for column, (values_R, halves_R) in enumerate(zip(values_CR, halves_CR, strict=True)):
            asked_SR = 0.0 if fed is None else fed.asked(column)
            wanted_SR = np.broadcast_to((values_R - asked_SR) / halves_R, cost_SR.shape)
            codes_PSR, levels_PSR, costs_PSR = self._candidates(wanted_SR)
            costs_PSR = cost_SR + costs_PSR * (importance_C[column] * halves_R * halves_R)
            first, second = self._ways
            is_second_SR = costs_PSR[second] < costs_PSR[first]
            cost_SR = np.where(is_second_SR, costs_PSR[second], costs_PSR[first])
            codes_CSR[column] = np.where(is_second_SR, codes_PSR[second], codes_PSR[first])
            parents_SR = np.where(is_second_SR, second[1][:, None], first[1][:, None])
            parents_CSR[column] = parents_SR
            if fed is not None:
                levels_SR = np.where(is_second_SR, levels_PSR[second], levels_PSR[first])
                fed.add(column, levels_SR * halves_R - values_R, parents_SR)
        return self._traced(cost_SR.argmin(axis=0), codes_CSR, parents_CSR)

    def _candidates(
        self, wanted_SR: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The best code of each parity, its level in half steps and what it costs, all [2, S, R]."""
        second_S1, size_SR = self._quantiser_S1, np.abs(wanted_SR)
        middle_SR = (size_SR + second_S1) / 2
        even_SR = np.minimum(2 * np.rint(middle_SR / 2), self._limit - self._limit % 2)
        # The second quantiser has levels 0 and 3 where the first has 0 and 4.
        even_SR[(second_S1 > 0) & (size_SR < 1.5)] = 0
        odd_SR = np.minimum(1 + 2 * np.rint((middle_SR - 1) / 2), self._limit - 1 + self._limit % 2)
        codes_PSR = np.stack([even_SR, odd_SR]).astype(np.int64)
        levels_PSR, costs_PSR = self._priced(codes_PSR, size_SR)
        if self._bits_QK is not None:
            smaller_PSR = np.where(codes_PSR >= 2, codes_PSR - 2, codes_PSR)
            lower_PSR, other_PSR = self._priced(smaller_PSR, size_SR)
            is_less = other_PSR < costs_PSR
            codes_PSR, levels_PSR, costs_PSR = (
                np.where(is_less, smaller_PSR, codes_PSR),
                np.where(is_less, lower_PSR, levels_PSR),
                np.where(is_less, other_PSR, costs_PSR),
            )
        sign_SR = np.where(wanted_SR < 0, -1, 1)
        return codes_PSR * sign_SR, levels_PSR * sign_SR, costs_PSR

    def _priced(
        self, codes_PSR: NDArray[np.int64], size_SR: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Levels and costs of codes of 0 and more."""
        levels_PSR = 2 * codes_PSR - self._quantiser_S1 * (codes_PSR > 0)
        costs_PSR = np.square(levels_PSR - size_SR)
        if self._bits_QK is not None:
            costs_PSR += self._bits_QK.reshape(-1)[self._quantiser_S1 * self._bits_QK.shape[1] + codes_PSR]
        return levels_PSR, costs_PSR

    def _traced(
        self, state_R: NDArray[np.integer], codes_CSR: NDArray[np.int8], parents_CSR: NDArray[np.uint8]
    ) -> NDArray[np.int8]:
        """The codes of the paths that end in some states."""
        codes_CR = np.empty((len(codes_CSR), len(self._row_R)), np.int8)
        for column in reversed(range(len(codes_CSR))):
            codes_CR[column] = codes_CSR[column, state_R, self._row_R]
            state_R = parents_CSR[column, state_R, self._row_R]
        return codes_CR


class _Feedback:
    """The errors of every survivor, and what they ask of later columns."""

    def __init__(self, factor_CC: NDArray[np.float64], states: int, rows: int) -> None:
        self._factor_CC, self._row_R, self._shape = factor_CC, np.arange(rows), (states, rows)
        self._errors_CN = np.empty((len(factor_CC), states * rows))
        self._start, self._origin_N = 0, np.arange(states * rows)
        self._begin(0)

    def asked(self, column: int) -> NDArray[np.float64]:
        """What is subtracted from the weights of a column, by survivor, [S, R]."""
        if column == self._start + BLOCK_COLUMNS:
            if self._start:
                self._errors_CN[: self._start] = self._errors_CN[: self._start, self._origin_N]
            self._begin(column)
        near_N = self._factor_CC[self._start : column, column] @ self._errors_CN[self._start : column]
        return np.asarray(self._far_KN[column - self._start, self._origin_N] + near_N).reshape(self._shape)

    def add(self, column: int, errors_SR: NDArray[np.float64], parents_SR: NDArray[np.integer]) -> None:
        """The errors of a column by survivor, each of which goes on from one of those before."""
        from_N = (parents_SR * len(self._row_R) + self._row_R).reshape(-1)
        self._errors_CN[self._start : column] = self._errors_CN[self._start : column, from_N]
        self._errors_CN[column] = errors_SR.reshape(-1)
        self._origin_N = self._origin_N[from_N]

    def _begin(self, start: int) -> None:
        """Begin a block of columns: errors before it stay in the order of the survivors of now, `origin` of later."""
        self._start, self._origin_N = start, np.arange(self._errors_CN.shape[1])
        self._far_KN = self._factor_CC[:start, start : start + BLOCK_COLUMNS].T @ self._errors_CN[:start]
