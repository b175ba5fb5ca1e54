"""`bytetwin audit`: leak and accounting tests of a run, an artifact or an untrained spec."""

from __future__ import annotations

import argparse

from rich.console import Console

from data.datasets import open_split
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_runs_dir_argument,
    add_set_argument,
    console,
    positive,
    result_console,
)
from shared.cli.scoring import (
    add_step_argument,
    add_text_arguments,
    default_engine,
    progress_bar,
    say_warnings,
    verdict,
)
from shared.cli.tables import make_table
from shared.engine.package import create_engine, create_scorer
from shared.errors import UserError
from shared.model import initial_weights
from shared.runs.target import Target, load_audited
from shared.scoring.adaptation import score_text
from shared.scoring.audit import DISTURB_SECONDS, AuditReport, audit_scorer, check_initial_loss
from shared.scoring.checks import limit_text
from shared.scoring.evaluate import sampled
from shared.scoring.gradient_check import check_spec_gradients
from shared.scoring.random_bytes import RANDOM_BYTES_STEPS, check_random_bytes
from shared.scoring.windows import check_window
from shared.spec import spec_id
from shared.training.run_data import check_target_data
from shared.training.sources import starting_text

# Seconds for each search of --full in which more positions or cuts are tried while there is time.
FULL_SECONDS = 120.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "target", metavar="RUN|ARTIFACT|SPEC", help="a run's name or folder, a .btw file, or a spec (random weights)"
    )
    add_runs_dir_argument(parser)
    add_set_argument(parser, "of a spec: change one field")
    add_text_arguments(parser)
    add_step_argument(parser)
    add_engine_argument(parser, oracle=True)
    parser.add_argument(
        "--full",
        action="store_true",
        help="look for leaks for longer, and train on uniform random bytes: a score below 8 bits means a leak",
    )
    parser.add_argument(
        "--steps", type=positive, default=RANDOM_BYTES_STEPS, help="training steps for --full, default %(default)s"
    )


def run(args: argparse.Namespace) -> CommandResult:
    """Run the checks; status 1 if one fails."""
    target = load_audited(args.target, args.overrides, step=args.step, runs_dir=args.runs_dir)
    say_warnings(console(), target)
    engine = args.engine or default_engine()
    if args.full and engine == "numpy":
        raise UserError("--full trains a model, which the numpy oracle cannot: choose --engine mlx or torch")
    out = console()
    report = _audit(args, target, engine, out)
    if args.full:
        with progress_bar(out, "training on random bytes", "steps") as progress:
            check = check_random_bytes(
                lambda spec: create_engine(engine, spec), target.spec, steps=args.steps, progress=progress
            )
        report = report.with_checks(check)
    print_report(result_console(args), f"audit of {target.source} on {engine}, {target.weights_name} weights", report)
    document = {
        "target": target.source,
        "spec_id": spec_id(target.spec),
        "engine": engine,
        "weights": target.weights_name,
        **report.to_document(),
    }
    return CommandResult(document, 0 if report.passed else 1)


def print_report(out: Console, title: str, report: AuditReport) -> None:
    """Print the checks as a table."""
    table = make_table(title, ("check", "verdict", "detail"), ("measured", "limit"))
    for check in report.checks:
        limit = limit_text(check.passed, check.measured, check.limit)
        table.add_row(check.name, verdict(check), check.detail, f"{check.measured:.4g}", limit)
    out.print(table)
    failed = ", ".join(check.name for check in report.failures)
    out.print(f"audit FAILED: {failed}" if failed else "audit passed", style="red" if failed else "green")


def _audit(args: argparse.Namespace, target: Target, engine: str, out: Console) -> AuditReport:
    """Run the checks that need no training, on a sample of the held-out text."""
    spec = target.spec
    text = open_split(args.data or spec.data.heldout, "heldout", spec.vocabulary)
    stream = sampled(text, args.max_symbols or spec.evaluation.val_symbols)
    check_window(spec.model.seq_len, stream.num_symbols)
    scorer = create_scorer(engine, spec, target.weights)
    with progress_bar(out, f"scoring {stream.name}", "symbols") as progress:
        score = score_text(scorer, stream, progress=progress)
    with out.status("looking for leaks"):
        seconds = FULL_SECONDS if args.full else DISTURB_SECONDS
        report = audit_scorer(scorer, stream, score, seconds=seconds).with_checks(*check_target_data(target, text))
        if target.weights_name == "random":
            fresh = initial_weights(spec, starting_text(spec))
            report = report.with_checks(check_initial_loss(create_scorer(engine, spec, fresh)))
            if engine != "numpy":
                report = report.with_checks(check_spec_gradients(spec, engine))
    return report
