"""Differences that were found between real trainers, planted in one engine: parity must catch each and say where."""

from __future__ import annotations

import numpy as np
import pytest

import cuda_train.engine
import cuda_train.plain_ops
import mlx_train.engine
import mlx_train.ops
from shared.engine.microbatch import micro_batches
from shared.model import parameter_manifest
from shared.optim import optimizer_step
from shared.parity import ParityReport, ParityRow, run_parity
from shared.spec import Spec, load_spec

pytestmark = pytest.mark.slow

MLXOps = type(mlx_train.ops.make_ops())
DECAY = ("optimizer.muon_weight_decay=0.1", "optimizer.adam_weight_decay=0.1")


def parity(*overrides: str) -> ParityReport:
    return run_parity(load_spec("tiny", overrides), steps=10)


def failed(report: ParityReport) -> dict[tuple[str, str], ParityRow]:
    """Failed rows by (check, pair)."""
    return {(row.check, row.pair): row for row in report.rows if not row.passed}


def with_optimizer(spec: Spec, **changes: object) -> Spec:
    return spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update=changes)})


def names_of(spec: Spec, *groups: str) -> set[str]:
    return {parameter.name for parameter in parameter_manifest(spec) if parameter.group in groups}


def test_rope_that_turns_the_other_way(monkeypatch: pytest.MonkeyPatch):
    right = MLXOps.rope

    def reversed_rope(self, x, base):
        half = x.shape[-1] // 2
        turned = right(self, self.concatenate([x[..., half:], x[..., :half]], axis=-1), base)
        return self.concatenate([turned[..., half:], turned[..., :half]], axis=-1)

    monkeypatch.setattr(MLXOps, "rope", reversed_rope)
    rows = failed(parity())
    for pair in ("numpy - mlx", "mlx - torch"):
        assert rows["logits", pair].worst.startswith("first deviates at rope after layers.0.attn.v_proj.weight")
    assert ("logits", "numpy - torch") not in rows


def test_rms_norm_with_another_epsilon(monkeypatch: pytest.MonkeyPatch):
    right = cuda_train.plain_ops.TorchOps.rms_norm
    monkeypatch.setattr(cuda_train.plain_ops.TorchOps, "rms_norm", lambda self, x, eps: right(self, x, 10 * eps))
    rows = failed(parity())
    for pair in ("numpy - torch", "mlx - torch"):
        assert rows["logits", pair].worst.startswith("first deviates at rms_norm")
    assert ("logits", "numpy - mlx") not in rows


def test_newton_schulz_in_bfloat16_on_one_engine(monkeypatch: pytest.MonkeyPatch):
    def narrow(ops, spec, *rest):
        return optimizer_step(ops, with_optimizer(spec, ns_dtype="bfloat16"), *rest)

    monkeypatch.setattr(cuda_train.engine, "optimizer_step", narrow)
    rows = failed(parity())
    worst = rows["parameters after 10 steps", "mlx - torch"].worst
    assert "(Muon) after step 1" in worst
    assert worst.split(" ")[0] in names_of(load_spec("tiny"), "matrix")
    assert {check for check, _ in rows} <= {"parameters after 10 steps", "loss curve, 10 steps"}


def test_adam_without_bias_correction(monkeypatch: pytest.MonkeyPatch):
    def uncorrected(ops, spec, params, grads, state, norm, hyper, **rest):
        wrong = {**hyper, "first_correction": 1.0, "second_correction": 1.0}
        return optimizer_step(ops, spec, params, grads, state, norm, wrong, **rest)

    monkeypatch.setattr(mlx_train.engine, "optimizer_step", uncorrected)
    rows = failed(parity())
    worst = rows["parameters after 10 steps", "mlx - torch"].worst
    assert "(Adam, " in worst and worst.endswith("after step 1")
    assert worst.split(" ")[0] in names_of(load_spec("tiny"), "embedding", "head", "scalar")
    assert not {check for check, _ in rows} & {"initial weights", "logits", "gradients"}


def test_weight_decay_that_is_added_to_the_gradient(monkeypatch: pytest.MonkeyPatch):
    def coupled(ops, spec, params, grads, *rest):
        decay = spec.optimizer.muon_weight_decay
        grads = {name: grad + decay * params[name] for name, grad in grads.items()}
        return optimizer_step(
            ops, with_optimizer(spec, muon_weight_decay=0.0, adam_weight_decay=0.0), params, grads, *rest
        )

    assert parity(*DECAY).passed
    monkeypatch.setattr(cuda_train.engine, "optimizer_step", coupled)
    rows = failed(parity(*DECAY))
    worst = rows["parameters after 10 steps", "mlx - torch"].worst
    assert worst.split(" ")[0] in {parameter.name for parameter in parameter_manifest(load_spec("tiny"))}


def test_mean_over_micro_batches_of_unequal_size(monkeypatch: pytest.MonkeyPatch):
    def equal_shares(spec: Spec, x: np.ndarray, workers: int = 1):
        parts = [part for _, part in micro_batches(spec, x, workers)]
        assert len({len(part) for part in parts}) > 1
        return [(1 / len(parts), part) for part in parts]

    monkeypatch.setattr(cuda_train.engine, "micro_batches", equal_shares)
    rows = failed(parity())
    assert rows["gradients", "mlx - torch"].worst in {
        parameter.name for parameter in parameter_manifest(load_spec("tiny"))
    }
    for pair in ("numpy - torch", "mlx - torch"):
        assert rows["loss of one batch", pair].measured > 1e-4
    assert ("directional derivative", "numpy - torch") in rows
    assert ("directional derivative", "numpy - mlx") not in rows


def test_a_weight_that_changes_on_its_way_to_the_device(monkeypatch: pytest.MonkeyPatch):
    right = mlx_train.engine.TrainingEngine.initialise

    def rounded(self, weights):
        name = "layers.1.mlp.up_proj.weight"
        right(self, {**weights, name: np.nextafter(weights[name], np.float32(9))})

    monkeypatch.setattr(mlx_train.engine.TrainingEngine, "initialise", rounded)
    rows = failed(parity())
    assert rows["initial weights", "numpy - mlx"].worst == "layers.1.mlp.up_proj.weight"
    assert rows["initial weights", "mlx - torch"].measured == 1


def test_a_gradient_that_is_not_a_number(monkeypatch: pytest.MonkeyPatch):
    right = cuda_train.engine.TrainingEngine._gradients

    def poisoned(self):
        return {
            name: grad * (float("nan") if name.endswith("o_proj.weight") else 1) for name, grad in right(self).items()
        }

    monkeypatch.setattr(cuda_train.engine.TrainingEngine, "_gradients", poisoned)
    report = parity()
    rows = failed(report)
    assert rows["gradients", "mlx - torch"].worst.endswith("o_proj.weight")
    assert "not a number" in rows["parameters after 10 steps", "mlx - torch"].worst
    assert ("loss curve, 10 steps", "mlx - torch") in rows
    document = {(row["check"], row["pair"]): row for row in report.to_document()["rows"]}
    assert document["gradients", "mlx - torch"]["measured"] is None
