"""What is minimised: z-loss, focal factor and byte weights, while the reported loss stays plain nats."""

from __future__ import annotations

import numpy as np
import pytest

from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.engine.synthetic import synthetic_tables
from shared.errors import RunError, SpecError
from shared.model import auxiliary_parameters, log_probs, random_weights, symbol_weights, training_loss
from shared.model.stages import SYMBOL_WEIGHTS
from shared.ops import NumpyOps
from shared.optim import step_hyperparameters
from shared.parity.gradient_checks import oracle_loss, oracle_objective
from shared.scoring.random_bytes import random_bytes_spec
from shared.tolerances import LOGITS_ABS, ORACLE_OPERATION_REL
from tests.implementations import OPS, assert_close, every_implementation, gradients_of, normal, run
from tests.techniques import (
    EVERY_FACTOR,
    EVERY_TERM,
    TERMS,
    TOKENS,
    assert_gradients_agree,
    every_engine,
    oracle_params,
    started,
    symbols,
    tiny,
)
from tests.token_text import small_tokenizer

VARIANTS = {
    "z-loss": ["training.loss.z_weight=0.1"],
    "focal": ["training.loss.focal_gamma=1.5"],
    "bytes": [*TOKENS, "training.loss.byte_weighted=true"],
    "all": EVERY_FACTOR,
}
QUANTISED = [*EVERY_TERM, "training.qat.form=straight_through", "training.loss.focal_gamma=1.5"]
OBJECTIVES = {**VARIANTS, **TERMS, "every term with quantisation": QUANTISED}


@every_implementation
def test_the_new_operations(name: str):
    logits, positive = 20.0 * normal(1, 3, 5, 7), np.abs(normal(2, 4, 6))
    capped = 15.0 * np.tanh(logits.astype(np.float64) / 15.0)
    actual = run(name, lambda ops: ops.softcapped_logsumexp(ops.asarray(logits), 15.0))
    assert_close(name, actual, np.log(np.exp(capped).sum(axis=-1)))
    for exponent in (1.0, 1.5, 2.0):
        actual = run(name, lambda ops, exponent=exponent: ops.power(ops.asarray(positive), exponent))
        assert_close(name, actual, positive.astype(np.float64) ** exponent)


@every_engine
def test_the_slope_of_a_power_at_zero_is_a_number(name: str):
    for exponent in (1.0, 1.5):
        (slope,) = gradients_of(name, lambda x, e=exponent: OPS[name].sum(OPS[name].power(x, e)), [np.zeros(2)])
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_definition(variant: str):
    """Written out from log-probabilities and a symbol's bytes (docs/techniques.md 8)."""
    spec, ops = tiny(*VARIANTS[variant]), NumpyOps()
    params, x, loss = oracle_params(spec), symbols(spec), spec.training.loss
    logs = log_probs(ops, spec, params, x)
    nats = -np.take_along_axis(logs, x[..., None], axis=-1)[..., 0]
    expected = (1.0 - np.exp(-nats)) ** loss.focal_gamma * nats
    if loss.byte_weighted:
        weight_of_token = synthetic_tables(spec)[SYMBOL_WEIGHTS][:, 0]
        assert weight_of_token.min() == np.float32(0.1) and weight_of_token.max() == 2.0
        expected = weight_of_token.astype(float)[x] * expected
    objective = expected.mean()
    if loss.z_weight:
        from shared.model import forward

        capped = spec.model.logit_softcap * np.tanh(forward(ops, spec, params, x) / spec.model.logit_softcap)
        objective += loss.z_weight * np.mean(np.log(np.exp(capped).sum(axis=-1)) ** 2)
    assert oracle_objective(spec, params, x) == pytest.approx(objective, rel=ORACLE_OPERATION_REL)
    assert oracle_loss(spec, params, x) == pytest.approx(nats.mean(), rel=ORACLE_OPERATION_REL)


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_gradients_are_of_the_training_loss_and_the_reported_loss_is_plain(objective: str):
    spec = tiny(*OBJECTIVES[objective])
    plain = spec.model_copy(update={"training": tiny().training.model_copy(update={"qat": spec.training.qat})})
    x, gradients = symbols(spec), {}
    for name in ENGINES:
        engine = started(name, spec)
        loss, gradients[name] = engine.gradients(x)
        plain_loss, plain_gradients = started(name, plain).gradients(x)
        assert loss == plain_loss == pytest.approx(oracle_loss(spec, random_weights(spec, 3), x), abs=LOGITS_ABS)
        moved = [key for key, value in plain_gradients.items() if not np.allclose(value, gradients[name][key])]
        assert "layers.0.attn.q_proj.weight" in moved, "the option changes nothing"
        assert all(np.abs(gradients[name][each.name]).max() > 0 for each in auxiliary_parameters(spec))
        assert engine.train_step(x, step_hyperparameters(spec, 0, 0.5))()[0] == pytest.approx(loss, rel=1e-6)
    assert_gradients_agree(spec, x, gradients)


def test_without_options_it_is_the_mean_nats_itself():
    ops, spec = NumpyOps(), tiny()
    objective, nats = training_loss(ops, spec, oracle_params(spec), symbols(spec))
    assert objective is nats
    assert spec.training.loss.is_plain and not tiny(*VARIANTS["focal"]).training.loss.is_plain


@every_engine
def test_byte_weights_must_be_given(name: str):
    spec = tiny(*VARIANTS["bytes"])
    engine = create_engine(name, spec)
    engine.initialise(random_weights(spec, 3))
    with pytest.raises(RunError, match="byte_weighted"):
        engine.gradients(symbols(spec))


def test_symbol_weights():
    assert symbol_weights(np.array([0, 1, 4, 8]), 4.0).tolist() == [[np.float32(0.1)], [0.25], [1.0], [2.0]]


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["training.loss.focal_gamma=0.5"], "training.loss.focal_gamma"),
        (["training.loss.z_weight=-1.0"], "training.loss.z_weight"),
        (["training.loss.byte_weighted=true"], "training.loss.byte_weighted"),
        (["training.loss.byte_weighted=true", "vocabulary.kind=byte260"], "training.loss.byte_weighted"),
    ],
)
def test_what_is_refused(overrides: list[str], field: str):
    with pytest.raises(SpecError, match=field):
        tiny(*overrides)


def test_random_tokens_are_trained_on_without_byte_weights():
    assert not random_bytes_spec(tiny(*VARIANTS["all"]), 10).training.loss.byte_weighted


def test_bytes_of_a_token_are_those_it_adds_to_a_text():
    tokenizer = small_tokenizer()
    expected = [len(tokenizer._piece_text(token)) for token in range(tokenizer.vocab_size)]
    assert tokenizer.table.in_text().tolist() == expected and max(expected) > 3
