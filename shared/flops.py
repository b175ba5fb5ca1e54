"""Floating-point operations of a spec's model and optimizer, counted from its parameters.

A multiplication and its addition are two operations. Counted are matrix products and attention; norms,
activations, rotations and the softmax are left out, as is usual, so a share of peak is not flattered.
The backward pass has two products for each one of the forward pass, hence training = 3 x forward.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from shared.model import trained_parameters, training_parameters
from shared.model.auxiliary import CHUNK_PREDICTION
from shared.model.block_shape import BlockShape, decoder_block_shape, trunk_block_shape
from shared.model.chunks import chunk_size
from shared.model.layer_order import layer_order
from shared.model.manifest import Parameter
from shared.spec import Spec

TRAINING_OVER_FORWARD = 3


@dataclass(frozen=True)
class Flops:
    """Operations of one training run's parts.

    `matrices` and `attention`: training operations per symbol, forward and backward. `optimizer`: operations
    per optimizer step of Newton-Schulz, whatever the batch.
    """

    matrices: float
    attention: float
    optimizer: float

    @property
    def per_symbol(self) -> float:
        """Training operations of the model per symbol: what a share of hardware peak is measured in."""
        return self.matrices + self.attention


def training_flops(spec: Spec) -> Flops:
    """The operations of training a spec.

    matrices: 6 x sum over weight matrices of (weights x positions per symbol); a trunk matrix works once per
    patch and pass over its layer, a matrix of the autoregressive decoder or its tied head once per symbol, an
    auxiliary head once per patch. A loop counts in full, as at the end of training. attention: 6 x 2 x (mean keys a
    query sees, (T + 1) / 2 for T positions) x heads x head_dim for each layer and position: both products, only the
    causal half or the window. Trunk: T = patches; local decoder: T = patch_size. The scan of a mixer with a state is
    counted as it is made, in chunks (shared.model.chunks).
    """
    return Flops(
        matrices=TRAINING_OVER_FORWARD * 2 * _matrix_weights_per_symbol(spec),
        attention=TRAINING_OVER_FORWARD * _attention_per_symbol(spec),
        optimizer=newton_schulz_flops(spec),
    )


def newton_schulz_flops(spec: Spec) -> float:
    """Operations of one step's orthogonalisation: for each matrix of sides r <= c and each iteration the
    products X X' (r r c), A A (r r r) and B X (r r c), two operations each (FEATURES 3.5)."""
    total = 0
    for parameter in trained_parameters(spec):
        if parameter.group == "matrix":
            small, large = sorted(parameter.shape)
            total += 2 * (2 * small * small * large + small**3)
    return float(spec.optimizer.ns_steps * total)


def _matrix_weights_per_symbol(spec: Spec) -> float:
    """Multiplications of the forward pass by weight matrices, per symbol."""
    passes = Counter(f"layers.{step.layer}." for step in layer_order(spec.model))
    return _adapter_products_per_symbol(spec) + sum(
        parameter.count * _positions_per_symbol(spec, parameter) * _passes(passes, parameter)
        for parameter in training_parameters(spec)
    )


def _adapter_products_per_symbol(spec: Spec) -> float:
    """Multiplications of B A [out, in] for every adapted matrix, made once for a micro-batch, per symbol of it."""
    factors = [parameter for parameter in training_parameters(spec) if parameter.group == "adapter"]
    products = sum(b.count * a.shape[1] for a, b in zip(factors[::2], factors[1::2], strict=True))
    return products / min(spec.training.micro_batch_symbols, spec.training.batch_symbols)


def _passes(passes: Counter[str], parameter: Parameter) -> int:
    """How often a forward pass uses a parameter: those of a looped layer more than once."""
    return next((count for prefix, count in passes.items() if parameter.name.startswith(prefix)), 1)


def _positions_per_symbol(spec: Spec, parameter: Parameter) -> float:
    """How many positions a tensor is multiplied with for each symbol: 0 for a table that is only looked up."""
    model, name = spec.model, parameter.name
    per_patch = 1 / model.patch_size
    if name.startswith(CHUNK_PREDICTION):
        return per_patch / spec.training.loss.chunk_prediction.chunk_patches
    if parameter.group == "embedding":
        is_head = model.tie_embeddings and name == (
            "decoder.embed.weight" if model.decoder.kind == "autoregressive" else "embed.weight"
        )
        return 1.0 if is_head else 0.0
    if name == "embed.rank_proj.weight":
        # Once into the trunk, once more out of it where the head is tied.
        return 2.0 if model.tie_embeddings and model.decoder.kind == "linear" else 1.0
    if parameter.group in ("scalar", "adapter"):
        return 0.0
    if model.decoder.kind == "autoregressive":
        once_per_symbol = name == "head.weight" or (name.startswith("decoder.") and name != "decoder.cond_proj.weight")
        return 1.0 if once_per_symbol else per_patch
    return per_patch


def _attention_per_symbol(spec: Spec) -> float:
    """Operations of the forward pass in the products of attention, or of what stands in for it, per symbol."""
    model = spec.model
    shapes = (trunk_block_shape(model, step.layer) for step in layer_order(model))
    per_position = sum(_attention_of_position(shape, model.num_patches, model.attention.window) for shape in shapes)
    trunk = per_position / model.patch_size
    if model.decoder.kind != "autoregressive":
        return trunk
    local = model.decoder.num_layers * _attention_of_position(decoder_block_shape(model), model.patch_size)
    return trunk + local


def _attention_of_position(shape: BlockShape, positions: int, window: int = 0) -> float:
    """Operations of one query position of one layer, averaged over a causal sequence of `positions`.

    With a window of W the first W queries see 1, 2, .. W keys and all others W.
    """
    if shape.mixer != "attention":
        return _scan_of_position(shape, positions)
    seen = min(window or positions, positions)
    mean_keys = (seen * (seen + 1) / 2 + (positions - seen) * seen) / positions
    return 2 * 2 * mean_keys * shape.num_heads * shape.head_dim


def _scan_of_position(shape: BlockShape, positions: int) -> float:
    """Operations of one position in the matrix products of a layer's scan over `positions`, in chunks of L.

    mamba2: within a chunk L S for each group and L C for each head; with several chunks 2 C S for each head.
    gated_delta: 5 L C for each head, (L^2 - 1) / 3 to solve the triangular system, and with several chunks C C to
    read the state and two more in every chunk but one.
    """
    size = chunk_size(positions)
    chunks = -(-positions // size)
    heads, width, state = shape.num_heads, shape.head_dim, shape.state_dim
    several = chunks > 1
    products: float
    if shape.mixer == "mamba2":
        products = size * (shape.num_kv_heads * state + heads * width) + 2 * several * heads * width * state
    else:
        passed_on = (1 + 2 * (chunks - 1) / chunks) * width**2 if several else 0
        products = heads * (5 * size * width + (size**2 - 1) / 3 + passed_on)
    return 2 * products * chunks * size / positions
