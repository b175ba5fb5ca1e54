"""A table of tests/bench/ablations.py by steps, seed after seed until every row is decided; rerun to resume.

    python -m tests.bench.by_steps TABLE ROWS.jsonl --steps 105 [--seeds 24] [--heldout openwebtext] [--engine mlx]

The experiments take turns at a few steps first, and each then trains as many as take the processor time of --steps
steps of the baseline: what else the machine does changes the time of a run and not its score. The float weights,
averaged, are scored on all held-out text. A row is decided when the interval of its paired difference excludes zero
or lies within +-0.01, which is looked at after each seed from the sixth on. Prints the table; several processes may
share ROWS.jsonl, each with seeds of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.engine.package import available_engines, create_engine
from shared.engine.protocol import Engine
from shared.model import initial_weights
from shared.optim import step_hyperparameters
from shared.scoring.bits_per_byte import score_by_spec
from shared.scoring.confidence import student_quantile
from shared.scoring.documents import DocumentScores
from shared.scoring.statistics import Difference, difference, document_interval
from shared.spec import Spec
from shared.study.plan import parse_seeds, plan_runs
from shared.training.sources import Sources, open_sources
from tests.bench.ablations import COMMON, SPEC, TABLES

BOUND_BPB = 0.01
FIRST_LOOK = 6
# Looked at after each of 6 to 24 seeds, intervals of 99 % exclude a difference of zero once in 21 experiments, at
# this level once in a hundred (`false_decisions`).
LOOK_LEVEL = 0.9983
TABLE_LEVEL = 0.99
TURNS, TURN_STEPS = 24, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("rows", type=Path, help="what was measured, a line each; continued if it is there")
    parser.add_argument("--steps", type=int, default=105, help="of the baseline; default %(default)s")
    parser.add_argument("--seeds", type=parse_seeds, default="24", help="as for bytetwin sweep; default %(default)s")
    parser.add_argument("--train", default="enwiki", help="dataset; default %(default)s")
    parser.add_argument("--heldout", default="openwebtext", help="dataset; default %(default)s")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as for bytetwin sweep")
    parser.add_argument("--engine", choices=["mlx", "torch"], default=next(iter(available_engines()), None))
    args = parser.parse_args(argv)
    ablation = TABLES[args.table]
    tried = [change.format(train=args.train, heldout=args.heldout) for change in ablation.tried]
    texts = (f"data.train={args.train}", f"data.heldout={args.heldout}", "training.time_limit_s=0")
    settings = (*COMMON, *texts, "schedule.driver=steps", *ablation.settings, *args.overrides)
    plan = plan_runs([SPEC], settings, ablation.vary, args.seeds, tried)
    labels = list(dict.fromkeys(planned.label for planned in plan))
    if not args.rows.exists():
        specs = {planned.label: planned.spec for planned in reversed(plan)}
        cost = step_costs(specs, labels, args.engine)
        steps = {label: equal_steps(args.steps, *cost[label]) for label in labels}
        append(args.rows, {"steps": steps, "cost": cost})
    for planned in plan:
        found = read(args.rows)
        done = planned.seed in found.scores.get(planned.label, {})
        if not done and not (planned.label != labels[0] and decided(found, labels[0], planned.label)):
            spec = with_steps(planned.spec, found.steps[planned.label])
            append(args.rows, {"label": planned.label, "seed": planned.seed, **trained_score(spec, args.engine)})
    print("\n".join(table(read(args.rows), labels)))
    return 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a file holds: steps by label, and scores by document by label and seed."""

    steps: dict[str, int]
    scores: dict[str, dict[int, DocumentScores]]

    def bpb(self, label: str) -> dict[int, float]:
        """Bits per byte by seed."""
        return {seed: _bpb(found) for seed, found in self.scores.get(label, {}).items()}


def _bpb(found: DocumentScores) -> float:
    return float(found.nats.sum() / np.log(2.0) / found.bytes.sum())


