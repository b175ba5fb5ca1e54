"""`bytetwin data`: lists, builds, imports, downloads and verifies datasets."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data import compressed
from data.datasets import load_manifest, verify_dataset
from data.folders import dataset_names, datasets_root
from data.hub import SOURCES, import_from_hub
from data.importers import allowed_files
from data.importing import DEFAULT_HELDOUT_FRAC, import_dataset
from data.making import BUILTIN, build_builtin
from data.manifest import Manifest
from shared.cli.command import CommandResult, console, result_console, say
from shared.cli.scoring import progress_bar
from shared.cli.tables import make_table
from shared.errors import DataError
from shared.units import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_action(actions, "list", "the datasets on disk, with sizes and hashes")
    build = add_action(actions, "build", "make the built-in corpus (also happens on first use)")
    build.add_argument("--replace", action="store_true", help="rebuild it, for instance after a new Python")
    verify = add_action(
        actions, "verify", "read every byte and compare with the manifests; exit status 1 if one is damaged"
    )
    verify.add_argument("names", metavar="NAME", nargs="*", help="default: every dataset on disk")
    add = add_action(actions, "import", f"turn files into a dataset: {allowed_files()}")
    add.add_argument("name", metavar="NAME", help="name of the new dataset")
    add.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="files, or folders searched recursively")
    side = add.add_mutually_exclusive_group()
    side.add_argument(
        "--heldout-frac",
        type=float,
        metavar="F",
        help=f"share of the documents held out, by content; default {DEFAULT_HELDOUT_FRAC}",
    )
    side.add_argument("--split", choices=["train", "heldout"], help="put every document on this side")
    add.add_argument(
        "--text-field", default="text", metavar="FIELD", help="field or column of the text; default %(default)s"
    )
    add.add_argument("--replace", action="store_true", help="overwrite a dataset of this name")
    load = add_action(actions, "download", "fetch token shards from the hub and turn them into a dataset of bytes")
    load.add_argument("source", metavar="SOURCE", help=f"name of the hub dataset: {', '.join(SOURCES)}")
    load.add_argument("--tokenizer", default="sp1024", help="whose shards to fetch; default %(default)s")
    shards_help = "the first N training shards, the held-out ones are always whole; default %(default)s"
    load.add_argument("--shards", type=int, default=1, metavar="N", help=shards_help)
    load.add_argument("--name", help="name of the new dataset (default: SOURCE)")
    load.add_argument("--replace", action="store_true", help="overwrite a dataset of this name")


def run(args: argparse.Namespace) -> CommandResult:
    """Run one action; raises DataError for bad input."""
    if args.action == "download":
        return download(args.source, args.tokenizer, args.shards, args.name, args.replace)
    actions = {"list": _list, "build": _build, "import": _import, "verify": _verify}
    return actions[args.action](args)


def add_action(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add a subcommand, which takes --json too."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    # Also accepted here; without a default, so that `data --json ACTION` is not undone.
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document on stdout"
    )
    return parser


def _list(args: argparse.Namespace) -> CommandResult:
    names = dataset_names()
    entries: list[dict[str, Any]] = []
    for name in names:
        try:
            entries.append(describe_dataset(load_manifest(name)))
        except DataError as error:
            entries.append({"name": name, "error": str(error)})
    if BUILTIN not in names:
        entries.insert(0, {"name": BUILTIN, "source": "not built yet: `bytetwin data build`, or its first use"})
    out = result_console(args)
    say(out, f"datasets in {datasets_root()}")
    out.print(datasets_table(entries))
    return CommandResult({"root": str(datasets_root()), "datasets": entries})


def _build(args: argparse.Namespace) -> CommandResult:
    exists, out = BUILTIN in dataset_names(), console()
    if args.replace or not exists:
        with progress_bar(out, "reading the Python library", "files") as progress:
            manifest = build_builtin(replace=args.replace, progress=progress)
    else:
        manifest = load_manifest(BUILTIN)
    return CommandResult({**show_dataset(out, manifest), "built": bool(args.replace or not exists)})


def _import(args: argparse.Namespace) -> CommandResult:
    options = {} if args.heldout_frac is None else {"heldout_frac": args.heldout_frac}
    out = console()
    with progress_bar(out, f"importing {args.name}", "bytes") as progress:
        result = import_dataset(
            args.name,
            args.paths,
            split=args.split,
            text_field=args.text_field,
            replace=args.replace,
            progress=progress,
            **options,
        )
    compressors = measure_heldout(args.name)
    described = show_dataset(out, result.manifest)
    for what, count in result.left_out.items():
        out.print(f"left out: {what}: {count:,}")
    if args.split is None and args.heldout_frac not in (0.0, 1.0):
        for split, lack in (("heldout", "no document is held out"), ("train", "no document is left to train on")):
            if split not in result.manifest.splits:
                say(out, f"warning: {lack}, there are too few: import more, or with another --heldout-frac", "yellow")
    if result.near_copies:
        out.print(f"{result.near_copies:,} documents that nearly repeat others are on the same side as these")
    return CommandResult(
        {
            **described,
            "compressors": compressors,
            "files": result.num_files,
            "left_out": dict(result.left_out),
            "near_copies": result.near_copies,
        }
    )


def download(source: str, tokenizer: str, shards: int, name: str | None = None, replace: bool = False) -> CommandResult:
    """Fetch a dataset from the hub, with a progress bar; status 130 if it was interrupted. Raises DataError."""
    out = console()
    with progress_bar(out, "asking the hub", "bytes") as update:
        try:
            result = import_from_hub(
                source,
                tokenizer=tokenizer,
                num_shards=shards,
                name=name,
                replace=replace,
                progress=lambda what, done, total: update(done, total, what),
            )
        except KeyboardInterrupt:
            out.print("interrupted; run the same command again to resume")
            return CommandResult({"interrupted": True}, status=130)
    compressors = measure_heldout(result.manifest.name)
    described = show_dataset(out, result.manifest)
    if result.empty_documents:
        out.print(f"{counted(result.empty_documents, 'empty document')} left out")
    if result.unfinished_documents:
        out.print("dropped the last training document: it continues in the next shard")
    return CommandResult(
        {
            **described,
            "compressors": compressors,
            "origin": result.manifest.origin.model_dump() if result.manifest.origin else None,
            "files": result.num_files,
            "downloaded_bytes": result.downloaded_bytes,
            "tokens": result.num_tokens,
            "empty_documents": result.empty_documents,
            "unfinished_documents": result.unfinished_documents,
        }
    )


def _verify(args: argparse.Namespace) -> CommandResult:
    names = args.names or dataset_names()
    if not names:
        raise DataError(f"no dataset in {datasets_root()} to verify; `bytetwin data build` makes the built-in one")
    out = result_console(args)
    problems: dict[str, list[str]] = {}
    for name in names:
        with out.status(f"verifying {name}"):
            problems[name] = verify_dataset(name)
        for problem in problems[name]:
            say(out, f"{name}: {problem}", "red")
        if not problems[name]:
            say(out, f"{name}: OK, all bytes match the manifest", "green")
    damaged = any(problems.values())
    return CommandResult({"passed": not damaged, "problems": problems}, status=1 if damaged else 0)


def measure_heldout(name: str) -> dict[str, Any]:
    """Measure what general compressors achieve on the held-out text of a dataset, unless known, so that no score
    waits for it; print and return the figures. Empty for a dataset without such text."""
    out, begin_s = console(), time.monotonic()
    with progress_bar(out, f"compressing the held-out text of {name} with xz, zstd and brotli", "bytes") as progress:
        try:
            results = compressed.measure_heldout(name, progress)
        except KeyboardInterrupt:
            out.print("the dataset is whole; its first score will measure the compressors", style="yellow")
            raise
    if results:
        shown = ", ".join(f"{compressor} {result.bpb:.4f}" for compressor, result in results.items())
        seconds = time.monotonic() - begin_s
        say(out, f"held-out text of {name}, bits per byte: {shown} ({seconds:.1f} s)")
    return {compressor: asdict(result) for compressor, result in results.items()}


def show_dataset(out: Console, manifest: Manifest) -> dict[str, Any]:
    """Print a dataset's row of the table of datasets; returns its JSON form."""
    described = describe_dataset(manifest)
    out.print(datasets_table([described]))
    return described


def describe_dataset(manifest: Manifest) -> dict[str, Any]:
    """The JSON form of a dataset's manifest, without its file list."""
    splits = {
        split: {"documents": entry.num_documents, "bytes": entry.total_bytes, "sha256": entry.sha256}
        for split, entry in manifest.splits.items()
    }
    return {
        "name": manifest.name,
        "vocabulary": manifest.vocabulary,
        "sha256": manifest.sha256,
        "source": manifest.source,
        "splits": splits,
    }


def datasets_table(entries: list[dict[str, Any]]) -> Table:
    """A table of datasets in the form of `describe_dataset`, or with an `error` in place of their splits."""
    table = make_table("", ("name", "split"), ("documents", "bytes"))
    table.add_column("SHA-256", no_wrap=True)
    table.add_column("source", overflow="fold")
    for entry in entries:
        note = Text(entry["error"], "red") if "error" in entry else Text(entry["source"])
        name = entry["name"]
        for split, numbers in entry.get("splits", {"": None}).items():
            counts = ["", "", ""]
            if numbers is not None:
                counts = [f"{numbers['documents']:,}", f"{numbers['bytes']:,}", numbers["sha256"][:16]]
            table.add_row(name, split, *counts, note)
            name, note = "", Text()
    return table
