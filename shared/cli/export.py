"""`bytetwin export`: trained weights as a folder that others load, with a model card; --push sends it to the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.cli.command import CommandResult, add_runs_dir_argument, console, say
from shared.cli.scoring import add_step_argument, say_warnings
from shared.export.folder import FORMS, refuse_folder, write_export
from shared.export.hub import push_folder
from shared.runs.target import load_trained
from shared.spec import spec_id


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="RUN|ARTIFACT", help="a run's name or folder, or a .btw file")
    add_runs_dir_argument(parser)
    parser.add_argument(
        "--to",
        dest="form",
        choices=FORMS,
        required=True,
        help="safetensors: weights and spec; hf: for transformers' AutoModelForCausalLM; mlx: for MLX alone",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--replace", action="store_true", help="overwrite an earlier export")
    parser.add_argument(
        "--weights",
        choices=["packed", "averaged", "trained", "best"],
        help="of a run: its artifact (default), or a checkpoint's weights, which no score belongs to",
    )
    add_step_argument(parser)
    parser.add_argument("--push", metavar="NAME", help="upload the folder to the hub as model OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="with --push: a new repository is private without it")


def run(args: argparse.Namespace) -> CommandResult:
    """Write the folder, and send it if asked to."""
    refuse_folder(args.output, args.replace)
    target = load_trained(args.target, args.weights, args.step, args.runs_dir)
    out = console()
    say_warnings(out, target)
    files = write_export(target, args.form, args.output, replace=args.replace)
    for path in files:
        say(out, f"{path}  {path.stat().st_size:,} bytes")
    address = push_folder(args.output, args.push, public=args.public) if args.push else None
    if address:
        say(out, f"pushed to {address}")
    document = {
        "folder": str(args.output),
        "form": args.form,
        "files": {path.name: path.stat().st_size for path in files},
        "weights": target.weights_name,
        "spec_id": spec_id(target.spec),
        "address": address,
    }
    return CommandResult(document)
