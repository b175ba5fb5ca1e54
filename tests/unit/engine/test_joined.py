"""The optimizer on joined arrays against the optimizer on each parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cuda_train.joined import Joined
from cuda_train.ops import make_ops
from shared.model import parameter_counts, random_weights
from shared.optim import initial_state, optimizer_step, state_shapes, step_hyperparameters
from shared.spec import load_spec

OPTIONS = [
    (),
    ("training.ema_decay=0.9", "training.swa_every_steps=2", "training.swa_start_frac=0.0"),
    ("optimizer.normuon=true", "optimizer.muon_row_normalise=true"),
    tuple(
        f"optimizer.{name}"
        for name in (
            *("muon_weight_decay=0.1", "muon_cautious_decay=true"),
            *("adam_weight_decay=0.1", "adam_cautious_decay=true"),
        )
    ),
    ("model.lora.rank=2", "model.lora.targets=['q', 'mlp']"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_joined_or_apart_the_update_is_the_same(options: tuple[str, ...]):
    spec = load_spec("tiny", list(options))
    ops, joined = make_ops(), Joined(spec)
    weights = random_weights(spec, 1)
    arrays = {name: ops.asarray(value) for name, value in weights.items()}
    slopes = {name: ops.asarray(value) for name, value in random_weights(spec, 2).items()}
    state = {name: ops.asarray(value) for name, value in initial_state(spec, weights).items()}
    apart, together, state_together = dict(arrays), {k: v.clone() for k, v in arrays.items()}, dict(state)
    state_together = {name: value.clone() for name, value in state.items()}
    for step in range(3):
        numbers = step_hyperparameters(spec, step, step / 60).optimizer
        hyper: dict[str, Any] = {name: torch.tensor(value) for name, value in numbers.items()}
        norm = torch.tensor(2.0)
        apart, state = optimizer_step(ops, spec, apart, slopes, state, norm, hyper)
        new = optimizer_step(
            ops,
            spec,
            joined.join(together),
            joined.join(slopes),
            joined.join_state(state_together),
            norm,
            hyper,
            groups=joined.groups,
        )
        joined.write(new[0], together)
        joined.write(new[1], state_together)
    assert apart.keys() == together.keys() and state.keys() == state_together.keys()
    for name, value in (apart | state).items():
        assert torch.equal(value, (together | state_together)[name]), name


def test_everything_has_a_place_in_one_joint():
    spec = load_spec("tiny", ["training.ema_decay=0.9"])
    joined = Joined(spec)
    names = [name for members in joined.members.values() for name in members]
    weights = {name: torch.zeros(shape) for name, shape in state_shapes(spec).items()}
    assert len(names) == len(set(names)) == sum(name.startswith("weight/") for name in weights)
    parameters = {name.removeprefix("weight/"): value for name, value in weights.items()}
    assert sum(value.numel() for value in joined.join(parameters).values()) == parameter_counts(spec)["total"]
    assert len(joined.members) < len(names) / 3
