"""`bytetwin prepare`: puts the datasets of a spec on disk, as far as they are not there.

A dataset of the hub is downloaded; `fineweb-sp1024` and its like are then encoded from it with its tokenizer. What
general compressors make of the held-out text is measured too, so that no GPU waits for it.
"""

from __future__ import annotations

import argparse
import importlib

from shared.cli import data, tokenizer
from shared.cli.command import Command, CommandResult, add_spec_arguments, console, spec_from_arguments

NAME = "prepare"
HELP = "download, and encode, the datasets of a spec that are not on disk yet"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare SPEC, --set and --shards."""
    add_spec_arguments(parser)
    parser.add_argument("--shards", metavar="N", help="of a dataset to download: the first N training shards")


def run(args: argparse.Namespace) -> CommandResult:
    """Look for each dataset and download what the hub has; raises DataError for one that is nowhere."""
    spec = spec_from_arguments(args)
    datasets, folders, hub = (importlib.import_module(f"data.{name}") for name in ("datasets", "folders", "hub"))
    tokens = {
        hub.hub_tokenizer(source, kind): (source, kind) for source, kinds in hub.SOURCES.items() for kind in kinds
    }
    found: dict[str, str] = {}
    for name in sorted({spec.data.train, spec.data.heldout}):
        found[name] = "on disk"
        if name not in folders.dataset_names() and (name in hub.SOURCES or name in tokens):
            source, kind = tokens.get(name, (name, hub.DEFAULT_TOKENIZER))
            if source not in folders.dataset_names():
                result = _download(source, kind, args.shards)
                if result.status:
                    return result
            found[name] = "downloaded"
            if name in tokens:
                _run(tokenizer, ["encode", name, source, "--tokenizer", name])
                found[name] = "encoded"
        datasets.load_manifest(name)
        if name == spec.data.heldout:
            data.measure_heldout(name)
        console().print(f"dataset {name}: {found[name]}", markup=False, soft_wrap=True)
    return CommandResult({"datasets": found})


def _download(source: str, kind: str, shards: str | None) -> CommandResult:
    """What `bytetwin data download` does."""
    return _run(data, ["download", source, "--tokenizer", kind, *(["--shards", shards] if shards else [])])


def _run(command: Command, words: list[str]) -> CommandResult:
    """What a command does with these words."""
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args(words))
