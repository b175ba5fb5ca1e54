"""`bytetwin tokenizer`: trains SentencePiece tokenizers and encodes datasets with them."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from data.encoding import encode_dataset
from data.making import make_missing
from data.tokenizer import Tokenizer, find_tokenizer, tokenizer_names, tokenizers_folder
from data.tokenizer_training import Normalisation, train_tokenizer
from shared.cli.command import CommandResult, console, positive, result_console, say
from shared.cli.data import add_action, measure_heldout, show_dataset
from shared.cli.scoring import progress_bar
from shared.cli.tables import make_table
from shared.units import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = add_action(actions, "train", "train a tokenizer on the training text of a dataset")
    train.add_argument("name", metavar="NAME", help="name of the new tokenizer")
    train.add_argument("dataset", metavar="DATASET", help="dataset of bytes whose training text is read")
    train.add_argument("--vocab-size", type=positive, default=1024, metavar="V", help="tokens; default %(default)s")
    train.add_argument(
        "--normalisation",
        choices=["nmt_nfkc", "identity"],
        help="nmt_nfkc, like the public tokenizers: one kind of space, no line ends; identity: the text as it is; "
        "default: nmt_nfkc, with --caseops identity",
    )
    train.add_argument(
        "--caseops", action="store_true", help="spell capital letters as sentinels before small ones, losing nothing"
    )
    train.add_argument(
        "--max-bytes",
        type=positive,
        default=100_000_000,
        metavar="N",
        help="read at most N bytes of text; default %(default)s",
    )
    train.add_argument("--replace", action="store_true", help="overwrite a tokenizer of this name")
    encode = add_action(actions, "encode", "turn a dataset of bytes into one of tokens")
    encode.add_argument("name", metavar="NAME", help="name of the new dataset")
    encode.add_argument("dataset", metavar="DATASET", help="dataset of bytes to encode")
    encode.add_argument("--tokenizer", required=True, metavar="T", help="a trained tokenizer's name, or a .model file")
    encode.add_argument("--replace", action="store_true", help="overwrite a dataset of this name")
    add_action(actions, "list", "the trained tokenizers, with sizes and hashes")


def run(args: argparse.Namespace) -> CommandResult:
    """Run one action; raises DataError for bad input."""
    if args.action == "encode":
        return encode(args.name, args.dataset, args.tokenizer, args.replace)
    return _train(args) if args.action == "train" else _list(args)


def _train(args: argparse.Namespace) -> CommandResult:
    normalisation: Normalisation = args.normalisation or ("identity" if args.caseops else "nmt_nfkc")
    make_missing(args.dataset)
    out = console()
    with progress_bar(out, f"reading {args.dataset}", "bytes") as progress:
        tokenizer = train_tokenizer(
            args.name,
            args.dataset,
            args.vocab_size,
            normalisation=normalisation,
            with_caseops=args.caseops,
            max_bytes=args.max_bytes,
            replace=args.replace,
            progress=progress,
        )
    entry = _describe(args.name, tokenizer)
    out.print(_table([entry]))
    if tokenizer.vocab_size < args.vocab_size:
        out.print(f"the text gave only {tokenizer.vocab_size} of {args.vocab_size} tokens", style="yellow")
    return CommandResult({**entry, "dataset": args.dataset, "normalisation": normalisation})


def encode(name: str, dataset: str, tokenizer_name: str, replace: bool = False) -> CommandResult:
    """Turn a dataset of bytes into one of tokens, with a progress bar. Raises DataError."""
    tokenizer = find_tokenizer(tokenizer_name)
    make_missing(dataset)
    out = console()
    with progress_bar(out, f"encoding {dataset}", "bytes") as progress:
        result = encode_dataset(name, dataset, tokenizer, replace=replace, progress=progress)
    described = show_dataset(out, result.manifest)
    out.print(
        f"{counted(result.num_tokens, 'token')} for {counted(result.text_bytes, 'byte')} of text, "
        f"{result.text_bytes / result.num_tokens:.4f} bytes each"
    )
    if result.changed_documents:
        say(
            out,
            f"the tokenizer changed {counted(result.changed_documents, 'document')}: of {result.source_bytes:,} bytes "
            f"{result.text_bytes:,} are left, and a score is per byte of these",
        )
    if result.empty_documents:
        out.print(f"{counted(result.empty_documents, 'document')} without text left out")
    compressors = measure_heldout(name)
    return CommandResult(
        {
            **described,
            "compressors": compressors,
            "tokens": result.num_tokens,
            "text_bytes": result.text_bytes,
            "source_bytes": result.source_bytes,
            "changed_documents": result.changed_documents,
            "empty_documents": result.empty_documents,
        }
    )


def _list(args: argparse.Namespace) -> CommandResult:
    entries = [_describe(name, find_tokenizer(name)) for name in tokenizer_names()]
    folder = str(tokenizers_folder())
    out = result_console(args)
    say(out, f"tokenizers in {folder}")
    out.print(_table(entries))
    return CommandResult({"folder": folder, "tokenizers": entries})


def _describe(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "name": name,
        "vocab_size": tokenizer.vocab_size,
        "sha256": tokenizer.sha256,
        "model_bytes": len(tokenizer.content),
        "caseops": tokenizer.table.has_caseops,
    }


def _table(entries: list[dict[str, Any]]) -> Table:
    table = make_table("", ("name",), ("tokens", "bytes"))
    for heading in ("SHA-256", "CaseOps"):
        table.add_column(heading)
    for entry in entries:
        sizes = (f"{entry['vocab_size']:,}", f"{entry['model_bytes']:,}")
        table.add_row(entry["name"], *sizes, entry["sha256"][:16], "yes" if entry["caseops"] else "no")
    return table
