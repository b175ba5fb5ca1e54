"""The ablation tables of records/, one command each; rerun to resume.

    python -m tests.bench.ablations patch|vocabulary|decoder|tricks [--seconds 300] [--seeds 3] [--engine mlx] [--print]

Every model of a table gets the same training time on the same text and is scored, packed, on the same held-out text
of another source in the same windows: 768 bytes, which every patch size of the table divides. The tables are plain
sweeps: --print shows the `bytetwin sweep` command instead of running it. The datasets are made by

    bytetwin data import enwiki enwiki.jsonl.xz --split train
    bytetwin data import openwebtext openwebtext.jsonl.xz --split heldout

and --train builtin --heldout builtin needs neither. The vocabulary table also wants their tokens,

    bytetwin tokenizer train sp1024-enwiki enwiki --vocab-size 1024 --normalisation identity --max-bytes 20000000
    bytetwin tokenizer encode enwiki-sp1024 enwiki --tokenizer sp1024-enwiki
    bytetwin tokenizer encode openwebtext-sp1024 openwebtext --tokenizer sp1024-enwiki

tests/bench/leaky.py makes the row of the leaky model beside them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.cli.main import main as bytetwin

SPEC = "smoke"
# Long enough never to end a run before the clock does.
MANY_STEPS = 1_000_000
# The model of `smoke` when the tables were made.
SHAPE = (
    *("model.model_dim=192", "model.ngram.rows=0", "model.ngram.reader=trunk"),
    *("model.decoder.dim=128", "model.decoder.num_layers=2", "model.decoder.mlp_dim=512"),
)
COMMON = (
    *SHAPE,
    "model.seq_len=768",
    "evaluation.stride_symbols=768",
    "evaluation.val_symbols=65280",
    "evaluation.batch_symbols=15360",
    "training.batch_symbols=4608",
    "training.micro_batch_symbols=2304",
    f"training.steps={MANY_STEPS}",
    "training.val_every_steps=0",
    "training.checkpoint_every_steps=200",
    "schedule.driver=time",
)


@dataclass(frozen=True)
class Ablation:
    """A sweep over the values of one field (`vary`), or over changes to a baseline, one at a time (`tried`).

    In `tried`, {train} and {heldout} stand for the names of the datasets.
    """

    settings: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()


# 320 tokens of English are about 768 bytes: the same context. Batches of half the text were better for tokens, and of
# a third for plain bytes, whose steps are slow.
TOKENS = (
    "vocabulary.kind=tokens vocabulary.vocab_size=1024 data.train={train}-sp1024 data.heldout={heldout}-sp1024 "
    "model.patch_size=1 model.start=document_start model.seq_len=320 evaluation.stride_symbols=320 "
    "evaluation.val_symbols=27200 evaluation.batch_symbols=6400 training.batch_symbols=960 "
    "training.micro_batch_symbols=960"
)

TABLES = {
    # The plain byte model is the baseline.
    "patch": Ablation(vary=("model.patch_size=1,2,4,8,12,16",)),
    # Byte patches against plain bytes and tokens: the same trunk, and tokens with as many parameters.
    "vocabulary": Ablation(
        tried=(
            "bytes: model.patch_size=1 training.batch_symbols=1536 training.micro_batch_symbols=1536",
            f"tokens: {TOKENS} model.num_layers=6 model.mlp_dim=680",
            f"tokens-same-trunk: {TOKENS}",
        )
    ),
    # What turns a patch into its bytes; the first row is the local transformer of the preset.
    "decoder": Ablation(
        tried=(
            "model.decoder.kind=linear model.decoder.context=1",
            "model.decoder.kind=mlp model.decoder.context=1",
            "model.decoder.context=1",
            "model.decoder.num_layers=1",
            "model.decoder.num_layers=3",
            "model.decoder.dim=64 model.decoder.mlp_dim=256",
            "model.decoder.dim=192 model.decoder.mlp_dim=768",
        )
    ),
    # The tricks of the byte-patch source, each alone on its baseline: relu squared and a double-width MLP.
    "tricks": Ablation(
        settings=("model.mlp_negative_slope=0.0", "model.mlp_dim=384"),
        tried=(
            "model.mlp_negative_slope=0.5",
            "model.mlp_dim=576",
            "model.attention.rope_dims=12",
            "model.ln_scale=true",
        ),
    ),
}


def sweep_words(table: str, args: argparse.Namespace) -> list[str]:
    """The command line of a table's sweep, after `bytetwin`."""
    ablation = TABLES[table]
    texts = (f"data.train={args.train}", f"data.heldout={args.heldout}", f"training.time_limit_s={args.seconds:g}")
    words = ["sweep", SPEC, "--name", f"{table}-{args.seconds:g}s", "--seeds", args.seeds]
    for option, values in (
        ("--set", (*COMMON, *texts, *ablation.settings, *args.overrides)),
        ("--vary", ablation.vary),
        ("--try", tuple(change.format(train=args.train, heldout=args.heldout) for change in ablation.tried)),
    ):
        for value in values:
            words += [option, value]
    if args.engine:
        words += ["--engine", args.engine]
    if args.runs_dir != Path("runs"):
        words += ["--runs-dir", str(args.runs_dir)]
    return [*words, "--output", str(args.output)] if args.output else words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one table, or print its command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--seconds", type=float, default=300.0, help="training time of each run; default %(default)s")
    parser.add_argument("--seeds", default="3", help="as for bytetwin sweep; default %(default)s")
    parser.add_argument("--train", default="enwiki", help="dataset; default %(default)s")
    parser.add_argument("--heldout", default="openwebtext", help="dataset; default %(default)s")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as for bytetwin sweep")
    parser.add_argument("--engine", choices=["mlx", "torch"])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, help="also write the table as markdown to this file")
    parser.add_argument("--print", dest="only_print", action="store_true", help="print the command, run nothing")
    args = parser.parse_args(argv)
    words = sweep_words(args.table, args)
    if args.only_print:
        print(shlex.join(["bytetwin", *words]))
        return 0
    return bytetwin(words)


if __name__ == "__main__":
    sys.exit(main())
