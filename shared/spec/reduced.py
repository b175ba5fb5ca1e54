"""The spec that a parity check runs: the same model at full width and depth, on short sequences."""

from __future__ import annotations

import math
from typing import Any

from shared.errors import SpecError
from shared.spec import Spec, spec_from_dict, spec_to_dict
from shared.spec.auxiliary import fit_auxiliary
from shared.spec.depth import scale_loop_schedule
from shared.spec.qat import scale_qat
from shared.spec.training import scale_snapshots

TARGET_SEQ_SYMBOLS = 64
MIN_PATCHES = 4

# Three rows in micro-batches of two: an average of micro-batch averages would weight the rows wrongly.
ROWS, MICRO_BATCH_ROWS = 3, 2

# Brotli 11 takes half a minute on 17 M weights; whether bytes are equal does not depend on the setting.
MAX_BROTLI_QUALITY = 5

# Adam's first steps have the size of the learning rate even where a gradient is nothing but rounding, and
# the gradient of a relu jumps: at the full rate two correct float32 runs on three short rows diverge for good.
LEARNING_RATES = ("matrix_lr", "embed_lr", "head_lr", "scalar_lr", "adapter_lr")


def reduced_spec(spec: Spec, steps: int, seq_len: int | None = None) -> tuple[Spec, tuple[str, ...]]:
    """(spec to run, one line per thing that differs from the given one).

    Width, depth, heads, decoder, vocabulary, optimizer and learning-rate shape stay. Raises SpecError if
    `seq_len` is not a multiple of the patch size or `steps` is not positive.
    """
    patch_size = spec.model.patch_size
    if seq_len is None:
        patches = max(MIN_PATCHES, round(TARGET_SEQ_SYMBOLS / patch_size))
        seq_len = min(spec.model.seq_len, patches * patch_size)
    if seq_len % patch_size or seq_len < 2 * patch_size:
        raise SpecError(f"--seq-len {seq_len}: must be a multiple of model.patch_size ({patch_size}), at least two")
    if steps < 1:
        raise SpecError(f"--steps {steps}: must be 1 or more")
    changes = {
        "model.seq_len": seq_len,
        "training.batch_symbols": ROWS * seq_len,
        "training.micro_batch_symbols": MICRO_BATCH_ROWS * seq_len,
        "training.steps": steps,
        "training.dtype": "float32",
        "training.float32_products": "exact",
        "training.compile": False,
        "training.time_limit_s": 0.0,
        "training.reserve_s": 0.0,
        "training.memory_limit_bytes": 0,
        "schedule.driver": "steps",
        "optimizer.ns_dtype": "float32",
        "artifact.brotli_quality": min(spec.artifact.brotli_quality, MAX_BROTLI_QUALITY),
    }
    values = spec_to_dict(spec)
    notes = []
    shorten(values, spec, seq_len, steps)
    entropy = values["training"]["loss"]["code_entropy"]
    if entropy["weight"]:
        # Its gradient turns round within one code, and at first a step moves weights by more: over several steps two
        # correct float32 runs diverge for good. Gradients are compared with it all the same.
        notes.append("training.loss.code_entropy acts in gradients and in the last step only")
        entropy["start_frac"] = (steps - 1) / steps
    for key, value in changes.items():
        section, field = key.split(".")
        if values[section][field] != value:
            notes.append(f"{key} {values[section][field]} -> {value}")
            values[section][field] = value
    scale = min(1.0, math.sqrt(ROWS * seq_len / spec.training.batch_symbols))
    if scale < 1.0:
        notes.append(f"learning rates x {scale:.3g}, the square root of the batch's reduction")
        for field in LEARNING_RATES:
            values["optimizer"][field] *= scale
    # Scoring windows are not part of the comparison; they only have to fit the shorter sequence.
    values["evaluation"] |= {"stride_symbols": seq_len, "batch_symbols": ROWS * seq_len}
    return spec_from_dict(values, origin=spec.name), tuple(notes)


def shorten(values: dict[str, Any], spec: Spec, seq_len: int, steps: int) -> None:
    """Change what acts from a certain step on, or on whole windows, in the values of `spec`, in place, to fit a run of
    `steps` steps with windows of `seq_len`."""
    factor, patch_size = steps / spec.training.steps, spec.model.patch_size
    values["schedule"]["loop"] = scale_loop_schedule(values["schedule"]["loop"], factor)
    scale_snapshots(values["training"], factor, steps)
    fit_auxiliary(values["training"]["loss"], patch_size, seq_len // patch_size, steps)
    values["training"]["qat"] = scale_qat(values["training"]["qat"], factor, steps)


def with_dtype(spec: Spec, dtype: str) -> Spec:
    """The spec with another compute dtype."""
    return with_training(spec, dtype=dtype)


def with_training(spec: Spec, **fields: Any) -> Spec:
    """The spec with other fields of its training section."""
    values = spec_to_dict(spec)
    values["training"] |= fields
    return spec_from_dict(values, origin=spec.name)
