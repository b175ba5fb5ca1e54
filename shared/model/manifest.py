"""Every parameter of a model: name, shape, initial value, optimizer group, quantisation class.

The manifest is the one list that initialisation, optimizers, checkpoints and artifacts are built
from, so a parameter cannot be forgotten by any of them. Shapes are [out, in] for matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shared.model.block_shape import (
    FULL_GATE_STD,
    VALUE_EMBED_SCALE,
    VALUE_EMBED_STD,
    BlockShape,
    decoder_block_shape,
    trunk_block_shape,
)
from shared.model.layer_order import num_skips
from shared.spec import ModelSpec, Spec

Group = Literal["matrix", "embedding", "head", "scalar", "adapter"]
QuantisationClass = Literal["matrix", "embedding", "head", "control"]
Distribution = Literal["constant", "normal", "uniform", "first_row_ones", "first_row_share"]


@dataclass(frozen=True)
class Initial:
    """An initial value: constant `scale`; normal of standard deviation `scale`; uniform in +-`scale`;
    ones in the first row and zeros below (`resid_mix`); or `scale` in the first and 1 - `scale` in the second row.
    Tables of symbols and large matrices: unless model.embed_init or matrix_init say otherwise."""

    distribution: Distribution
    scale: float = 0.0


@dataclass(frozen=True)
class Parameter:
    """One named tensor. `group` picks its optimizer, `quantisation` its storage in the artifact."""

    name: str
    shape: tuple[int, ...]
    initial: Initial
    group: Group
    quantisation: QuantisationClass

    @property
    def count(self) -> int:
        """Number of weights in it."""
        return math.prod(self.shape)


ZEROS, ONES = Initial("constant", 0.0), Initial("constant", 1.0)
# What replaces ".weight" of a matrix in the names of its adapter's factors A and B (shared.model.adapters).
ADAPTER_A, ADAPTER_B = ".lora_a.weight", ".lora_b.weight"
# What a two-lane block keeps of each lane at first (docs/techniques.md 6.3).
LANE_RESID = 1.1
# The initial scale of n-gram embeddings by their reader (docs/techniques.md 4.3).
NGRAM_SCALES = {"trunk": 0.05, "decoder": 0.5}
# Positions that a mixer's short convolution reads, and what its steps and decays start from (shared.model.chunks).
CONV_WIDTH = 4
STEP_BIAS = -3.0
LOG_RATE_SPREAD = 2.0


def parameter_manifest(spec: Spec) -> tuple[Parameter, ...]:
    """All parameters of a spec's model, in a fixed order, names unique."""
    model = spec.model
    parameters = [*_input_parameters(spec)]
    for layer in range(model.num_layers):
        shape = trunk_block_shape(model, layer)
        parameters += _block_parameters(f"layers.{layer}", shape, model)
        if model.resid_mix:
            mix = _resid_mix(model, layer)
            parameters.append(_control(f"layers.{layer}.resid_mix", (2, model.model_dim), mix))
        if shape.parallel == "two_lane":
            parameters.append(_control(f"layers.{layer}.lanes.post", (2, 2), ONES))
            parameters.append(_control(f"layers.{layer}.lanes.resid", (2,), Initial("constant", LANE_RESID)))
    for skip in range(num_skips(model)):
        parameters.append(_control(f"skips.{skip}.weight", (model.model_dim,), ONES))
        if model.skip_gates:
            parameters.append(_control(f"skips.{skip}.gate", (model.model_dim,), ZEROS))
    loop = model.loop
    if loop.gates and loop.extra_loops:
        parameters.append(_control("loop.gates", (loop.extra_loops, loop.last_layer - loop.first_layer + 1), ONES))
    parameters += _decoder_parameters(spec)
    if model.lora.rank:
        parameters += _adapter_parameters(model, parameters)
    assert len({parameter.name for parameter in parameters}) == len(parameters)
    return tuple(parameters)


def parameter_counts(spec: Spec) -> dict[str, int]:
    """Weights by optimizer group, and their `total`."""
    counts = {"matrix": 0, "embedding": 0, "head": 0, "scalar": 0}
    if spec.model.lora.rank:
        counts["adapter"] = 0
    for parameter in parameter_manifest(spec):
        counts[parameter.group] += parameter.count
    return {**counts, "total": sum(counts.values())}


def _resid_mix(model: ModelSpec, layer: int) -> Initial:
    """The initial shares of a block's input and of x0, by model.resid_mix_init."""
    if model.resid_mix_init == "first":
        return Initial("first_row_ones")
    phase = layer / max(1, model.num_layers - 1)
    return Initial("first_row_share", 1.0 / (1.0 + math.exp(-3.0 * (phase - 0.5))))


