"""`bytetwin prepare`: puts those datasets of a spec on disk that are not there yet.

A dataset of the hub is downloaded; `fineweb-sp1024` and its like are then encoded from it with its tokenizer. What
general compressors achieve on the held-out text is measured too, so that no GPU waits for it.
"""

from __future__ import annotations

import argparse

from data.datasets import load_manifest
from data.folders import dataset_names
from data.hub import DEFAULT_TOKENIZER, SOURCES, hub_tokenizer
from shared.cli.command import CommandResult, add_spec_arguments, console, say, spec_from_arguments
from shared.cli.data import download, measure_heldout
from shared.cli.tokenizer import encode


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_spec_arguments(parser)
    parser.add_argument(
        "--shards",
        type=int,
        default=1,
        metavar="N",
        help="training shards to download, the first N; default %(default)s",
    )


def run(args: argparse.Namespace) -> CommandResult:
    """Look for each dataset and download what the hub has; raises DataError for one that cannot be found."""
    spec = spec_from_arguments(args)
    tokens = {hub_tokenizer(source, kind): (source, kind) for source, kinds in SOURCES.items() for kind in kinds}
    found: dict[str, str] = {}
    for name in sorted({spec.data.train, spec.data.heldout}):
        found[name] = "on disk"
        if name not in dataset_names() and (name in SOURCES or name in tokens):
            source, kind = tokens.get(name, (name, DEFAULT_TOKENIZER))
            if source not in dataset_names():
                result = download(source, kind, args.shards)
                if result.status:
                    return result
            found[name] = "downloaded"
            if name in tokens:
                encode(name, source, name)
                found[name] = "encoded"
        load_manifest(name)
        if name == spec.data.heldout:
            measure_heldout(name)
        say(console(), f"dataset {name}: {found[name]}")
    return CommandResult({"datasets": found})
