"""`bytetwin sweep`: what it plans, that it never repeats a finished run, and that one broken run stops no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import shared.study.sweep
from cuda_train.device import gpu_environments
from shared.cli.main import main
from shared.errors import SpecError, UserError
from shared.spec import spec_to_toml
from shared.study.own_process import Ending, Order
from shared.study.places import ANYWHERE, Place, own_cores, places
from shared.study.plan import parse_seeds, parse_vary, plan_runs
from shared.study.sweep import sweep
from shared.training.interruption import Interruption
from shared.training.run_data import finished_with
from tests.command_line import CommandLine, set_words
from tests.fake_study import copy_run, edited, read_json
from tests.fake_training import SHORT, quiet_observer, tiny_spec

pytestmark = pytest.mark.slow

QUICK = ("training.compile=false", *SHORT)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("0,1,2", [0, 1, 2]), ("7,", [7]), ("42, 314,999", [42, 314, 999])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "a", "1,,2", "1,1", "-1", ",", "1.5"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("word", "key", "values"),
    [
        ("model.patch_size=1,2, 4", "model.patch_size", ["1", "2", "4"]),
        ("a.b=[1,2],[3,[4,5]]", "a.b", ["[1,2]", "[3,[4,5]]"]),
        ("a.b={x=1,y=2}", "a.b", ["{x=1,y=2}"]),
        ("a.b=\"x,y\",'[',z", "a.b", ['"x,y"', "'['", "z"]),
    ],
)
def test_varied_values(word: str, key: str, values: list[str]) -> None:
    assert parse_vary(word) == (key, values)


@pytest.mark.parametrize("word", ["a.b", "a.b=", "=1", "a.b=1,,2", "a.b=1,1"])
def test_bad_varied_values(word: str) -> None:
    with pytest.raises(UserError, match="--vary"):
        parse_vary(word)


def test_every_combination_for_every_seed_with_the_seeds_outside() -> None:
    varied = ["model.patch_size=1,4", "optimizer.matrix_lr=0.02,0.04"]
    plan = plan_runs(["tiny"], SHORT, varied, [5, 6])
    assert [run.name for run in plan[:4]] == [
        "tiny-patch_size-1-matrix_lr-0.02-seed5",
        "tiny-patch_size-1-matrix_lr-0.04-seed5",
        "tiny-patch_size-4-matrix_lr-0.02-seed5",
        "tiny-patch_size-4-matrix_lr-0.04-seed5",
    ]
    assert [run.seed for run in plan] == [5] * 4 + [6] * 4
    assert all(run.spec.training.seed == run.seed and run.spec.training.steps == 6 for run in plan)
    # What follows from a varied field follows in each run: a head for single bytes, a decoder for patches.
    assert [run.spec.model.decoder.kind for run in plan[::2]] == ["linear", "autoregressive"] * 2


def test_fields_of_the_same_last_name_are_told_apart() -> None:
    (run,) = plan_runs(["tiny"], (), ["model.num_heads=4", "model.decoder.num_heads=1"], [0])
    assert run.label == "tiny-model.num_heads-4-model.decoder.num_heads-1"


def test_tried_changes_come_one_at_a_time_and_may_have_names() -> None:
    tried = ["model.unet_skips=false", "optimizer.matrix_lr=0.5 optimizer.scalar_lr=0.1"]
    tried += ["rates: optimizer.matrix_lr=0.5 optimizer.scalar_lr=0.05"]
    plan = plan_runs(["tiny"], (), ["model.patch_size=2,4"], [0], tried)
    assert [run.label for run in plan[:4]] == [
        "tiny-patch_size-2",
        "tiny-patch_size-2-unet_skips-false",
        "tiny-patch_size-2-matrix_lr-0.5-scalar_lr-0.1",
        "tiny-patch_size-2-rates",
    ]
    assert [run.spec.model.unet_skips for run in plan] == [True, False, True, True] * 2
    assert [run.spec.optimizer.scalar_lr for run in plan] == [0.02, 0.02, 0.1, 0.05] * 2


def test_a_label_that_no_folder_can_have_is_refused() -> None:
    words = " ".join(f"model.decoder.dim={width}" for width in range(128, 128 + 8 * 40, 8))
    with pytest.raises(UserError, match="give the change a name"):
        plan_runs(["tiny"], (), [], [0], [words])
    assert len(plan_runs(["tiny"], (), [], [0], [f"wide: {words}"])) == 2


@pytest.mark.parametrize("word", ["", "a.b", "a.b=1 c", "=1", "a.b=", "name:", "name: a.b", "a name: a.b=1"])
def test_bad_tried_changes(word: str) -> None:
    with pytest.raises(UserError, match="--try"):
        plan_runs(["tiny"], (), [], [0], [word])


@pytest.mark.parametrize(
    ("sources", "overrides", "varied", "message"),
    [
        (["tiny"], ["training.seed=1"], [], "given by --seeds"),
        (["tiny"], [], ["training.seed=1,2"], "given by --seeds"),
        (["tiny"], [], ["model.patch_size=1,2", "model.patch_size=4"], "varied twice"),
        (["tiny", "tiny"], [], [], "both be called 'tiny'"),
        (["tiny"], [], ["optimizer.matrix_lr=0.5,5e-1"], "are the same experiment"),
    ],
)
def test_plans_that_make_no_sense(sources: list[str], overrides: list[str], varied: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_runs(sources, overrides, varied, [0])


def test_a_bad_value_is_told_before_anything_is_trained() -> None:
    with pytest.raises(SpecError, match=r"model\.patch_size"):
        plan_runs(["tiny"], (), ["model.patch_size=4,17"], [0])


def test_two_specs_of_different_names_but_equal_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(spec_to_toml(tiny_spec()).replace('name = "tiny"', f'name = "{name}"'))
    with pytest.raises(UserError, match="one and two are the same experiment"):
        plan_runs([str(tmp_path / "one.toml"), str(tmp_path / "two.toml")], (), [], [0])


class FakeTraining:
    """Stands in for `train_apart`, one run at a time; `endings` are the statuses of the runs, in order."""

    def __init__(self, *endings: str) -> None:
        self.endings, self.names = endings, list[str]()

    def __call__(
        self, orders: Iterable[Order], places: Sequence[Place], interruption: Interruption
    ) -> Iterator[tuple[Order, Ending]]:
        waiting = iter(orders)
        while interruption.signal_number is None and (order := next(waiting, None)) is not None:
            yield order, self.train(order)

    def train(self, order: Order) -> Ending:
        self.names.append(order.name)
        status: Any = self.endings[len(self.names) - 1]
        message = "" if status == "finished" else f"it {status}"
        return Ending(status, message, {"finished": 0, "failed": 1, "interrupted": 130}[status])


class Signalled(FakeTraining):
    """A signal comes while a run is trained, and the run finishes nevertheless."""

    def train(self, order: Order) -> Ending:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().train(order)


@pytest.mark.parametrize(
    ("training", "status", "statuses"),
    [
        (FakeTraining("finished", "failed", "finished", "finished"), 1, ["finished", "failed", "finished", "finished"]),
        (Signalled("finished"), 143, ["finished", *["not started"] * 3]),
        (FakeTraining("finished", "interrupted"), 130, ["finished", "interrupted", *["not started"] * 2]),
    ],
    ids=["a broken run stops no other", "a signal between two runs", "a signal in a run"],
)
def test_what_ends_a_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, training: FakeTraining, status: int, statuses: list[str]
) -> None:
    monkeypatch.setattr(shared.study.sweep, "train_apart", training)
    plan = plan_runs(["tiny"], SHORT, ["model.patch_size=2,4"], [0, 1])
    result = sweep(plan, "mlx", tmp_path, lambda name: quiet_observer(), lambda number, planned, before: None)
    assert (result.exit_status, [run.status for run in result.runs]) == (status, statuses)
    assert len(training.names) == len(training.endings)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder after a real sweep of one spec and two seeds at the same time."""
    runs = tmp_path_factory.mktemp("runs")
    assert main([str(word) for word in words(runs, "--seeds", "0,1337", "--jobs", "2")]) == 0
    return runs


