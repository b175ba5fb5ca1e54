"""--log: a sink gets what metrics.jsonl got, and one that fails or hangs stops no run."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from shared.errors import UserError
from shared.runs.metrics import read_events
from shared.runs.run_directory import RunDirectory
from shared.sinks import following, kinds
from shared.sinks.following import Sinks, check_installed, numbers
from shared.sinks.kinds import KINDS, shown_by
from shared.spec import spec_to_dict
from shared.training.run import train_run
from tests import ROOT
from tests.command_line import CommandLine, set_words
from tests.datasets import write_dataset
from tests.fake_training import RecordingObserver, tiny_spec

SPEC = (
    "training.steps=3",
    "training.compile=false",
    "data.train=toy",
    "data.heldout=toy",
    "evaluation.val_symbols=512",
)


class Remembering:
    """What a sink was told, of all runs; each name in `fails` raises or hangs in that method."""

    package: ClassVar[str | None] = None
    shown_by: ClassVar[str] = ""
    told: list[tuple[str, Any]] = []  # noqa: RUF012
    fails: Mapping[str, Any] = {}

    def __init__(self, run: RunDirectory, config: Mapping[str, Any], *, resumed: bool, group: str | None) -> None:
        self._note("start", (run.name, config, resumed))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._note("log", (step, dict(values)))

    def end(self, artifact: Path | None) -> None:
        self._note("end", artifact)

    def _note(self, name: str, what: Any) -> None:
        if name in self.fails:
            self.fails[name]()
        self.told.append((name, what))


@pytest.fixture
def sink(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Remembering]]:
    text = [bytes(f"document {index}: the quick brown fox jumps over it\n" * 9, "ascii") for index in range(40)]
    write_dataset(train=text[:30], heldout=text[30:])
    Remembering.told, Remembering.fails = [], {}
    yield Remembering


def run_with(
    sink: type[Remembering], folder: Path, *, patience_s: float = 20.0, **options: Any
) -> tuple[Any, list[str]]:
    """(the result of a run that the sink follows, what was said of the sink)."""
    observer, said = RecordingObserver(), []
    with Sinks(["odd"], said.append, {"odd": sink}, patience_s) as sinks:
        result = train_run(
            tiny_spec(*SPEC), "mlx", observer, runs_dir=folder, run_name="one", on_event=sinks.on_event, **options
        )
    return result, said


def test_a_sink_gets_what_metrics_got(sink: type[Remembering], tmp_path: Path) -> None:
    result, said = run_with(sink, tmp_path)
    assert result.exit_status in (0, 1) and result.finished is not None and not said
    events = read_events(result.run.metrics_path)
    logged = [(event["step"], dict(numbers(event))) for event in events]
    assert [what for name, what in sink.told if name == "log"] == [one for one in logged if one[1]]
    (name, (run, config, resumed)), *_, last = sink.told
    assert (name, run, resumed) == ("start", "one", False) and last == ("end", result.run.artifact_path)
    assert config == {"spec": spec_to_dict(result.run.read_spec()), "environment": result.run.read_environment()}
    last_step = [event for event in events if event["event"] == "step"][-1]
    names = {name for _, values in logged for name in values}
    assert {"step/nats_per_symbol", "validation/bpb", "finished/packing/packed_bpb", "phases/seconds/training"} <= names
    assert [values["step/bpb"] for step, values in logged if "step/bpb" in values][-1] == last_step["bpb"]


def test_a_resumed_run_says_so_and_one_that_is_not_finished_has_no_artifact(
    sink: type[Remembering], tmp_path: Path
) -> None:
    run_with(sink, tmp_path, finish=False)
    assert sink.told[-1] == ("end", None)
    sink.told.clear()
    run_with(sink, tmp_path, finish=False, resume=True)
    assert sink.told[0][1][2] is True and sink.told[-1] == ("end", None)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["start", "log", "end"])
@pytest.mark.parametrize("way", ["raise", "hang"])
def test_a_sink_that_fails_stops_no_run(sink: type[Remembering], tmp_path: Path, method: str, way: str) -> None:
    released = threading.Event()

    def raising() -> None:
        raise SystemExit("no network")

    sink.fails = {method: raising if way == "raise" else lambda: released.wait(60)}
    result, said = run_with(sink, tmp_path, patience_s=20.0 if way == "raise" else 0.2, finish=False)
    released.set()
    assert result.outcome.status == "finished" and result.outcome.step == 3
    reason = "SystemExit: no network" if way == "raise" else "did not end within 0.2 s"
    assert said == [f"--log odd: {reason}; the run continues without it"]


def test_a_missing_package_is_told_before_anything_is_made(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        following.importlib.util, "find_spec", lambda name: None if name in kinds.KINDS else found(name)
    )
    told = cli.refusal("train", "tiny", "--runs-dir", tmp_path / "runs", "--log", "wandb", *set_words(*SPEC[:2]))
    assert "--log wandb needs the package wandb, which is not installed (extra `wandb`)" in told
    assert not (tmp_path / "runs" / "tiny-mlx-1").exists()
    assert "choices: trackio, wandb, tensorboard" in cli.refusal("train", "tiny", "--log", "nowhere")
    # From Python, where no parser looks at the name, and though there is a package of that name.
    with pytest.raises(UserError, match="--log numpy: no such sink; choices: trackio, wandb, tensorboard"):
        check_installed(["numpy"])


def stand_in_modules(told: list[tuple[Any, ...]], resumes: list[tuple[Any, Any]]) -> dict[str, Any]:
    """trackio, wandb and tensorboard, as much of them as the sinks use; the real ones are in the record. `resumes` gets
    what each start says of the run that it continues."""

    class Run:
        def __init__(self, **options: Any) -> None:
            self.name = options["name"]
            resumes.append((options.get("id"), options.get("resume")))
            told.append(("start", self.name, options.get("group"), options["config"]))

        def log(self, values: dict[str, float], step: int | None = None) -> None:
            told.append(("log", values.pop("steps") if step is None else step, values))

        def log_artifact(self, path: Any, name: str = "", type: str = "") -> None:
            told.append(("artifact", str(path)))

        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "steps")

        def finish(self) -> None:
            told.append(("finish",))

    class Writer:
        def __init__(self, folder: str) -> None:
            self.add_event = lambda event: told.append(("log", event.step, dict(event.summary)))
            self.close = lambda: told.append(("finish",))

    class Artifact(str):
        __slots__ = ("path",)

        def __new__(cls, name: str, type: str) -> Artifact:
            return super().__new__(cls, name)

        def add_file(self, path: str) -> None:
            told.append(("file", path))

    def module(**names: Any) -> SimpleNamespace:
        return SimpleNamespace(**names)

    pair = lambda tag, simple_value: (tag, simple_value)  # noqa: E731
    summary = module(Summary=type("Summary", (), {"__new__": lambda cls, value: value, "Value": staticmethod(pair)}))
    log_artifact = Run(name="", config=None).log_artifact
    told.clear(), resumes.clear()
    return {
        "trackio": module(init=lambda **options: Run(**options), log_artifact=log_artifact),
        "wandb": module(init=lambda **options: Run(**options), Settings=module, Artifact=Artifact),
        "tensorboard": module(),
        "tensorboard.compat": module(),
        "tensorboard.compat.proto": module(event_pb2=module(Event=module), summary_pb2=summary),
        "tensorboard.plugins": module(),
        "tensorboard.plugins.text": module(),
        "tensorboard.plugins.text.summary_v2": module(text_pb=lambda name, text: [(name, text)]),
        "tensorboard.summary": module(),
        "tensorboard.summary.writer": module(),
        "tensorboard.summary.writer.event_file_writer": module(EventFileWriter=Writer),
    }


@pytest.mark.parametrize("name", kinds.KINDS)
def test_every_kind_passes_on_numbers_config_and_artifact(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[Any, ...]] = []
    for module, names in stand_in_modules(told, []).items():
        monkeypatch.setitem(sys.modules, module, names)
    config = {"spec": {"name": "tiny"}, "environment": {"ranks": 1}}
    sink = kinds.KINDS[name](RunDirectory(tmp_path / "one"), config, resumed=False, group="mine")
    values = {"step/bpb": 2.5, "step/grad_norm": 0.125}
    sink.log(3, values)
    sink.end(tmp_path / "artifact.btw")
    assert ("log", 3, values) in told and told[-1] == ("finish",)
    if name == "tensorboard":
        texts = {tag: text for kind, step, *rest in told[:2] for tag, text in rest[0].items()}
        assert texts.keys() == config.keys() and '"name": "tiny"' in texts["spec"]
    else:
        assert told[0] == ("start", "one", "mine", config)
        assert str(tmp_path / "artifact.btw") in [what for kind, what in (one for one in told if len(one) == 2)]
    assert capsys.readouterr() == ("", "")


def test_every_start_of_a_run_is_the_same_run_of_wandb(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of another run of its name, nor that of its copy under another."""
    resumes: list[tuple[Any, Any]] = []
    for module, names in stand_in_modules([], resumes).items():
        monkeypatch.setitem(sys.modules, module, names)
    run, starts = RunDirectory(tmp_path / "one"), []
    run.path.mkdir()
    for hour in range(3):
        run.write_environment({"started": f"2026-11-26T0{hour}:00:00+00:00", "command": "bytetwin train"})
        starts.append(run.read_environment())
    for name, environment in (*(("one", start) for start in starts), ("one", {"started": "later"}), ("two", starts[2])):
        kinds.Wandb(RunDirectory(tmp_path / name), {"environment": environment}, resumed=False, group=None).end(None)
    first, second, third, other, copy = resumes
    assert first == second == third and first[1] == "allow"
    assert len({first[0], other[0], copy[0]}) == 3


def test_each_sink_has_a_command_that_shows_a_run_and_an_extra(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "two words")
    assert all(shown_by(kind, run) for kind in KINDS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {kind.package for kind in KINDS.values()} - {None} <= extras.keys()
    assert shown_by("tensorboard", run) == f"tensorboard --logdir '{run.path}'/tensorboard"
    assert shlex.split(shown_by("tensorboard", run))[-1] == str(run.path / "tensorboard")
