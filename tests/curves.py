"""Whether two runs have the same loss curve to the last bit: `python -m tests.curves RUN RUN`, folders of runs."""

from __future__ import annotations

import sys
from pathlib import Path

from shared.runs.metrics import read_events


def compare(one: str, other: str) -> None:
    """Compare the losses as far as both runs have gone; ends with status 1 where they differ or there are none."""
    left, right = (
        [event["nats_per_symbol"] for event in read_events(Path(run) / "metrics.jsonl") if event["event"] == "step"]
        for run in (one, other)
    )
    count = min(len(left), len(right))
    differs = next((index for index in range(count) if left[index] != right[index]), None)
    print(f"{count} logged steps: " + ("equal to the last bit" if differs is None else f"differ from number {differs}"))
    if differs is not None or not count:
        sys.exit(1)


if __name__ == "__main__":
    compare(*sys.argv[1:])