def words(runs: Path, *more: object) -> list[object]:
    return ["sweep", "tiny", *set_words(*QUICK), "--engine", "torch", "--runs-dir", runs, *more]


def test_a_run_next_to_another_is_the_run_that_it_is_alone(once: Path, trained: Path) -> None:
    """To the last bit, artifact and scores: one was trained by itself, the other in a process beside that of seed 0."""
    beside = once / "tiny-sweep/tiny-seed1337"
    for name in ("artifact.btw", "documents.safetensors"):
        assert (beside / name).read_bytes() == (trained / name).read_bytes(), name
    found, alone = (read_json(run / "score.json") for run in (beside, trained))
    assert (found["nats"], found["bpb"]) == (alone["nats"], alone["bpb"])


def test_one_run_of_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> None:
    """For a machine that trains its part: nothing is compared, and no document hides what the others do."""
    training = FakeTraining("finished")
    monkeypatch.setattr(shared.study.sweep, "train_apart", training)
    done = cli(*words(tmp_path, "--seeds", "3", "--only", "2", "--json"))
    assert done.status == 0 and training.names == ["tiny-seed1"] and done.document["comparison"] is None
    assert "run 2 of 3: tiny-seed1: training" in done.err and not (tmp_path / "tiny-sweep/sweep.json").exists()
    refusal = cli.refusal(*words(tmp_path, "--seeds", "2", "--only", "3"))
    assert "--only 3: this sweep has 2 runs: 1 tiny-seed0, 2 tiny-seed1" in refusal


