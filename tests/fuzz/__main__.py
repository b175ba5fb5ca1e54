"""`python -m tests.fuzz KIND --count N --seed S`: hostile inputs of a kind, and a line of counts.

Exit status 1 if any of them crashed, was slow or large. `--only INDEX` runs one input again, `--keep DIR` keeps the bad
ones. `kill` is another kind: commands that write, killed where they write; `chain` another: random specs through the
whole chain of commands.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

from tests.fuzz.worker import KINDS, Tally, run_inputs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", choices=[*KINDS, "kill", "chain"])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="INDEX")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--links", metavar="A,B", help="of a chain: these links alone, after the first")
    args = parser.parse_args()
    if args.kind == "kill":
        from tests.fuzz.kill import run_kills

        return run_kills(args.count, args.seed, args.only)
    if args.kind == "chain":
        from tests.fuzz.chain import run_chains

        return run_chains(args.count, args.seed, args.only, tuple(args.links.split(",")) if args.links else ())
    indices = range(args.count) if args.only is None else range(args.only, args.only + 1)
    begin_s = time.monotonic()
    tally = run_inputs(args.kind, args.seed, indices, args.keep.resolve() if args.keep else None)
    tell(tally, args.kind, args.seed)
    print(f"{args.kind}: {tally} ({time.monotonic() - begin_s:.0f} s)")
    return 1 if tally.failures else 0


def tell(tally: Tally, kind: str, seed: int) -> None:
    """Every distinct failure once, the most frequent first."""
    alike = defaultdict(list)
    for index, verdict, detail in tally.failures:
        lines = detail.splitlines()
        frames = [line.strip() for line in lines[:-1] if "tests/fuzz/" not in line]
        alike[verdict, *frames, *lines[-1].split()[:3]].append((index, verdict, detail))
    for found in sorted(alike.values(), key=len, reverse=True):
        index, verdict, detail = found[0]
        print(f"{len(found)} x {verdict}: python -m tests.fuzz {kind} --seed {seed} --only {index}\n    {detail}\n")


if __name__ == "__main__":
    sys.exit(main())
