"""`bytetwin inspect`: of an artifact, of a run with the cost of each tensor, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.artifact import pack_bytes, read_artifact
from shared.runs.run_directory import RunDirectory
from shared.runs.target import load_trained
from tests.command_line import CommandLine
from tests.unit.views.test_report import Page

pytestmark = pytest.mark.slow


def test_a_run_and_its_artifact_show_the_same(root: Path, cli: CommandLine) -> None:
    path = root / "first" / "artifact.btw"
    document = cli.document("inspect", path)
    assert document == cli.document("inspect", "first", "--runs-dir", root)
    sizes = sum(row["stored_bytes"] for row in document["tensors"]) + document["header_bytes"]
    assert sizes == pytest.approx(document["artifact_bytes"]) and document["artifact_bytes"] == path.stat().st_size
    shown = cli("inspect", path)
    assert shown.status == 0 and shown.err == ""
    for row in document["tensors"]:
        line = next((line for line in shown.out.splitlines() if f" {row['name'].removesuffix('.weight')} " in line), "")
        assert (f"{row['weights']:,}" in line) == (row["code_bits"] is not None)
    assert f"{document['artifact_bytes']:,}" in shown.out and "other tensors" in shown.out


def test_the_cost_of_each_tensor_is_measured_and_nearly_adds_up(root: Path, tmp_path: Path, cli: CommandLine) -> None:
    words = ("inspect", "first", "--runs-dir", root, "--loss", "--symbols", 1024)
    document = cli.document(*words)
    costs = {row["name"]: row["loss_bpb"] for row in document["tensors"]}
    assert all(cost >= 0.0 for cost in costs.values()) and document["summed_loss_bpb"] == sum(costs.values())
    assert document["loss_bpb"] == pytest.approx(document["summed_loss_bpb"], rel=0.3) and document["loss_bpb"] > 0
    assert document["loss_symbols"] >= 1024 and document["loss_text"] == "toy/train"
    assert "all together cost" in cli(*words).out
    page = tmp_path / "page.html"
    assert cli("report", "first", "--runs-dir", root, "--loss", "--symbols", 0, "--output", page).status == 0
    shown = Page(page.read_bytes()).text
    assert "loss, 1e-6 bpb" in shown and "symbols of training text (toy/train); all together cost" in shown


def test_a_run_without_an_artifact_is_packed_in_memory(root: Path, tmp_path: Path, cli: CommandLine) -> None:
    spec, weights = (target := load_trained("first", "averaged", runs_dir=root)).spec, target.weights
    artifact = root / "first" / "artifact.btw"
    artifact.rename(tmp_path / "away.btw")
    try:
        done = cli("inspect", "first", "--runs-dir", root, "--json")
    finally:
        (tmp_path / "away.btw").rename(artifact)
    assert done.status == 0 and "no artifact yet" in done.told
    assert done.document["artifact_bytes"] == len(pack_bytes(spec, weights))


def test_the_report_shows_the_same_bytes(root: Path) -> None:
    run = RunDirectory(root / "first")
    page = Page(run.report_path.read_bytes())
    assert "Where the bytes are" in page.text
    info = read_artifact(run.artifact_path).info
    assert f"header {info.header_bytes:,}" in page.text and "layers.0.mlp.up_proj row_max 6" in page.text


def test_what_cannot_be_inspected_is_refused(root: Path, cli: CommandLine) -> None:
    assert "name a RUN or an ARTIFACT" in cli.refusal("inspect")
    artifact = root / "first" / "artifact.btw"
    assert "needs the float weights of a run" in cli.refusal("inspect", artifact, "--loss")
    assert "no run named 'none'" in cli.refusal("inspect", "none")
