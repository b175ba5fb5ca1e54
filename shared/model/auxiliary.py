"""Losses that training minimises next to the nats of the symbols, and the parameters that only they need.

Definitions are in shared.spec.auxiliary. Nothing here is part of the function that is scored: `parameter_manifest`
lists the model, which is scored, counted, predicted and packed; `training_parameters` lists what is initialised,
optimised, averaged and checkpointed: the model's parameters, in the same order, and after them those of the losses.

Each loss reads trunk outputs h_BND, of which row i has read patches < i, and the symbols as targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from shared.model.code_entropy import code_entropy_bits
from shared.model.embedding import embed_patches, embed_symbols
from shared.model.manifest import ZEROS, Initial, Parameter, parameter_manifest
from shared.model.stages import CODE_ENTROPY, DIRECTIONS_STEP, MULTI_SYMBOL
from shared.ops import Array, Ops
from shared.spec import Spec

# What the names of all these parameters start with.
AUXILIARY = "auxiliary."
CHUNK_PREDICTION = AUXILIARY + "chunk_prediction"
# Keeps the directions apart from the noise of quantisation, which is made from steps too.
DIRECTIONS_SALT = 0x27D4_EB2F

Value = TypeVar("Value")


def training_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """All parameters that training has; without auxiliary losses the manifest itself."""
    return (*parameter_manifest(spec), *auxiliary_parameters(spec))


def auxiliary_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """Parameters that training has beyond those of the model, in a fixed order."""
    loss, dim = spec.training.loss, spec.model.model_dim
    parameters = []
    for distance in range(1, len(loss.multi_symbol.weights) + 1):
        shape = (spec.model.patch_size * spec.vocabulary.size, dim)
        parameters.append(Parameter(multi_symbol_name(distance), shape, ZEROS, "head", "head"))
    if loss.embed_prediction.weight:
        # Zero: embeddings start small, and so does the distance to them.
        for ahead in range(1, loss.embed_prediction.symbols + 1):
            parameters.append(Parameter(embed_prediction_name(ahead), (dim, dim), ZEROS, "matrix", "matrix"))
    chunks = loss.chunk_prediction
    if chunks.weight:
        for side in ("latent", "prediction"):
            parameters.append(_matrix(f"{CHUNK_PREDICTION}.{side}_in.weight", chunks.hidden_dim, dim))
            parameters.append(_matrix(f"{CHUNK_PREDICTION}.{side}_out.weight", chunks.latent_dim, chunks.hidden_dim))
    return tuple(parameters)


def model_weights(spec: Spec, weights: Mapping[str, Value]) -> dict[str, Value]:
    """The weights without those of training only. Names that are neither stay, for the caller to refuse."""
    others = {parameter.name for parameter in auxiliary_parameters(spec)}
    return {name: value for name, value in weights.items() if name not in others}


def multi_symbol_name(distance: int) -> str:
    """The head that looks `distance` patches further than the model's own: [P * V, D]."""
    return f"{AUXILIARY}multi_symbol.{distance}.weight"


def embed_prediction_name(ahead: int) -> str:
    """The map from a trunk output to the embedding of the symbol `ahead` positions on, counted from 1: [D, D]."""
    return f"{AUXILIARY}embed_prediction.{ahead}.weight"


def auxiliary_loss(
    ops: Ops, spec: Spec, params: Mapping[str, Array], stored: Mapping[str, Array], h_BND: Array, x_BT: Array
) -> Array:
    """The weighted sum of all auxiliary losses of x that the spec has, a float32 scalar.

    `params` are the weights that the loss reads, `stored` those behind them, which differ with quantisation-aware
    training; h_BND are trunk outputs. Call it only where `training.loss.has_auxiliary`.
    """
    loss, terms = spec.training.loss, []
    if loss.multi_symbol.weights:
        terms.append(multi_symbol_loss(ops, spec, params, h_BND, x_BT))
    if loss.embed_prediction.weight:
        terms.append(loss.embed_prediction.weight * embed_prediction_loss(ops, spec, params, h_BND, x_BT))
    if loss.chunk_prediction.weight:
        terms.append(loss.chunk_prediction.weight * chunk_prediction_loss(ops, spec, params, h_BND, x_BT))
    if loss.code_entropy.weight:
        # Without a number of the step it acts, as at the end of training.
        acting = params.get(CODE_ENTROPY, 1.0)
        terms.append(loss.code_entropy.weight * acting * code_entropy_bits(ops, spec, stored, x_BT))
    return _added(terms)


def multi_symbol_loss(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array, x_BT: Array) -> Array:
    """Weighted mean nats of the symbols of later patches."""
    model, multi = spec.model, spec.training.loss.multi_symbol
    batch, positions, _ = h_BND.shape
    patches = x_BT.reshape((batch, positions, model.patch_size))
    terms = []
    for index, weight in enumerate(multi.weights):
        # h[i] already predicts patch i, so distance 1 is patch i + 1.
        distance = index + 1
        pairs = positions - distance
        logits = ops.linear(h_BND[:, :pairs], params[multi_symbol_name(distance)])
        logits = logits.reshape((batch, pairs, model.patch_size, spec.vocabulary.size))
        nats = ops.softcapped_cross_entropy(logits, patches[:, distance:], model.logit_softcap)
        terms.append((weight / (batch * pairs * model.patch_size)) * ops.sum(nats))
    at_the_end = 0.0 if multi.decay_end_frac > 0.0 else 1.0
    return params.get(MULTI_SYMBOL, at_the_end) * _added(terms)