GPUS = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]


def test_a_place_for_each_job() -> None:
    assert places("1", None, []) == [ANYWHERE]
    assert places("gpus", None, GPUS) == [Place(gpu) for gpu in GPUS] == places("2", None, GPUS)
    # Threads are as many as alone, and let the cores go while they wait.
    assert places("3", None, []) == [Place({"OMP_WAIT_POLICY": "PASSIVE"})] * 3
    cores = own_cores()
    found = places("3", 1, [])
    assert all(place.environment["OMP_NUM_THREADS"] == "1" for place in found)
    assert not cores or [list(place.cores) for place in found] == [[cores[job % len(cores)]] for job in range(3)]


@pytest.mark.parametrize(
    ("jobs", "threads", "gpus", "message"),
    [
        ("0", None, 0, "--jobs 0: must be a number from 1 to 64, or gpus"),
        ("-1", None, 0, "--jobs -1: must be"),
        ("65", None, 0, "--jobs 65: must be"),
        ("all", None, 2, "--jobs all: must be"),
        ("gpus", None, 0, "no NVIDIA GPU found"),
        ("3", None, 2, "--jobs 3: this machine has 2 NVIDIA GPUs"),
        ("1", 4096, 0, "--threads 4096: this machine has"),
    ],
)
def test_impossible_jobs(jobs: str, threads: int | None, gpus: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        places(jobs, threads, GPUS[:gpus])


def test_the_gpus_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was given some of them shares out those."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_environments() == GPUS
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, MIG-4a,-1")
    assert gpu_environments() == [{"CUDA_VISIBLE_DEVICES": name} for name in ("7", "MIG-4a")]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.study.sweep, "train_apart", FakeTraining())


def test_a_finished_run_is_not_repeated(once: Path, no_training: None, cli: CommandLine) -> None:
    done = cli(*words(once, "--seeds", "0,", "--json"))
    document = done.document
    assert done.status == 0 and [run["status"] for run in document["runs"]] == ["finished before"]
    assert read_json(once / "tiny-sweep/sweep.json") == document
    score = read_json(once / "tiny-sweep/tiny-seed0/score.json")
    (group,) = document["comparison"]["groups"]
    assert group["bpb"] == {"n": 1, "mean": score["bpb"], "std": None, "interval": None}
    assert "run 1 of 1: tiny-seed0: finished before" in done.err


