"""The workflow for a public CI: it can be read, and calls nothing that is not there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from shared.cli.main import _parser
from tests import ROOT
from tests.unit.cli.test_makefile import make, two_gpus  # noqa: F401

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
LINES = sorted({line for step in STEPS for line in step.get("run", "").splitlines()})


def test_it_checks_linux_and_macs_with_apple_silicon() -> None:
    # YAML reads the word `on` as true.
    assert WORKFLOW[True].keys() == {"push", "pull_request", "workflow_dispatch"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    machines = {each["os"] for each in WORKFLOW["jobs"]["engines"]["strategy"]["matrix"]["include"]}
    assert machines == {"ubuntu-24.04", "macos-14", "macos-15"}
    assert all(job["timeout-minutes"] <= 60 for job in WORKFLOW["jobs"].values())


def test_every_action_has_a_version() -> None:
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used), used


@pytest.mark.parametrize("line", LINES)
def test_every_line_calls_what_is_there(line: str, two_gpus: Path) -> None:  # noqa: F811
    words = shlex.split(line)
    if words[0] == "make":
        done = make("--dry-run", *words[1:], gpus=two_gpus)
        assert done.returncode == 0, done.stderr
        arguments = [word.partition("=")[2] for word in words if word.startswith("ARGS=")]
        words = ["bytetwin", "train", "smoke", *shlex.split(arguments[0])] if arguments else words
    if "bytetwin" in words:
        arguments = words[words.index("bytetwin") + 1 :]
        parser, _ = _parser(arguments)
        assert parser.parse_args(arguments).command == arguments[0]
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in ("make", "uv") or words[:4] == ["python", "-m", "pip", "install"], line
