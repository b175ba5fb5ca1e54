"""Everything about the torch engine that needs a GPU to be known, on any NVIDIA GPU in under ten minutes.

    python -m tests.bench.gpu [--script path/to/train_gpt.py] [--out records/FILE.md]

Parity of the GPU with the float64 oracle, the fused loss and the written-out attention beside the plain ones,
compile time and recompilations, speed and memory of a model with the size of the public baseline, and a trace. With
the public script (openai/parameter-golf) also its speed at the same architecture, batch, precision and Muon settings,
two processes taking turns. The record is printed, and written to --out. Exit status 1 if a check failed.

`--device cpu --quick` runs the same code on tiny shapes, with Triton's interpreter and without compiling.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.bench.gpu_record import Section, Settings, prepare, record_text

SECTIONS = ("parity", "loss", "attention", "compilation", "speed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--script", type=Path, help="the public train_gpt.py to compare with")
    parser.add_argument("--out", type=Path, help="where to write the record; it is printed in any case")
    parser.add_argument("--trace", type=Path, help="where to write the trace of five steps; default: nowhere")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing compiled: the script's own test")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", choices=SECTIONS, help="one section instead of all")
    parser.add_argument("--worker", choices=("public", "bytetwin"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = Settings(args.device, args.quick, args.script, args.rounds, args.trace)
    prepare(settings, worker=bool(args.worker))
    from tests.bench import gpu_checks, gpu_speed  # they import torch

    if args.worker:
        gpu_speed.work(settings, args.worker)
        return 0
    makers = (gpu_checks.parity, gpu_checks.fused_loss, gpu_checks.decoder_attention, gpu_checks.compilation)
    named = dict(zip(SECTIONS, (*makers, gpu_speed.speed), strict=True))
    sections = [run_section(make, settings) for name, make in named.items() if args.only in (None, name)]
    text = record_text(settings, sections)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    failures = [failure for section in sections for failure in section.failures]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run_section(make: Callable[[Settings, Section], None], settings: Settings) -> Section:
    """One section; what goes wrong in it is written down, and the next one has its turn."""
    section = Section((make.__doc__ or "").split("\n", 1)[0].rstrip("."))
    print(f"{section.title} ...", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    try:
        make(settings, section)
    except Exception as error:
        traceback.print_exc()
        section.failures.append(f"{section.title}: {type(error).__name__}: {error}")
        section.lines.append(f"Broke off: `{type(error).__name__}: {error}`")
    section.lines.append(f"({time.perf_counter() - begin:.0f} s)")
    return section


if __name__ == "__main__":
    sys.exit(main())
