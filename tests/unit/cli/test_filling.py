"""`bytetwin pack --fill` on a run: where it ends, what it says, and what it refuses; `inspect --sizes` beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.artifact import code_bytes, read_artifact
from shared.artifact.curvature import curved_tensors
from shared.artifact.fill import LANDING_BYTES
from shared.cli.filling import all_two_sided
from shared.model import parameter_manifest
from shared.runs.run_directory import RunDirectory
from shared.spec import load_spec
from tests.command_line import CommandLine

pytestmark = pytest.mark.slow

# Matrices by steps of the loss, as in the presets, whose unit the search replaces by its own.
QUICK = (
    *("--set", "artifact.matrix.method=uniform", "--set", "artifact.matrix.rounding=two_sided"),
    *("--set", "artifact.matrix.step_unit=loss"),
    *("--set", "artifact.calibration.source=train", "--set", "artifact.calibration.windows=8"),
    *("--set", "artifact.logits=temperature", "--minutes", 1),
)


def test_a_run_fills_a_budget(root: Path, tmp_path: Path, cli: CommandLine) -> None:
    run, path = RunDirectory(root / "first"), tmp_path / "filled.btw"
    code = code_bytes("mlx", run.read_spec())
    budget = code + int(0.6 * run.artifact_path.stat().st_size)
    words = ("pack", "first", "--runs-dir", root, "--fill", "--budget", budget, "--output", path, *QUICK)
    document = cli.document(*words)
    assert budget - LANDING_BYTES <= document["total_bytes"] <= budget and document["fits"]
    assert document["artifact_bytes"] == path.stat().st_size == document["total_bytes"] - document["code_bytes"]
    assert document["code_bytes"] == pytest.approx(code, rel=0.01)
    assert document["predicted_loss_bpb"] > 0 and document["measured_symbols"] > 0
    # Of the whole, as it was measured, beside which stands the sum over tensors, each alone.
    alone = sum(row["predicted_loss_bpb"] for row in document["tensors"])
    assert document["sum_loss_bpb"] == pytest.approx(alone) != pytest.approx(document["predicted_loss_bpb"], rel=1e-6)
    artifact = read_artifact(path)
    assert artifact.info.sha256 == document["sha256"]
    assert artifact.header["extra"]["fill"] == {"limit_bytes": budget}
    assert artifact.header["extra"]["calibration"]["source"] == "train"
    assert artifact.header["extra"]["logits"]["windows"] == 8 and artifact.weights["logits.temperature"][0] > 0.0
    rows = {row["name"]: row["settings"] for row in document["tensors"]}
    for name, settings in rows.items():
        stored = artifact.tensors[name].storage.stored_settings
        assert {key: settings[key] for key in stored} == dict(stored)
    assert cli.document("inspect", path)["artifact_bytes"] == document["artifact_bytes"]


def test_what_does_not_fit_is_one_line_and_status_1(root: Path, tmp_path: Path, cli: CommandLine) -> None:
    budget = code_bytes("mlx", RunDirectory(root / "first").read_spec()) + 1000
    path = tmp_path / "none.btw"
    done = cli("pack", "first", "--runs-dir", root, "--fill", "--budget", budget, "--output", path, *QUICK)
    assert done.status == 1 and done.out == "" and "nothing fits" in done.told and not path.exists()


def test_filling_is_refused_where_it_makes_no_sense(root: Path, tmp_path: Path, cli: CommandLine) -> None:
    words = ("pack", "first", "--runs-dir", root)
    assert "pack --fill needs --output with another file" in cli.refusal(*words, "--fill")
    out = ("--output", tmp_path / "x.btw")
    assert "the code alone takes" in cli.refusal(*words, "--fill", "--budget", 1000, *out)
    assert "--budget is for --fill" in cli.refusal(*words, "--budget", 10**6)
    assert "must not be none" in cli.refusal(*words, "--fill", *out, "--set", "artifact.calibration.source=none")


def test_the_size_table_tells_what_fits(cli: CommandLine) -> None:
    small = cli.document("inspect", "--sizes", "tiny")
    assert small["fits"] and small["fitting_parameters"]["int4"] > small["fitting_parameters"]["int8"]
    sizes = {row["shape"]: row["artifact_bytes"] for row in small["shapes"]}
    given = next(each for shape, each in sizes.items() if shape.endswith("as given"))
    assert given["int8"] > given["int6"] > given["int4"] and given["step 0.15"] > given["step 0.6"]
    assert len(sizes) > 4 and given["as given"] == given["int6"]
    limit = load_spec("tiny").budget.total_bytes - small["code_bytes"]
    assert small["fitting_parameters"]["int6"] > limit  # less than a byte for each
    done = cli("inspect", "--sizes", "tiny", "--set", "budget.total_bytes=110000")
    assert done.status == 1 and "parameters that fit" in done.out and "(0." in done.out
    assert "name a RUN or an ARTIFACT" in cli.refusal("inspect", "tiny", "--sizes", "tiny")


def test_what_changes_nothing_is_a_warning(root: Path, tmp_path: Path, cli: CommandLine) -> None:
    done = cli("pack", "first", "--runs-dir", root, "--set", "artifact.matrix.clip_sd=3.0", "--output", tmp_path / "a")
    assert (
        done.status == 0
        and "artifact.matrix.clip_sd has no effect where artifact.matrix.method is row_max" in done.told
    )


def test_a_search_measures_every_matrix_whatever_the_spec_stores_them_by() -> None:
    """A trellis is not for two-sided rounding, and settings by name would leave tensors out. Tables of n-grams have the
    products of 8,192 rows with each other."""
    trellis = ["artifact.matrix.method=uniform", "artifact.matrix.trellis=8", "model.ngram.rows=97"]
    spec = load_spec("tiny", [*trellis, "artifact.tensors=[{pattern='layers.*', bits=5}]"])
    tables = [each for each in parameter_manifest(spec) if each.quantisation != "control" and len(each.shape) == 2]
    assert curved_tensors(spec) == []
    measured = [each.name for each in tables if ".tables." not in each.name]
    assert curved_tensors(all_two_sided(spec)) == measured and len(measured) < len(tables)
