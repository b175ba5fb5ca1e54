"""Rows about bytes: the artifact, the code, the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.artifact.budget import code_bytes
from shared.artifact.predict import Prediction, predict_artifact_bytes
from shared.preflight.question import Context
from shared.preflight.row import Row, go, judged, no_go, risk
from shared.preflight.speed_rows import plan_run
from shared.runs.checkpoints import checkpoint_bytes
from shared.units import format_bytes

# In addition to the checkpoints that are kept: the best one, and the one being written.
MORE_CHECKPOINTS = 2
# metrics.jsonl, score.json and report.html of a long run, generously.
REPORT_BYTES = 20_000_000


def artifact_row(context: Context) -> Row:
    """Predicted artifact plus code against the limit: no-go if the expected size is over it, a risk if only the high
    estimate is. The worst case is reported."""
    limit, code = context.spec.budget.total_bytes, code_bytes(context.question.engine, context.spec)
    # The planned steps, where the clock ends the run before training.steps and the step time is known.
    prediction = predict_artifact_bytes(context.spec, plan_run(context).steps or None)
    total = prediction.expected_bytes + code
    answer = no_go if total > limit else go if prediction.high_bytes + code <= limit else risk
    figure = (
        f"{prediction.expected_bytes:,} ({prediction.low_bytes:,} to {prediction.high_bytes:,}, "
        f"worst case {prediction.worst_case_bytes:,}); with code {total:,} of {limit:,} ({total / limit:.1%})"
    )
    return answer(
        "artifact_bytes",
        figure,
        f"{prediction.how}; {_verdict(prediction, code, limit)}",
        expected_bytes=prediction.expected_bytes,
        low_bytes=prediction.low_bytes,
        high_bytes=prediction.high_bytes,
        worst_case_bytes=prediction.worst_case_bytes,
        code_bytes=code,
        total_bytes=total,
        limit_bytes=limit,
    )


def code_row(context: Context) -> Row:
    """The one file of code that counts against the limit."""
    code, limit = code_bytes(context.question.engine, context.spec), context.spec.budget.total_bytes
    how = "the self-contained script that trains and scores, as `bytetwin record` writes it"
    figure = f"{code:,} bytes, {code / limit:.1%} of the limit"
    return judged(code < limit, "code_bytes", figure, how, code_bytes=code, limit_bytes=limit)


def disk_row(context: Context) -> Row:
    """Free space where the run will be against all that it writes."""
    training = context.spec.training
    checkpoint = checkpoint_bytes(context.spec)
    count = training.keep_checkpoints + MORE_CHECKPOINTS
    needed = count * checkpoint + context.spec.budget.total_bytes + REPORT_BYTES
    folder = _existing(context.question.runs_dir)
    free = shutil.disk_usage(folder).free
    how = (
        f"{count} checkpoints of {format_bytes(checkpoint)} (kept {training.keep_checkpoints}, best, one being "
        f"written), artifact, report; free space of {folder}"
    )
    figure = f"{format_bytes(needed)} needed, {format_bytes(free)} free"
    return judged(
        needed <= free, "disk", figure, how, needed_bytes=needed, free_bytes=free, checkpoint_bytes=checkpoint
    )


def _verdict(prediction: Prediction, code: int, limit: int) -> str:
    """Which of the estimates are over the limit, as text."""
    sizes = {
        "expected size": prediction.expected_bytes,
        "high estimate": prediction.high_bytes,
        "worst case": prediction.worst_case_bytes,
    }
    over = [f"{name} by {size + code - limit:,}" for name, size in sizes.items() if size + code > limit]
    return f"over the limit: {', '.join(over)}" if over else "even the worst case fits"


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder
