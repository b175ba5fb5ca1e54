"""Both engines: compiled and plain, repeatable, cut into micro-batches, saved, restored and refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from shared.engine.package import create_engine
from shared.engine.protocol import Engine, NonFiniteError
from shared.engine.registry import ENGINES
from shared.errors import RunError
from shared.model import forward, random_weights
from shared.ops import Array, Ops
from shared.optim import step_hyperparameters
from shared.spec import Spec
from shared.tolerances import GRADIENT_REL, PARAMETERS_REL
from tests.techniques import EVERY_FACTOR, EVERY_TERM, every_engine, started, symbols, tiny

STEPS = 3


def batch(rows: int = 8, seed: int = 0) -> np.ndarray:
    return symbols(tiny(), rows, seed)


def train(engine: Engine, steps: int = STEPS, first: int = 0) -> list[tuple[float, float]]:
    return [
        engine.train_step(batch(seed=step), step_hyperparameters(engine.spec, step, step / 60))()
        for step in range(first, first + steps)
    ]


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].tobytes())
    return total.hexdigest()


def assert_close(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], rel: float) -> None:
    """Relative L2 difference of every tensor."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        difference = np.linalg.norm(value.astype(float) - right[name])
        assert difference <= rel * np.linalg.norm(right[name]), f"{name}: {difference:.1e}"


def assert_compiled_like_plain(name: str, *overrides: str) -> None:
    plain, compiled = (started(name, tiny(*overrides, compiled=choice)) for choice in (False, True))
    for step in range(STEPS):
        (loss, grads), (compiled_loss, compiled_grads) = (
            engine.gradients(batch(seed=step)) for engine in (plain, compiled)
        )
        assert compiled_loss == pytest.approx(loss, rel=GRADIENT_REL)
        # Later, the gradients are those of weights that differ by as much as the updates may.
        assert_close(compiled_grads, grads, GRADIENT_REL if step == 0 else PARAMETERS_REL)
        (loss, norm), (compiled_loss, compiled_norm) = (train(engine, 1, step)[0] for engine in (plain, compiled))
        assert compiled_loss == pytest.approx(loss, rel=GRADIENT_REL)
        assert compiled_norm == pytest.approx(norm, rel=GRADIENT_REL)
    assert_close(compiled.save_state(), plain.save_state(), PARAMETERS_REL)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), EVERY_TERM])
def test_compiled_mlx_computes_the_same(overrides: Sequence[str]):
    assert_compiled_like_plain("mlx", *overrides)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile calls g++ on a CPU")
def test_compiled_torch_computes_the_same():
    # Each of some 50 kernels costs the C++ compiler a second, so the model and the update are as short as they get.
    assert_compiled_like_plain(
        "torch", "model.num_layers=1", "model.resid_mix=false", "model.unet_skips=false", "optimizer.ns_steps=1"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "compiled"), [("mlx", False), ("mlx", True), ("torch", False)])
def test_a_step_is_repeatable_to_the_bit(name: str, compiled: bool):
    results = []
    for _ in range(2):
        engine = started(name, tiny("training.micro_batch_symbols=192", compiled=compiled))
        losses = train(engine)
        results.append((losses, digest(engine.save_state()), engine.score(batch()).tobytes()))
    assert results[0] == results[1]


@every_engine
def test_training_lowers_the_loss_of_a_repeated_batch(name: str):
    engine = started(name, tiny())
    hyper = step_hyperparameters(engine.spec, 0, 0.0)
    losses = [engine.train_step(batch(), hyper)()[0] for _ in range(6)]
    assert losses[-1] < losses[0] - 0.5
    assert engine.gradients(batch())[0] == pytest.approx(float(engine.score(batch()).mean()), rel=GRADIENT_REL)


@every_engine
@pytest.mark.parametrize(
    ("micro_rows", "overrides"), [*((rows, []) for rows in (1, 2, 3, 4)), (3, EVERY_FACTOR), (1, EVERY_TERM)]
)
def test_micro_batches_add_up_to_the_batch(name: str, micro_rows: int, overrides: list[str]):
    """Five rows in one part, and as 5 * 1, 2 + 2 + 1, 3 + 2 and 4 + 1 (or less where streams share them)."""
    spec, cut = tiny(*overrides), tiny(*overrides, f"training.micro_batch_symbols={micro_rows * 64}")
    whole, parts = (started(name, each).gradients(symbols(spec, 5)) for each in (spec, cut))
    assert parts[0] == pytest.approx(whole[0], rel=GRADIENT_REL)
    assert_close(parts[1], whole[1], GRADIENT_REL)


@every_engine
def test_rows_in_any_layout_are_scored_the_same(name: str):
    """A single row of a reversed batch keeps a stride below zero."""
    engine, x = started(name, tiny()), batch(2)
    assert np.array_equal(engine.score(x[::-1][:1]), engine.score(x[1:]))


@every_engine
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_batch_is_the_mean_of_its_rows(name: str, rows: int):
    engine = started(name, tiny())
    losses, gradients = zip(*(engine.gradients(batch(rows)[i : i + 1]) for i in range(rows)), strict=True)
    loss, grads = engine.gradients(batch(rows))
    assert loss == pytest.approx(np.mean(losses), rel=GRADIENT_REL)
    assert_close(grads, {key: np.mean([g[key] for g in gradients], axis=0) for key in grads}, GRADIENT_REL)


