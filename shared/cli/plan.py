"""`bytetwin plan`: from bytes, minutes and a device to a spec, with what its score rests on."""

from __future__ import annotations

import argparse
import shlex

from rich.console import Console

from shared.cli.command import (
    CommandResult,
    add_output_argument,
    add_set_argument,
    console,
    number_type,
    option_words,
    result_console,
    say,
)
from shared.cli.scoring import say_prose
from shared.cli.tables import make_table
from shared.engine.ranks import MAX_RANKS
from shared.files import write_atomically
from shared.plan import DEVICES, Plan, Wish, make_plan
from shared.plan.choose import NOTHING_BPB
from shared.spec import Spec, spec_to_dict, spec_to_short_toml
from shared.units import format_count

MOST_SHOWN = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    whole = number_type(float, lambda value: 1 <= value <= 1e12 and value == int(value), "a whole number of bytes")
    minutes = number_type(float, lambda value: 0.0 < value <= 1e6, "a number of minutes above 0")
    gpus = number_type(int, lambda value: 1 <= value <= MAX_RANKS, f"1 to {MAX_RANKS}")
    parser.add_argument("--bytes", type=whole, required=True, metavar="N", help="for artifact and code, such as 16e6")
    parser.add_argument("--minutes", type=minutes, required=True, metavar="M", help="of training")
    parser.add_argument("--gpus", type=gpus, default=1, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default=DEVICES[0],
        metavar="DEVICE",
        help=f"{DEVICES[0]}: this machine, a step is measured; {DEVICES[1]}: that of records/; or a GPU: H100, H200, "
        "...; default %(default)s",
    )
    parser.add_argument("--vocabulary", choices=("bytes", "tokens"), default="bytes", help="default %(default)s")
    add_set_argument(parser)
    add_output_argument(parser, "write the spec to this .toml file; default: print it")


def run(args: argparse.Namespace) -> CommandResult:
    """Plan and print. Raises UserError where nothing fits."""
    tokens = args.vocabulary == "tokens"
    wish = Wish(int(args.bytes), args.minutes, args.gpus, args.device, tokens, tuple(args.overrides))
    out = console()
    with out.status("plan") as status:
        plan = make_plan(wish, lambda what: status.update(f"plan: {what}"))
    spec = plan.chosen.spec
    toml = f"# {shlex.join(['bytetwin', 'plan', *_words(args)])}\n"
    toml += "".join(f"# {line}\n" for line in _basis(plan)) + _toml(spec)
    # The table is a comment on the spec where that is printed.
    _print(result_console(args) if args.output else out, plan, wish)
    if args.output:
        write_atomically(args.output, toml.encode())
        say(out, f"spec {args.output}")
    elif not args.json:
        print(toml, end="")
    document = {
        "spec": spec_to_dict(spec),
        "toml": toml,
        "candidates": [each.to_document() for each in plan.candidates],
        "measured_on": plan.text,
        "speed": plan.speed.text,
    }
    return CommandResult(document)


def _toml(spec: Spec) -> str:
    """The spec as TOML without defaults, and without a name: it is called like its file."""
    name, _, rest = spec_to_short_toml(spec).partition("\n")
    assert name.startswith("name = ")
    return rest.lstrip("\n")


def _words(args: argparse.Namespace) -> list[str]:
    """The arguments as they stand on a command line, without --output."""
    options = {
        "--bytes": int(args.bytes),
        "--minutes": f"{args.minutes:g}",
        "--gpus": args.gpus,
        "--device": args.device,
    }
    return option_words({**options, "--vocabulary": args.vocabulary, "--set": args.overrides})


def _basis(plan: Plan) -> list[str]:
    """What the score of the chosen shape and the symbols rest on, a line each."""
    chosen, expected = plan.chosen, plan.chosen.expected
    lines = [
        f"{chosen.label}: {chosen.parameters:,} weights, {chosen.artifact.expected_bytes:,} bytes expected "
        f"(at most {chosen.artifact.high_bytes:,}) and {chosen.code_bytes:,} of code",
        f"{chosen.symbols:,} symbols in {chosen.steps:,} steps: {plan.speed.text}",
        f"{expected.bpb:.3f} bits per byte ({expected.low_bpb:.3f} to {expected.high_bpb:.3f}) on {plan.text}: "
        f"{expected.basis}, {expected.beyond:.3g} times the text of that run",
    ]
    if plan.num_alike:
        others = f"{plan.num_alike} other {'shape' if plan.num_alike == 1 else 'shapes'}"
        lines.append(f"{others} within {NOTHING_BPB:g} of the best, which this cannot tell apart: of these the surest")
    return lines


def _print(out: Console, plan: Plan, wish: Wish) -> None:
    title = f"shapes for {wish.total_bytes:,} bytes and {wish.minutes:g} minutes, the chosen one first"
    columns = ("weights", "bytes with code", "at most", "symbols", "bits per byte", "interval", "text / measured")
    table = make_table(title, ("shape",), columns)
    for each in plan.candidates[:MOST_SHOWN]:
        artifact, expected = each.artifact, each.expected
        table.add_row(
            each.label,
            format_count(each.parameters),
            f"{artifact.expected_bytes + each.code_bytes:,}",
            f"{artifact.high_bytes + each.code_bytes:,}",
            format_count(each.symbols),
            f"{expected.bpb:.3f}",
            f"{expected.low_bpb:.3f} to {expected.high_bpb:.3f}",
            f"{expected.beyond:.3g}",
        )
    out.print(table)
    for line in _basis(plan):
        say_prose(out, line)
