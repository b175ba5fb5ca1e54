"""cluster/skypilot.yaml: fields that SkyPilot knows, and commands that the Makefile knows."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from shared.spec import preset_names
from tests import ROOT

TASK = ROOT / "cluster" / "skypilot.yaml"
# Of the SkyPilot YAML reference; what only services and pools use is left out.
FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
RESOURCES = {"accelerators", "use_spot", "job_recovery", "disk_size", "disk_tier"}
# What SkyPilot itself sets on a node.
PROVIDED = {"SKYPILOT_NUM_GPUS_PER_NODE"}


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    values = yaml.safe_load(TASK.read_text())
    assert isinstance(values, dict)
    return values


def make_calls(script: str) -> list[list[str]]:
    """The words of every `make` in a script, continued lines joined."""
    lines = script.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("make ")]


def test_fields_and_resources_are_skypilots(task: dict[str, Any]) -> None:
    assert task.keys() <= FIELDS and task["resources"].keys() <= RESOURCES
    assert task["resources"]["accelerators"] == "H100:8" and task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["strategy"] in ("EAGER_NEXT_REGION", "FAILOVER")
    (mount,) = task["file_mounts"].values()
    assert mount == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"}
    assert task["envs"]["BUCKET"] is None, "a bucket's name is unique in the world, so there is no default"
    assert task["secrets"] == {"HF_TOKEN": ""} and task["envs"]["SPEC"] in preset_names()


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
    assert [call[0] for call in calls] == ["prepare", "h100"]
    for call in calls:
        assert call[0] in targets
        for word in call[1:]:
            name, equals, _ = word.partition("=")
            assert equals and (name in variables or name.upper() == "PYTHON"), word


def test_runs_and_records_end_in_the_bucket(task: dict[str, Any]) -> None:
    (mounted,) = task["file_mounts"]
    assert f"RUNS={mounted}/runs" in task["run"]
    assert f'cp -r "records/$RUN" {mounted}/records' in task["run"]
