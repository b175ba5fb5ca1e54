"""The experts decoder: its definition, its first loss, and that the experts part."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.engine.flops import training_flops
from shared.engine.registry import ENGINES
from shared.errors import SpecError
from shared.model import initial_weights
from shared.model.decoder import decode_patches
from shared.spec import Spec
from shared.tolerances import ORACLE_OPERATION_REL
from tests.implementations import OPS, assert_close, every_implementation, normal, run
from tests.techniques import assert_gradients_agree, every_engine, oracle_params, started, symbols, tiny, trained
from tests.unit.ops.test_ops import naive_log_softmax


def experts(*overrides: str) -> Spec:
    return tiny("model.decoder.kind=experts", "model.tie_embeddings=false", *overrides)


@every_implementation
def test_softmax(name: str):
    values = 30.0 * normal(4, 3, 5, 4)
    expected = np.array([np.exp(naive_log_softmax(row)) for row in values.reshape(-1, 4)]).reshape(values.shape)
    assert_close(name, run(name, lambda ops: ops.softmax(ops.asarray(values))), expected)


@pytest.mark.parametrize("patch_size", [1, 4])
def test_the_definition(patch_size: int):
    """Place by place, z written out (docs/techniques.md 4.2)."""
    spec = experts(f"model.patch_size={patch_size}", "model.decoder.num_experts=3")
    weights = oracle_params(spec, 1)
    h = normal(5, 2, 3, spec.model.model_dim).astype(float)
    found = decode_patches(OPS["numpy"], spec, weights, h, symbols(spec, 2)[:, : 3 * patch_size])
    assert found.shape == (2, 3 * patch_size, 256)
    for row, patch, place in np.ndindex(2, 3, patch_size):
        z = h[row, patch] + weights["decoder.position"][place]
        shares = np.exp(naive_log_softmax(weights["decoder.router.weight"] @ z))
        expected = sum(shares[expert] * weights[f"decoder.experts.{expert}.weight"] @ z for expert in range(3))
        actual = found[row, patch * patch_size + place]
        assert np.abs(actual - expected).max() <= ORACLE_OPERATION_REL * np.abs(expected).max()


def test_gradients_agree():
    spec, x = experts(), symbols(experts(), 4)
    assert_gradients_agree(spec, x, {name: started(name, spec).gradients(x)[1] for name in ENGINES})


@every_engine
def test_a_fresh_model_knows_nothing_and_its_experts_part(name: str):
    """With a router of zero all experts would get the same gradient in every step, and the router none."""
    spec, x = experts(), symbols(experts())
    first_weights, alike = initial_weights(spec), initial_weights(spec)
    alike["decoder.router.weight"] = 0.0 * alike["decoder.router.weight"]
    for weights, parts in ((first_weights, True), (alike, False)):
        assert started(name, spec, weights).score(x).mean() == pytest.approx(math.log(256), rel=1e-5)
        engine = trained(name, spec, weights)
        gradients = engine.gradients(x)[1]
        after = engine.export_weights("trained")
        first, second = (after[f"decoder.experts.{expert}.weight"] for expert in (0, 1))
        assert np.allclose(first, second, atol=1e-6) != parts
        if not parts:
            assert np.abs(gradients["decoder.router.weight"]).max() < 1e-6


def test_operations_are_counted_once_per_patch():
    """Of trunk outputs once a patch, of the positions in a patch once a micro-batch; the linear head once a symbol."""
    spec = experts("model.decoder.num_experts=3")
    linear = tiny("model.decoder.kind=linear", "model.tie_embeddings=false")
    dim, patch_size, symbols = spec.model.model_dim, spec.model.patch_size, spec.training.micro_batch_symbols
    of_a_vector = 3 * (256 + 1) * dim  # By the experts and the router.
    expected = 256 * dim - of_a_vector / patch_size - of_a_vector * patch_size / symbols
    difference = training_flops(linear).matrices - training_flops(spec).matrices
    assert difference == pytest.approx(6 * expected)


@pytest.mark.parametrize("override", ["model.tie_embeddings=true", "model.decoder.num_experts=1"])
def test_what_is_refused(override: str):
    with pytest.raises(SpecError, match=override.split("=")[0].replace(".", r"\.")):
        experts(override)
