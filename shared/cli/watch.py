"""`bytetwin watch`: a running or finished run, seen from another terminal or over ssh; several runs as rows."""

from __future__ import annotations

import argparse
import time

from rich.console import RenderableType

from shared.cli.command import CommandResult, add_runs_dir_argument, number_type, result_console
from shared.runs.target import find_runs
from shared.views.live import SteadyLive
from shared.views.watched import WatchedRun, WatchedRuns, read_watched


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's name or folder, or a folder of runs (a sweep)")
    add_runs_dir_argument(parser)
    parser.add_argument("--once", action="store_true", help="print what there is and end, as into a file or a pipe")
    parser.add_argument(
        "--interval",
        type=number_type(float, lambda value: 0.1 <= value <= 3600.0, "a number of seconds from 0.1 to 3600"),
        default=2.0,
        metavar="S",
        help="seconds between two looks at the files; default %(default)g",
    )


def run(args: argparse.Namespace) -> CommandResult:
    """Show the runs until all have ended, or until Ctrl-C, which ends nothing but this."""
    found = _read(args)
    out = result_console(args)
    if args.json or args.once or not out.is_terminal:
        if not args.json:
            out.print(_view(found))
        return CommandResult({"runs": [each.to_document() for each in found]})
    try:
        with SteadyLive(_view(found), console=out, auto_refresh=False) as live:
            while any(each.state == "running" for each in found):
                time.sleep(args.interval)
                found = _read(args)
                live.update(_view(found), refresh=True)
    except KeyboardInterrupt:
        pass
    return CommandResult(None)


def _read(args: argparse.Namespace) -> list[WatchedRun]:
    """The runs as they are now; a folder may have more of them than before."""
    return [read_watched(each) for each in find_runs(args.runs, args.runs_dir)]


def _view(runs: list[WatchedRun]) -> RenderableType:
    return runs[0].dashboard if len(runs) == 1 else WatchedRuns(runs)