def read(path: Path) -> Rows:
    """All of a file, whoever wrote it."""
    first, *rest = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores: dict[str, dict[int, DocumentScores]] = {}
    for row in rest:
        found = DocumentScores(np.array(row["nats"]), np.array(row["bytes"], np.int64))
        scores.setdefault(row["label"], {})[row["seed"]] = found
    return Rows(first["steps"], scores)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """One line, at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def with_steps(spec: Spec, steps: int) -> Spec:
    """The spec, that long."""
    return spec.model_copy(update={"training": spec.training.model_copy(update={"steps": steps})})


def start(spec: Spec, engine_name: str) -> tuple[Engine, Sources]:
    """An engine with initial weights, ready to train, and the texts."""
    engine, sources = create_engine(engine_name, spec), open_sources(spec)
    engine.initialise(initial_weights(spec))
    if spec.training.compile:
        engine.warm_up(sources.loader.batch(0))
    return engine, sources


def train(engine: Engine, sources: Sources, steps: range) -> None:
    """Take these steps of the schedule."""
    spec = engine.spec
    for step in steps:
        progress = step / spec.training.steps
        engine.train_step(sources.loader.batch(step), step_hyperparameters(spec, step, progress))()


def step_costs(specs: Mapping[str, Spec], labels: Sequence[str], engine_name: str) -> dict[str, tuple[float, float]]:
    """Processor time of a step of each, in steps of the baseline: the median over turns and its standard error."""
    started = {label: start(with_steps(specs[label], 10 * TURNS * TURN_STEPS), engine_name) for label in labels}
    seconds = np.zeros((TURNS + 1, len(labels)))
    for turn in range(TURNS + 1):
        for column, (engine, sources) in enumerate(started.values()):
            begin = time.process_time()
            train(engine, sources, range(turn * TURN_STEPS, (turn + 1) * TURN_STEPS))
            seconds[turn, column] = time.process_time() - begin
    # Of the first turn a part is allocation.
    ratios = seconds[1:] / seconds[1:, :1]
    errors = 1.25 * ratios.std(axis=0, ddof=1) / np.sqrt(TURNS)
    middles = np.median(ratios, axis=0)
    return {label: (float(middle), float(error)) for label, middle, error in zip(labels, middles, errors, strict=True)}


def equal_steps(steps: int, ratio: float, error: float) -> int:
    """Steps in the time of so many of the baseline; as many where the costs are not told apart."""
    return steps if abs(ratio - 1.0) <= 2.0 * error else round(steps / ratio)


def trained_score(spec: Spec, engine_name: str) -> dict[str, Any]:
    """Nats and bytes of each held-out document after training, and the processor time of that."""
    begin = time.process_time()
    engine, sources = start(spec, engine_name)
    train(engine, sources, range(spec.training.steps))
    train_s = time.process_time() - begin
    engine.use_weights("averaged")
    score = score_by_spec(engine, sources.heldout)
    documents = score.by_document
    return {
        "bpb": round(score.bpb, 5),
        "train_s": round(train_s, 1),
        "nats": [round(float(nats), 3) for nats in documents.nats],
        "bytes": documents.bytes.tolist(),
    }


def decided(rows: Rows, baseline: str, label: str) -> str:
    """ "better", "worse", "within 0.01" or nothing, by the seeds that both have."""
    new, old = rows.bpb(label), rows.bpb(baseline)
    if len(new.keys() & old.keys()) < FIRST_LOOK:
        return ""
    return verdict(difference(new, old, LOOK_LEVEL))


def verdict(found: Difference) -> str:
    """What an interval decides."""
    assert found.interval is not None
    low, high = found.interval.low, found.interval.high
    if low > 0.0 or high < 0.0:
        return "worse" if low > 0.0 else "better"
    return f"within {BOUND_BPB:g}" if low > -BOUND_BPB and high < BOUND_BPB else ""


def table(rows: Rows, labels: Sequence[str]) -> list[str]:
    """Lines of markdown."""
    baseline = labels[0]
    lines = [
        "| change | steps | n | bits per byte | sd | difference | sd | over seeds, 99 % | at the level of looks | "
        "over documents, 99 % | verdict |",
        "|" + "---|" * 11,
    ]
    for label in labels:
        new, old = rows.bpb(label), rows.bpb(baseline)
        text = f"| {label} | {rows.steps[label]} | {len(new)} | {statistics.fmean(new.values()):.4f} | "
        text += f"{statistics.stdev(new.values()):.4f} |" if len(new) > 1 else "|"
        shared = sorted(new.keys() & old.keys())
        if label != baseline and len(shared) > 2:
            final, look = (difference(new, old, level) for level in (TABLE_LEVEL, LOOK_LEVEL))
            sides = [[rows.scores[each][seed] for seed in shared] for each in (label, baseline)]
            documents = document_interval(sides[0], sides[1], TABLE_LEVEL)
            assert final.interval and look.interval and documents
            ends = [(each.low, each.high) for each in (final.interval, look.interval)]
            text += f" {final.mean:+.4f} | {final.std:.4f} | "
            text += " | ".join(f"{low:+.4f} to {high:+.4f}" for low, high in ends)
            low, high = documents.low_bpb, documents.high_bpb
            text += " | few documents" if low is None or high is None else f" | {low:+.4f} to {high:+.4f}"
            text += f" | {decided(rows, baseline, label) or 'undecided'} |"
        lines.append(text)
    return lines


def false_decisions(level: float, experiments: int = 20_000, most: int = 24) -> float:
    """How often looking after each seed from the first look to the last excludes a difference that is zero."""
    draws = np.random.default_rng(0).standard_normal((experiments, most))
    wrong = np.zeros(experiments, bool)
    for n in range(FIRST_LOOK, most + 1):
        part = draws[:, :n]
        half = student_quantile(0.5 + level / 2.0, n - 1) * part.std(axis=1, ddof=1) / np.sqrt(n)
        wrong |= np.abs(part.mean(axis=1)) > half
    return float(wrong.mean())


if __name__ == "__main__":
    sys.exit(main())
