"""Memory of a forward and backward pass apart from weights, gradients and optimizer state, from a pass over shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from shared.engine.registry import ENGINES
from shared.model import trained_parameters, training_loss, training_parameters
from shared.model.stages import SYMBOL_WEIGHTS
from shared.ops import Shaped, ShapeOps
from shared.spec import Spec
from shared.spec.auxiliary import CodeEntropySpec

# The softened codes of all matrices may be in memory at the same time as all that is computed of them: a model of many
# small ones, 20 symbols in a micro-batch, took 2.8 times the expected bytes in MLX, `tiny` 0.8 to 1.4 times.
MORE_OF_CODES = 2.0


@dataclass(frozen=True)
class ActivationBytes:
    """The expected peak and its bounds."""

    expected: int
    least: int
    most: int


def activation_bytes(spec: Spec, engine: str, rows: int) -> ActivationBytes:
    """Bytes that a pass over a micro-batch of `rows` windows needs at its peak, in the last stage of the run."""
    registered = ENGINES[engine]
    fit = registered.compiled_fit if spec.training.compile else registered.fit
    kept, logits, scores, codes = _counted(spec, rows, registered.keeps_scores)
    expected = fit.kept * kept + max(fit.logits * logits, fit.scores * scores)
    return ActivationBytes(
        round(expected), int(fit.least * expected), round(fit.most * expected + MORE_OF_CODES * codes)
    )


def rows_within(spec: Spec, limit_bytes: int) -> int:
    """Most rows of a micro-batch whose peak lies below the limit for certain in every engine; 0 where none does."""
    one, two, three = (max(activation_bytes(spec, engine, rows).most for engine in ENGINES) for rows in (1, 2, 3))
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
def _counted(spec: Spec, rows: int, keeps_scores: bool) -> tuple[int, int, int, int]:
    """Bytes (that gradients read, of the largest logits, of the largest scores, that the gradients of softened codes
    read). Cached, because every step cuts its batch into micro-batches."""
    ops, loss, held = loss_of_shapes(spec, rows, keeps_scores)
    kept, codes = ops.kept_bytes(loss, held), 0
    if spec.training.loss.code_entropy.weight:
        auxiliary = spec.training.loss.model_copy(update={"code_entropy": CodeEntropySpec()})
        training = spec.training.model_copy(update={"loss": auxiliary})
        plain, loss, held = loss_of_shapes(spec.model_copy(update={"training": training}), rows, keeps_scores)
        codes = kept - plain.kept_bytes(loss, held)
    return kept, ops.logits_bytes, ops.scores_bytes, codes
