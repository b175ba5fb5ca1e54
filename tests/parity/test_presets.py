"""Every preset computes the same thing on NumPy, MLX and torch."""

from __future__ import annotations

import numpy as np
import pytest

from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.engine.synthetic import comparison_weights
from shared.parity import ParityReport, run_parity
from shared.parity.adaptation_checks import adaptation_rows
from shared.spec import load_spec
from shared.spec.reduced import reduced_spec

PAIRS = {"numpy - mlx", "numpy - torch", "mlx - torch"}
ORACLE_PAIRS = {"numpy - mlx", "numpy - torch"}
ENGINE_PAIR = {"mlx - torch"}


def failures(report: ParityReport) -> list[str]:
    return [
        f"{row.check}, {row.pair}: {row.measured:.2e} over {row.tolerance:.0e} {row.unit}, {row.worst}"
        for row in report.rows
        if not row.passed
    ]


def test_tiny_agrees_in_every_check():
    report = run_parity(load_spec("tiny"))
    assert failures(report) == []
    pairs: dict[str, set[str]] = {}
    for row in report.rows:
        pairs.setdefault(row.check, set()).add(row.pair)
    assert pairs == {
        "initial weights": PAIRS,
        "batches": {"whole - backwards", "whole - 2 slices", "whole - 3 slices"},
        "logits": PAIRS,
        "nats of symbols": PAIRS,
        "loss of one batch": PAIRS,
        "gradients": ENGINE_PAIR,
        "directional derivative": ORACLE_PAIRS,
        "parameters after 10 steps": ENGINE_PAIR,
        "loss curve, 50 steps": ENGINE_PAIR,
        "artifact": PAIRS,
        "logits, packed": PAIRS,
        "bf16 hidden states": ORACLE_PAIRS,
    }


@pytest.mark.parametrize("adaptation", ["online", "pr1431", "document_lora"])
def test_engines_have_learnt_the_same_after_ten_chunks(adaptation: str) -> None:
    changes = [f"evaluation.adaptation={adaptation}", "model.num_layers=2", "evaluation.adaptation.rate=0.01"]
    spec, _ = reduced_spec(load_spec("tiny", changes), 1)
    engines = {name: create_engine(name, spec) for name in ENGINES}
    text = np.random.default_rng(0).integers(0, 256, 500)
    weights, score = adaptation_rows(spec, engines, comparison_weights(spec, 1), text)
    assert weights.passed and score.passed and weights.measured > 0.0
    assert weights.check == "weights adapted to 10 chunks" and weights.pair == "mlx - torch"
    assert not adaptation_rows(load_spec("tiny"), engines, {}, text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "steps"),
    [("smoke", 6), ("bytes", 2), ("itchy", 2), ("pr705-mini", 2), ("pr1431-mini", 2), ("pr1855-mini", 2)],
)
def test_a_preset_agrees_at_full_width_and_depth(preset: str, steps: int):
    spec = load_spec(preset)
    report = run_parity(spec, steps=steps)
    assert failures(report) == []
    assert report.spec.model.model_copy(update={"seq_len": spec.model.seq_len}) == spec.model
    updates = "parameters step by step" if preset == "pr1431-mini" else f"parameters after {steps} steps"
    assert any(row.check == updates for row in report.rows)