def _input_parameters(spec: Spec) -> Iterator[Parameter]:
    model = spec.model
    dim = model.model_dim
    normal = Initial("normal", model.embed_init_std)
    width = model.embed_rank or dim
    yield Parameter("embed.weight", (spec.vocabulary.size, width), normal, "embedding", "embedding")
    if model.embed_rank:
        yield _matrix("embed.rank_proj.weight", dim, model.embed_rank)
    if model.start == "learned":
        yield _control("embed.start", (dim,), normal)
    if model.patch_size > 1:
        yield _matrix("embed.patch_proj.weight", dim, model.patch_size * dim)
    if model.smear_gate == "v1":
        yield _control("embed.smear_logit", (dim,), ZEROS)
    elif model.smear_gate == "v2":
        # Live though both are zero: sigmoid(0) is not, so the scale moves first.
        yield _gate("embed.smear_gate.weight", 1, model.attention.gate_dims, ZEROS)
        yield _control("embed.smear_scale", (1,), ZEROS)
    for length in model.ngram.lengths:
        # Zero, so the projection must not be: of two factors that both start at zero neither gets a gradient.
        shape = (model.ngram.rows, model.ngram.dim)
        yield Parameter(f"ngram_embed.tables.{length}.weight", shape, ZEROS, "embedding", "embedding")
    if model.ngram.rows:
        reader_dim = {"trunk": dim, "decoder": model.decoder.dim}[model.ngram.reader]
        yield _matrix("ngram_embed.proj.weight", reader_dim, model.ngram.dim)
        yield _control("ngram_embed.scale", (1,), Initial("constant", NGRAM_SCALES[model.ngram.reader]))
    if width := model.attention.value_embed_dim:
        table = Initial("normal", VALUE_EMBED_STD)
        yield Parameter("value_embed.weight", (spec.vocabulary.size, width), table, "embedding", "embedding")
        yield _matrix("value_embed.value_proj.weight", model.num_kv_heads * model.head_dim, model.patch_size * width)


def _block_parameters(prefix: str, shape: BlockShape, model: ModelSpec) -> Iterator[Parameter]:
    if shape.mixer == "attention":
        yield from _attention_parameters(prefix, shape, model)
    else:
        yield from _state_mixer_parameters(f"{prefix}.{shape.mixer}", shape)
    yield _matrix(f"{prefix}.mlp.up_proj.weight", shape.mlp_dim, shape.dim)
    yield _matrix(f"{prefix}.mlp.down_proj.weight", shape.dim, shape.mlp_dim, ZEROS)
    yield _control(f"{prefix}.mlp.scale", (shape.dim,), ONES)


def _attention_parameters(prefix: str, shape: BlockShape, model: ModelSpec) -> Iterator[Parameter]:
    attention_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield _matrix(f"{prefix}.attn.q_proj.weight", attention_dim, shape.dim)
    yield _matrix(f"{prefix}.attn.k_proj.weight", kv_dim, shape.dim)
    yield _matrix(f"{prefix}.attn.v_proj.weight", kv_dim, shape.dim)
    yield _matrix(f"{prefix}.attn.o_proj.weight", shape.dim, attention_dim, ZEROS)
    yield _control(f"{prefix}.attn.q_gain", (shape.num_heads,), Initial("constant", model.q_gain_init))
    yield _control(f"{prefix}.attn.scale", (shape.dim,), ONES)
    yield from _attention_addon_parameters(f"{prefix}.attn", shape)


def _state_mixer_parameters(prefix: str, shape: BlockShape) -> Iterator[Parameter]:
    """A recurrent mixer: the short convolution reads the three projections after z."""
    heads, inner = shape.num_heads, shape.num_heads * shape.head_dim
    shared = shape.num_kv_heads * shape.state_dim
    mamba2 = shape.mixer == "mamba2"
    widths = {"x": inner, "b": shared, "c": shared} if mamba2 else {"q": inner, "k": inner, "v": inner}
    yield _matrix(f"{prefix}.z_proj.weight", inner, shape.dim)
    for name, width in widths.items():
        yield _matrix(f"{prefix}.{name}_proj.weight", width, shape.dim)
    # At first each position reads itself alone.
    yield _control(f"{prefix}.conv", (CONV_WIDTH, sum(widths.values())), Initial("first_row_ones"))
    # exp(A) from 1/7 to 7 and a first step of 0.05: states that last from 3 to 150 positions.
    yield _gate(f"{prefix}.step_proj.weight", heads, shape.dim, ZEROS)
    yield _control(f"{prefix}.step_bias", (heads,), Initial("constant", STEP_BIAS))
    yield _control(f"{prefix}.log_rate", (heads,), Initial("uniform", LOG_RATE_SPREAD))
    if mamba2:
        yield _control(f"{prefix}.skip", (heads,), ONES)
    else:
        yield _gate(f"{prefix}.strength_proj.weight", heads, shape.dim, ZEROS)
    yield _matrix(f"{prefix}.o_proj.weight", shape.dim, inner, ZEROS)
    yield _control(f"{prefix}.scale", (shape.dim,), ONES)