def embed_prediction_loss(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array, x_BT: Array) -> Array:
    """Mean squared distance of predicted from actual embeddings, before its weight."""
    patch_size, count = spec.model.patch_size, spec.training.loss.embed_prediction.symbols
    batch, positions, _ = h_BND.shape
    embeds = ops.stop_gradient(ops.cast(embed_symbols(ops, spec, params, x_BT), "float32"))
    embeds = embeds.reshape((batch, positions, patch_size, spec.model.model_dim))
    terms, pairs = [], 0
    for ahead in range(count):
        # Symbol iP + ahead is at position `ahead mod P` of a patch that many patches on.
        patches, position = divmod(ahead, patch_size)
        predicted = ops.linear(h_BND[:, : positions - patches], params[embed_prediction_name(ahead + 1)])
        distance = ops.cast(predicted, "float32") - embeds[:, patches:, position]
        terms.append(ops.sum(distance * distance))
        pairs += batch * (positions - patches)
    return _added(terms) / pairs


def chunk_prediction_loss(ops: Ops, spec: Spec, params: Mapping[str, Array], h_BND: Array, x_BT: Array) -> Array:
    """Mean squared error of predicted chunk latents and what keeps the latents apart, before their weight."""
    chunks, eps = spec.training.loss.chunk_prediction, spec.model.norm_eps
    batch, positions, dim = h_BND.shape
    size = chunks.chunk_patches
    count = (positions - 1) // size
    # Row i of the trunk inputs holds patch i - 1.
    inputs = ops.cast(embed_patches(ops, spec, params, x_BT), "float32")[:, 1 : 1 + count * size]
    means = ops.sum(inputs.reshape((batch, count, size, dim)), axes=(2,)) / size
    context = h_BND[:, : count * size].reshape((batch, count, size, dim))[:, :, 0]
    latents = _two_layers(ops, params, f"{CHUNK_PREDICTION}.latent", means, eps)
    predicted = _two_layers(ops, params, f"{CHUNK_PREDICTION}.prediction", ops.cast(context, "float32"), eps)
    error = predicted - latents
    squared = ops.sum(error * error) / (batch * count * chunks.latent_dim)
    if not chunks.regulariser_weight:
        return squared
    step = params[DIRECTIONS_STEP] if DIRECTIONS_STEP in params else 0 * x_BT[0, 0]
    weight = params[f"{CHUNK_PREDICTION}.latent_out.weight"]
    directions = unit_directions(ops, weight, chunks.directions, step)
    return squared + chunks.regulariser_weight * distance_from_normal(ops, latents, directions)


def unit_directions(ops: Ops, like: Array, count: int, step: Array) -> Array:
    """Unit vectors [count, L] for `like` [L, any] float32: even draws from a cube, from the step's number, normalised.

    Constants to derivatives, the same in every implementation.
    """
    ones = ops.broadcast_to(0.0 * like[:1, :1] + 1.0, (count, like.shape[0]))
    draws = ops.row_noise(ones, step, DIRECTIONS_SALT)
    return draws / ops.sqrt(ops.sum(draws * draws, axes=(1,), keepdims=True))


def distance_from_normal(ops: Ops, latents: Array, directions: Array) -> Array:
    """SIGReg of latents [B, M, L] along unit vectors [R, L]: the mean Epps-Pulley statistic over rows and vectors."""
    batch, count, _ = latents.shape
    along = ops.transpose(ops.linear(latents, directions))
    apart = along[..., None] - along[..., None, :]
    pairs = ops.sum(ops.exp(-0.5 * apart * apart)) / (batch * directions.shape[0] * count**2)
    singles = ops.sum(ops.exp(-0.25 * along * along)) / (batch * directions.shape[0] * count)
    return pairs - 2.0**0.5 * singles + 3.0**-0.5


def _matrix(name: str, rows: int, columns: int) -> Parameter:
    """A Muon matrix, uniform in +-1/sqrt(fan-in)."""
    return Parameter(name, (rows, columns), Initial("uniform", columns**-0.5), "matrix", "matrix")


def _added(terms: list[Array]) -> Array:
    """The sum of one scalar or more."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _two_layers(ops: Ops, params: Mapping[str, Array], name: str, x: Array, eps: float) -> Array:
    """W2 silu(rms(W1 x)): [..., L] of [..., D]."""
    normalised = ops.rms_norm(ops.linear(x, params[f"{name}_in.weight"]), eps)
    return ops.linear(normalised * ops.sigmoid(normalised), params[f"{name}_out.weight"])
