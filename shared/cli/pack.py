"""`bytetwin pack`: quantises the weights of a checkpoint of a run and writes the artifact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from shared.artifact import ArtifactInfo, budget_report, entropy_bits, read_artifact
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_output_argument,
    add_runs_dir_argument,
    console,
    result_console,
    say,
    say_idle,
)
from shared.cli.filling import add_fill_arguments, check_only_filling, fill_budget
from shared.cli.scoring import add_step_argument, calibrated, default_engine, packed, say_prose, say_warnings
from shared.cli.tables import make_table
from shared.errors import RunError, UserError
from shared.model import parameter_manifest
from shared.optim import keeps_average
from shared.runs.checkpoints import CheckpointStore
from shared.runs.run_directory import RunDirectory
from shared.runs.target import CHOSEN_KEY, Target, load_trained, refuse_run_artifact
from shared.scoring.document import read_score
from shared.spec import Spec, with_overrides
from shared.training.own_score import training_engine


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="RUN", help="a run's name or folder")
    add_runs_dir_argument(parser)
    add_output_argument(
        parser,
        "default: artifact.btw of the run, for its own settings and averaged weights only: a score belongs to it",
    )
    parser.add_argument(
        "--weights",
        choices=["averaged", "trained", "best"],
        default="averaged",
        help="averaged or trained weights of the last checkpoint, or of the one that was best on held-out text, which "
        "makes its score optimistic; default %(default)s",
    )
    add_step_argument(parser)
    add_engine_argument(parser, oracle=True)
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="artifact.key=value",
        help="pack with other settings of the artifact section; needs --output",
    )
    add_fill_arguments(parser)


def run(args: argparse.Namespace) -> CommandResult:
    """Pack and report the bytes; status 1 if code and artifact are over the budget."""
    for override in args.overrides:
        if not override.strip().startswith("artifact."):
            raise UserError(f"--set {override!r}: packing can change keys of the artifact section only")
    target = load_trained(args.target, args.weights, args.step, args.runs_dir)
    if target.run is None:
        raise UserError(f"{args.target}: packing needs a run with a checkpoint, this is an artifact already")
    spec = with_overrides(target.spec, args.overrides)
    if args.overrides:
        say_idle(spec)
    path = args.output or target.run.artifact_path
    if args.fill:
        return fill_budget(args, target, spec, path)
    check_only_filling(args)
    other = _not_the_runs(args, target, spec)
    if other or path.resolve() != target.run.artifact_path.resolve():
        refuse_run_artifact(path, other or f"packing {args.target}")
    calibration = calibrated(args.engine or default_engine(), spec, target.weights)
    extra: dict[str, Any] = {CHOSEN_KEY: target.chosen.model_dump()} if target.chosen is not None else {}
    info, logits = packed(args.engine or default_engine(), path, spec, target.weights, calibration, extra)
    budget = budget_report(info.artifact_bytes, training_engine(target.run), spec)
    entropy = _entropy_by_class(path)
    say_warnings(console(), target)
    out = result_console(args)
    _print_sizes(out, path, info, entropy)
    verdict = "fits" if budget.fits else "OVER the budget"
    out.print(
        f"{budget.artifact_bytes:,} artifact + {budget.code_bytes:,} code = {budget.total_bytes:,} bytes "
        f"of {budget.limit_bytes:,}: {verdict}",
        style=None if budget.fits else "red",
    )
    out = console()
    if calibration is not None:
        say_prose(out, f"calibrated on {calibration.record}")
    if logits is not None:
        say_prose(out, f"logits fitted on {logits.record}")
    if target.chosen is not None:
        say_prose(out, f"packed: {target.chosen}")
    if path.resolve() == target.run.artifact_path.resolve():
        _say_if_unscored(out, target.run, info)
    document = {
        "artifact": str(path),
        "weights": target.weights_name,
        "step": target.step,
        "calibration": calibration.record.model_dump(exclude_none=True) if calibration is not None else None,
        "logits": logits.record.model_dump(exclude_none=True) if logits is not None else None,
        "chosen": target.chosen.model_dump() if target.chosen is not None else None,
        "artifact_bytes": budget.artifact_bytes,
        "code_bytes": budget.code_bytes,
        "limit_bytes": budget.limit_bytes,
        "fits": budget.fits,
        "parameters": info.parameters,
        "bits_per_weight": info.bits_per_weight,
        "entropy_bits_per_weight": entropy,
        "sections": {name: {"raw_bytes": raw, "stored_bytes": stored} for name, (raw, stored) in _sections(info)},
        "sha256": info.sha256,
    }
    return CommandResult(document, 0 if budget.fits else 1)


def _not_the_runs(args: argparse.Namespace, target: Target, spec: Spec) -> str:
    """Why this is not the artifact that the run's own settings give; empty if it is."""
    if spec != target.spec:
        return "packing with other settings than the run's (" + ", ".join(args.overrides) + ")"
    if args.weights == "best" or (args.weights == "trained" and keeps_average(spec.training)):
        return f"packing --weights {args.weights}"
    assert target.run is not None
    last = CheckpointStore(target.run.checkpoints_path, spec.training.keep_checkpoints).steps()[-1]
    return f"packing --step {args.step} where the last is {last}" if args.step not in (None, last) else ""


def _say_if_unscored(out: Console, run: RunDirectory, info: ArtifactInfo) -> None:
    """Print a line if the run has a score, but of another artifact than this."""
    if not run.score_path.exists():
        return
    try:
        scored = read_score(run.score_path).is_of(info)
    except RunError:
        scored = False
    if not scored:
        say(out, f"{run.score_path} is of another artifact: `bytetwin score {run.path}` scores this one", "yellow")


def _entropy_by_class(path: Path) -> dict[str, float]:
    """Order-0 entropy of the codes in bits per weight, averaged over the tensors of each quantised class."""
    codes: dict[str, list[Any]] = {}
    artifact = read_artifact(path)
    classes = {parameter.name: parameter.quantisation for parameter in parameter_manifest(artifact.spec)}
    for name, tensor in artifact.tensors.items():
        if "codes" in tensor.parts:
            codes.setdefault(classes[name], []).append(tensor.parts["codes"])
    return {
        name: sum(entropy_bits(array) * array.size for array in arrays) / sum(np.size(array) for array in arrays)
        for name, arrays in codes.items()
    }


def _sections(info: ArtifactInfo) -> list[tuple[str, tuple[int, int]]]:
    return sorted(info.section_bytes.items())


def _print_sizes(out: Console, path: Path, info: ArtifactInfo, entropy: dict[str, float]) -> None:
    title = f"{path}: {info.parameters:,} weights, {info.bits_per_weight:.3f} bits each"
    table = make_table(title, ("section",), ("raw bytes", "stored bytes", "bits per code", "entropy"))
    table.add_row("header", "", f"{info.header_bytes:,}", "", "")
    for name, (raw, stored) in _sections(info):
        kind, _, part = name.partition(".")
        coded = part == "codes"
        bits = f"{8 * stored / raw:.3f}" if coded else ""
        table.add_row(name, f"{raw:,}", f"{stored:,}", bits, f"{entropy[kind]:.3f}" if coded else "")
    out.print(table)
