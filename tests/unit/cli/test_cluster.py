"""The files of cluster/: fields that SkyPilot knows, and commands that the Makefile and `bytetwin` know."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.cli.main import _parser
from shared.spec import preset_names
from shared.study.plan import parse_seeds, plan_runs
from tests import ROOT

TASKS = sorted((ROOT / "cluster").glob("*.yaml"))
# Of the SkyPilot YAML reference; what only services and pools use is left out.
FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
RESOURCES = {"accelerators", "use_spot", "job_recovery", "disk_size", "disk_tier"}
# What SkyPilot itself sets on a node.
PROVIDED = {"SKYPILOT_NUM_GPUS_PER_NODE"}


def read(name: str) -> dict[str, Any]:
    values = yaml.safe_load((ROOT / "cluster" / name).read_text())
    assert isinstance(values, dict)
    return values


@pytest.fixture(params=TASKS, ids=lambda path: path.stem)
def task(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param.name)


def make_calls(script: str) -> list[list[str]]:
    """The words of every `make` in a script, continued lines joined."""
    lines = script.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("make ")]


def test_fields_and_resources_are_skypilots(task: dict[str, Any]) -> None:
    assert task.keys() <= FIELDS and task["resources"].keys() <= RESOURCES
    assert task["resources"]["accelerators"] in ("H100:8", "H100:1") and task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["strategy"] in ("EAGER_NEXT_REGION", "FAILOVER")
    (mount,) = task["file_mounts"].values()
    assert mount == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"}
    assert task["envs"]["BUCKET"] is None, "a bucket's name is unique in the world, so there is no default"
    assert task["secrets"] == {"HF_TOKEN": ""} and task["envs"].get("SPEC", "h100") in preset_names()


def test_scripts_are_shell_and_use_known_variables(task: dict[str, Any]) -> None:
    known = set(task["envs"]) | set(task["secrets"]) | PROVIDED
    for name in ("setup", "run"):
        script = task[name]
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
        assert script.startswith("set -e\n"), "a failed step must not be followed by the next"
        assigned = set(re.findall(r"^(\w+)=", script, re.MULTILINE))
        used = set(re.findall(r"\$\{?(\w+)", script))
        assert used <= known | assigned, used - known - assigned


def test_its_make_commands_exist(task: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *[?:]?=", makefile, re.MULTILINE))
    # Named by the rules only: empty unless given.
    variables |= {name for name in ("PRICE", "FORCE", "STRICT", "SEED") if f"$({name})" in makefile}
    calls = make_calls(task["run"])
    assert [call[0] for call in calls] == (["prepare"] if "PLAN" in task["envs"] else ["prepare", "h100"])
    for call in calls:
        assert call[0] in targets
        for word in call[1:]:
            name, equals, _ = word.partition("=")
            assert equals and (name in variables or name.upper() == "PYTHON"), word


def test_runs_and_records_end_in_the_bucket() -> None:
    task = read("skypilot.yaml")
    (mounted,) = task["file_mounts"]
    assert f"RUNS={mounted}/runs" in task["run"]
    assert f'cp -r "records/$RUN" {mounted}/records' in task["run"]


def test_a_job_trains_one_run_of_the_plan(tmp_path: Path) -> None:
    """The script as a shell runs it, with programs that only say how they were called."""
    task = read("sweep.yaml")
    (mounted,) = task["file_mounts"]
    for name in ("bin/python3", "bin/make", ".venv/bin/bytetwin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> {tmp_path}/calls\n')
        (tmp_path / name).chmod(0o755)
    plan = "tiny bytes --seeds 2 --try 'wide: model.model_dim=256 model.num_heads=8'"
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PLAN": plan, "RUN": "3", "SHARDS": "80"}
    script = task["run"].replace(f"{mounted}/", f"{tmp_path}/bucket/")
    subprocess.run(["sh"], input=script, text=True, check=True, cwd=tmp_path, env=environment)
    *_, sweep = (tmp_path / "calls").read_text().partition("bytetwin\n")
    words = sweep.splitlines()
    parser, command = _parser(words)
    args = parser.parse_args(words)
    assert command is not None and args.command == "sweep"
    plan_of_it = plan_runs(args.specs, args.overrides, args.vary, parse_seeds(args.seeds), args.tried)
    assert [run.label for run in plan_of_it] == ["tiny", "tiny-wide", "bytes", "bytes-wide"] * 2
    assert (args.only, args.engine, args.runs_dir) == ([3], "torch", tmp_path / "bucket/runs")
    assert "SPEC=tiny\n" in (tmp_path / "calls").read_text()
