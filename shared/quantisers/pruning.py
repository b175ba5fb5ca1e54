"""Selective pruning: codes of 1 and -1 made 0, those that matter least first (docs/techniques.md 11.7).

A zeroed code of 1 costs the square of its step, whatever the weight was, and the entropy coder less than before. The
order is the same on every machine: by squared step, then by tensor, then by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from shared.quantisers.protocol import QuantisedTensor, Quantiser


class Pruning:
    """The codes of 1 and -1 of tensors, in the order in which they go."""

    def __init__(self, tensors: Mapping[str, QuantisedTensor], importance: Mapping[str, float] | None = None) -> None:
        """`importance`: what a unit of squared error costs, by tensor; all cost the same where it is not given. Tensors
        without codes, and those it does not name, are left alone."""
        self._tensors = dict(tensors)
        self._names = [
            name
            for name, tensor in tensors.items()
            if "codes" in tensor.parts and (importance is None or name in importance)
        ]
        sizes = [tensors[name].parts["codes"].size for name in self._names]
        self._starts = dict(zip(self._names, np.cumsum([0, *sizes[:-1]]), strict=True)) if sizes else {}
        places, costs = [], []
        for name in self._names:
            place, cost = _ones(tensors[name])
            places.append(place + self._starts[name])
            costs.append(cost * (1.0 if importance is None else importance[name]))
        everywhere = np.concatenate([np.empty(0, np.int64), *places])
        self._order = everywhere[np.argsort(np.concatenate([np.empty(0), *costs]), kind="stable")]

    @property
    def count(self) -> int:
        """How many codes can go."""
        return len(self._order)

    def pruned(self, count: int) -> dict[str, QuantisedTensor]:
        """All tensors, with the first `count` codes of the order made 0."""
        assert 0 <= count <= self.count, f"{count} of {self.count} codes"
        gone, pruned = np.sort(self._order[:count]), dict(self._tensors)
        for name in self._names:
            tensor, start = self._tensors[name], self._starts[name]
            codes = tensor.parts["codes"].copy()
            first, last = np.searchsorted(gone, [start, start + codes.size])
            codes.reshape(-1)[gone[first:last] - start] = 0
            pruned[name] = replace(tensor, parts={**tensor.parts, "codes": codes})
        return pruned


def _ones(tensor: QuantisedTensor) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the codes of 1 and -1 among a tensor's codes in row order, and the squared step of each."""
    storage: Quantiser = tensor.storage  # type: ignore[assignment]
    codes = tensor.parts["codes"]
    places = np.flatnonzero(np.abs(codes) == 1)
    steps = np.broadcast_to(storage.steps(tensor.shape, tensor.parts), codes.shape).reshape(-1)[places]
    return places, steps.astype(np.float64) ** 2
