"""Quantisation-aware training: what it does to the weights, when, and that it acts in compiled functions."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from shared.artifact.quantise import storage_of
from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.errors import SpecError
from shared.model import initial_weights, parameter_manifest, random_weights
from shared.model.qat import quantised_matrices, training_weights
from shared.model.stages import QAT, QAT_STEP, StepNumbers, run_numbers, warm_up_numbers
from shared.optim import optimizer_step, step_hyperparameters
from shared.parity.gradient_checks import oracle_loss
from shared.parity.result import ParityRow
from shared.parity.training_checks import rounds_in_training, step_by_step_row
from shared.scoring.qat_check import check_qat_acts, check_qat_codes
from shared.scoring.random_bytes import random_bytes_spec
from shared.spec import ArtifactSpec, Spec, with_overrides
from shared.spec.reduced import reduced_spec
from shared.tolerances import LOGITS_ABS, PARAMETERS_REL
from tests.implementations import OPS, every_implementation, normal
from tests.museum.dead_switch import Switch, flagged_loss, without_qat
from tests.techniques import assert_gradients_agree, every_engine, started, symbols, tiny

every_form = pytest.mark.parametrize("form", ["straight_through", "noise"])
# Of what is compiled: MLX compiles the noise of each matrix by itself, a second for each, and torch traces each layer.
SMALL = ("model.num_layers=1", "model.decoder.kind=linear")


def qat(form: str, *overrides: str, compiled: bool = False) -> Spec:
    return tiny(f"training.qat.form={form}", *overrides, compiled=compiled)


@every_implementation
def test_noise_is_the_same_everywhere_and_uniform(name: str):
    ops, rows = OPS[name], normal(3, 64, 100)
    noise = {step: _noise(name, rows, step, salt=77) for step in (0, 1, 16_000_000)}
    for step, values in noise.items():
        np.testing.assert_allclose(values, _noise("numpy", rows, step, salt=77), rtol=0, atol=1e-6)
        uniform = values / np.abs(rows).max(axis=1, keepdims=True) + 0.5
        assert uniform.min() >= 0.0 and uniform.max() <= 1.0
        # Of 6400 values: means to 0.0036, spreads of 1/12 to 0.001, neighbours without correlation to 0.0125.
        assert abs(uniform.mean() - 0.5) < 0.02 and abs(uniform.var() - 1 / 12) < 0.005
        assert abs(np.corrcoef(uniform[:, :-1].ravel(), uniform[:, 1:].ravel())[0, 1]) < 0.06
        assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(noise[0].ravel(), _noise(name, rows, 0, salt=78).ravel())[0, 1]) < 0.06
    assert ops.name == name


def _noise(name: str, rows: np.ndarray, step: int, salt: int) -> np.ndarray:
    ops = OPS[name]
    return ops.to_numpy(ops.row_noise(ops.asarray(rows), ops.asarray(np.array(step, np.float32)), salt))


def _changed(spec: Spec, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights at which a spec with quantisation-aware training takes its gradients, float64."""
    ops = OPS["numpy"]
    params = {name: ops.asarray(value) for name, value in weights.items()}
    return training_weights(ops, spec, params, quantised_matrices(spec), symbols(spec))


@every_form
def test_gradients_are_those_at_the_changed_weights(form: str):
    """Straight through: the gradient of the plain loss at the rounded or disturbed weights."""
    spec = qat(form, *(["training.qat.bits=4"] if form == "noise" else []))
    weights, x, gradients = random_weights(spec, 3), symbols(spec), {}
    changed = {name: value.astype(np.float32) for name, value in _changed(spec, weights).items()}
    for name in ENGINES:
        loss, gradients[name] = started(name, spec).gradients(x)
        expected, gradients[f"{name}, plain"] = started(name, without_qat(spec), changed).gradients(x)
        assert loss == pytest.approx(expected, abs=LOGITS_ABS)
        assert loss == pytest.approx(oracle_loss(spec, weights, x), abs=LOGITS_ABS)
    assert_gradients_agree(spec, x, gradients)


@every_form
def test_only_matrices_change(form: str):
    spec = qat(form)
    weights = random_weights(spec, 3)
    changed = _changed(spec, weights)
    moved = {name for name in weights if not np.array_equal(changed[name], weights[name])}
    assert moved == {each.name for each in parameter_manifest(spec) if each.quantisation == "matrix"}
    assert moved == set(quantised_matrices(spec)) and quantised_matrices(without_qat(spec)) == {}


