"""Random optimizer, schedule and averaging fields: three implementations of a few steps agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.optim import averaged_weights, initial_state, step_hyperparameters
from shared.spec import Spec, spec_from_dict
from shared.tolerances import PARAMETERS_REL
from tests.implementations import ENGINES, OPS, examples
from tests.optimizers import Tensors, on_device, random_tensors, step_on

STEPS = 3


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """A small model with everything drawn that decides what a step does with a gradient."""
    form = draw(st.sampled_from(["muon", "muon", "adam", "sgd"]))
    decays = {kind: 0.0 if form == "sgd" else draw(st.sampled_from([0.0, 0.1, 1.2])) for kind in ("muon", "adam")}
    optimizer: dict[str, Any] = {
        "form": form,
        "muon_row_normalise": draw(st.booleans()),
        "normuon": draw(st.booleans()),
        "normuon_beta2": draw(st.sampled_from([0.0, 0.9, 0.95])),
        "ns_coefficients": draw(st.sampled_from(["quintic", "polar_express"])),
        "ns_steps": draw(st.integers(1, 7)),
        "muon_momentum": draw(st.sampled_from([0.0, 0.9, 0.99])),
        "muon_momentum_warmup_steps": draw(st.integers(0, 3)),
        "grad_clip_norm": draw(st.sampled_from([0.0, 0.3])),
        "adam_beta2": draw(st.sampled_from([0.95, 0.99])),
    }
    for kind, decay in decays.items():
        optimizer[f"{kind}_weight_decay"] = decay
        optimizer[f"{kind}_cautious_decay"] = decay > 0 and draw(st.booleans())
    return spec_from_dict(
        {
            "name": "random",
            "model": {
                "num_layers": 1,
                "model_dim": 16,
                "num_heads": 2,
                "num_kv_heads": draw(st.integers(1, 2)),
                "mlp_dim": draw(st.integers(8, 40)),
                "seq_len": 16,
                "patch_size": 4,
                "decoder": {"kind": "linear"},
            },
            "optimizer": optimizer,
            "schedule": {
                "warmup_frac": draw(st.sampled_from([0.0, 0.5])),
                "warmdown_frac": draw(st.sampled_from([0.0, 1.0])),
                "decay_end_frac": draw(st.sampled_from([1.0, 0.5, 0.0])),
                "decay_taper_start_frac": draw(st.sampled_from([0.0, 0.5])),
                "decay_follows_lr": draw(st.booleans()),
            },
            "training": {
                "steps": STEPS,
                "batch_symbols": 16,
                "ema_decay": draw(st.sampled_from([0.0, 0.9])),
                "swa_every_steps": draw(st.integers(0, 2)),
                "swa_start_frac": draw(st.sampled_from([0.0, 0.3])),
                "swa_share": draw(st.sampled_from([0.25, 0.5])),
            },
        }
    )


def trained(name: str, spec: Spec, seed: int) -> Tensors:
    """Parameters, state and averaged weights after STEPS steps with gradients of a fixed sequence."""
    params, ops = random_tensors(spec, seed), OPS[name]
    state = initial_state(spec, params)
    for step in range(STEPS):
        numbers = step_hyperparameters(spec, step, step / STEPS).optimizer
        params, state = step_on(name, spec, params, random_tensors(spec, seed + 1 + step), state, numbers)
    averaged = averaged_weights(ops, spec.training, on_device(ops, params), on_device(ops, state))
    found = {**params, **state, **{f"averaged {key}": ops.to_numpy(value) for key, value in averaged.items()}}
    return {key: np.float64(value) for key, value in found.items()}


@pytest.mark.slow
@settings(examples, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs(), seed=st.integers(0, 2**16))
def test_random_optimizers_agree(spec: Spec, seed: int):
    results = {name: trained(name, spec, seed) for name in OPS}
    expected = results["numpy"]
    for name in ENGINES:
        assert results[name].keys() == expected.keys()
        for key, value in expected.items():
            difference = float(np.linalg.norm(results[name][key] - value))
            assert difference <= PARAMETERS_REL * max(float(np.linalg.norm(value)), 1e-6), (name, key, difference)