def test_an_interrupted_run_goes_on_and_the_others_stay(
    once: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    """Seed 1 was trained but not scored when the sweep was stopped: its score is all that is made."""
    folder = once / "tiny-sweep"
    other = copy_run(folder / "tiny-seed0", folder / "tiny-seed1", "training.seed=1", factor=1.01)
    assert finished_with(shared.study.sweep.RunDirectory(other), tiny_spec(*SHORT, "training.seed=1")) is not None
    (other / "score.json").unlink()

    class Finishing(FakeTraining):
        def train(self, order: Order) -> Ending:
            (other / "score.json").write_text((folder / "tiny-seed0/score.json").read_text())
            (other / "documents.safetensors").unlink()
            return super().train(order)

    training = Finishing("finished")
    monkeypatch.setattr(shared.study.sweep, "train_apart", training)
    document = cli.document(*words(once, "--seeds", "2", "--output", once / "r.md"))
    assert training.names == ["tiny-seed1"]
    assert [run["status"] for run in document["runs"]] == ["finished before", "finished"]
    assert document["comparison"]["groups"][0]["bpb"]["n"] == 2
    assert "bytetwin sweep tiny --seeds 2 --set training.compile=false" in (once / "r.md").read_text()


def test_a_finished_run_of_a_text_that_has_changed_is_refused(
    once: Path, tmp_path: Path, no_training: None, cli: CommandLine
) -> None:
    """The name of the dataset is the same, and its text is not."""
    old = copy_run(once / "tiny-sweep/tiny-seed0", tmp_path / "tiny-sweep/tiny-seed0")
    with edited(old / "environment.json") as environment:
        now = environment["data"]["train"]["sha256"]
        environment["data"]["train"]["sha256"] = "ab" * 32
    # Also by the command that would finish the run by itself.
    train = ["train", "tiny", *set_words(*QUICK, "training.seed=0"), "--runs-dir", old.parent, "--run", old.name]
    for command in (words(tmp_path, "--seeds", "0,"), [*train, "--resume"]):
        refusal = cli.refusal(*command)
        assert f"{old} was trained on builtin when its sha256 was {'ab' * 8}, now it is {now[:16]}" in refusal


def test_finished_runs_need_no_text(once: Path, tmp_path: Path, no_training: None, cli: CommandLine) -> None:
    """A sweep whose dataset is gone can still be looked at: nothing can be trained on another text then."""
    copied = ("data.train=gone", "data.heldout=gone")
    copy_run(once / "tiny-sweep/tiny-seed0", tmp_path / "tiny-sweep/tiny-seed0", *copied)
    done = cli(*words(tmp_path, "--seeds", "0,", *set_words(*copied)))
    assert done.status == 0 and "finished before" in done.err


def test_a_folder_of_another_experiment_is_refused(once: Path, cli: CommandLine) -> None:
    done = cli(*words(once, "--seeds", "0,", "--set", "optimizer.matrix_lr=0.5"))
    assert done.status == 2 and "was started with optimizer.matrix_lr = 0.02, now it is 0.5" in done.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--name", "a/b"], "--name 'a/b'"),
        (["--baseline", "x"], "no such group; groups: tiny"),
        (["--jobs", "0"], "--jobs 0: must be a number from 1 to 64, or gpus"),
        (["--jobs", "gpus", "--engine", "mlx"], "all processes of engine mlx use the same device"),
        (["--only", "0"], "--only: 0: must be an integer of at least 1"),
        (["--output", "no/such/folder/r.md"], "does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_training(
    more: list[str], message: str, tmp_path: Path, no_training: None, cli: CommandLine
) -> None:
    assert message in cli.refusal(*words(tmp_path, *more)) and list(tmp_path.iterdir()) == []


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: CommandLine) -> None:
    monkeypatch.setenv("RANK", "0")
    assert cli(*words(tmp_path)).status == 2


def test_nothing_is_compared_without_the_baseline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: CommandLine
) -> None:
    monkeypatch.setattr(shared.study.sweep, "train_apart", FakeTraining("interrupted"))
    done = cli(*words(tmp_path, "--json"))
    assert done.status == 130 and done.document["comparison"] is None
    assert "no run of the baseline tiny is finished" in done.err and "resume with: bytetwin sweep tiny" in done.err
