"""Rows about the machine: its clock, its framework, driver and GPUs."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.preflight.question import Context
from shared.preflight.row import Row, go, judged, no_go, unknown

# The wall clock and the steady one are compared over this long; a step of the wall clock shows as more.
WATCHED_S = 0.2
MAX_DRIFT_S = 0.05
# Files unpacked in another time zone may be from later today.
SLACK_S = 86_400
LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()


def clock_row(context: Context) -> Row:
    """The time of day is later than the code and moves as fast as the steady clock that measures training."""
    written = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    wall, steady = time.time(), time.monotonic()
    time.sleep(WATCHED_S)
    drift_s = (time.time() - wall) - (time.monotonic() - steady)
    sane = written - SLACK_S <= wall <= LATEST and abs(drift_s) <= MAX_DRIFT_S
    figure = f"{datetime.fromtimestamp(wall, UTC):%Y-%m-%d %H:%M:%S} UTC"
    how = (
        f"not before this code was written ({datetime.fromtimestamp(written, UTC):%Y-%m-%d}) and "
        f"{abs(drift_s) * 1000:.1f} ms off the steady clock over {WATCHED_S:g} s"
    )
    return judged(sane, "clock", figure, how, drift_s=drift_s)


def driver_row(context: Context) -> Row:
    """Framework and driver; on GPUs that they are alike and as many as the ranks of a node.

    Of several nodes only this one is seen; their ranks compare devices when they connect.
    """
    facts, question = context.facts, context.question
    ranks, nodes = question.ranks_per_node, question.nodes
    values: dict[str, Any] = {"framework": facts.framework, "driver": facts.driver, "devices": list(facts.names)}
    values |= {"ranks": question.ranks, "nodes": nodes}
    if facts.kind == "cpu":
        how = f"needs a GPU; {question.engine} runs on {facts.names[0]}"
        return unknown("driver", how, facts.framework, **values)
    counted = ", ".join(f"{count} x {name}" for name, count in Counter(facts.names).items())
    figure = f"{facts.framework}, {facts.driver}, {counted}"
    if not facts.alike:
        return no_go("driver", figure, "the GPUs differ: all ranks need the same kind to compute the same", **values)
    if ranks > len(facts.names):
        how = f"{question.trainers} need {ranks} GPUs{' each' if nodes > 1 else ''}, {len(facts.names)} found"
        if nodes == 1:
            how += "; --nodes N divides them over N machines"
        return no_go("driver", figure, how, **values)
    rest = f"; the other {nodes - 1} must be the same and were not checked" if nodes > 1 else ""
    return go("driver", figure, f"{ranks} of {len(facts.names)} GPUs used, all alike{rest}", **values)
