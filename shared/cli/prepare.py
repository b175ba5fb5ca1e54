"""`bytetwin prepare`: puts the datasets of a spec on disk, as far as they are not there."""

from __future__ import annotations

import argparse
import importlib

from shared.cli import data
from shared.cli.command import CommandResult, add_spec_arguments, console, spec_from_arguments

NAME = "prepare"
HELP = "download the datasets of a spec that are not on disk yet"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare SPEC, --set and --shards."""
    add_spec_arguments(parser)
    parser.add_argument("--shards", metavar="N", help="of a dataset to download: the first N training shards")


def run(args: argparse.Namespace) -> CommandResult:
    """Look for each dataset and download what the hub has; raises DataError for one that is nowhere."""
    spec = spec_from_arguments(args)
    datasets = importlib.import_module("data.datasets")
    found: dict[str, str] = {}
    for name in sorted({spec.data.train, spec.data.heldout}):
        found[name] = "on disk"
        if name not in datasets.dataset_names() and name in importlib.import_module("data.hub").SOURCES:
            result = _download(name, args.shards)
            if result.status:
                return result
            found[name] = "downloaded"
        datasets.load_manifest(name)
        console().print(f"dataset {name}: {found[name]}", markup=False, soft_wrap=True)
    return CommandResult({"datasets": found})


def _download(name: str, shards: str | None) -> CommandResult:
    """What `bytetwin data download` does."""
    parser = argparse.ArgumentParser()
    data.configure(parser)
    words = ["download", name, *(["--shards", shards] if shards else [])]
    return data.run(parser.parse_args(words))
