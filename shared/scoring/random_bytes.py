"""The cheapest leak detector: uniform random bytes cannot be learnt (docs/techniques.md 1.4).

A fresh model is trained on random bytes and scored on others. An honest one ends at 8 bits per byte or above; one that
sees its target learns to copy it and falls below. A model of tokens gets random tokens, each worth log2 V bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from shared import tolerances
from shared.engine.protocol import Engine
from shared.errors import UserError
from shared.model import initial_weights
from shared.optim import step_hyperparameters
from shared.scoring.checks import Check
from shared.spec import Spec, spec_from_dict, spec_to_dict
from shared.spec.reduced import shorten

RANDOM_BYTES_STEPS = 200
_SEQ_LEN = 48
_BATCH_SYMBOLS = 768
_SCORED_SYMBOLS = 49_152


def check_random_bytes(
    create: Callable[[Spec], Engine],
    spec: Spec,
    *,
    steps: int = RANDOM_BYTES_STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Train the spec's model for `steps` on uniform random bytes or tokens and score it on fresh ones.

    The architecture is the spec's; windows and batches are small, so that it takes seconds.
    `create` makes an engine for a spec, without weights yet.
    """
    if steps < 1:
        raise UserError(f"random-bytes steps = {steps}: must be at least 1")
    small = random_bytes_spec(spec, steps)
    rng = np.random.default_rng(seed)
    engine = create(small)
    # Initial weights may read the training text: here any text of that kind, drawn separately.
    engine.initialise(initial_weights(small, _random_symbols(small, np.random.default_rng(seed + 1)).reshape(-1)))
    for step in range(steps):
        engine.train_step(_random_symbols(small, rng), step_hyperparameters(small, step, step / steps))()
        if progress is not None:
            progress(step + 1, steps)
    nats = [engine.score(_random_symbols(small, rng)) for _ in range(-(-_SCORED_SYMBOLS // _BATCH_SYMBOLS))]
    bits = float(np.mean(np.stack(nats), dtype=np.float64)) / math.log(2.0)
    limit = math.log2(_num_drawn(small)) - tolerances.RANDOM_BYTES_BPB
    unit = "token" if spec.vocabulary.reads_tokens else "byte"
    detail = f"bits per {unit} on random {unit}s after {steps} steps on such"
    return Check("random_bytes", bits >= limit, bits, limit, detail)


def random_bytes_spec(spec: Spec, steps: int) -> Spec:
    """The spec with short windows and small float32 batches, the model itself unchanged.

    Weights are not averaged and the learning rate stays at its peak until the usual warm-down.
    """
    patch_size = spec.model.patch_size
    seq_len = min(spec.model.seq_len, max(_SEQ_LEN // patch_size, 2) * patch_size)
    batch_symbols = max(1, _BATCH_SYMBOLS // seq_len) * seq_len
    values = spec_to_dict(spec)
    values["model"]["seq_len"] = seq_len
    values["schedule"] |= {"driver": "steps", "warmup_frac": 0.0}
    shorten(values, spec, seq_len, steps)
    values["optimizer"] |= {"muon_momentum_warmup_steps": 0}
    values["evaluation"] |= {"stride_symbols": seq_len, "batch_symbols": batch_symbols}
    values["training"] |= {
        "steps": steps,
        "time_limit_s": 0.0,
        "reserve_s": 0.0,
        "batch_symbols": batch_symbols,
        "micro_batch_symbols": batch_symbols,
        "memory_limit_bytes": 0,
        "dtype": "float32",
        "compile": False,
        "ema_decay": 0.0,
        "swa_every_steps": 0,
    }
    # Random tokens stand for no bytes.
    values["training"]["loss"]["byte_weighted"] = False
    return spec_from_dict(values, origin="random bytes")


def _random_symbols(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """One batch of random bytes or tokens as symbols, [B, seq_len] int32."""
    shape = (spec.training.batch_symbols // spec.model.seq_len, spec.model.seq_len)
    first = 0 if spec.vocabulary.reads_tokens else spec.vocabulary.byte_offset
    return (rng.integers(0, _num_drawn(spec), shape) + first).astype(np.int32)


def _num_drawn(spec: Spec) -> int:
    """The number of symbols to draw from: all tokens, or the bytes without the special symbols."""
    return spec.vocabulary.size if spec.vocabulary.reads_tokens else 256