@pytest.mark.slow
def test_any_number_of_streams_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    from mlx_train import device

    found: dict[int, dict[str, np.ndarray]] = {}
    states = {}
    for count in (1, 2, 5):
        import mlx.core as mx  # after mlx_train, which loads the BLAS

        streams = tuple(mx.new_stream(mx.default_device()) for _ in range(count))
        monkeypatch.setattr(device, "compute_streams", lambda streams=streams: streams)
        engine = started("mlx", tiny())
        loss, grads = engine.gradients(batch(3))
        found[count] = {"loss": np.array([loss]), "nats": engine.score(batch(3))}
        found[count] |= {f"gradient/{key}": value for key, value in grads.items()}
        train(engine, 2)
        states[count] = engine.save_state()
    for count in (2, 5):
        assert_close(found[count], found[1], GRADIENT_REL)
        assert_close(states[count], states[1], PARAMETERS_REL)


@every_engine
@pytest.mark.parametrize("other", list(ENGINES))
def test_state_passes_from_engine_to_engine_to_the_bit(name: str, other: str):
    source = started(name, tiny())
    train(source)
    state = source.save_state()
    assert all(value.dtype == np.float32 for value in state.values())
    target = create_engine(other, tiny())
    target.load_state(state)
    assert digest(target.save_state()) == digest(state)
    assert digest(target.export_weights("averaged")) == digest(source.export_weights("averaged"))
    losses, expected = train(target, 2, STEPS), train(source, 2, STEPS)
    if name == other:
        assert losses == expected and digest(target.save_state()) == digest(source.save_state())
    assert np.array(losses) == pytest.approx(np.array(expected), rel=GRADIENT_REL)
    assert_close(target.save_state(), source.save_state(), PARAMETERS_REL)


Change = Callable[[dict[str, np.ndarray]], Any]


@every_engine
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("average/embed.weight"), "average/embed.weight is missing"),
        (
            lambda state: state.pop("weight/layers.0.attn.q_proj.weight"),
            "weight/layers.0.attn.q_proj.weight is missing",
        ),
        (lambda state: state.update({"third/embed.weight": np.zeros(1)}), "third/embed.weight is unknown"),
        (
            lambda state: state.update({"weight/embed.weight": state["weight/embed.weight"].T}),
            r"weight/embed.weight has shape \(\d+, 256\) in the checkpoint, the spec needs \(256, \d+\)",
        ),
    ],
)
def test_a_state_of_another_spec_is_refused(name: str, change: Change, message: str):
    engine = started(name, tiny())
    before = engine.save_state()
    state = dict(before)
    change(state)
    with pytest.raises(RunError, match=message):
        engine.load_state(state)
    assert digest(engine.save_state()) == digest(before)


@every_engine
@pytest.mark.parametrize("culprit", ["layers.1.mlp.up_proj.weight", "embed.weight"])
def test_a_gradient_that_is_not_a_number_is_named(name: str, culprit: str):
    def broken(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
        # The root has an infinite slope at zero; times zero that is not a number.
        return forward(ops, spec, params, x) + ops.sum(ops.sqrt(params[culprit] * 0.0))

    with pytest.raises(NonFiniteError, match=culprit) as caught:
        train(started(name, tiny(), model=broken), 1)
    assert caught.value.parameter == culprit


@every_engine
def test_a_loss_that_is_not_a_number_is_an_error(name: str):
    weights = random_weights(tiny(), 3)
    weights["layers.2.mlp.down_proj.weight"][0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        train(started(name, tiny(), weights), 1)


@every_engine
def test_scores_use_the_weights_that_were_asked_for(name: str):
    engine = started(name, tiny())
    train(engine)
    scores = {}
    for kind in ("averaged", "trained"):
        engine.use_weights(kind)
        scores[kind] = engine.score(batch())
        fresh = started(name, engine.spec, engine.export_weights(kind))
        assert (fresh.score(batch()) == scores[kind]).all()
        assert (fresh.log_probs(batch(2)) == engine.log_probs(batch(2))).all()
    assert np.abs(scores["averaged"] - scores["trained"]).max() > 0.01


@every_engine
def test_without_an_average_both_kinds_are_the_trained_weights(name: str):
    engine = started(name, tiny("training.ema_decay=0.0"))
    train(engine, 1)
    assert not [key for key in engine.save_state() if key.startswith("average/")]
    assert digest(engine.export_weights("averaged")) == digest(engine.export_weights("trained"))
    trained = engine.score(batch(2))
    engine.use_weights("averaged")
    assert (engine.score(batch(2)) == trained).all()


@every_engine
def test_what_goes_in_and_out_is_a_copy(name: str):
    weights = random_weights(tiny(), 3)
    engine = started(name, tiny(), weights)
    before = digest(engine.save_state())
    out = [engine.export_weights("trained"), engine.export_weights("averaged"), engine.save_state()]
    for tensors in (weights, *out):
        for value in tensors.values():
            value += 1.0
    assert digest(engine.save_state()) == before
    state = engine.save_state()
    engine.load_state(state)
    for value in state.values():
        value += 1.0
    assert digest(engine.save_state()) == before
    kept = engine.export_weights("trained")
    copied = {key: value.copy() for key, value in kept.items()}
    train(engine, 1)
    assert digest(kept) == digest(copied)


@every_engine
def test_an_engine_reports_its_device(name: str):
    engine = started(name, tiny())
    engine.synchronise()
    assert engine.name == name and engine.device_name()
    assert engine.peak_memory_bytes() > 1_000_000
