"""CPU seconds of a command, user and system, in this tree and in an older one: `python -m tests.bench.startup [TREE]`.

The processes of both trees take turns, so that what else the machine does falls on both. Of N runs the minimum and the
median count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import ROOT

# Random weights of `tiny`, written by the older tree: the newer one reads what it wrote.
WRITE_ARTIFACT = """
import sys
from pathlib import Path
from shared.artifact import write_artifact
from shared.model import random_weights
from shared.spec import load_spec
spec = load_spec("tiny", ["training.compile=false"])
write_artifact(Path(sys.argv[1]), spec, random_weights(spec, 1))
"""

SAMPLE = ("generate", "tiny.btw", "--bytes", "20")
COMMANDS = (
    ("--help",),
    ("--version",),
    ("spec", "smoke"),
    ("train", "--help"),
    SAMPLE,
    *((*SAMPLE, "--engine", engine) for engine in ("numpy", "mlx", "torch")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, nargs="?", metavar="TREE", help="another checkout to compare with")
    parser.add_argument("-n", type=int, default=10, metavar="N", help="runs of each command (default %(default)s)")
    args = parser.parse_args()
    trees = {"before": args.before, "now": ROOT} if args.before else {"now": ROOT}
    print(f"| bytetwin | {' | '.join(f'{name}: min | median' for name in trees)} |")
    print("|---" * (1 + 2 * len(trees)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        write = [sys.executable, "-c", WRITE_ARTIFACT, "tiny.btw"]
        subprocess.run(write, cwd=folder, env=environment(next(iter(trees.values()))), check=True)
        for words in COMMANDS:
            seconds: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(args.n):
                for name, tree in trees.items():
                    seconds[name].append(cpu_seconds(words, tree, folder))
            cells = [f"{min(values):.2f} | {statistics.median(values):.2f}" for values in seconds.values()]
            print(f"| {' '.join(words)} | {' | '.join(cells)} |", flush=True)


def cpu_seconds(words: tuple[str, ...], tree: Path, folder: str) -> float:
    """User and system time of one command and of what it started; not a number if the tree does not have it."""
    command, null = [sys.executable, "-m", "shared.cli.main", *words], subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment(tree), stdout=null, stderr=null)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime if status == 0 else float("nan")


def environment(tree: Path) -> dict[str, str]:
    """One thread, and this tree's modules."""
    return {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
