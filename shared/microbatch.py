"""How a global batch is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.spec import Spec

# float32 values per attention score and head that the backward pass keeps.
ATTENTION_COPIES = 3


def micro_batches(spec: Spec, x: np.ndarray, workers: int = 1) -> Iterator[tuple[float, np.ndarray]]:
    """(share of the batch, rows) of each micro-batch of x [B, T], in order; the shares add up to 1.

    A micro-batch has at most training.micro_batch_symbols, together with the other workers' at most
    training.memory_limit_bytes by estimate, and few enough rows to give every worker one. The cut
    depends on the spec and the workers alone, so a resumed run sums in the same order.
    """
    rows = min(spec.training.micro_batch_symbols // spec.model.seq_len, -(-len(x) // workers))
    limit = spec.training.memory_limit_bytes
    if limit:
        rows = min(rows, limit // (workers * activation_bytes_per_row(spec)))
    rows = max(1, rows)
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        yield len(part) / len(x), part


def activation_bytes_per_row(spec: Spec) -> int:
    """Estimated bytes of activations that one sequence of seq_len symbols keeps until its backward pass."""
    model, decoder = spec.model, spec.model.decoder
    patches, symbols = model.num_patches, model.seq_len
    width = 4 * model.model_dim + 4 * model.num_heads * model.head_dim + 3 * model.mlp_dim
    scores = ATTENTION_COPIES * model.num_heads * patches
    per_patch = model.num_layers * (width + scores) + model.patch_size * model.model_dim
    per_symbol = 4 * spec.vocabulary.size
    if decoder.kind == "autoregressive":
        per_symbol += decoder.num_layers * (8 * decoder.dim + 3 * decoder.mlp_dim)
    bytes_per_value = 2 if spec.training.dtype == "bfloat16" else 4
    return bytes_per_value * (patches * per_patch + symbols * per_symbol)
