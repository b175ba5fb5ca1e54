"""`sweep --halving`: what cannot win is stopped, and a run that stays is the run of a plain sweep."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared.study.sweep
from shared.runs.checkpoints import CheckpointStore
from shared.runs.metrics import read_events, state_of
from shared.study.halving import FIRST_FRAC, Halving, decide
from shared.study.own_process import Ending, Order
from shared.study.places import Place
from shared.training.interruption import Interruption
from shared.training.run import train_run
from tests.command_line import CommandLine, set_words
from tests.datasets import write_dataset
from tests.fake_study import read_json
from tests.fake_training import quiet_observer, tiny_spec

pytestmark = pytest.mark.slow

SPEC = (
    *("training.compile=false", "training.steps=8", "training.log_every_steps=1"),
    *("data.train=toy", "data.heldout=toy", "evaluation.val_symbols=1024"),
)
RATE = "rate: optimizer.matrix_lr=0.04"
# A rate at which a model learns nothing.
BAD = "bad: optimizer.matrix_lr=0.0 optimizer.embed_lr=0.0 optimizer.head_lr=0.0 optimizer.scalar_lr=0.0"


@given(st.integers(2, 500), st.integers(2, 12))
def test_rungs_rise_and_leave_fewer_each_time(groups: int, eta: int) -> None:
    rungs = Halving(eta).rungs(groups)
    fractions, kept = zip(*rungs, strict=True)
    assert list(fractions) == sorted(set(fractions)) and fractions[-1] == 1.0 / eta
    assert all(fraction >= FIRST_FRAC for fraction in fractions) or len(rungs) == 1
    assert all(after <= before for before, after in zip((groups, *kept), kept, strict=False))
    assert 1 <= kept[0] < groups and (kept[-1] == 1 or fractions[0] / eta < FIRST_FRAC)


def values(**means: float) -> dict[str, dict[int, float]]:
    """Validations of three seeds; what a seed does is the same to every group but for a little."""
    noise = np.random.default_rng(0).normal(0.0, 0.001, (len(means), 3))
    return {
        label: {seed: mean + 0.1 * seed + noise[row, seed] for seed in range(3)}
        for row, (label, mean) in enumerate(means.items())
    }


def decisions(given: Mapping[str, Mapping[int, float]], keep: int, **how: Any) -> dict[str, str]:
    return {each.label: each.decision for each in decide(given, keep, "base", Halving(**how))}


def test_who_goes_on() -> None:
    found = values(base=2.5, near=2.001, best=1.99, far=2.3)
    assert decisions(found, 2) == {"best": "leads", "near": "stays", "far": "stopped", "base": "baseline"}
    assert decisions(found, 3)["far"] == "stays"
    # Three seeds that agree within 0.001 tell 0.011 from nothing at 95 %, and not at 99.9 %.
    assert decisions(found, 1)["near"] == "stopped" and decisions(found, 1, level=0.999)["near"] == "undecided"
    assert decisions(found, 1, level=0.0)["near"] == "stopped"
    (text,) = (standing.text for standing in decide(found, 2, "base", Halving()) if standing.label == "far")
    assert text.startswith("far: 2.3994, +0.3089 (") and text.endswith("): stopped")
    # One seed has no interval, which is said.
    one = {label: {0: by_seed[0]} for label, by_seed in found.items()}
    (text,) = (standing.text for standing in decide(one, 2, "base", Halving()) if standing.decision == "stopped")
    assert text.endswith("stopped by rank alone")


class InThisProcess:
    """Stands in for `train_apart`: runs are trained here, one after the other. After `stop_after` of them it is as if a
    signal came."""

    def __init__(self, stop_after: int = -1) -> None:
        self.stop_after, self.trained = stop_after, list[tuple[str, float]]()

    def __call__(
        self, orders: Iterable[Order], places: Sequence[Place], interruption: Interruption
    ) -> Iterator[tuple[Order, Ending]]:
        for order in orders:
            result = train_run(
                order.spec,
                order.engine_name,
                quiet_observer(),
                runs_dir=order.folder,
                run_name=order.name,
                resume=True,
                entered=interruption,
                pause_frac=order.pause_frac,
            )
            self.trained.append((order.name, order.pause_frac))
            if len(self.trained) == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
                while interruption.signal_number is None:
                    pass
            yield order, Ending(result.outcome.status, result.outcome.message, result.exit_status)


@pytest.fixture
def toy(datasets: Path) -> None:
    """A text that is scored in no time."""
    text = [bytes(f"document {index}: the quick brown fox jumps over it\n" * 9, "ascii") for index in range(40)]
    write_dataset(train=text[:30], heldout=text[30:])


def words(runs: Path, *more: object, tried: Sequence[str] = (BAD, RATE)) -> list[object]:
    changes = [word for each in tried for word in ("--try", each)]
    return ["sweep", "tiny", *set_words(*SPEC), *changes, "--engine", "mlx", "--runs-dir", runs, "--seeds", "2", *more]


def bits_of(run: Path) -> tuple[Any, ...]:
    """All that training and scoring gave, to the last bit."""
    steps = [event for event in read_events(run / "metrics.jsonl") if event["event"] == "step"]
    losses = {event["step"]: event["nats_per_symbol"] for event in steps}
    files = [(run / name).read_bytes() for name in ("artifact.btw", "documents.safetensors")]
    checkpoint = CheckpointStore(run / "checkpoints", 1).load_latest()
    best = CheckpointStore(run / "checkpoints", 1).load_best()
    assert checkpoint is not None and best is not None
    states = checkpoint.info.state_sha256, best.info.step, best.info.state_sha256
    return read_json(run / "score.json")["nats"], losses, files, states


def means(document: dict[str, Any]) -> dict[str, float]:
    """Bits per byte of the groups of a sweep."""
    return {group["label"]: group["bpb"]["mean"] for group in document["comparison"]["groups"]}


def test_a_halved_sweep_has_the_runs_and_the_winner_of_a_plain_one(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    """Stopped in the middle and resumed. The planted variant is stopped with its checkpoint; the others end as they do
    without rungs; the same sweep without rungs then takes the stopped runs to their ends."""
    halving = ("--halving", "--json", "--stop-confidence", "0.5")
    monkeypatch.setattr(shared.study.sweep, "train_apart", InThisProcess(stop_after=2))
    stopped = cli(*words(tmp_path, *halving))
    assert stopped.status == 143 and "--halving --stop-confidence 0.5" in stopped.err
    assert [run["status"] for run in stopped.document["runs"]] == ["paused", "paused", *["not started"] * 4]
    training, page = InThisProcess(), tmp_path / "page.md"
    monkeypatch.setattr(shared.study.sweep, "train_apart", training)
    halved = cli(*words(tmp_path, *halving, "--output", page))
    assert halved.status == 0 and ("tiny-seed0", 0.25) not in training.trained
    folder = tmp_path / "tiny-sweep"
    statuses = {(run["label"], run["status"]) for run in halved.document["runs"]}
    assert statuses == {("tiny", "finished"), ("tiny-rate", "finished"), ("tiny-bad", "stopped")}
    document = halved.document["halving"]
    assert [rung["budget_frac"] for rung in document["rungs"]] == [0.25, 0.5]
    (bad,) = (group for group in document["rungs"][0]["groups"] if group["label"] == "tiny-bad")
    assert bad["decision"] == "stopped" and bad["n"] == 2 and bad["difference"]["interval"]["low"] > 0.0
    assert document["saved"]["steps"] == 2 * 6 and 0.0 < document["saved"]["share"] < 1.0
    assert "at 0.25 of the budget, tiny-bad: " in halved.err and "saved 12 steps" in halved.err
    assert "## Halving" in page.read_text() and "): stopped" in page.read_text()
    left = CheckpointStore(folder / "tiny-bad-seed0/checkpoints", 1).latest_info()
    assert left is not None and left.step == 2
    # Nothing is left to do for a third time, and the decisions are the same.
    monkeypatch.setattr(shared.study.sweep, "train_apart", again := InThisProcess())
    assert cli(*words(tmp_path, *halving)).document["halving"] == document and again.trained == []
    everyone = means(cli.document(*words(tmp_path)))
    survivors = means(halved.document)
    assert again.trained == [("tiny-bad-seed0", 1.0), ("tiny-bad-seed1", 1.0)]
    assert survivors.keys() == everyone.keys() - {"tiny-bad"}
    assert min(everyone, key=lambda label: everyone[label]) == min(survivors, key=lambda label: survivors[label])
    plain = means(cli.document(*words(tmp_path / "plain", tried=[RATE])))
    assert plain == survivors
    for name in [f"{label}-seed{seed}" for label in survivors for seed in range(2)]:
        assert bits_of(folder / name) == bits_of(tmp_path / "plain/tiny-sweep" / name), name


@pytest.mark.parametrize("engine", ["mlx", "torch"])
def test_a_run_that_pauses_is_the_run_that_does_not(toy: None, engine: str, tmp_path: Path) -> None:
    """To the last bit; a pause where nothing else is due validates and saves, and changes nothing, not even which
    checkpoint is the best: the more is learnt of text the worse random bytes get, so it would be that of a pause."""
    write_dataset("other", heldout=[np.random.default_rng(index).bytes(600) for index in range(10)])
    spec = tiny_spec(*SPEC, "training.ema_decay=0.9", "data.heldout=other")
    for name, pauses in (("plain", [1.0]), ("pausing", [0.3, 0.5, 1.0])):
        for pause_frac in pauses:
            result = train_run(
                spec,
                engine,
                quiet_observer(),
                runs_dir=tmp_path,
                run_name=name,
                resume=True,
                finish=pause_frac == 1.0,
                pause_frac=pause_frac,
            )
            status, step = ("finished", 8) if pause_frac == 1.0 else ("paused", math.ceil(8 * pause_frac))
            assert (result.outcome.status, result.outcome.step, result.exit_status) == (status, step, 0)
            assert result.outcome.validation is not None and result.outcome.validation.step == step
    assert bits_of(tmp_path / "plain") == bits_of(tmp_path / "pausing")
    assert state_of(read_events(tmp_path / "pausing/metrics.jsonl")) == "finished"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--halving", "--only", "1"], "--halving compares all runs of the plan"),
        (["--eta", "3"], "--eta says how --halving stops runs"),
        (["--stop-confidence", "0.5"], "--stop-confidence says how --halving stops runs"),
        (["--halving", "--eta", "1"], "--eta: 1: must be an integer of at least 2"),
        (["--halving", "--stop-confidence", "1"], "--stop-confidence: 1: must be a number of at least 0 and below 1"),
        (
            ["--halving", "--vary", "evaluation.val_symbols=1024,2048"],
            "--halving compares validations of the same text",
        ),
        (["--log", "nowhere"], "choices: trackio, wandb, tensorboard"),
    ],
)
def test_bad_arguments(toy: None, more: list[str], message: str, tmp_path: Path, cli: CommandLine) -> None:
    assert message in cli.refusal(*words(tmp_path, *more)) and not list(tmp_path.glob("tiny-sweep"))


def test_one_experiment_cannot_be_halved(tmp_path: Path, cli: CommandLine) -> None:
    refusal = cli.refusal("sweep", "tiny", "--halving", "--runs-dir", tmp_path)
    assert "--halving stops the worse of several experiments: give --vary, --try or another SPEC" in refusal


def test_every_run_of_a_sweep_is_logged_in_its_group(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    orders: list[Order] = []

    def train_apart(given: Iterable[Order], *_: Any) -> Iterator[tuple[Order, Ending]]:
        for order in given:
            orders.append(order)
            yield order, Ending("failed", "no matter", 1)

    monkeypatch.setattr(shared.study.sweep, "train_apart", train_apart)
    monkeypatch.setattr(shared.study.sweep, "check_installed", lambda names: None)
    done = cli(*words(tmp_path, "--log", "wandb", "--log", "tensorboard", "--name", "mine"))
    assert done.status == 1 and len(orders) == 6
    assert {(order.log, order.folder.name) for order in orders} == {(("wandb", "tensorboard"), "mine")}
    assert dataclasses.replace(orders[0], log=()).log == ()
