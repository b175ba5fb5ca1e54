"""Averages that are collected and never applied, on every engine, and an honest soup."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from data.datasets import open_split
from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.engine.state import EngineState
from shared.model import random_weights
from shared.optim import step_hyperparameters
from shared.scoring.average_check import check_average
from shared.scoring.overlap import check_selection
from shared.spec import load_spec
from shared.study.soup import open_selection
from tests.museum.averaging import forget_snapshots, start_at_the_initial_weights

EAGER = ("training.compile=false", "model.num_layers=1", "training.steps=4")
BATCH = np.random.default_rng(0).integers(0, 256, (2, 64)).astype(np.int32)
SNAPSHOTS = ("training.swa_every_steps=2", "training.swa_start_frac=0.0")


def decays(*values: float) -> list[str]:
    return [f"training.ema_decay={value}" for value in values]


def trained(name: str, overrides: tuple[str, ...], steps: int = 3) -> EngineState:
    spec = load_spec("tiny", [*EAGER, *overrides])
    engine = create_engine(name, spec)
    engine.initialise(random_weights(spec, 0))
    for step in range(steps):
        engine.train_step(BATCH, step_hyperparameters(spec, step, step / 4))()
    assert isinstance(engine, EngineState)
    return engine


@pytest.mark.parametrize(
    ("planted", "overrides", "detail"),
    [
        *((forget_snapshots, (*SNAPSHOTS, decay), "snapshot_mean kept without effect") for decay in decays(0.0, 0.9)),
        # With 20 steps and a decay of 0.9999 what was scored was as good as untrained: 7.99 bits per byte, not 4.51.
        *((start_at_the_initial_weights, (decay,), "the average keeps ") for decay in decays(0.5, 0.9, 0.9999)),
    ],
)
@pytest.mark.parametrize("name", list(ENGINES))
def test_an_average_that_is_not_what_it_is_said_to_be(
    name: str, planted: Callable[[EngineState], None], overrides: tuple[str, ...], detail: str
) -> None:
    engine = trained(name, overrides)
    before = engine.save_state()
    assert check_average(engine, BATCH).passed  # type: ignore[arg-type]
    after = engine.save_state()
    assert all((before[key] == after[key]).all() for key in before)
    planted(engine)
    check = check_average(engine, BATCH)  # type: ignore[arg-type]
    assert not check.passed and check.detail.startswith(detail)


def test_snapshots_that_are_never_taken() -> None:
    engine = trained("torch", (*SNAPSHOTS, "training.ema_decay=0.0"), steps=1)
    assert not check_average(engine, BATCH).passed  # type: ignore[arg-type]


def test_a_soup_chosen_by_other_text_than_it_is_scored_on_passes() -> None:
    spec = load_spec("tiny", ["data.selection_frac=0.05", "evaluation.val_symbols=8192"])
    heldout = open_split(spec.data.heldout, "heldout", spec.vocabulary)
    honest = open_selection(spec)
    assert honest is not None
    assert check_selection(honest.windows, heldout).passed
