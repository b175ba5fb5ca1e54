"""The experts decoder: its definition, its first loss, and that the experts part."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.engine.flops import training_flops
from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.errors import SpecError
from shared.model import initial_weights, random_weights
from shared.model.decoder import decode_patches
from shared.ops import NumpyOps
from shared.optim import step_hyperparameters
from shared.parity.gradient_checks import directional_rows, gradient_rows
from shared.spec import Spec, load_spec
from shared.tolerances import ORACLE_OPERATION_REL
from tests.implementations import OPS, assert_close, every_implementation, normal, run
from tests.unit.ops.test_ops import naive_log_softmax

every_engine = pytest.mark.parametrize("name", list(ENGINES))


def experts(*overrides: str) -> Spec:
    return load_spec(
        "tiny",
        ["training.compile=false", "model.decoder.kind=experts", "model.tie_embeddings=false", *overrides],
    )


def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 64)).astype(np.int32)


@every_implementation
def test_softmax(name: str):
    values = 30.0 * normal(4, 3, 5, 4)
    expected = np.array([np.exp(naive_log_softmax(row)) for row in values.reshape(-1, 4)]).reshape(values.shape)
    assert_close(name, run(name, lambda ops: ops.softmax(ops.asarray(values))), expected)


@pytest.mark.parametrize("patch_size", [1, 4])
def test_the_definition(patch_size: int):
    """Place by place, z written out (docs/techniques.md 4.2)."""
    spec, ops = experts(f"model.patch_size={patch_size}", "model.decoder.num_experts=3"), NumpyOps()
    weights = {key: ops.asarray(value) for key, value in random_weights(spec, 1).items()}
    h = normal(5, 2, 3, spec.model.model_dim).astype(float)
    found = decode_patches(ops, spec, weights, h, batch()[:2, : 3 * patch_size])
    assert found.shape == (2, 3 * patch_size, 256)
    for row, patch, place in np.ndindex(2, 3, patch_size):
        z = h[row, patch] + weights["decoder.position"][place]
        shares = np.exp(naive_log_softmax(weights["decoder.router.weight"] @ z))
        expected = sum(shares[expert] * weights[f"decoder.experts.{expert}.weight"] @ z for expert in range(3))
        actual = found[row, patch * patch_size + place]
        assert np.abs(actual - expected).max() <= ORACLE_OPERATION_REL * np.abs(expected).max()


def test_gradients_agree():
    spec, gradients = experts(), {}
    weights = random_weights(spec, 3)
    for name in ENGINES:
        engine = create_engine(name, spec)
        engine.initialise(weights)
        gradients[name] = engine.gradients(batch())[1]
    rows = gradient_rows(spec, gradients) + directional_rows(spec, weights, batch(), gradients, seed=3)
    assert [row for row in rows if not row.passed] == []


@every_engine
def test_a_fresh_model_knows_nothing_and_its_experts_part(name: str):
    """With a router of zero all experts would get the same gradient in every step, and the router none."""
    spec = experts()
    started, alike = initial_weights(spec), initial_weights(spec)
    alike["decoder.router.weight"] = 0.0 * alike["decoder.router.weight"]
    for weights, parts in ((started, True), (alike, False)):
        engine = create_engine(name, spec)
        engine.initialise(weights)
        for step in range(3):
            nats, _ = engine.train_step(batch(), step_hyperparameters(spec, step, 0.1))()
            assert step or nats == pytest.approx(math.log(256), rel=1e-5)
        gradients = engine.gradients(batch())[1]
        after = engine.export_weights("trained")
        first, second = (after[f"decoder.experts.{expert}.weight"] for expert in (0, 1))
        assert np.allclose(first, second, atol=1e-6) != parts
        if parts:
            assert [key for key, value in gradients.items() if not np.abs(value).max() > 0.0] == []
        else:
            assert np.abs(gradients["decoder.router.weight"]).max() < 1e-6


def test_operations_are_counted_once_per_patch():
    """Of trunk outputs once a patch, of the positions in a patch once a micro-batch; the linear head once a symbol."""
    spec = experts("model.decoder.num_experts=3")
    linear = load_spec("tiny", ["model.decoder.kind=linear", "model.tie_embeddings=false"])
    dim, patch_size, symbols = spec.model.model_dim, spec.model.patch_size, spec.training.micro_batch_symbols
    of_a_vector = 3 * (256 + 1) * dim  # By the experts and the router.
    expected = 256 * dim - of_a_vector / patch_size - of_a_vector * patch_size / symbols
    difference = training_flops(linear).matrices - training_flops(spec).matrices
    assert difference == pytest.approx(6 * expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_sees_one_graph():
    import torch

    spec, ops = experts(), OPS["torch"]
    params = {key: ops.asarray(value) for key, value in random_weights(spec, 3).items()}
    h = ops.asarray(normal(5, 2, 3, spec.model.model_dim))
    x = ops.asarray(batch()[:2, : 3 * spec.model.patch_size])
    whole = torch.compile(lambda h: decode_patches(ops, spec, params, h, x), backend="eager", fullgraph=True)
    assert torch.equal(whole(h), decode_patches(ops, spec, params, h, x))


@pytest.mark.parametrize("override", ["model.tie_embeddings=true", "model.decoder.num_experts=1"])
def test_what_is_refused(override: str):
    with pytest.raises(SpecError, match=override.split("=")[0].replace(".", r"\.")):
        experts(override)
