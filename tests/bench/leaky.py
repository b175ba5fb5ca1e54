"""How the published byte-patch figures arose: the leaky model of the museum beside the honest one.

    python -m tests.bench.leaky [--leak itchy|megabyte] [--patch-size 12] [--seconds 300] [--engine mlx]

Both have the same parameters, text, training time and scorer, and differ in the forward pass alone (tests/museum).
Prints bits per byte of the trained weights, unpacked, on a fixed sample of held-out documents, and what the audit
says of each. The honest one is row P of `python -m tests.bench.ablations patch`, up to packing and sample.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from shared.engine.package import available_engines, create_engine
from shared.model import Forward, forward, initial_weights
from shared.optim import progress_frac, step_hyperparameters
from shared.scoring.audit import audit_scorer
from shared.scoring.bits_per_byte import score_by_spec
from shared.spec import Spec, load_spec
from shared.training.sources import open_sources
from tests.bench.ablations import COMMON, SPEC
from tests.museum.leaks import itchy_byte_shift, megabyte_own_patch

LEAKS: dict[str, Forward] = {"itchy": itchy_byte_shift, "megabyte": megabyte_own_patch}


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score both; one JSON document on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--leak", choices=sorted(LEAKS), default="itchy")
    parser.add_argument("--patch-size", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=300.0, help="training time of each; default %(default)s")
    parser.add_argument("--train", default="enwiki", help="dataset; default %(default)s")
    parser.add_argument("--heldout", default="openwebtext", help="dataset; default %(default)s")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change one field of the spec")
    parser.add_argument("--engine", choices=["mlx", "torch"], default=next(iter(available_engines()), None))
    args = parser.parse_args(argv)
    settings = [*COMMON, f"model.patch_size={args.patch_size}", f"training.time_limit_s={args.seconds:g}"]
    # The published heads see no byte of their own patch but what the trunk leaks to them.
    settings += ["model.decoder.kind=mlp", "model.decoder.context=1"] if args.leak == "itchy" else []
    spec = load_spec(SPEC, [*settings, f"data.train={args.train}", f"data.heldout={args.heldout}", *args.overrides])
    models = {"honest": forward, args.leak: LEAKS[args.leak]}
    document = {name: train_and_score(spec, args.engine, model) for name, model in models.items()}
    print(json.dumps(document, indent=2))
    return 0


def train_and_score(spec: Spec, engine_name: str, model: Forward) -> dict[str, Any]:
    """Steps, bits per byte and the audit's failures of one forward pass, trained as the spec says."""
    engine = create_engine(engine_name, spec, model)
    sources = open_sources(spec)
    engine.initialise(initial_weights(spec))
    if spec.training.compile:
        engine.warm_up(sources.loader.batch(0))
    begin, step = time.perf_counter(), 0
    while (progress := progress_frac(spec, step, time.perf_counter() - begin)) < 1.0:
        engine.train_step(sources.loader.batch(step), step_hyperparameters(spec, step, progress))()
        step += 1
    engine.use_weights("averaged")
    score = score_by_spec(engine, sources.validation)
    audit = audit_scorer(engine, sources.validation, score)
    return {
        "steps": step,
        "bpb": score.bpb,
        "bytes": score.bytes,
        "audit_passed": audit.passed,
        "audit_failures": [f"{check.name}: {check.detail}" for check in audit.checks if not check.passed],
    }


if __name__ == "__main__":
    sys.exit(main())
