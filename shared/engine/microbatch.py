"""How a global batch is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.model.block_shape import BlockShape, trunk_block_shape
from shared.model.chunks import chunk_size
from shared.model.layer_order import layer_order
from shared.spec import Spec

# Values alive at the peak of a forward and backward pass, for each value of ... Fitted to the peaks that MLX
# measured on a CPU over 21 shapes (patch 1 to 16, 200 to 2,048 symbols, 1 to 8 layers): the estimate is 1.1 to
# 2.6 times the peak, compiled 1.2 to 3.1. Torch needs less, a half to an eighth of the estimate, least for long
# sequences: its attention keeps no scores.
INPUT_COPIES = 14  # a block's input: norms, residuals and their gradients
HEAD_COPIES = 10  # its heads: q, k, v, rotated, attended, and their gradients
HIDDEN_COPIES = 3  # its MLP's hidden units
LOGIT_COPIES = 16  # logits, always float32: softcap, exponential and slope, one operation at a time
EXPERT_COPIES = 3  # each expert's logits, before and after they are weighed
EMBEDDING_COPIES = 6  # a symbol's embedding on its way into a patch
# Attention scores: one copy for each layer, and two more of the layer at work.
SCORE_COPIES_AT_WORK = 2
# An auxiliary head's predictions that are no logits, and the pairs of latents of a window along one direction.
PREDICTION_COPIES = 6
PAIR_COPIES = 4
# A mixer with a state instead: its projections, the L x L matrices of its chunks and the states between them, for each
# layer; and of all of them for the one layer at work. Fitted to 24 peaks of both mixers: 1.1 to 1.9 times the peak.
MIXED_COPIES = 7
CHUNK_COPIES = 10
STATE_COPIES = 5
MIXER_COPIES_AT_WORK = 4


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
    """Upper estimate of the bytes that a forward and backward pass over one sequence of seq_len symbols needs,
    beside weights, gradients and optimizer state, which do not depend on the micro-batch."""
    model, decoder = spec.model, spec.model.decoder
    patches, vocab_size = model.num_patches, spec.vocabulary.size
    # Each pass over a layer keeps values of its own, those of a loop too.
    order = layer_order(model)
    shapes = [trunk_block_shape(model, step.layer) for step in order]
    attending = [shape for shape in shapes if shape.mixer == "attention"]
    mixing = [shape for shape in shapes if shape.mixer != "attention"]
    scores = (len(attending) + SCORE_COPIES_AT_WORK) * model.num_heads * patches if attending else 0
    blocks = sum(_block_values(shape.dim, shape.num_heads * shape.head_dim, shape.mlp_dim) for shape in attending)
    blocks += sum(_block_values(shape.dim, 0, shape.mlp_dim) + _mixer_values(shape, patches) for shape in mixing)
    blocks += max((MIXER_COPIES_AT_WORK * sum(_mixer_parts(shape, patches)) for shape in mixing), default=0)
    per_symbol = EMBEDDING_COPIES * (model.model_dim + model.embed_rank + len(model.ngram.lengths) * model.ngram.dim)
    if decoder.kind == "autoregressive":
        block_in_patch = _block_values(decoder.dim, decoder.dim, decoder.mlp_dim)
        per_symbol += decoder.num_layers * block_in_patch + 4 * decoder.dim
    elif decoder.kind == "mlp":
        per_symbol += 3 * model.model_dim + 4 * decoder.dim
    elif decoder.kind == "experts":
        per_symbol += EXPERT_COPIES * decoder.num_experts * vocab_size
    values = patches * (blocks + scores) + model.seq_len * per_symbol
    bytes_per_value = 2 if spec.training.dtype == "bfloat16" else 4
    heads = 1 + len(spec.training.loss.multi_symbol.weights)
    return bytes_per_value * values + 4 * (LOGIT_COPIES * heads * vocab_size * model.seq_len + _auxiliary_values(spec))


def _auxiliary_values(spec: Spec) -> int:
    """Float32 values of the losses that predict embeddings or latents of chunks, for one window."""
    loss, model = spec.training.loss, spec.model
    values = 0
    if loss.embed_prediction.weight:
        predicted = model.num_patches * loss.embed_prediction.symbols
        values += PREDICTION_COPIES * model.model_dim * (model.seq_len + predicted)
    chunks = loss.chunk_prediction
    if chunks.weight:
        count = model.num_patches // chunks.chunk_patches
        widths = 2 * model.model_dim + 4 * chunks.hidden_dim + 4 * chunks.latent_dim
        values += PREDICTION_COPIES * (model.num_patches * model.model_dim + count * widths)
        values += PAIR_COPIES * chunks.directions * count**2
    return values


def _block_values(input_dim: int, heads_dim: int, hidden_dim: int) -> int:
    """Values of one transformer block for each of its positions, attention scores apart."""
    return INPUT_COPIES * input_dim + HEAD_COPIES * heads_dim + HIDDEN_COPIES * hidden_dim


def _mixer_values(shape: BlockShape, positions: int) -> int:
    """Values that the mixer of one layer keeps for each of its positions."""
    mixed, chunk, state = _mixer_parts(shape, positions)
    return MIXED_COPIES * mixed + CHUNK_COPIES * chunk + STATE_COPIES * state


def _mixer_parts(shape: BlockShape, positions: int) -> tuple[int, int, int]:
    """(projected features, row of its chunk's matrices, share of a state) of one position, over all heads."""
    size, inner = chunk_size(positions), shape.num_heads * shape.head_dim
    if shape.mixer == "mamba2":
        features, state_dim = 2 * inner + 2 * shape.num_kv_heads * shape.state_dim, shape.state_dim
    else:
        features, state_dim = 4 * inner, shape.head_dim
    return features, shape.num_heads * size, -(-inner * state_dim // size)
