"""Everything about the torch engine that needs a GPU to be known, on any NVIDIA GPU in some ten minutes.

    python -m tests.bench.gpu [--script path/to/train_gpt.py] [--out records/FILE.md] [--minutes N]

Speed, memory and start of a model with the size of the public baseline, with the public script (openai/parameter-golf)
beside it at the same architecture, batch, precision and Muon settings, two processes taking turns; the step of one of
eight ranks; parity of the GPU with the float64 oracle; attention by all that is installed, the MLP in tiles of several
forms, the decoder's context in three forms, scans; the kernels beside the plain operations; recompilations and a trace.
The most important comes first, each section has a budget of its own, and what a section found is printed and written
to --out when it ends: a run that is cut off keeps what it has. Exit status 1 if a check failed or a section ran out of
time.

`--device cpu --quick` runs the same code on tiny shapes, with Triton's interpreter and without compiling.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.bench.gpu_record import Section, Settings, prepare, record_text

# Seconds of each section at most, in the order in which they run.
BUDGETS = {
    "speed": 300,
    "exchange": 90,
    "choice": 40,
    "tiles": 60,
    "context": 60,
    "scans": 60,
    "parity": 120,
    "loss": 30,
    "attention": 60,
    "compilation": 90,
}
# Below this a section is not begun.
LEAST_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--script", type=Path, help="the public train_gpt.py to compare with")
    parser.add_argument("--out", type=Path, help="where to write the record; it is printed in any case")
    parser.add_argument("--trace", type=Path, help="where to write the trace of five steps; default: nowhere")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing compiled: the script's own test")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all sections together, at most")
    parser.add_argument("--only", nargs="+", choices=list(BUDGETS), help="these sections instead of all")
    parser.add_argument("--worker", choices=("public", "bytetwin"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = Settings(args.device, args.quick, args.script, args.rounds, args.trace)
    deadline_s = time.monotonic() + 60.0 * args.minutes
    prepare(settings, worker=bool(args.worker))
    from tests.bench import gpu_checks, gpu_forms, gpu_speed  # they import torch

    if args.worker:
        gpu_speed.work(settings, args.worker)
        return 0
    makers = {
        "speed": gpu_speed.speed,
        "exchange": gpu_checks.exchange,
        "choice": gpu_forms.attention_choice,
        "tiles": gpu_forms.mlp_tiles,
        "context": gpu_forms.symbol_context,
        "scans": gpu_forms.recurrent_scans,
        "parity": gpu_checks.parity,
        "loss": gpu_checks.fused_loss,
        "attention": gpu_checks.decoder_attention,
        "compilation": gpu_checks.compilation,
    }
    sections: list[Section] = []
    for name in args.only or BUDGETS:
        budget_s = min(float(BUDGETS[name]), deadline_s - time.monotonic())
        sections.append(run_section(makers[name], settings, budget_s))
        print("\n".join(sections[-1].text()), flush=True)
        if args.out:
            args.out.write_text(record_text(settings, sections), encoding="utf-8")
    failures = [failure for section in sections for failure in section.failures]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run_section(make: Callable[[Settings, Section], None], settings: Settings, budget_s: float) -> Section:
    """One section; what goes wrong in it is written down, and the next one has its turn."""
    section = Section((make.__doc__ or "").split("\n", 1)[0].rstrip("."))
    print(f"{section.title} ...", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    if budget_s < LEAST_S:
        section.failures.append(f"{section.title}: no time left")
        section.lines.append("Not run: no time left.")
        return section
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, budget_s)
    try:
        make(settings, section)
    except Exception as error:
        traceback.print_exc()
        section.failures.append(f"{section.title}: {type(error).__name__}: {error}")
        section.lines.append(f"Broke off: `{type(error).__name__}: {error}`")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    section.lines.append(f"({time.perf_counter() - begin:.0f} s)")
    return section


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("its budget is spent" if number == signal.SIGALRM else "it was told to end")


if __name__ == "__main__":
    sys.exit(main())
