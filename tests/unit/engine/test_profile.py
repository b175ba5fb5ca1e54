"""`train --profile`: which steps are traced, what is reported, and that training does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_train.profiler import PHASES, REST
from shared.cli.main import main
from shared.engine.protocol import Engine
from shared.engine.step_profiler import Cost, costs_by_name, write_trace
from shared.errors import UserError
from shared.optim import step_hyperparameters
from shared.training.profiling import LARGEST, SKIPPED_STEPS, Profile, ProfiledEngine, ProfileRequest, profiled
from tests.techniques import every_engine, started, symbols, tiny


def train(engine: Engine, steps: int) -> list[tuple[float, float]]:
    results = []
    for step in range(steps):
        x = symbols(engine.spec, 4, step)
        results.append(engine.train_step(x, step_hyperparameters(engine.spec, step, step / 60))())
    return results


@pytest.mark.slow
@every_engine
def test_a_profile_says_where_the_time_went_and_training_does_not_notice(name: str, tmp_path: Path):
    plain, engine = started(name, tiny()), started(name, tiny())
    profiles: list[Profile] = []
    with ProfiledEngine(engine, ProfileRequest(2, profiles.append), tmp_path / "trace.json") as watched:
        before = train(watched, SKIPPED_STEPS + 1)
        assert not profiles and not (tmp_path / "trace.json").exists()
        results = before + train(watched, 3)
    assert len(profiles) == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["trace.json"]
    profile = profiles[0]
    assert profile.steps == 2 and 0 < profile.step_s < 60 and profile.measured
    assert 0 < len(profile.costs) <= LARGEST
    seconds = [cost.seconds for cost in profile.costs]
    assert seconds == sorted(seconds, reverse=True) and min(seconds) > 0
    assert sum(seconds) <= 1.05 * profile.steps * profile.step_s
    assert 0.3 < sum(cost.share_frac for cost in profile.costs) <= 1.0 + 1e-9
    assert all(cost.calls >= 1 for cost in profile.costs)
    assert results == train(plain, SKIPPED_STEPS + 1) + train(plain, 3)
    state = engine.save_state()
    assert all((state[key] == value).all() for key, value in plain.save_state().items())


@pytest.mark.slow
@every_engine
def test_the_trace_is_of_the_format_viewers_read(name: str, tmp_path: Path):
    with ProfiledEngine(
        started(name, tiny()), ProfileRequest(2, lambda profile: None), tmp_path / "trace.json", skipped=0
    ) as watched:
        train(watched, 3)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event.get("ph") == "X"]
    assert len(spans) >= 6
    assert all(event["dur"] >= 0 and isinstance(event["name"], str) and "ts" in event for event in spans)
    expected = {"mlx": "forward and backward", "torch": "aten::mm"}[name]
    assert len([event for event in spans if event["name"] == expected]) >= 2


def test_mlx_phases_are_watched_only_while_a_trace_is_made(tmp_path: Path):
    engine: Any = started("mlx", tiny())
    methods = ("_batch_gradients", "_updated", "train_step")
    profiles: list[Profile] = []
    with ProfiledEngine(engine, ProfileRequest(3, profiles.append), tmp_path / "trace.json", skipped=1) as watched:
        train(watched, 2)
        assert all(method in vars(engine) for method in methods)
        train(watched, 2)
        assert not [method for method in methods if method in vars(engine)]
    calls = {cost.name: cost.calls for cost in profiles[0].costs}
    assert calls == dict.fromkeys((*PHASES.values(), REST), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ending"),
    [("mlx", "end of the run"), ("mlx", "validation"), ("mlx", "checkpoint"), ("torch", "validation")],
)
def test_a_trace_ends_with_what_is_no_training_step(name: str, ending: str, tmp_path: Path):
    profiles: list[Profile] = []
    with ProfiledEngine(
        started(name, tiny()), ProfileRequest(10, profiles.append), tmp_path / "trace.json", skipped=1
    ) as watched:
        train(watched, 3)
        assert not profiles
        if ending == "validation":
            watched.score(np.zeros((1, 64), np.int32))
        elif ending == "checkpoint":
            watched.save_state()
        assert len(profiles) == (0 if ending == "end of the run" else 1)
    assert [profile.steps for profile in profiles] == [2]


def test_a_run_too_short_to_trace_leaves_nothing(tmp_path: Path):
    profiles: list[Profile] = []
    with ProfiledEngine(
        started("torch", tiny()), ProfileRequest(5, profiles.append), tmp_path / "trace.json"
    ) as watched:
        train(watched, SKIPPED_STEPS)
    assert not profiles and not list(tmp_path.iterdir())


def test_everything_else_is_the_engine_itself(tmp_path: Path):
    engine = started("torch", tiny())
    with profiled(engine, None, tmp_path / "trace.json") as same:
        assert same is engine
    with profiled(engine, ProfileRequest(1, lambda profile: None), tmp_path / "trace.json") as watched:
        assert watched.name == "torch" and watched.spec is engine.spec
        assert watched.device_name() == engine.device_name()
        with pytest.raises(AttributeError, match="unheard_of"):
            watched.unheard_of  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_cannot_be_traced(steps: int):
    with pytest.raises(UserError, match=f"--profile {steps}: must be at least 1"):
        ProfileRequest(steps, lambda profile: None)


def test_costs_are_sorted_and_share_the_whole():
    costs = costs_by_name({"small": (2, 1.0), "none": (5, 0.0), "large": (1, 3.0)})
    assert costs == [Cost("large", 1, 3.0, 0.75), Cost("small", 2, 1.0, 0.25)]
    assert costs_by_name({}) == []


def test_a_written_trace_starts_at_zero_and_counts_microseconds(tmp_path: Path):
    write_trace(tmp_path / "trace.json", [("b", 10.5, 0.25), ("a", 10.0, 1.0)])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [(event["name"], event["ts"], event["dur"]) for event in events] == [("b", 5e5, 2.5e5), ("a", 0.0, 1e6)]


@pytest.mark.slow
@every_engine
def test_the_command_prints_the_costs_and_goes_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["train", "tiny", "--engine", name, "--run", "traced", "--runs-dir", str(tmp_path), "--no-finish"]
    arguments += ["--set", "training.compile=false", "--set", "training.steps=8", "--profile", "2", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["status"] == "finished" and document["steps"] == 8
    assert document["profile"]["steps"] == 2
    assert document["profile"]["trace_path"] == str(tmp_path / "traced" / "trace.json")
    assert Path(document["profile"]["trace_path"]).is_file()
    assert document["profile"]["costs"][0]["name"][:20] in captured.err
    assert "ms per step" in captured.err and "trace.json" in captured.err


def test_the_command_refuses_to_trace_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "tiny", "--runs-dir", str(tmp_path), "--profile", "0"]) == 2
    assert "--profile 0" in capsys.readouterr().err and not list(tmp_path.iterdir())
