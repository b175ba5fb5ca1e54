"""Memory of a forward and backward pass beside weights, gradients and optimizer state, from a pass over shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from shared.model import trained_parameters, training_loss, training_parameters
from shared.model.stages import SYMBOL_WEIGHTS
from shared.ops import Shaped, ShapeOps
from shared.spec import Spec


@dataclass(frozen=True)
class PeakFit:
    """The peak of a pass is `kept` times what its gradients read (shared.ops.shape_ops), and what is at work: `logits`
    times the largest logits in float32, of which a loss makes several arrays at once, or `scores` times the largest
    attention scores. Every peak that was measured lies between `least` and `most` times that."""

    kept: float
    logits: float
    scores: float
    least: float
    most: float


# By engine, and by whether it compiles. How they were fitted, and to what: records/2026-11-26-house.md, "Activation
# memory"; python -m tests.bench.activation_memory measures again.
PEAK_FITS = {
    ("torch", False): PeakFit(kept=1.0, logits=2.0, scores=0.0, least=0.85, most=1.4),
    ("torch", True): PeakFit(kept=0.83, logits=1.66, scores=0.0, least=0.6, most=1.4),
    ("mlx", False): PeakFit(kept=1.12, logits=11.0, scores=2.25, least=0.4, most=1.4),
    ("mlx", True): PeakFit(kept=1.0, logits=7.0, scores=1.25, least=0.4, most=1.5),
}
ENGINES_THAT_KEEP_SCORES = ("mlx",)


@dataclass(frozen=True)
class ActivationBytes:
    """The peak as expected, and what it lies between."""

    expected: int
    least: int
    most: int


def activation_bytes(spec: Spec, engine: str, rows: int) -> ActivationBytes:
    """Bytes that a pass over a micro-batch of `rows` windows needs at its peak, in the last stage of the run."""
    fit = PEAK_FITS[engine, spec.training.compile]
    kept, logits, scores = _counted(spec, rows, engine in ENGINES_THAT_KEEP_SCORES)
    expected = fit.kept * kept + max(fit.logits * logits, fit.scores * scores)
    return ActivationBytes(round(expected), int(fit.least * expected), round(fit.most * expected))


def rows_within(spec: Spec, limit_bytes: int) -> int:
    """Most rows of a micro-batch whose peak lies below the limit for certain in every engine; 0 where none does."""
    engines = {engine for engine, _ in PEAK_FITS}
    one, two, three = (max(activation_bytes(spec, engine, rows).most for engine in engines) for rows in (1, 2, 3))
    # Linear from two rows on: of a single one more can be read without a copy.
    rows = 2 + (limit_bytes - two) // (three - two)
    return rows if rows > 1 else int(one <= limit_bytes)


def loss_of_shapes(spec: Spec, rows: int, keeps_scores: bool = False) -> tuple[ShapeOps, Shaped, list[Shaped]]:
    """(operations, training loss, weights and symbols) of `rows` windows, at the end of a run."""
    ops = ShapeOps(keeps_scores)
    trained = {parameter.name for parameter in trained_parameters(spec)}
    params = {each.name: ops.array(each.shape, each.name in trained) for each in training_parameters(spec)}
    params[SYMBOL_WEIGHTS] = ops.array((spec.vocabulary.size, 1))
    x = ops.array((rows, spec.model.seq_len))
    loss, _ = training_loss(ops, spec, params, x)
    return ops, loss, [*params.values(), x]


@lru_cache(maxsize=64)
def _counted(spec: Spec, rows: int, keeps_scores: bool) -> tuple[int, int, int]:
    """Bytes (that gradients read, of the largest logits, of the largest scores). Cached, as micro-batches are cut anew
    in every step."""
    ops, loss, beside = loss_of_shapes(spec, rows, keeps_scores)
    return ops.kept_bytes(loss, beside), ops.logits_bytes, ops.scores_bytes