def _attention_addon_parameters(prefix: str, shape: BlockShape) -> Iterator[Parameter]:
    addons = shape.attention
    if addons.value_embed:
        yield _control(f"{prefix}.value_embed_scale", (1,), Initial("constant", VALUE_EMBED_SCALE))
    if addons.takes_values:
        yield _control(f"{prefix}.value_resid", (1,), ZEROS)
    if addons.output_gate != "none":
        initial = Initial("normal", FULL_GATE_STD) if addons.output_gate == "full" else ZEROS
        yield _gate(f"{prefix}.gate.weight", shape.num_heads, addons.gate_dims, initial)


def _decoder_parameters(spec: Spec) -> Iterator[Parameter]:
    model, vocab_size = spec.model, spec.vocabulary.size
    decoder, patch_size, dim = model.decoder, model.patch_size, model.model_dim
    if decoder.kind == "autoregressive":
        normal = Initial("normal", model.embed_init_std)
        yield Parameter("decoder.embed.weight", (vocab_size, decoder.dim), normal, "embedding", "embedding")
        yield _control("decoder.start", (decoder.dim,), normal)
        yield _control("decoder.position", (patch_size, decoder.dim), normal)
        yield _matrix("decoder.cond_proj.weight", patch_size * decoder.dim, dim)
        if decoder.context > 1:
            yield _matrix("decoder.context_proj.weight", decoder.dim, decoder.context * decoder.dim)
        for layer in range(decoder.num_layers):
            yield from _block_parameters(f"decoder.layers.{layer}", decoder_block_shape(model), model)
        if not model.tie_embeddings:
            yield _head("head.weight", vocab_size, decoder.dim)
    elif decoder.kind == "mlp":
        yield _control("decoder.position", (patch_size, dim), Initial("normal", 0.02))
        for position in range(patch_size):
            yield _matrix(f"decoder.heads.{position}.up_proj.weight", decoder.dim, dim)
            yield _head(f"decoder.heads.{position}.down_proj.weight", vocab_size, decoder.dim)
    elif decoder.kind == "experts":
        yield _control("decoder.position", (patch_size, dim), Initial("normal", 0.02))
        # Not zero: experts that start alike with equal weights would stay alike.
        yield _gate("decoder.router.weight", decoder.num_experts, dim, Initial("uniform", dim**-0.5))
        for expert in range(decoder.num_experts):
            yield _head(f"decoder.experts.{expert}.weight", vocab_size, dim)
    elif not model.tie_embeddings:
        yield _head("head.weight", patch_size * vocab_size, dim)


def _adapter_parameters(model: ModelSpec, parameters: list[Parameter]) -> list[Parameter]:
    """The factors of every matrix that has an adapter, A and B of one next to each other."""
    rank, factors = model.lora.rank, []
    for each in parameters:
        if any(_is_adapted(each.name, target) for target in model.lora.targets):
            stem, (rows, columns) = each.name.removesuffix(".weight"), each.shape
            many = (model.lora.rows,) if model.lora.rows else ()
            a = Initial("uniform", columns**-0.5)
            factors.append(Parameter(f"{stem}{ADAPTER_A}", (*many, rank, columns), a, "adapter", "matrix"))
            factors.append(Parameter(f"{stem}{ADAPTER_B}", (*many, rows, rank), ZEROS, "adapter", "matrix"))
    return factors


def _is_adapted(name: str, target: str) -> bool:
    """Whether a target of model.lora selects the parameter of this name."""
    if target == "head":
        return name == "head.weight"
    ending = ".weight" if target == "mlp" else f".{target}_proj.weight"
    return name.startswith("layers.") and name.endswith(ending) and (target != "mlp" or ".mlp." in name)


def _matrix(name: str, rows: int, columns: int, initial: Initial | None = None) -> Parameter:
    """A Muon matrix; by default uniform in +-1/sqrt(fan-in), zeros for output projections."""
    return Parameter(name, (rows, columns), initial or Initial("uniform", columns**-0.5), "matrix", "matrix")


def _head(name: str, rows: int, columns: int) -> Parameter:
    """An untied output matrix, zero so that the first loss is ln V."""
    return Parameter(name, (rows, columns), ZEROS, "head", "head")


def _gate(name: str, rows: int, columns: int, initial: Initial) -> Parameter:
    """The matrix of a gate: Adam like the scalars, stored like an embedding, by row (docs/techniques.md 11.1)."""
    return Parameter(name, (rows, columns), initial, "scalar", "embedding")


def _control(name: str, shape: tuple[int, ...], initial: Initial) -> Parameter:
    """A gain, mix, start vector or other small tensor, stored in full precision."""
    return Parameter(name, shape, initial, "scalar", "control")
