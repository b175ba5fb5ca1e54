"""`bytetwin soup`: mixes the weights of several runs into one artifact and scores it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from data.datasets import open_split
from data.stream import SymbolStream
from shared.artifact import read_artifact
from shared.artifact.calibration import LOGITS_KEY
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_output_argument,
    add_runs_dir_argument,
    console,
    result_console,
    say,
)
from shared.cli.score import print_score
from shared.cli.scoring import (
    add_step_argument,
    add_text_arguments,
    calibrated,
    default_engine,
    packed,
    progress_bar,
    say_warnings,
)
from shared.cli.tables import make_table
from shared.engine.package import create_scorer
from shared.runs.target import Target, load_trained, refuse_run_artifact
from shared.scoring.adaptation import check_learner
from shared.scoring.calibration_check import check_calibration
from shared.scoring.checks import Check
from shared.scoring.document import write_score
from shared.scoring.evaluate import evaluate
from shared.scoring.overlap import check_selection
from shared.study.soup import RECIPES, Selection, Soup, check_members, make_measure, make_soup, open_selection
from shared.training.run_data import check_target_data


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="names or folders of runs with one spec_id and seed")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="uniform",
        help="uniform: equal shares (default); inverse: shares in proportion to 1 / nats; greedy: start from the best "
        "run, add each next-best run if it helps. The last two use text kept out of training (data.selection_frac)",
    )
    parser.add_argument("--weights", choices=["averaged", "trained"], default="averaged", help="default %(default)s")
    add_runs_dir_argument(parser)
    add_step_argument(parser)
    add_output_argument(parser, "default %(default)s", Path("soup.btw"))
    add_text_arguments(parser)
    add_engine_argument(parser, oracle=True)


def run(args: argparse.Namespace) -> CommandResult:
    """Mix, pack, score; status 1 if a check fails."""
    refuse_run_artifact(args.output, "a soup")
    members = [load_trained(source, args.weights, args.step, args.runs_dir) for source in args.runs]
    for member in members:
        say_warnings(console(), member)
    check_members(members, args.recipe)
    spec, engine, out = members[0].spec, args.engine or default_engine(), result_console(args)
    # Before any work, and before a file is written that could not be scored.
    check_learner(spec, engine)
    stream = open_split(args.data or spec.data.heldout, "heldout", spec.vocabulary)
    selection = open_selection(spec)
    measure = None if selection is None else make_measure(engine, spec, selection)
    soup = make_soup([member.weights for member in members], args.recipe, measure)
    document = _soup_document(args, members, selection, soup)
    calibration = calibrated(engine, spec, soup.weights)
    info, logits = packed(engine, args.output, spec, soup.weights, calibration, {"soup": document})
    _print_members(out, members, soup)

    data_checks = _data_checks(members, stream)
    if calibration is not None:
        data_checks.append(check_calibration(calibration.record, stream, calibration.windows))
    if logits is not None:
        data_checks.append(check_calibration(logits.record, stream, logits.windows, LOGITS_KEY))
    if selection is not None and args.recipe != "uniform":
        data_checks.append(check_selection(selection.windows, stream))
    scorer = create_scorer(engine, spec, read_artifact(args.output).weights)
    with progress_bar(console(), f"scoring {args.output} on {stream.name}", "symbols") as progress:
        score = evaluate(
            scorer,
            stream,
            engine=engine,
            weights="packed",
            artifact_bytes=info.artifact_bytes,
            artifact_sha256=info.sha256,
            max_symbols=args.max_symbols,
            progress=progress,
            data_checks=data_checks,
        )
    write_score(args.output.with_suffix(".score.json"), score)
    print_score(out, score)
    say(out, f"artifact {args.output}, score {args.output.with_suffix('.score.json')}")
    document |= {"artifact": str(args.output), "artifact_bytes": info.artifact_bytes, "score": score.to_dict()}
    return CommandResult(document, 0 if score.audit.passed else 1)


def _data_checks(members: list[Target], heldout: SymbolStream) -> list[Check]:
    """The checks of the scored text against the members' training texts, each once."""
    return list(dict.fromkeys(check for member in members for check in check_target_data(member, heldout)))


def _soup_document(
    args: argparse.Namespace, members: list[Target], selection: Selection | None, soup: Soup
) -> dict[str, Any]:
    """The recipe of the soup as plain JSON values, to be kept in the artifact."""
    nats = soup.member_nats or (None,) * len(members)
    return {
        "recipe": args.recipe,
        "weights": args.weights,
        "members": [
            {"run": Path(member.source).name, "share": share, "selection_nats": own}
            for member, share, own in zip(members, soup.shares, nats, strict=True)
        ],
        "selection": selection.to_document() if selection is not None else None,
        "selection_nats": soup.nats,
    }


def _print_members(out: Console, members: list[Target], soup: Soup) -> None:
    chosen = soup.member_nats is not None
    table = make_table("soup of", ("run",), ("share", *(["nats per symbol on the selection text"] if chosen else [])))
    for member, share, nats in zip(members, soup.shares, soup.member_nats or (None,) * len(members), strict=True):
        table.add_row(member.source, f"{share:.4f}", *([] if nats is None else [f"{nats:.4f}"]))
    if soup.nats is not None:
        table.add_row("soup", "", f"{soup.nats:.4f}", style="bold")
    out.print(table)
    if soup.member_nats is not None and soup.nats is not None and soup.nats > min(soup.member_nats):
        out.print("warning: the soup is worse than its best member on the selection text", style="yellow")
