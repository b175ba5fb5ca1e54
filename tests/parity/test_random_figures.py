"""Random valid specs: the exact figures, which preflight and a share of peak stand on, are those of the real thing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch.utils.flop_counter import FlopCounterMode

from cuda_train.engine import TrainingEngine
from shared.engine.activations import loss_of_shapes
from shared.engine.flops import scoring_flops, training_flops
from shared.engine.registry import ENGINES
from shared.engine.synthetic import comparison_weights, synthetic_engine
from shared.model import forward, random_weights, training_loss
from shared.model.stages import SYMBOL_WEIGHTS
from shared.ops import ShapeOps
from shared.optim import initial_state, state_bytes, state_shapes
from shared.preflight.memory import estimate_memory, gradient_bytes
from shared.runs.checkpoints import CheckpointInfo, CheckpointStore, checkpoint_bytes
from shared.spec import Spec, load_spec, spec_from_dict, spec_to_dict
from shared.spec.auxiliary import CodeEntropySpec
from shared.tolerances import KEPT_BYTES_REL
from tests.implementations import examples
from tests.measured_memory import assert_as_estimated, torch_saved_bytes
from tests.parity.test_random_specs import ROWS, specs
from tests.unit.engine.test_flops import CountingOps

random_figures = settings(examples, suppress_health_check=list(HealthCheck))


@st.composite
def trained_specs(draw: st.DrawFn) -> Spec:
    """A random spec with random optimizer state and averages."""
    values = spec_to_dict(draw(specs()))
    values["optimizer"]["normuon"] = draw(st.booleans())
    values["training"]["ema_decay"] = draw(st.sampled_from([0.0, 0.9]))
    values["training"]["swa_every_steps"] = draw(st.integers(0, 1))
    values["training"]["swa_start_frac"] = 0.0
    return spec_from_dict(values)


@pytest.mark.slow
@random_figures
@given(spec=trained_specs())
def test_a_checkpoint_has_the_size_that_is_predicted(spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the engine saves, and the file that it becomes."""
    engine = TrainingEngine(spec)
    engine.initialise(random_weights(spec, 0))
    state = engine.save_state()
    assert {name: value.shape for name, value in state.items()} == state_shapes(spec)
    assert all(value.dtype == np.float32 for value in state.values())
    assert sum(value.nbytes for value in state.values()) == state_bytes(spec)
    path = CheckpointStore(tmp_path_factory.mktemp("run"), 1).save(info(spec), state)
    assert path.stat().st_size == checkpoint_bytes(spec)
    assert sum(value.nbytes for value in engine.params.values() if value.requires_grad) == gradient_bytes(spec)
    assert estimate_memory(spec, "torch", 1).state_bytes == state_bytes(spec) + gradient_bytes(spec)


@pytest.mark.parametrize("preset", ["tiny", "hybrid-mini", "itchy-mini", "pr1431-mini", "pr705-mini", "pr1855-mini"])
def test_a_checkpoint_of_a_preset_has_the_size_that_is_predicted(preset: str, tmp_path: Path) -> None:
    spec = load_spec(preset)
    weights = random_weights(spec, 0)
    state = {f"weight/{name}": value for name, value in weights.items()} | initial_state(spec, weights)
    path = CheckpointStore(tmp_path, 1).save(info(spec), state)
    assert path.stat().st_size == checkpoint_bytes(spec)
    assert load_file(path).keys() == state_shapes(spec).keys()
    assert json.loads(path.with_suffix(".json").read_text())["state_bytes"] == checkpoint_bytes(spec)


def test_the_state_of_a_preset_with_snapshots_and_row_moments() -> None:
    """Weights, momentum, average and mean of snapshots: the sum that a formula without the last once missed."""
    assert state_bytes(load_spec("pr1431")) == 461_836_264


def info(spec: Spec) -> CheckpointInfo:
    return CheckpointInfo(1, 0.0, "torch", "", spec_to_dict(spec), {})


@random_figures
@given(spec=specs())
def test_operations_are_those_of_the_oracle(spec: Spec) -> None:
    """Every product of a training loss, counted where it is made; and of a score."""
    ops, shapes = CountingOps(), ShapeOps()
    weights = {name: ops.asarray(value) for name, value in comparison_weights(spec, 0).items()}
    weights[SYMBOL_WEIGHTS] = np.ones((spec.vocabulary.size, 1))
    x = ops.asarray(np.zeros((ROWS, spec.model.seq_len), np.int32))
    training_loss(ops, spec, weights, x)
    params = {name: shapes.array(weight.shape) for name, weight in weights.items()}
    training_loss(shapes, spec, params, shapes.array(x.shape))
    assert (shapes.forward["matrices"], shapes.forward["activations"]) == (ops.matrices, ops.attended)
    ops.matrices = ops.attended = 0
    forward(ops, spec, weights, x)
    assert scoring_flops(spec, ROWS) * x.size == pytest.approx(ops.matrices + ops.attended, rel=1e-12)


@pytest.mark.slow
@random_figures
@given(spec=specs())
def test_bytes_that_gradients_read_are_those_that_torch_saves(spec: Spec) -> None:
    ops, loss, beside = loss_of_shapes(spec, ROWS)
    assert ops.kept_bytes(loss, beside) == pytest.approx(torch_saved_bytes(spec, ROWS), rel=KEPT_BYTES_REL)


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
@settings(random_figures, max_examples=15)
@given(spec=specs(), rows=st.sampled_from([4, 16]))
def test_the_peak_of_a_pass_is_as_estimated(engine: str, spec: Spec, rows: int) -> None:
    assert_as_estimated(spec, engine, rows)


@pytest.mark.slow
@settings(random_figures, max_examples=8)
@given(spec=specs())
def test_operations_by_weights_are_those_of_torch(spec: Spec) -> None:
    """Forward and backward, as torch counts the calls of its matrix product; with what is frozen. Softened codes are
    multiplied by the coder's contexts, but not by weights."""
    loss = spec.training.loss.model_copy(update={"code_entropy": CodeEntropySpec()})
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"loss": loss})})
    engine = synthetic_engine("torch", spec)
    engine.initialise(random_weights(spec, 0))
    x = np.zeros((spec.training.batch_symbols // spec.model.seq_len, spec.model.seq_len), np.int32)
    with FlopCounterMode(display=False) as counter:
        engine.gradients(x)
    counts = counter.get_flop_counts()["Global"]
    by_weights = sum(count for product, count in counts.items() if product in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert training_flops(spec).matrices * x.size == pytest.approx(by_weights, rel=1e-12)
