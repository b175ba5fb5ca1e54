"""Adapted scores against the protocols written out: windows, chunks, losses, rates and updates one after the other.

Only the nats of a window come from the model's code; their gradients are those of torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from cuda_train.ops import make_ops
from shared.model import random_weights, symbol_nats
from shared.model.initialise import with_fresh_factors
from shared.scoring.adaptation import score_adapted
from shared.scoring.learner import adaptation_spec
from shared.spec import Spec
from tests.museum.fake_stream import FakeStream
from tests.techniques import started, tiny

WINDOW, STRIDE, CHUNK, ROWS = 16, 8, 48, 2
PIECE, ALPHA, RANK = 8, 6.0, 2
SHORT = [
    *("model.num_layers=1", "model.patch_size=1", "model.decoder.kind=linear", f"model.seq_len={WINDOW}"),
    *("training.batch_symbols=64", "evaluation.batch_symbols=64", f"evaluation.stride_symbols={STRIDE}"),
]
TEXT = [bytes(np.random.default_rng(size).integers(97, 101, size).astype(np.uint8)) for size in (70, 10, 33, 41)]
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"rate": 0.05, "momentum": 0.8},
    "adam": {"rate": 0.003, "beta1": 0.5, "beta2": 0.9, "weight_decay": 0.2},
}


class Learnt:
    """Tensors that learn by torch's own optimizers."""

    def __init__(self, values: Mapping[str, np.ndarray], rule: str, rate: float) -> None:
        self.values = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
        self.rate, given, tensors = rate, RULES[rule], list(self.values.values())
        self.optimizer: torch.optim.Optimizer
        if rule == "sgd":
            self.optimizer = torch.optim.SGD(tensors, rate, momentum=given["momentum"])
        else:
            betas = (given["beta1"], given["beta2"])
            self.optimizer = torch.optim.AdamW(tensors, rate, betas, weight_decay=given["weight_decay"])

    def step(self, loss: torch.Tensor, factor: float = 1.0, clip: float = math.inf) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.values.values(), clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.optimizer.step()


def settings(**values: Any) -> list[str]:
    return [f"evaluation.adaptation.{name.replace('__', '.')}={value}" for name, value in values.items()]


def nats(spec: Spec, weights: Mapping[str, torch.Tensor], x: np.ndarray, first: int, stop: int) -> torch.Tensor:
    """Nats of x[first:stop], read in the window that ends with them and begins at 0 or later: [stop - first]."""
    begin = max(0, stop - WINDOW)
    row = torch.zeros((1, WINDOW), dtype=torch.int32)
    row[0, : stop - begin] = torch.tensor(x[begin:stop].astype(np.int32))
    return symbol_nats(make_ops(), spec, weights, row)[0, first - begin : stop - begin]


def added(total: float, values: torch.Tensor) -> float:
    return total + float(values.detach().double().sum())


def chunks_of(length: int) -> Iterator[list[tuple[int, int]]]:
    """What each window counts, by the chunk of its first symbol."""
    windows = [(0, min(WINDOW, length))]
    while windows[-1][1] < length:
        windows.append((windows[-1][1], min(windows[-1][1] + STRIDE, length)))
    for chunk in range(-(-length // CHUNK)):
        if counted := [window for window in windows if window[0] // CHUNK == chunk]:
            yield counted


@pytest.mark.parametrize("rule", RULES)
def test_score_first(rule: str):
    protocol = {"kind": "score_first", "chunk_symbols": CHUNK, "epochs": 2, "batch_symbols": ROWS * WINDOW}
    shared = {"optimizer": rule, "rate_shape": "cosine", "clip_norm": 1.0}
    spec, weights = tiny(*SHORT, *settings(**protocol, **shared, **RULES[rule])), random_weights(tiny(*SHORT), 1)
    x = np.frombuffer(b"".join(TEXT), np.uint8)
    learnt, total, chunks = Learnt(weights, rule, RULES[rule]["rate"]), 0.0, list(chunks_of(len(x)))
    for index, chunk in enumerate(chunks):
        for first, stop in chunk:
            # A window is never moved back to end with the text: it reaches beyond the end instead.
            start = 0 if first == 0 else first - (WINDOW - STRIDE)
            with torch.no_grad():
                total = added(total, nats(spec, learnt.values, x[start:], first - start, stop - start))
        if index + 1 == len(chunks):
            break
        rows = [(at, min(at + WINDOW, chunk[-1][1])) for at in range(chunk[0][0], chunk[-1][1], WINDOW)]
        for _ in range(2):
            for at in range(0, len(rows), ROWS):
                values = torch.cat([nats(spec, learnt.values, x, *row) for row in rows[at : at + ROWS]])
                learnt.step(values.mean(), 0.5 + 0.5 * math.cos(math.pi * index / len(chunks)), 1.0)
    assert score_adapted(started("torch", spec, weights), FakeStream(TEXT)).nats == pytest.approx(total, rel=1e-6)
    assert total < score_adapted(started("torch", _still(spec), weights), FakeStream(TEXT)).nats


def _still(spec: Spec) -> Spec:
    """The spec at a rate that moves nothing."""
    adaptation = spec.evaluation.adaptation.model_copy(update={"rate": 1e-30, "weight_decay": 0.0})
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"adaptation": adaptation})})


def test_factors_for_each_document():
    lora = {"lora__rank": RANK, "lora__alpha": ALPHA, "lora__targets": '["q","v","o","mlp"]'}
    protocol = {"kind": "document", "chunk_symbols": PIECE, "epochs": 2, "documents": 3}
    spec = tiny(*SHORT, *settings(**protocol, **lora, **RULES["adam"]))
    plain, weights = tiny(*SHORT), random_weights(tiny(*SHORT), 1)
    first = with_fresh_factors(adaptation_spec(spec, 1), {})
    expected = []
    for document in TEXT:
        x, total, learnt = np.frombuffer(document, np.uint8), 0.0, Learnt(first, "adam", RULES["adam"]["rate"])
        for start in range(0, len(x), PIECE):
            stop = min(start + PIECE, len(x))
            total = added(total, nats(plain, _with_product(weights, learnt), x, start, stop))
            for _ in range(2 if stop < len(x) else 0):
                learnt.step(nats(plain, _with_product(weights, learnt), x, start, stop).mean())
        expected.append(total)
    score = score_adapted(started("torch", spec, weights), FakeStream(TEXT))
    assert score.by_document.nats == pytest.approx(expected, rel=1e-6)


def _with_product(weights: Mapping[str, np.ndarray], learnt: Learnt) -> dict[str, torch.Tensor]:
    """W + (alpha / rank) B A for every matrix that has factors."""
    full = {name: torch.tensor(value) for name, value in weights.items()}
    for name, a in learnt.values.items():
        if name.endswith(".lora_a.weight"):
            stem = name.removesuffix(".lora_a.weight")
            full[f"{stem}.weight"] += ALPHA / RANK * learnt.values[f"{stem}.lora_b.weight"] @ a
    return full
