"""LoRA adapters: their definition, that both factors learn, a frozen base, and what is counted and stored."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.predict import predict_artifact_bytes
from shared.engine.flops import newton_schulz_flops, scoring_flops, training_flops
from shared.engine.oracle import Oracle
from shared.engine.package import create_engine
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINES
from shared.errors import RunError, SpecError
from shared.model import forward, initial_weights, parameter_counts, parameter_manifest, random_weights, with_adapters
from shared.ops import NumpyOps
from shared.optim import state_bytes, step_hyperparameters
from shared.scoring.average_check import check_average
from shared.spec import Spec, load_spec
from tests.implementations import assert_one_graph
from tests.unit.engine.test_flops import CountingOps

EVERYWHERE = ["model.lora.rank=4", "model.lora.alpha=6.0", 'model.lora.targets=["q", "k", "v", "o", "mlp", "head"]']
every_engine = pytest.mark.parametrize("name", list(ENGINES))


def tiny(*overrides: str) -> Spec:
    return load_spec("tiny", ["training.compile=false", "model.num_layers=2", "model.tie_embeddings=false", *overrides])


def batch(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 64)).astype(np.int32)


def trained(name: str, spec: Spec, weights: dict[str, np.ndarray], steps: int = 3) -> Engine:
    engine = create_engine(name, spec)
    engine.initialise(weights)
    for step in range(steps):
        engine.train_step(batch(step), step_hyperparameters(spec, step, 0.1))()
    return engine


@pytest.mark.parametrize("more", [[], ["model.loop.extra_loops=1", "model.loop.last_layer=1"], ["model.patch_size=1"]])
def test_the_definition(more: list[str]) -> None:
    """The model without adapters, of matrices with the product added, says the same."""
    spec, plain = tiny(*EVERYWHERE, *more), tiny(*more)
    weights = {name: value.astype(np.float64) for name, value in random_weights(spec, 0).items()}
    stems = {name.removesuffix(".lora_a.weight") for name in weights if name.endswith(".lora_a.weight")}
    layers = [f"layers.{i}.{part}" for i in (0, 1) for part in ("mlp.up_proj", "mlp.down_proj")]
    layers += [f"layers.{i}.attn.{letter}_proj" for i in (0, 1) for letter in "qkvo"]
    assert stems == {"head", *layers}
    merged = {name: value for name, value in weights.items() if "lora" not in name}
    for stem in stems:
        merged[f"{stem}.weight"] = weights[f"{stem}.weight"] + 6.0 / 4 * (
            weights[f"{stem}.lora_b.weight"] @ weights[f"{stem}.lora_a.weight"]
        )
    expected = Oracle(plain, merged).log_probs(batch())
    assert np.abs(Oracle(spec, weights).log_probs(batch()) - expected).max() < 1e-10
    once = with_adapters(NumpyOps(), spec.model, weights)
    assert once.keys() == merged.keys() == with_adapters(NumpyOps(), spec.model, once).keys()
    assert all((with_adapters(NumpyOps(), spec.model, once)[name] == once[name]).all() for name in once)


def test_it_starts_as_the_model_without_and_every_factor_learns() -> None:
    spec, plain = tiny(*EVERYWHERE), tiny()
    weights, before = initial_weights(spec), initial_weights(plain)
    assert all((weights[name] == value).all() for name, value in before.items())
    np.testing.assert_array_equal(Oracle(spec, weights).score(batch()), Oracle(plain, before).score(batch()))
    for name in ENGINES:
        gradients = trained(name, spec, weights).gradients(batch())[1]
        assert [key for key, value in gradients.items() if not value.any()] == []


@every_engine
def test_a_frozen_base_keeps_its_values_and_has_no_state(name: str) -> None:
    """It is the model that was trained; adapters lower its loss, everything else stays bit for bit."""
    averages = ["training.ema_decay=0.5", "training.swa_every_steps=1", "training.swa_start_frac=0.0"]
    spec = tiny(*EVERYWHERE, "training.freeze=base", "optimizer.grad_clip_norm=1.0", *averages)
    base = trained(name, tiny(), initial_weights(tiny())).export_weights("trained")
    weights = {**initial_weights(spec), **base}
    engine = create_engine(name, spec)
    engine.initialise(weights)
    adapters = [each.name for each in parameter_manifest(spec) if each.group == "adapter"]
    loss, gradients = engine.gradients(batch())
    assert list(gradients) == adapters
    norm = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in gradients.values()))
    assert engine.train_step(batch(), step_hyperparameters(spec, 0, 0.1))()[1] == pytest.approx(norm, rel=1e-4)
    for step in range(1, 5):
        engine.train_step(batch(), step_hyperparameters(spec, step, 0.1))()
    assert engine.gradients(batch())[0] < loss - 0.01
    for kind in ("trained", "averaged"):
        after = engine.export_weights(kind)
        assert list(after) == list(weights)
        assert [key for key in after if (after[key] != weights[key]).any()] == adapters, kind
    assert check_average(engine, batch(0)).passed
    state = engine.save_state()
    assert {key.split("/", 1)[1] for key in state if not key.startswith("weight/")} == set(adapters)
    assert sum(value.nbytes for value in state.values()) == state_bytes(spec)
    other = create_engine(next(each for each in ENGINES if each != name), spec)
    other.load_state(state)
    assert np.abs(other.score(batch()) - engine.score(batch())).max() < 1e-4
    with pytest.raises(RunError, match="belongs to another spec"):
        create_engine(name, tiny(*EVERYWHERE, *averages)).load_state(state)


def test_what_is_counted_and_stored() -> None:
    looped = ["model.loop.extra_loops=1", "model.loop.last_layer=1"]
    spec, plain = tiny(*EVERYWHERE, *looped), tiny(*looped)
    count, dim, vocab_size = parameter_counts(spec), spec.model.model_dim, 256
    assert count["adapter"] == count["total"] - parameter_counts(plain)["total"] > 0
    assert "adapter" not in parameter_counts(plain) and spec.model.decoder.dim + vocab_size > dim
    ops, x = CountingOps(), batch()
    forward(ops, spec, {name: ops.asarray(value) for name, value in random_weights(spec, 0).items()}, x)
    assert scoring_flops(spec, len(x)) * x.size == pytest.approx(ops.matrices + ops.attended, rel=1e-12)
    # Of frozen matrices without an adapter no gradient is made, only of what they are applied to.
    frozen = training_flops(tiny(*EVERYWHERE, *looped, "training.freeze=base")).matrices
    assert scoring_flops(spec) < frozen < training_flops(spec).matrices
    assert newton_schulz_flops(spec) == newton_schulz_flops(plain) > 0
    assert newton_schulz_flops(tiny(*EVERYWHERE, "training.freeze=base")) == 0
    assert predict_artifact_bytes(plain).expected_bytes < predict_artifact_bytes(spec).expected_bytes
    weights = random_weights(spec, 0)
    packed = unpack_bytes(pack_bytes(spec, weights))
    assert packed.spec == spec and packed.weights.keys() == weights.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_engine
def test_the_compiled_function_is_the_one_of_the_oracle(name: str) -> None:
    spec = tiny(*EVERYWHERE)
    assert_one_graph(name, forward, spec, random_weights(spec, 2), batch()[:2])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["model.tie_embeddings=true", *EVERYWHERE], "without 'head', unless tie_embeddings is false"),
        (["model.lora.rank=16"], r"model.lora.rank = 16: must be below the sides of its matrices \(16\)"),
        (["model.lora.rank=2", 'model.lora.targets=["q", "q"]'], "must be one or more, without repetition"),
        (["model.lora.rank=2", "model.lora.targets=[]"], "must be one or more, without repetition"),
        (["training.freeze=base"], "training.freeze = 'base': must be 'none' where model.lora.rank is 0"),
        (["model.lora.rank=2", 'model.mixers=["mamba2", "mamba2"]'], "which has no q, k and v"),
        (['model.lora.targets=["z"]'], "model.lora.targets.0 = 'z'"),
    ],
)
def test_what_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        tiny(*overrides)