@pytest.mark.parametrize(
    "changed",
    [
        ["artifact.matrix.method=sd_clip", "artifact.matrix.rounding=gptq"],
        ["artifact.matrix.method=ternary", "artifact.matrix.group=48", "artifact.matrix.lqer_rank=2"],
        ["artifact.matrix.method=uniform", "artifact.matrix.step=0.3", "artifact.matrix.rounding=gptq"],
        ["artifact.matrix.bits=5"],
    ],
)
@every_engine
def test_training_reads_the_nearest_codes_of_whatever_grid_the_artifact_has(name: str, changed: list[str]):
    spec = with_tensor_rule(qat("straight_through", *changed), pattern="layers.?.mlp.*", bits=4)
    weights = random_weights(spec, 3)
    seen = _changed(spec, weights)
    for parameter in parameter_manifest(spec):
        grid = storage_of(parameter, spec.artifact).grid
        stored = grid.decode(parameter.shape, grid.encode(weights[parameter.name]))
        is_read = parameter.name in quantised_matrices(spec)
        np.testing.assert_array_equal(
            seen[parameter.name].astype(np.float32), stored if is_read else weights[parameter.name]
        )
    assert storage_of(next(p for p in parameter_manifest(spec) if ".mlp." in p.name), spec.artifact).bits == 4
    check = check_qat_codes(started(name, spec), weights, symbols(spec))
    assert check.passed and check.measured < 1e-2, check.detail


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch traces a function and its gradient and runs what it has traced: whether a switch is in it is decided there,
    and the C++ of each kernel, which takes a second, would only compute the same."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_engine
def test_other_grids_act_in_a_compiled_function(name: str, traced: None):
    spec = qat("straight_through", "artifact.matrix.method=ternary", *SMALL, compiled=True)
    spec = with_tensor_rule(spec, pattern="*.mlp.up*", bits=5, method="sd_clip")
    engine = started(name, spec)
    assert check_qat_acts(engine, symbols(spec)).passed
    assert check_qat_codes(engine, random_weights(spec, 3), symbols(spec)).passed


def with_tensor_rule(spec: Spec, **rule: object) -> Spec:
    values = spec.artifact.model_dump()
    return spec.model_copy(update={"artifact": ArtifactSpec.model_validate({**values, "tensors": [rule]})})


def test_when_it_acts():
    spec = qat("noise", "training.qat.start_frac=0.5", "training.qat.start_step=40")
    acting = [run_numbers(spec, step, step / 60)[QAT] for step in (0, 29, 30, 39, 40, 59)]
    assert acting == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert run_numbers(spec, 41, 0.7) == {QAT: 1.0, QAT_STEP: 41.0}
    assert warm_up_numbers(spec, ("a",)) == [StepNumbers(0, {QAT: 1.0, QAT_STEP: 1.0}, {"a": 1.0})]
    assert run_numbers(qat("off"), 41, 0.7) == {}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [6, 8])
def test_steps_from_the_same_state_agree_to_the_ordinary_tolerance(bits: int, monkeypatch: pytest.MonkeyPatch):
    """Whole runs part where one code falls otherwise (`rounds_in_training`); a step from the same codes cannot."""
    spec, _ = reduced_spec(qat("straight_through", f"artifact.matrix.bits={bits}", "training.steps=4"), 4)
    assert [rounds_in_training(each) for each in (spec, without_qat(spec), qat("noise"))] == [True, False, False]
    batches = [symbols(spec, seed=step)[:3] for step in range(4)]

    def row() -> ParityRow:
        pair = (create_engine("mlx", spec), create_engine("torch", spec))
        return step_by_step_row(pair, initial_weights(spec), batches)

    honest = row()
    assert honest.passed and honest.tolerance == PARAMETERS_REL and honest.check == "parameters step by step"

    def slower(ops, spec, params, grads, state, norm, hyper, *rest):
        return optimizer_step(ops, spec, params, grads, state, norm, {**hyper, "momentum": 0.5}, *rest)

    monkeypatch.setattr("cuda_train.engine.optimizer_step", slower)
    planted = row()
    assert not planted.passed and "(Muon) in step" in planted.worst


@every_form
@every_engine
def test_before_its_start_it_changes_nothing(name: str, form: str):
    spec = qat(form, "training.qat.start_frac=0.5")
    engine, plain = started(name, spec), started(name, without_qat(spec))
    early = step_hyperparameters(spec, 3, 0.4)
    assert engine.gradients(symbols(spec), early)[0] == plain.gradients(symbols(spec))[0]
    assert engine.gradients(symbols(spec), step_hyperparameters(spec, 40, 0.6))[0] != plain.gradients(symbols(spec))[0]
    # Scores never see it.
    np.testing.assert_array_equal(engine.score(symbols(spec)), plain.score(symbols(spec)))


