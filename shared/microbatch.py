"""How a global batch is cut into micro-batches."""

from __future__ import annotations

from shared.spec import Spec

# float32 values kept for the backward pass, per symbol or patch, measured on both engines and rounded up.
ATTENTION_COPIES = 3


def micro_batch_rows(spec: Spec, batch_rows: int) -> int:
    """Rows of one forward and backward pass: at most training.micro_batch_symbols and, by estimate,
    training.memory_limit_bytes. A pure function of the spec, so a resumed run sums in the same order."""
    rows = max(1, min(batch_rows, spec.training.micro_batch_symbols // spec.model.seq_len))
    limit = spec.training.memory_limit_bytes
    if limit:
        rows = max(1, min(rows, limit // activation_bytes_per_row(spec)))
    return rows


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
