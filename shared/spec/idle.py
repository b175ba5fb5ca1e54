"""Fields of a spec that have no effect under the values of others: `normuon_beta2` where `normuon` is off.

They are no errors, because one switch may leave many of them behind, but who set one must be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from shared.spec.artifact import QuantiserSpec
from shared.spec.difference import fields
from shared.spec.load import spec_from_dict, spec_to_dict
from shared.spec.spec import Spec

# The default is that of another field, so in a spec that was written out whole the value need not have been set.
FOLLOWS = "training.qat.bits"
# The values of a field under which others are idle, or a function that is true of them.
Values = tuple[Any, ...] | Callable[[Any], bool]


def _no_attention(mixers: list[str]) -> bool:
    return bool(mixers) and "attention" not in mixers


OFF: Values = (0, [], "none", "off")
ADAM_OR_SGD: Values = ("adam", "sgd")
NOT_LOCAL: Values = ("linear", "mlp", "experts")
QUANTISERS = ("matrix", "embed", "head")
NO_DECAY: dict[str, Values] = {"optimizer.muon_weight_decay": OFF, "optimizer.adam_weight_decay": OFF}
# Nothing but adapters is trained.
FROZEN: dict[str, Values] = {
    "training.freeze": ("base",),
    **{f"training.loss.{name}": OFF for name in ("multi_symbol.weights", "embed_prediction.weight")},
    "training.loss.chunk_prediction.weight": OFF,
}
# (all that must hold, by field; what is idle then, as `section: names`). Of the fields that decide the first is named.
RULES: tuple[tuple[Mapping[str, Values], str], ...] = (
    ({"optimizer.form": ADAM_OR_SGD}, "optimizer: muon_weight_decay muon_cautious_decay muon_row_normalise"),
    ({"optimizer.form": ADAM_OR_SGD}, "optimizer: normuon normuon_beta2"),
    # Adaptation by Muon has these of its matrices from here.
    (
        {"optimizer.form": ADAM_OR_SGD, "evaluation.adaptation.optimizer": lambda form: form != "muon"},
        "optimizer: ns_steps ns_coefficients ns_dtype",
    ),
    ({"optimizer.form": ("adam",)}, "optimizer: muon_momentum muon_momentum_start muon_momentum_warmup_steps"),
    ({"optimizer.form": ("sgd",)}, "optimizer: adam_beta1 adam_beta2 adam_eps"),
    ({"optimizer.normuon": OFF}, "optimizer: normuon_beta2"),
    ({"optimizer.muon_momentum_warmup_steps": OFF}, "optimizer: muon_momentum_start"),
    ({"model.tie_embeddings": (True,), "training.loss.multi_symbol.weights": OFF}, "optimizer: head_lr"),
    ({"model.tie_embeddings": (True,)}, f"artifact.head: {' '.join(QuantiserSpec.model_fields)}"),
    ({"model.lora.rank": OFF}, "optimizer: adapter_lr"),
    ({"model.lora.rank": OFF}, "model.lora: alpha targets"),
    (FROZEN, "optimizer: matrix_lr embed_lr head_lr scalar_lr muon_weight_decay muon_cautious_decay"),
    (FROZEN, "optimizer: muon_row_normalise normuon normuon_beta2"),
    ({"schedule.warmdown_frac": OFF}, "schedule: warmdown_shape min_lr_frac"),
    ({"schedule.decay_end_frac": (1,)}, "schedule: decay_taper_start_frac"),
    (NO_DECAY, "schedule: decay_end_frac decay_taper_start_frac decay_follows_lr"),
    ({"model.mlp_dims": bool}, "model: mlp_dim"),
    ({"model.unet_skips": OFF}, "model: skip_gates"),
    ({"model.unet_skips": OFF}, "model.loop: skips"),
    ({"model.mixers": lambda mixers: "mamba2" not in mixers}, "model: state_dim"),
    # The local decoder has a gain on its queries and no RoPE.
    ({"model.attention.rope_dims": OFF}, "model: rope_base"),
    ({"model.mixers": _no_attention}, "model: rope_base"),
    ({"model.mixers": _no_attention}, "model.attention: rope_dims"),
    ({"model.mixers": _no_attention, "model.decoder.kind": NOT_LOCAL}, "model: q_gain_init"),
    ({"model.loop.extra_loops": OFF}, "model.loop: gates"),
    ({"model.loop.extra_loops": OFF, "model.loop.skips": ("halves",)}, "model.loop: first_layer last_layer"),
    ({"model.loop.extra_loops": OFF}, "schedule.loop: start_frac start_step ramp_frac ramp_steps"),
    ({"model.loop.extra_loops": (0, 1)}, "schedule.loop: stagger_frac stagger_steps"),
    ({"model.parallel.form": OFF}, "model.parallel: first_layer"),
    ({"model.attention.output_gate": ("none", "full", "attn_out")}, "model.attention: gate_scale"),
    (
        {"model.attention.output_gate": ("none", "full"), "model.smear_gate": ("none", "v1")},
        "model.attention: gate_dims",
    ),
    ({"model.ngram.rows": OFF}, "model.ngram: dim longest multiplier reader"),
    ({"model.decoder.kind": ("linear", "experts")}, "model.decoder: dim"),
    ({"model.decoder.kind": NOT_LOCAL}, "model.decoder: num_layers num_heads mlp_dim context"),
    ({"model.decoder.kind": ("autoregressive", "linear", "mlp")}, "model.decoder: num_experts"),
    ({"training.qat.form": OFF}, "training.qat: bits start_frac start_step"),
    ({"training.swa_every_steps": OFF}, "training: swa_start_frac swa_share"),
    ({"training.ema_decay": OFF}, "training: swa_share"),
    ({"training.loss.multi_symbol.weights": OFF}, "training.loss.multi_symbol: decay_end_frac"),
    ({"training.loss.embed_prediction.weight": OFF}, "training.loss.embed_prediction: symbols"),
    (
        {"training.loss.chunk_prediction.weight": OFF},
        "training.loss.chunk_prediction: chunk_patches hidden_dim latent_dim regulariser_weight directions",
    ),
    ({"training.loss.chunk_prediction.regulariser_weight": OFF}, "training.loss.chunk_prediction: directions"),
    ({"training.loss.code_entropy.weight": OFF}, "training.loss.code_entropy: temperature row_stride start_frac"),
    *(
        ({f"artifact.{name}.method": methods}, f"artifact.{name}: {names}")
        for name in QUANTISERS
        for methods, names in (
            (("uniform", "ternary"), "bits"),
            (("row_max", "clip_search", "uniform", "ternary"), "clip_sd hessian_clip"),
            (("row_max", "sd_clip", "clip_search", "ternary"), "step step_unit trellis"),
            (("row_max", "sd_clip", "clip_search", "uniform"), "group"),
        )
    ),
    (
        {**{f"artifact.{name}.lqer_rank": OFF for name in QUANTISERS}, "artifact.tensors": OFF},
        "artifact: lqer_tensors",
    ),
    ({"artifact.calibration.source": ("train", "none")}, "artifact.calibration: temperature"),
    ({"evaluation.adaptation.optimizer": ("adam",)}, "evaluation.adaptation: momentum"),
    ({"evaluation.adaptation.optimizer": ("sgd", "muon")}, "evaluation.adaptation: beta1 beta2"),
    ({"evaluation.adaptation.kind": ("score_first",)}, "evaluation.adaptation: documents"),
    ({"evaluation.adaptation.lora.rank": OFF}, "evaluation.adaptation.lora: alpha targets"),
    (
        {"evaluation.adaptation.phases.count": OFF},
        "evaluation.adaptation.phases: documents epochs rate momentum clip_norm batch_symbols parameters",
    ),
)


def idle_fields(spec: Spec) -> dict[str, str]:
    """The field that decides, by each field, as `section.key`, that has no effect whatever its value is."""
    found = _idle(spec)
    # What has no effect decides nothing either.
    while more := {key: because for key, because in _idle(_without(spec, found)).items() if key not in found}:
        found |= more
    return found


def without_idle_fields(spec: Spec) -> Spec:
    """The same experiment with every field that has no effect as it is when left out."""
    return _without(spec, idle_fields(spec))


def idle_notes(spec: Spec) -> list[str]:
    """One line for each field whose value makes others idle that were set, in vain."""
    values, left = fields(spec), fields(without_idle_fields(spec))
    lines: dict[str, list[str]] = {}
    for key, because in idle_fields(spec).items():
        if values[key] != left[key] and key != FOLLOWS:
            lines.setdefault(because, []).append(key)
    return [
        f"{', '.join(keys)} {'have' if keys[1:] else 'has'} no effect where {because} is {_shown(values[because])}"
        for because, keys in lines.items()
    ]


def _idle(spec: Spec) -> dict[str, str]:
    """`idle_fields` by the values as they are."""
    values = fields(spec)
    found: dict[str, str] = {}
    for conditions, text in RULES:
        if all(_holds(values.get(key, ""), allowed) for key, allowed in conditions.items()):
            section, _, names = text.partition(": ")
            for name in names.split():
                found.setdefault(f"{section}.{name}", next(iter(conditions)))
    return {key: because for key, because in found.items() if key in values}


def _without(spec: Spec, keys: Iterable[str]) -> Spec:
    values = spec_to_dict(spec)
    for key in keys:
        *path, name = key.split(".")
        del reduce(lambda section, part: section[part], path, values)[name]
    return spec_from_dict(values, spec.name)


def _holds(value: Any, allowed: Values) -> bool:
    return allowed(value) if callable(allowed) else value in allowed


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
