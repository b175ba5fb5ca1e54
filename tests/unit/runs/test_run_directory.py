"""Run directories: names, the lock, what may differ on resume, and the metrics file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import RunError, SpecError
from shared.runs.metrics import MetricsLog, read_events
from shared.runs.run_directory import RunDirectory, check_same_training, open_run
from shared.spec import load_spec, spec_from_dict, spec_to_dict
from tests.fake_training import tiny_spec


def test_runs_are_numbered_when_they_have_no_name(tmp_path: Path) -> None:
    names = [open_run(tmp_path / "runs", None, tiny_spec(), "mlx", resume=False).name for _ in range(3)]
    assert names == ["tiny-mlx-1", "tiny-mlx-2", "tiny-mlx-3"]


def test_a_run_keeps_its_resolved_spec(tmp_path: Path) -> None:
    spec = tiny_spec("training.steps=7")
    run = open_run(tmp_path, "a", spec, "mlx", resume=False)
    assert RunDirectory(run.path).read_spec() == spec


def test_a_name_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_run(tmp_path, "a", tiny_spec(), "mlx", resume=False).unlock()
    before = (tmp_path / "a" / "spec.toml").read_bytes()
    with pytest.raises(RunError, match=r"run .*/a exists; continue it with --resume or choose another --run name"):
        open_run(tmp_path, "a", tiny_spec("training.steps=9"), "mlx", resume=False)
    assert (tmp_path / "a" / "spec.toml").read_bytes() == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "-x", "a b", "a\n"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="run name"):
        open_run(tmp_path, name, tiny_spec(), "mlx", resume=False)
    assert list(tmp_path.iterdir()) == []


def test_resume_needs_a_name_and_lists_the_runs(tmp_path: Path) -> None:
    open_run(tmp_path, "first", tiny_spec(), "mlx", resume=False).unlock()
    with pytest.raises(RunError, match=r"--resume needs --run NAME; runs in .*: first"):
        open_run(tmp_path, None, tiny_spec(), "mlx", resume=True)


def test_resume_of_nothing_begins_a_run(tmp_path: Path) -> None:
    assert open_run(tmp_path, "new", tiny_spec(), "mlx", resume=True).spec_path.exists()


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    run = open_run(tmp_path, "a", tiny_spec(), "mlx", resume=False)
    with pytest.raises(RunError, match="in use by another process"):
        open_run(tmp_path, "a", tiny_spec(), "mlx", resume=True)
    run.unlock()
    open_run(tmp_path, "a", tiny_spec(), "mlx", resume=True).unlock()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.num_layers=4", "model.num_layers = 3"),
        ("training.seed=1", "training.seed = 1337"),
        ("training.steps=61", "training.steps = 60"),
        ("optimizer.matrix_lr=0.5", "optimizer.matrix_lr = 0.02"),
        ("schedule.warmdown_shape=cosine", "schedule.warmdown_shape = 'linear'"),
        ("data.train=other", "data.train = 'builtin'"),
        ("model.decoder.dim=32", "model.decoder.dim = 16"),
    ],
)
def test_resume_refuses_a_spec_that_trains_something_else(tmp_path: Path, override: str, key: str) -> None:
    open_run(tmp_path, "a", tiny_spec(), "mlx", resume=False).unlock()
    with pytest.raises(RunError, match=f"was started with {key}, now it is"):
        open_run(tmp_path, "a", tiny_spec(override), "mlx", resume=True)
    assert RunDirectory(tmp_path / "a").read_spec() == tiny_spec()


def test_resume_allows_what_does_not_change_the_training(tmp_path: Path) -> None:
    changed = tiny_spec(
        "training.log_every_steps=1", "evaluation.val_symbols=512", "artifact.matrix.bits=8", "budget.total_bytes=1000"
    )
    check_same_training(tiny_spec(), changed, "here")
    open_run(tmp_path, "a", tiny_spec(), "mlx", resume=False).unlock()
    open_run(tmp_path, "a", changed, "mlx", resume=True).unlock()
    assert RunDirectory(tmp_path / "a").read_spec() == changed


def test_the_width_of_codes_is_free_only_where_no_loss_reads_it() -> None:
    wider = "artifact.matrix.bits=8"
    entropy = "training.loss.code_entropy.weight=0.1"
    with pytest.raises(RunError, match=r"was started with artifact\.matrix\.bits = 6, now it is 8"):
        check_same_training(tiny_spec(entropy), tiny_spec(entropy, wider), "here")
    rounded = "training.qat.form=straight_through"
    with pytest.raises(RunError, match=r"was started with training\.qat.bits = 6, now it is 8"):
        check_same_training(tiny_spec(rounded), tiny_spec(rounded, wider), "here")
    noise = ("training.qat.form=noise", "training.qat.bits=5")
    check_same_training(tiny_spec(*noise), tiny_spec(*noise, wider), "here")


def test_a_run_of_before_the_rule_about_widths_can_be_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    values = spec_to_dict(tiny_spec("training.qat.form=straight_through"))
    values["training"]["qat"]["bits"] = 5
    run.write_spec(spec_from_dict(values))
    assert run.read_spec().training.qat.bits == 5
    with pytest.raises(SpecError, match=r"training\.qat\.bits = 5: must be artifact\.matrix\.bits \(6\)"):
        load_spec(run.spec_path)


def test_environments_of_earlier_starts_are_kept(tmp_path: Path) -> None:
    run = open_run(tmp_path, "a", tiny_spec(), "mlx", resume=False)
    for engine in ("one", "two", "three"):
        run.write_environment({"engine": engine})
    stored = json.loads(run.environment_path.read_text())
    assert stored["engine"] == "three"
    assert [start["engine"] for start in stored["earlier_starts"]] == ["one", "two"]


@given(after=st.integers(0, 12), cut=st.integers(1, 30))
def test_metrics_are_cut_back_to_a_step_whatever_the_last_line_holds(
    tmp_path_factory: pytest.TempPathFactory, after: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    with MetricsLog(path, 0) as metrics:
        for step in range(1, 11):
            metrics.append("step", step, nats_per_symbol=0.1 * step)
    os.truncate(path, max(0, path.stat().st_size - cut))
    whole = len(read_events(path))
    with MetricsLog(path, after) as metrics:
        metrics.append("step", 99, nats_per_symbol=1.0)
    steps = [event["step"] for event in read_events(path)]
    assert steps == [*range(1, min(whole, after) + 1), 99]


def test_events_of_older_versions_have_the_names_of_today(tmp_path: Path) -> None:
    """Until 2026-11-26 `nats` was the mean in a step and the sum in a validation, and phases were called stages."""
    path = tmp_path / "metrics.jsonl"
    validation = {"event": "validation", "step": 3, "nats": 4000.0, "bpb": 2.1}
    older = [{"event": "step", "step": 3, "nats": 1.5, "lr_factor": 1.0}, validation]
    path.write_text(
        "".join(json.dumps(event) + "\n" for event in [*older, {"event": "stages", "step": 3, "seconds": {}}])
    )
    expected = [{"event": "step", "step": 3, "nats_per_symbol": 1.5, "lr_factor": 1.0}, validation]
    expected.append({"event": "phases", "step": 3, "seconds": {}})
    assert read_events(path) == expected
    with MetricsLog(path, 3):
        assert [json.loads(line) for line in path.read_text().splitlines()] == expected


def test_metrics_refuse_what_json_cannot_say(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", 0) as metrics, pytest.raises(ValueError, match="JSON compliant"):
        metrics.append("step", 1, nats_per_symbol=float("nan"))
    assert read_events(tmp_path / "metrics.jsonl") == []


def test_lines_that_are_no_events_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [
        {"event": "step", "step": 1, "nats_per_symbol": 1.5, "progress_frac": 0.5},
        {"event": "finished", "step": 1, "packing": {"unpacked_bpb": 1.0}, "problems": []},
        {"event": "of tomorrow", "step": 1, "packing": "anything"},
    ]
    odd = [
        '{"step": 1}',
        '{"event": 3, "step": 1}',
        '{"event": "step"}',
        '{"event": "step", "step": -1}',
        '{"event": "step", "step": true}',
        '{"event": "step", "step": 1, "nats_per_symbol": NaN}',
        '{"event": "step", "step": 1, "progress_frac": 1e999}',
        '{"event": "validation", "step": 1, "bpb": "low"}',
        '{"event": "finished", "step": 1, "problems": [3]}',
        '{"event": "finished", "step": 1, "packing": {"unpacked_bpb": null}}',
        '{"event": "step", "step": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "\x00",
        "3",
    ]
    path.write_text("".join(f"{line}\n" for line in [*odd, *map(json.dumps, whole)]))
    assert read_events(path) == whole


def test_a_line_that_is_written_in_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", 0) as metrics:
        monkeypatch.setattr(os, "write", lambda descriptor, content: len(content) - 1)
        with pytest.raises(RunError, match="a line was written in part"):
            metrics.append("step", 1)


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{", "[" * 100_000),
        *('{"data": []}', '{"data": {"train": 3}}', '{"ranks": "two"}', '{"packages": null}', '{"git": "1f3"}'),
    ],
    ids=lambda content: content[:20],
)
def test_an_environment_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    run.environment_path.write_text(content)
    with pytest.raises(RunError, match=r"environment\.json: "):
        run.read_environment()
    with pytest.raises(RunError, match="delete it to continue"):
        run.write_environment({})


def test_a_start_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    run = open_run(tmp_path, "a", tiny_spec(), "mlx", resume=False)
    run.unlock()
    (run.path / ".artifact.btw.4242.tmp").touch()
    open_run(tmp_path, "a", tiny_spec(), "mlx", resume=True).unlock()
    assert [path.name for path in run.path.iterdir()] == ["spec.toml"]
