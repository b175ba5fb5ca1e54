"""Pruning of codes of 1 and -1: the order, by hand, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from shared.quantisers import Float32, LowRank, QuantisedTensor, RowMax, Ternary
from shared.quantisers.pruning import Pruning
from tests.implementations import normal


def tensor(codes: list[list[int]], scales: list[float]) -> QuantisedTensor:
    parts = {"codes": np.array(codes, np.int8), "scales": np.array(scales, np.float16)}
    return QuantisedTensor(RowMax(6), parts["codes"].shape, parts)


TENSORS = {
    "a": tensor([[1, 2, -1], [0, 1, -3]], [4.0, 2.0]),
    "free": QuantisedTensor(Float32(), (1,), {"values": np.ones(1, np.float32)}),
    "b": tensor([[-1, 1, 5]], [3.0]),
}


def test_the_smallest_steps_go_first_and_ties_in_the_order_of_the_file():
    pruning, left = Pruning(TENSORS), []
    assert pruning.count == 5
    for count in range(6):
        pruned = pruning.pruned(count)
        assert list(pruned) == list(TENSORS) and pruned["free"] is TENSORS["free"]
        left.append([pruned[name].parts["codes"].reshape(-1).tolist() for name in ("a", "b")])
    assert left == [
        [[1, 2, -1, 0, 1, -3], [-1, 1, 5]],
        [[1, 2, -1, 0, 0, -3], [-1, 1, 5]],  # a step of 2
        [[1, 2, -1, 0, 0, -3], [0, 1, 5]],  # of 3, the first of two
        [[1, 2, -1, 0, 0, -3], [0, 0, 5]],
        [[0, 2, -1, 0, 0, -3], [0, 0, 5]],  # of 4
        [[0, 2, 0, 0, 0, -3], [0, 0, 5]],
    ]


def test_importance_changes_the_order_between_tensors_and_leaves_out_what_it_does_not_name():
    pruned = Pruning(TENSORS, {"a": 1.0, "b": 0.1}).pruned(2)
    assert pruned["a"].parts["codes"].tolist() == TENSORS["a"].parts["codes"].tolist()
    assert pruned["b"].parts["codes"].tolist() == [[0, 0, 5]]
    assert Pruning(TENSORS, {"b": 1.0}).count == 2 and Pruning({}).pruned(0) == {}


@pytest.mark.parametrize("storage", [RowMax(5), Ternary(group=7), LowRank(RowMax(5), 2)], ids=str)
def test_every_storage_of_codes_can_be_pruned(storage: RowMax | Ternary | LowRank):
    weights = {name: normal(seed, 6, 20) * 10**seed for seed, name in enumerate("xy")}
    tensors = {name: QuantisedTensor(storage, value.shape, storage.encode(value)) for name, value in weights.items()}
    pruning = Pruning(tensors)
    half = pruning.pruned(pruning.count // 2)
    gone = 0
    for name, value in half.items():
        before, after = tensors[name].parts["codes"], value.parts["codes"]
        assert (np.abs(before[before != after]) == 1).all() and not after[before != after].any()
        assert value.storage.is_valid(value.parts) and value.parts.keys() == tensors[name].parts.keys()
        gone += int((before != after).sum())
    assert gone == pruning.count // 2
    assert (half["y"].parts["codes"] == tensors["y"].parts["codes"]).mean() > 0.9  # ten times the steps
    assert not (np.abs(pruning.pruned(pruning.count)["x"].parts["codes"]) == 1).any()
