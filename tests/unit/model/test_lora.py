"""LoRA adapters: their definition, a frozen base, and what is counted and stored."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact.predict import predict_artifact_bytes
from shared.engine.flops import newton_schulz_flops, scoring_flops, training_flops
from shared.engine.oracle import Oracle
from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.errors import RunError, SpecError
from shared.model import initial_weights, parameter_counts, parameter_manifest, with_adapters
from shared.ops import NumpyOps
from shared.optim import state_bytes, step_hyperparameters
from shared.scoring.average_check import check_average
from tests.techniques import ADAPTERS, every_engine, oracle_params, started, symbols, tiny, trained

SMALL = ["model.num_layers=2", "model.tie_embeddings=false"]


@pytest.mark.parametrize("more", [[], ["model.loop.extra_loops=1", "model.loop.last_layer=1"], ["model.patch_size=1"]])
def test_the_definition(more: list[str]) -> None:
    """The model without adapters, of matrices with the product added, says the same."""
    spec, plain = tiny(*ADAPTERS, *SMALL, *more), tiny(*SMALL, *more)
    weights = oracle_params(spec)
    stems = {name.removesuffix(".lora_a.weight") for name in weights if name.endswith(".lora_a.weight")}
    layers = [f"layers.{i}.{part}" for i in (0, 1) for part in ("mlp.up_proj", "mlp.down_proj")]
    layers += [f"layers.{i}.attn.{letter}_proj" for i in (0, 1) for letter in "qkvo"]
    assert stems == {"head", *layers}
    merged = {name: value for name, value in weights.items() if "lora" not in name}
    for stem in stems:
        merged[f"{stem}.weight"] = weights[f"{stem}.weight"] + 6.0 / 4 * (
            weights[f"{stem}.lora_b.weight"] @ weights[f"{stem}.lora_a.weight"]
        )
    expected = Oracle(plain, merged).log_probs(symbols(spec))
    assert np.abs(Oracle(spec, weights).log_probs(symbols(spec)) - expected).max() < 1e-10
    once = with_adapters(NumpyOps(), spec.model, weights)
    assert once.keys() == merged.keys() == with_adapters(NumpyOps(), spec.model, once).keys()
    assert all((with_adapters(NumpyOps(), spec.model, once)[name] == once[name]).all() for name in once)


def test_it_starts_as_the_model_without() -> None:
    spec, plain = tiny(*ADAPTERS, *SMALL), tiny(*SMALL)
    weights, before = initial_weights(spec), initial_weights(plain)
    assert all((weights[name] == value).all() for name, value in before.items())
    x = symbols(spec)
    np.testing.assert_array_equal(Oracle(spec, weights).score(x), Oracle(plain, before).score(x))


@every_engine
def test_a_frozen_base_keeps_its_values_and_has_no_state(name: str) -> None:
    """It is the model that was trained; adapters lower its loss, everything else stays bit for bit."""
    averages = ["training.ema_decay=0.5", "training.swa_every_steps=1", "training.swa_start_frac=0.0"]
    spec = tiny(*ADAPTERS, *SMALL, "training.freeze=base", "optimizer.grad_clip_norm=1.0", *averages)
    base = trained(name, tiny(*SMALL)).export_weights("trained")
    weights = {**initial_weights(spec), **base}
    engine, x = started(name, spec, weights), symbols(spec)
    adapters = [each.name for each in parameter_manifest(spec) if each.group == "adapter"]
    loss, gradients = engine.gradients(x)
    assert list(gradients) == adapters
    norm = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in gradients.values()))
    assert engine.train_step(x, step_hyperparameters(spec, 0, 0.1))()[1] == pytest.approx(norm, rel=1e-4)
    for step in range(1, 5):
        engine.train_step(x, step_hyperparameters(spec, step, 0.1))()
    assert engine.gradients(x)[0] < loss - 0.01
    for kind in ("trained", "averaged"):
        after = engine.export_weights(kind)
        assert list(after) == list(weights)
        assert [key for key in after if (after[key] != weights[key]).any()] == adapters, kind
    assert check_average(engine, x).passed
    state = engine.save_state()
    assert {key.split("/", 1)[1] for key in state if not key.startswith("weight/")} == set(adapters)
    assert sum(value.nbytes for value in state.values()) == state_bytes(spec)
    other = create_engine(next(each for each in ENGINES if each != name), spec)
    other.load_state(state)
    assert np.abs(other.score(x) - engine.score(x)).max() < 1e-4
    with pytest.raises(RunError, match="belongs to another spec"):
        create_engine(name, tiny(*ADAPTERS, *SMALL, *averages)).load_state(state)


def test_what_is_counted_and_stored() -> None:
    looped = ["model.loop.extra_loops=1", "model.loop.last_layer=1"]
    spec, plain = tiny(*ADAPTERS, *SMALL, *looped), tiny(*SMALL, *looped)
    count, dim, vocab_size = parameter_counts(spec), spec.model.model_dim, 256
    assert count["adapter"] == count["total"] - parameter_counts(plain)["total"] > 0
    assert "adapter" not in parameter_counts(plain) and spec.model.decoder.dim + vocab_size > dim
    # Of frozen matrices without an adapter no gradient is made, only of what they are applied to.
    frozen = training_flops(tiny(*ADAPTERS, *SMALL, *looped, "training.freeze=base")).matrices
    assert scoring_flops(spec) < frozen < training_flops(spec).matrices
    assert newton_schulz_flops(spec) == newton_schulz_flops(plain) > 0
    assert newton_schulz_flops(tiny(*ADAPTERS, *SMALL, "training.freeze=base")) == 0
    assert predict_artifact_bytes(plain).expected_bytes < predict_artifact_bytes(spec).expected_bytes


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ([*ADAPTERS, "model.tie_embeddings=true"], "without 'head', unless tie_embeddings is false"),
        (["model.lora.rank=16"], r"model.lora.rank = 16: must be below the sides of its matrices \(16\)"),
        (["model.lora.rank=2", 'model.lora.targets=["q", "q"]'], "must be one or more, without repetition"),
        (["model.lora.rank=2", "model.lora.targets=[]"], "must be one or more, without repetition"),
        (["training.freeze=base"], "training.freeze = 'base': must be 'none' where model.lora.rank is 0"),
        (["model.lora.rank=2", 'model.mixers=["mamba2", "mamba2", "mamba2"]'], "which has no q, k and v"),
        (['model.lora.targets=["z"]'], "model.lora.targets.0 = 'z'"),
    ],
)
def test_what_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        tiny(*overrides)