@every_engine
def test_noise_is_another_in_every_step_and_the_same_when_repeated(name: str):
    spec = qat("noise")
    engine = started(name, spec)
    losses = [engine.gradients(symbols(spec), step_hyperparameters(spec, step, 0.5))[0] for step in (5, 6, 7, 5)]
    assert len(set(losses)) == 3 and losses[0] == losses[3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_form
@every_engine
def test_switching_it_on_acts_in_a_compiled_function(name: str, form: str, traced: None):
    engine = started(name, qat(form, *SMALL, compiled=True))
    assert check_qat_acts(engine, symbols(engine.spec)).passed


@every_form
def test_a_run_of_no_step_at_all_is_judged(form: str):
    """Behind the zeros that many matrices begin with, rounding changes no loss."""
    spec = qat(form, "artifact.matrix.bits=8", "model.decoder.kind=linear")
    engine, x = started("mlx", spec), symbols(spec)
    engine.initialise(initial_weights(spec))
    losses = [
        engine.gradients(x, step_hyperparameters(spec, 0, 0.0).with_run({QAT: acting}))[0] for acting in (0.0, 1.0)
    ]
    check = check_qat_acts(engine, x)
    assert losses[0] == losses[1] and check.passed, check.detail


@pytest.mark.parametrize(("compiled", "acts"), [(True, False), (False, True)])
def test_a_flag_in_a_class_never_acts_once_compiled(monkeypatch: pytest.MonkeyPatch, compiled: bool, acts: bool):
    """The museum's exhibit: without compilation it works, so nobody noticed."""
    import mlx_train.engine as mlx_engine

    monkeypatch.setattr(mlx_engine, "training_loss", flagged_loss)
    engine, x = started("mlx", qat("straight_through", compiled=compiled)), symbols(qat("off"))
    # A process's first compiled function is traced once more at its second call.
    before = [engine.gradients(x)[0] for _ in range(2)][-1]
    monkeypatch.setattr(Switch, "is_on", True)
    assert (engine.gradients(x)[0] != before) == acts
    # Switched as the engine's own numbers say, the check finds it dead either way.
    assert not check_qat_acts(engine, x).passed


def test_short_runs_still_reach_it():
    spec = qat("straight_through", "training.steps=1000", "training.qat.start_frac=0.9", "training.qat.start_step=900")
    small, _ = reduced_spec(spec, 3)
    assert small.training.qat.start_frac == 0.0 and small.training.qat.start_step == 2
    assert random_bytes_spec(spec, 200).training.qat.start_frac == 0.9
    assert reduced_spec(spec, 1)[0].training.qat.is_acting(0, 0.0)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["training.qat.bits=3"], "training.qat.bits"),
        (["training.qat.bits=9"], "training.qat.bits"),
        (["training.qat.bits=5"], r"training.qat.bits = 5: must be artifact.matrix.bits \(6\)"),
        (["training.qat.bits=6", "artifact.matrix.bits=8"], r"training.qat.bits = 6: must be artifact.matrix.bits \(8"),
        (["artifact.matrix.bits=3"], "artifact.matrix.bits = 3"),
        (
            ["artifact.matrix.method=clip_search"],
            "artifact.matrix.method = 'clip_search': must be row_max, sd_clip, uniform or ternary with training.qat",
        ),
        (
            ["artifact.matrix.method=sd_clip", "artifact.matrix.hessian_clip=0.175"],
            "artifact.matrix.hessian_clip = 0.175: must be 0 with training.qat.form 'straight_through'",
        ),
        (
            ["artifact.matrix.method=clip_search", "training.loss.code_entropy.weight=0.1", "training.qat.form=off"],
            "artifact.matrix.method = 'clip_search': must be .* with training.loss.code_entropy",
        ),
        (["training.qat.start_step=60", "training.steps=60"], "training.qat.start_step"),
        (["training.qat.start_frac=0.99", "training.steps=60"], "training.qat.start_frac"),
        (
            ["training.qat.start_step=3", "schedule.driver=time", "training.time_limit_s=9.0"],
            "training.qat.start_step",
        ),
    ],
)
def test_what_is_refused(overrides: list[str], field: str):
    with pytest.raises(SpecError, match=field):
        qat("straight_through", *overrides)


def test_the_width_is_the_artifacts():
    for form in ("off", "straight_through", "noise"):
        assert qat(form).training.qat.bits == 6
        assert qat(form, "artifact.matrix.bits=8").training.qat.bits == 8
    assert qat("noise", "training.qat.bits=5").training.qat.bits == 5
    # Packing at another width than was trained for stays possible, and by any method.
    assert with_overrides(qat("straight_through"), ["artifact.matrix.method=clip_search"])
    assert with_overrides(qat("straight_through"), ["artifact.matrix.bits=8"]).training.qat.bits == 6
