"""EMA, SWA and their blend: against plain means, over engines, checkpoints and the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.artifact import read_artifact
from shared.engine.package import create_engine, create_scorer
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINES
from shared.errors import SpecError
from shared.model import random_weights
from shared.optim import averaged_weights, keeps_average, step_hyperparameters
from shared.optim.averaging import ema_rate, initial_averages, takes_snapshot, update_averages
from shared.runs.target import load_trained
from shared.spec import Spec
from shared.spec.training import scale_snapshots
from shared.tolerances import GRADIENT_REL, UPDATE_REL
from shared.training.run import train_run
from shared.training.sources import open_sources
from shared.training.validation import make_validate
from tests.fake_training import RecordingObserver
from tests.implementations import OPS, every_implementation, examples
from tests.optimizers import Tensors, relative
from tests.techniques import every_engine, started, symbols, tiny

SWA = ("training.steps=6", "training.swa_every_steps=2", "training.swa_start_frac=0.3")


def one_layer(*overrides: str) -> Spec:
    return tiny("model.num_layers=1", *overrides)


def steps_of(engine: Engine, first: int, count: int) -> list[Tensors]:
    """Train, and the trained weights after each step."""
    spec, weights = engine.spec, []
    for step in range(first, first + count):
        engine.train_step(symbols(spec, 2, step), step_hyperparameters(spec, step, step / spec.training.steps))()
        weights.append(engine.export_weights("trained"))
    return weights


def ema_of(path: Sequence[np.ndarray], decay: float) -> np.ndarray:
    """sum_i (1 - d) d^(t - i) w_i / (1 - d^t) over the weights w_1 to w_t, in float64."""
    shares = np.array([(1 - decay) * decay ** (len(path) - 1 - index) for index in range(len(path))])
    return np.tensordot(shares / (1 - decay ** len(path)), np.array(path, np.float64), 1)


@every_implementation
@settings(examples, max_examples=40)
@given(
    ema_decay=st.one_of(st.sampled_from([0.0, 0.9999999]), st.floats(0.01, 0.99999)),
    every=st.integers(0, 4),
    start=st.floats(0.0, 0.6),
    share=st.floats(0.1, 0.9),
    steps=st.one_of(st.integers(1, 12), st.integers(1, 80)),
)
def test_averages_are_plain_means_of_the_past(
    name: str, ema_decay: float, every: int, start: float, share: float, steps: int
):
    fields = {"ema_decay": ema_decay, "swa_every_steps": every, "swa_start_frac": start, "swa_share": share}
    training = one_layer().training.model_copy(update=fields)
    ops, rng = OPS[name], np.random.default_rng(steps)
    path = rng.standard_normal((steps + 1, 3, 2)).astype(np.float32)
    # The initial weights are of another kind: whatever of them is left in an average shows.
    path[0] *= 100
    state = {key: ops.asarray(value) for key, value in initial_averages(training, "w", path[0]).items()}
    snapshots: list[np.ndarray] = []
    for step, weights in enumerate(path[1:]):
        snapshot = takes_snapshot(training, step, step / steps)
        rate, taken = (ops.asarray(np.float64(number)) for number in (ema_rate(training, step), snapshot))
        state = update_averages(training, {"w": ops.asarray(weights)}, state, rate, taken)
        snapshots += [np.float64(weights)] if snapshot else []
    actual = ops.to_numpy(averaged_weights(ops, training, {"w": ops.asarray(path[-1])}, state)["w"])
    swa, ema = np.mean(snapshots, axis=0) if snapshots else None, ema_of(path[1:], ema_decay)
    if swa is None:
        expected = ema if ema_decay else np.float64(path[-1])
    else:
        expected = share * swa + (1 - share) * ema if ema_decay else swa
    assert relative(actual, expected) <= UPDATE_REL
    if not keeps_average(training):
        assert state == {} and (actual == path[-1]).all()


def test_rates_of_an_average():
    """The first weights are the whole average, the second half of it (all but), in the end each is 1 - d."""
    training = one_layer("training.ema_decay=0.99").training
    assert ema_rate(training, 0) == 1.0
    assert ema_rate(training, 1) == pytest.approx(0.01 / 0.0199)
    assert ema_rate(training, 100_000) == pytest.approx(0.01)
    assert all(0 < ema_rate(one_layer("training.ema_decay=0.9999999").training, step) <= 1 for step in range(100))


@pytest.mark.parametrize("averages", [(), SWA, ("training.ema_decay=0",), (*SWA, "training.ema_decay=0")])
@every_engine
def test_before_the_first_step_the_average_is_the_weights(name: str, averages: tuple[str, ...]):
    spec = one_layer(*averages)
    start = random_weights(spec, 0)
    engine = started(name, spec, start)
    averaged = engine.export_weights("averaged")
    assert all(np.array_equal(averaged[key], start[key]) for key in start)


def test_a_validation_says_which_weights_it_is_of():
    """With snapshots alone these are the trained ones until the first is taken, and it is one itself."""
    for overrides, expected in (
        ((*SWA, "training.ema_decay=0"), ["trained"] * 4 + ["averaged"]),
        (("training.ema_decay=0.5",), ["averaged"] * 5),
        (("training.ema_decay=0",), ["trained"] * 5),
    ):
        spec = one_layer(*overrides, "evaluation.val_symbols=256")
        engine, stream = started("mlx", spec), open_sources(spec).validation
        found = []
        for step in range(5):
            steps_of(engine, step, 1)
            found.append(make_validate(spec, engine, stream)(step, lambda done, total: None).weights)
        assert found == expected


def test_which_steps_are_snapshots():
    training = one_layer(*SWA, "training.steps=10").training
    taken = [step + 1 for step in range(10) if takes_snapshot(training, step, step / 10)]
    assert taken == [4, 6, 8, 10]
    assert not any(takes_snapshot(one_layer().training, step, 1.0) for step in range(10))


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
@every_engine
def test_an_engine_exports_and_scores_the_average(name: str, ema_decay: float):
    spec = one_layer(*SWA, f"training.ema_decay={ema_decay}", "training.swa_share=0.25")
    start = random_weights(spec, 0)
    engine = started(name, spec, start)
    path = steps_of(engine, 0, 2)
    before = engine.export_weights("averaged")
    if not ema_decay:
        assert all((before[key] == path[-1][key]).all() for key in before), "no snapshot yet: the trained weights"
    path += steps_of(engine, 2, 4)
    averaged = engine.export_weights("averaged")
    for key in start:
        swa = (np.float64(path[3][key]) + path[5][key]) / 2
        ema = ema_of([weights[key] for weights in path], 0.5)
        expected = 0.25 * swa + 0.75 * ema if ema_decay else swa
        assert relative(averaged[key], expected) <= UPDATE_REL, key
        assert not np.array_equal(averaged[key], path[-1][key]), f"{key}: averaged and trained are the same"
    x = symbols(spec, 2, 9)
    engine.use_weights("averaged")
    nats = engine.score(x)
    assert nats == pytest.approx(create_scorer("numpy", spec, averaged).score(x), abs=1e-4)
    engine.use_weights("trained")
    assert np.abs(engine.score(x) - nats).max() > 1e-3


@pytest.mark.parametrize("other", list(ENGINES))
@every_engine
def test_averages_and_second_moments_pass_through_a_checkpoint(name: str, other: str):
    spec = one_layer(*SWA, "optimizer.normuon=true", "optimizer.muon_row_normalise=true")
    source = started(name, spec)
    steps_of(source, 0, 5)
    state = source.save_state()
    assert state["snapshot_count/embed.weight"] == 1.0
    assert state["second/layers.0.mlp.up_proj.weight"].shape[1] == 1
    target = create_engine(other, spec)
    target.load_state(state)
    taken_over = target.save_state()
    assert all((taken_over[key] == state[key]).all() for key in state)
    assert all(
        relative(value, source.export_weights("averaged")[key]) <= 1e-7
        for key, value in target.export_weights("averaged").items()
    )
    steps_of(source, 5, 1), steps_of(target, 5, 1)
    left, right = source.save_state(), target.save_state()
    for key in left:
        if name == other:
            assert (left[key] == right[key]).all(), key
        assert relative(right[key], left[key]) <= 10 * GRADIENT_REL, key


@pytest.mark.slow
def test_a_run_packs_and_loads_the_blend(tmp_path: Path):
    short = ("training.steps=6", "evaluation.val_symbols=1024", "evaluation.batch_symbols=16384")
    spec = one_layer(*short, "training.swa_every_steps=2", "training.swa_start_frac=0.3")
    result = train_run(spec, "mlx", RecordingObserver(), runs_dir=tmp_path, run_name="swa")
    assert result.finished is not None and result.finished.problems == []
    assert [check.name for check in result.finished.checks] == ["average"]
    averaged, trained = (load_trained(str(tmp_path / "swa"), kind) for kind in ("averaged", "trained"))
    packed = read_artifact(tmp_path / "swa" / "artifact.btw").weights
    scales = {key: float(np.abs(averaged.weights[key] - trained.weights[key]).max()) for key in packed}
    assert min(scales.values()) > 0
    # Control tensors are packed to 16 bits or more, so that they tell which of the two was packed.
    key = "layers.0.attn.q_gain"
    assert relative(packed[key], np.float64(averaged.weights[key])) < 1e-3
    assert np.abs(packed[key] - averaged.weights[key]).max() < np.abs(packed[key] - trained.weights[key]).max()


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.steps=60", "training.swa_every_steps=61"),
        ("training.steps=60", "training.swa_every_steps=50", "training.swa_start_frac=0.9"),
        ("training.steps=60", "training.swa_every_steps=1", "training.swa_start_frac=1.0"),
    ],
)
def test_snapshots_that_never_come_are_refused(overrides: tuple[str, ...]):
    with pytest.raises(SpecError, match=r"training\.swa_every_steps = "):
        one_layer(*overrides)


def test_snapshots_of_a_shortened_run():
    values = {"swa_every_steps": 50, "swa_start_frac": 0.8}
    scale_snapshots(values, 10 / 1000, 10)
    assert values == {"swa_every_steps": 1, "swa_start_frac": 0.0}
    off = {"swa_every_steps": 0, "swa_start_frac": 0.8}
    scale_snapshots(off, 0.01, 10)
    assert off == {"swa_every_steps": 0, "swa_start_frac": 0.8}
