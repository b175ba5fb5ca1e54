"""The MLX engine on joined arrays: the same update, few kernels, and no wait inside a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import mlx_train.engine
from mlx_train import device
from mlx_train.joints import Joints
from mlx_train.ops import PLAIN_VARIABLE
from shared.engine.device_facts import DeviceFacts
from shared.engine.microbatch import with_micro_batches
from shared.engine.synthetic import synthetic_engine
from shared.model import random_weights
from shared.model.stages import StepNumbers, warm_up_numbers
from shared.optim import HYPERPARAMETERS, initial_state, optimizer_step, squared_norms, step_hyperparameters
from shared.spec import Spec, load_spec
from tests.mlx_launches import counted
from tests.techniques import TECHNIQUES, tiny

import mlx.core as mx  # isort: skip

OPTIONS = [
    ("optimizer.form=sgd",),
    ("training.ema_decay=0.9", "training.swa_every_steps=2", "training.swa_start_frac=0.0"),
    ("optimizer.normuon=true", "optimizer.muon_row_normalise=true", "optimizer.grad_clip_norm=0.5"),
    ("model.lora.rank=2", "model.lora.targets=['q', 'mlp']", "training.freeze=base"),
]
# Kernels of a step of `smoke` with an array for each parameter and two micro-batches of 2,048 symbols.
BEFORE = 2455
MOST_FRAC = 2 / 3


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_joined_or_apart_the_update_is_the_same_to_the_bit(
    options: tuple[str, ...], parts: int, monkeypatch: pytest.MonkeyPatch
):
    # A sum over two axes at once, as on a GPU, depends on the shape around them.
    monkeypatch.delenv(PLAIN_VARIABLE, raising=False)
    spec = tiny(*options)
    engine: Any = synthetic_engine("mlx", spec)
    ops, joints = engine.ops, Joints(spec, parts)
    weights = random_weights(spec, 1)
    apart = {name: ops.asarray(weights[name]) for name in joints.names}
    slopes = {name: ops.asarray(random_weights(spec, 2)[name]) for name in joints.names}
    state = {name: ops.asarray(value) for name, value in initial_state(spec, weights).items()}
    together, joined_state, grads = joints.join(apart), joints.join_state(state), joints.join(slopes)
    norms = squared_norms(ops, slopes)
    assert mx.array_equal(joints.squared_norms(ops, grads), norms)
    for step in range(3):
        numbers = step_hyperparameters(spec, step, step / 60).optimizer
        hyper = {name: mx.array(value) for name, value in numbers.items()}
        norm = mx.sqrt(mx.sum(norms))
        apart, state = optimizer_step(ops, spec, apart, slopes, state, norm, hyper)
        for part in range(parts):
            some = [joints.part(part, values) for values in (together, grads, joined_state)]
            new, new_state = optimizer_step(ops, spec, *some, norm, hyper, groups=joints.groups)
            together |= new
            joined_state |= new_state
    found = joints.split(together) | joints.split_state(joined_state)
    expected = {name: apart[name] for name in joints.names} | state
    assert list(found) == [*joints.names, *joints.state_names] and found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape and mx.array_equal(found[name], value), name


@pytest.mark.parametrize("name", TECHNIQUES)
def test_everything_that_is_trained_has_a_place_in_one_joint(name: str):
    joints = Joints(tiny(*TECHNIQUES[name]), 2)
    members = [member for names in joints.members.values() for member in names]
    assert sorted(members) == sorted(joints.names)
    assert sorted(joint for part in joints.parts for joint in part) == sorted(joints.members)


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream and the operations of a GPU."""
    monkeypatch.setenv("BYTETWIN_MLX_PLAIN", "1")
    stream = mx.default_stream(mx.default_device())
    monkeypatch.setattr(device, "compute_streams", lambda: (stream,))


def step_of(spec: Spec) -> tuple[mlx_train.engine.TrainingEngine, np.ndarray, StepNumbers]:
    """A started engine, a batch and the numbers of a step."""
    engine: Any = synthetic_engine("mlx", spec)
    engine.initialise(random_weights(spec, 0))
    rows, seq_len = spec.training.batch_symbols // spec.model.seq_len, spec.model.seq_len
    x = np.random.default_rng(0).integers(0, spec.vocabulary.size, (rows, seq_len), np.int32)
    return engine, x, warm_up_numbers(spec, HYPERPARAMETERS)[-1]


def launches_of_a_step(spec: Spec) -> list[Counter[str]]:
    engine, x, numbers = step_of(spec)
    return counted(lambda: engine.train_step(x, numbers))


@pytest.mark.slow
@pytest.mark.usefixtures("like_a_gpu")
def test_a_step_of_smoke_is_a_third_fewer_kernels():
    # The number of kernels does not depend on the length of a window.
    short = ["model.seq_len=128", "training.batch_symbols=512", "evaluation.stride_symbols=64"]
    spec = load_spec("smoke", [*short, "evaluation.val_symbols=8192", "evaluation.batch_symbols=2048"])
    facts = DeviceFacts("gpu", ("a Mac",), 2**33, 2**33, "mlx")
    found = launches_of_a_step(with_micro_batches(spec, "mlx", facts))
    assert len(found) == 2, "one evaluation of the gradients, one of the update"
    assert sum(sum(counts.values()) for counts in found) <= MOST_FRAC * BEFORE


@pytest.mark.usefixtures("like_a_gpu")
def test_an_update_of_more_layers_is_not_more_kernels():
    specs = (tiny("training.compile=false", f"model.num_layers={layers}") for layers in (7, 3))
    (*_, deep), (*_, shallow) = map(launches_of_a_step, specs)
    assert deep == shallow


def test_nothing_in_a_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch):
    spec = tiny("training.compile=false")
    engine, x, numbers = step_of(spec)
    expected = [engine.train_step(x, numbers)() for _ in range(2)]
    engine.initialise(random_weights(spec, 0))
    with monkeypatch.context() as patched:
        for name in ("eval", "synchronize"):
            patched.setattr(mx, name, lambda *_: pytest.fail("waits for the device"))
        patched.setattr(engine.ops, "to_numpy", lambda _: pytest.fail("reads from the device"))
        results = [engine.train_step(x, numbers) for _ in range(2)]
    assert [result() for result in results] == expected
