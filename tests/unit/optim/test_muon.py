"""Muon, MuonEq-R, NorMuon, Polar Express and cautious decay: plain float64 formulas, and properties."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cuda_train.distributed import shared_orthogonalise
from shared.optim import orthogonalise
from shared.optim.muon import muon_state_shapes, muon_update
from shared.optim.newton_schulz import NEWTON_SCHULZ
from shared.optim.row_norms import normalise_neurons, normalise_rows
from shared.spec import OptimizerSpec
from shared.tolerances import BF16_OPERATION_REL, ORACLE_OPERATION_REL, ORTHOGONAL_BAND, POLAR_EXPRESS_BAND, UPDATE_REL
from tests.implementations import OPS, every_implementation, examples, normal, seeds
from tests.optimizers import Tensors, number, on_device, on_host, plain_orthogonal, relative

SHAPES = {"wide": (6, 10), "tall": (10, 6), "square": (8, 8), "same": (6, 10)}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"muon_row_normalise": True},
    {"normuon": True, "normuon_beta2": 0.8},
    {"ns_coefficients": "polar_express"},
    {"muon_cautious_decay": True},
    {"muon_row_normalise": True, "normuon": True, "ns_coefficients": "polar_express", "muon_cautious_decay": True},
)


def limit(name: str) -> float:
    return 100 * ORACLE_OPERATION_REL if name == "numpy" else UPDATE_REL


def plain_muon(
    optimizer: OptimizerSpec, param: np.ndarray, grad: np.ndarray, state: Tensors, lr: float, momentum: float
) -> tuple[np.ndarray, Tensors]:
    rows, columns = param.shape
    buffer = momentum * state["momentum"] + grad
    update = grad + momentum * buffer
    new = {"momentum": buffer}
    if optimizer.muon_row_normalise:
        update = np.array([row / max(np.linalg.norm(row), 1e-7) for row in update])
    step = plain_orthogonal(update, optimizer)
    if optimizer.normuon:
        axis = 1 if rows >= columns else 0
        second = optimizer.normuon_beta2 * state["second"]
        second = second + (1 - optimizer.normuon_beta2) * np.mean(step**2, axis=axis, keepdims=True)
        scaled = step / np.sqrt(np.clip(second, 1e-10, None))
        step, new["second"] = scaled * np.linalg.norm(step) / np.linalg.norm(scaled), second
    shrink = np.full(param.shape, lr * optimizer.muon_weight_decay)
    if optimizer.muon_cautious_decay:
        shrink[np.sign(step) * np.sign(param) < 0] = 0.0
    return param - shrink * param - lr * math.sqrt(max(1, rows / columns)) * step, new


@every_implementation
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "+".join(variant) or "plain")
def test_a_variant_of_muon_matches_its_plain_formula(name: str, variant: dict[str, Any]):
    optimizer = OptimizerSpec(muon_weight_decay=0.1, ns_steps=4, **variant)
    ops, rng = OPS[name], np.random.default_rng(2)
    params: Tensors = {key: rng.standard_normal(shape) for key, shape in SHAPES.items()}
    state: Tensors = {
        f"{kind}/{key}": np.zeros(size)
        for key, shape in SHAPES.items()
        for kind, size in muon_state_shapes(optimizer, shape).items()
    }
    for _ in range(3):
        grads = {key: rng.standard_normal(shape) for key, shape in SHAPES.items()}
        device = [on_device(ops, values) for values in (params, grads, state)]
        result = muon_update(ops, optimizer, *device, number(ops, 0.02), number(ops, 0.9))
        new_params, new_state = (on_host(ops, values) for values in result)
        assert new_state.keys() == state.keys()
        for key in SHAPES:
            own = {kind.split("/")[0]: value for kind, value in state.items() if kind.split("/")[1] == key}
            expected, expected_state = plain_muon(optimizer, params[key], grads[key], own, 0.02, 0.9)
            assert relative(new_params[key], expected) <= limit(name), key
            for kind, value in expected_state.items():
                assert relative(new_state[f"{kind}/{key}"], value) <= limit(name), (kind, key)
        params = {key: np.float64(value) for key, value in new_params.items()}
        state = {key: np.float64(value) for key, value in new_state.items()}


@every_implementation
@examples
@given(
    count=st.integers(1, 3),
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    seed=seeds,
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    steps=st.integers(1, 8),
    coefficients=st.sampled_from(list(NEWTON_SCHULZ)),
)
def test_an_iteration_is_a_polynomial_of_the_singular_values(
    name: str, count: int, rows: int, columns: int, seed: int, scale: float, steps: int, coefficients: Any
):
    update = np.float32(scale) * normal(seed, count, rows, columns)
    optimizer, ops = OptimizerSpec(ns_coefficients=coefficients, ns_steps=steps), OPS[name]
    actual = ops.to_numpy(orthogonalise(ops, ops.asarray(update), steps, "float32", coefficients))
    for index in range(count):
        assert relative(actual[index], plain_orthogonal(update[index], optimizer)) <= limit(name)


@every_implementation
@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (192, 64)])
def test_muon_updates_are_nearly_orthogonal(name: str, shape: tuple[int, int]):
    ops = OPS[name]
    update = np.random.default_rng(0).standard_normal(shape)
    # A spectrum within two decades: five iterations lift smaller values only part of the way.
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    update = (u * np.clip(s, 0.02 * s.max(), None)) @ vt
    values = np.linalg.svd(ops.to_numpy(orthogonalise(ops, ops.asarray(update[None]), 5, "float32"))[0])[1]
    assert ORTHOGONAL_BAND[0] < values.min() and values.max() < ORTHOGONAL_BAND[1]


@every_implementation
def test_a_zero_update_stays_zero(name: str):
    ops = OPS[name]
    assert not ops.to_numpy(orthogonalise(ops, ops.asarray(np.zeros((2, 3, 5))), 5, "float32")).any()


@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_newton_schulz_in_bfloat16_is_near_and_not_the_same(name: str):
    ops = OPS[name]
    update = ops.asarray(np.random.default_rng(1).standard_normal((1, 48, 96)))
    wide, narrow = (ops.to_numpy(orthogonalise(ops, update, 5, dtype)) for dtype in ("float32", "bfloat16"))
    assert narrow.dtype == np.float32
    # One such step is known to be 4 % off (docs/techniques.md 9.2), five roundings of bfloat16.
    assert 1e-3 < relative(narrow, wide) < 5 * BF16_OPERATION_REL


@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (192, 64)])
def test_polar_express_ends_nearer_to_orthogonal_than_the_quintic(shape: tuple[int, int]):
    ops, update = OPS["numpy"], np.random.default_rng(0).standard_normal((1, *shape))
    spread = {}
    for coefficients in ("quintic", "polar_express"):
        values = np.linalg.svd(orthogonalise(ops, update, 5, "float32", coefficients)[0])[1]
        spread[coefficients] = float(np.abs(np.log(values[values > np.median(values) / 10])).max())
        if coefficients == "polar_express" and shape[0] != shape[1]:
            assert POLAR_EXPRESS_BAND[0] < values.min() and values.max() < POLAR_EXPRESS_BAND[1]
    assert spread["polar_express"] < spread["quintic"]


@pytest.mark.parametrize("rank_one", [True, False])
def test_polar_express_does_not_diverge_at_either_end_of_its_range(rank_one: bool):
    """All of the norm in one singular value, or spread evenly over many."""
    ops = OPS["numpy"]
    update = np.outer(np.arange(1.0, 9.0), np.ones(12)) if rank_one else np.eye(64)
    values = np.linalg.svd(orthogonalise(ops, update[None], 5, "float32", "polar_express")[0])[1]
    top = values[:1] if rank_one else values
    assert POLAR_EXPRESS_BAND[0] < top.min() and top.max() < POLAR_EXPRESS_BAND[1]


@every_implementation
@examples
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=seeds)
def test_neurons_get_even_shares_and_the_norm_stays(name: str, rows: int, columns: int, seed: int):
    """After one step every row (or column) has the same norm, and the matrix the norm it had."""
    ops, rng = OPS[name], np.random.default_rng(seed)
    orthogonal = rng.standard_normal((2, rows, columns)) * rng.uniform(0.1, 10.0, (2, rows, 1))
    along = -1 if rows >= columns else -2
    zeros = np.zeros_like(orthogonal.sum(axis=along, keepdims=True))
    scaled, _ = normalise_neurons(ops, ops.asarray(orthogonal), ops.asarray(zeros), 0.9)
    actual = np.float64(ops.to_numpy(scaled))
    assert np.linalg.norm(actual, axis=(1, 2)) == pytest.approx(np.linalg.norm(orthogonal, axis=(1, 2)), rel=1e-5)
    norms = np.linalg.norm(actual, axis=along)
    assert norms == pytest.approx(norms.mean(axis=1, keepdims=True) * np.ones_like(norms), rel=1e-4)


@every_implementation
def test_rows_weigh_the_same_and_empty_ones_stay_empty(name: str):
    ops = OPS[name]
    update = np.random.default_rng(3).standard_normal((2, 5, 7)) * np.array([1e-3, 1.0, 1e3, 0.0, 1e-12])[:, None]
    norms = np.linalg.norm(ops.to_numpy(normalise_rows(ops, ops.asarray(update))), axis=-1)
    assert norms[:, :3] == pytest.approx(np.ones((2, 3)), rel=1e-5)
    assert (norms[:, 3] == 0).all() and (norms[:, 4] < 1e-3).all()


@every_implementation
def test_a_matrix_without_a_gradient_does_not_move(name: str):
    ops = OPS[name]
    optimizer = OptimizerSpec(muon_row_normalise=True, normuon=True, ns_coefficients="polar_express")
    param = np.random.default_rng(4).standard_normal((6, 4))
    zeros = {"momentum/w": ops.asarray(np.zeros((6, 4))), "second/w": ops.asarray(np.zeros((6, 1)))}
    device = {"w": ops.asarray(param)}, {"w": ops.asarray(np.zeros((6, 4)))}, zeros
    moved, state = muon_update(ops, optimizer, *device, number(ops, 0.1), number(ops, 0.9))
    assert (ops.to_numpy(moved["w"]) == ops.to_numpy(ops.asarray(param))).all()
    assert not ops.to_numpy(state["second/w"]).any()


@every_implementation
def test_unit_step(name: str):
    ops = OPS[name]
    x = ops.asarray(np.array([[-2.0, -1e-30, 0.0], [1e-30, 3.0, -0.0]]))
    assert (ops.to_numpy(ops.unit_step(x)) == np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])).all()
    assert ops.unit_step(x).dtype == x.dtype


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "+".join(variant) or "plain")
@every_implementation
def test_a_variant_solves_a_least_squares_problem(name: str, variant: dict[str, Any]):
    """|W A - B|^2 for a W that exists; the learning rate falls to zero over 120 steps."""
    ops, rng = OPS[name], np.random.default_rng(7)
    optimizer = OptimizerSpec(muon_weight_decay=1e-3, **variant)
    a, target = rng.standard_normal((12, 40)), rng.standard_normal((8, 12))
    shapes = muon_state_shapes(optimizer, (8, 12))
    state = {f"{kind}/w": ops.asarray(np.zeros(shape)) for kind, shape in shapes.items()}
    weight, losses = np.zeros((8, 12)), []
    for step in range(120):
        residual = (weight - target) @ a
        losses.append(float((residual**2).mean()))
        grads = {"w": ops.asarray(2 * residual @ a.T / residual.size)}
        lr = number(ops, 0.2 * (1 - step / 120))
        params, state = muon_update(ops, optimizer, {"w": ops.asarray(weight)}, grads, state, lr, number(ops, 0.9))
        weight = np.float64(ops.to_numpy(params["w"]))
    assert losses[-1] < 2e-3 * losses[0]


def test_ranks_share_out_the_chosen_iteration(tmp_path: Path):
    """A group of one process: the stack goes through the same padding, slicing and gathering as with many."""
    ops, update = OPS["torch"], np.random.default_rng(8).standard_normal((3, 5, 7))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        for coefficients in NEWTON_SCHULZ:
            arguments = (ops, ops.asarray(update), 4, "float32", coefficients)
            assert torch.equal(shared_orthogonalise(*arguments), orthogonalise(*arguments))
    finally:
        torch.distributed.destroy_process_group()
