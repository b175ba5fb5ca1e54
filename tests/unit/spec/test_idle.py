"""Fields without effect: changed all at once they change nothing that is computed, and who set one is told."""

from __future__ import annotations

import itertools
from typing import Any, get_args, get_origin

import numpy as np
import pytest

from shared.artifact.calibration import needs_statistics
from shared.artifact.quantise import quantise, storages_of
from shared.errors import SpecError, UserError
from shared.model import log_probs, random_weights, trained_parameters, training_loss
from shared.model.initialise import initial_weights
from shared.model.manifest import parameter_manifest
from shared.model.stages import training_stages
from shared.ops import NumpyOps
from shared.optim import global_norm, initial_state, optimizer_step, step_hyperparameters
from shared.spec import Spec, load_spec, preset_names, spec_from_dict, spec_to_dict
from shared.spec.difference import fields
from shared.spec.idle import RULES, idle_fields, idle_notes, without_idle_fields
from shared.study.plan import plan_runs

SMALL = (
    *("model.num_layers=2", "model.model_dim=16", "model.num_heads=2", "model.head_dim=8", "model.mlp_dim=24"),
    *("model.attention.rope_dims=8", "model.decoder.dim=8", "model.decoder.num_heads=2", "model.decoder.mlp_dim=12"),
    *("model.seq_len=16", "evaluation.stride_symbols=16", "evaluation.batch_symbols=48", "training.steps=20"),
    *("training.batch_symbols=48", "training.micro_batch_symbols=48"),
)
UNTIED = "model.tie_embeddings=false"
BASES = {
    "tiny": [],
    "linear": ["model.decoder.kind=linear", UNTIED, "model.attention.rope_dims=0"],
    "experts": ["model.decoder.kind=experts", UNTIED, "artifact.head.method=uniform"],
    "mlp": ["model.decoder.kind=mlp", UNTIED, 'model.mixers=["mamba2","mamba2"]', "optimizer.adam_weight_decay=0.1"],
    "adam": ["optimizer.form=adam", "optimizer.adam_weight_decay=0.1", "artifact.matrix.method=sd_clip"],
    "sgd": ["optimizer.form=sgd", "artifact.matrix.method=uniform", "artifact.embed.method=ternary"],
    "muon": ["optimizer.muon_momentum_warmup_steps=0", "optimizer.muon_weight_decay=0.1", "schedule.warmdown_frac=0"],
    "loop": ["model.loop.extra_loops=1", "model.loop.last_layer=1", "model.mlp_dims=[20,24]", "training.ema_decay=0.9"],
    "gates": ["model.unet_skips=false", "model.attention.output_gate=attn_out", "training.swa_every_steps=2"],
    "adapters": ["model.lora.rank=2", "training.freeze=base", "optimizer.muon_weight_decay=0.1"],
    "losses": [
        *("training.loss.chunk_prediction.weight=0.1", "training.loss.chunk_prediction.chunk_patches=1"),
        *("training.loss.chunk_prediction.regulariser_weight=0.0", "training.loss.embed_prediction.weight=0.1"),
    ],
}
STEPS = ((0, 0.0), (5, 0.3), (14, 0.75), (19, 0.96))


def small(*overrides: str) -> Spec:
    return load_spec("tiny", [*SMALL, *overrides])


def computed(spec: Spec) -> list[np.ndarray]:
    """Initial weights, some steps of the optimizer, the losses and a score of random weights, and their codes."""
    ops, rng = NumpyOps(), np.random.default_rng(0)
    weights = {name: value.astype(np.float64) for name, value in random_weights(spec, 0).items()}
    x = rng.integers(0, spec.vocabulary.size, (3, spec.model.seq_len))
    trained = {each.name: weights[each.name] for each in trained_parameters(spec)}
    state = {name: value.astype(np.float64) for name, value in initial_state(spec, weights).items()}
    found = [*initial_weights(spec).values(), log_probs(ops, spec, weights, x)]
    for step, progress in STEPS:
        numbers = step_hyperparameters(spec, step, progress)
        run = {name: np.asarray(value) for name, value in numbers.run.items()}
        found += training_loss(ops, training_stages(spec)[numbers.stage], {**weights, **run}, x)
        grads = {name: rng.standard_normal(value.shape) for name, value in trained.items()}
        hyper = {name: np.asarray(value) for name, value in numbers.optimizer.items()}
        trained, state = optimizer_step(ops, spec, trained, grads, state, global_norm(ops, grads), hyper)
        found += [*trained.values(), *state.values()]
    if not needs_statistics(spec):
        single = {name: value.astype(np.float32) for name, value in weights.items()}
        tensors = quantise(
            single, storages_of(parameter_manifest(spec), spec.artifact), None, spec.artifact.lqer_tensors
        )
        found += itertools.chain.from_iterable(tensor.parts.values() for tensor in tensors.values())
    return [np.asarray(value) for value in found]


def other_values(key: str, value: Any) -> list[Any]:
    """Values for a field beside the one that it has."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [type(value)(each) for each in (value * 2 + 1, value + 1, value - 1, value / 2 + 0.1)]
    if isinstance(value, list):
        return [["o"]]
    annotation: Any = Spec
    for part in key.split("."):
        annotation = annotation.model_fields[part].annotation
    return [each for each in get_args(annotation) if each != value] if get_origin(annotation) else []


def with_others(spec: Spec, keys: list[str]) -> tuple[Spec, set[str]]:
    """The spec with other values of as many of these fields as can have one, and those fields."""
    changed = set()
    for key in keys:
        for value in other_values(key, fields(spec)[key]):
            values = section = spec_to_dict(spec)
            *path, name = key.split(".")
            for part in path:
                section = section[part]
            section[name] = value
            try:
                other = spec_from_dict(values)
            except SpecError:
                continue
            if other != spec:
                spec = other
                changed.add(key)
                break
    return spec, changed


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_a_field_without_effect_has_none(base: str) -> None:
    """What decides stays as it is, so that the same fields stay without effect."""
    spec = small(*BASES[base])
    idle = idle_fields(spec)
    other, changed = with_others(spec, [key for key in idle if key not in idle.values()])
    assert len(changed) > 0.6 * len(idle) and idle_fields(other).keys() == idle.keys()
    for before, after in zip(computed(spec), computed(other), strict=True):
        np.testing.assert_array_equal(before, after)
    assert without_idle_fields(other) == without_idle_fields(spec)


def test_every_rule_names_fields_that_there_are() -> None:
    every = fields(small("evaluation.adaptation=online"))
    for conditions, text in RULES:
        section, _, names = text.partition(": ")
        assert {*conditions, *(f"{section}.{name}" for name in names.split())} <= every.keys()


@pytest.mark.parametrize("preset", preset_names())
def test_presets_set_nothing_in_vain(preset: str) -> None:
    assert not idle_notes(load_spec(preset))


def test_who_sets_a_field_in_vain_is_told() -> None:
    assert not idle_notes(small())
    vain = ("optimizer.form=adam", "optimizer.muon_weight_decay=0.1", "optimizer.normuon=true", "model.ngram.dim=8")
    assert idle_notes(small(*vain)) == [
        "optimizer.muon_weight_decay, optimizer.normuon have no effect where optimizer.form is adam",
        "model.ngram.dim has no effect where model.ngram.rows is 0",
    ]
    # Adaptation by Muon reads the Newton-Schulz iteration of the spec.
    steps = ("optimizer.form=adam", "optimizer.ns_steps=3")
    assert idle_notes(small(*steps)) and not idle_notes(
        small(*steps, "evaluation.adaptation.kind=score_first", "evaluation.adaptation.optimizer=muon")
    )


def test_a_sweep_of_a_field_without_effect_is_refused() -> None:
    message = r"same experiment: optimizer\.normuon has no effect where optimizer\.form is adam"
    with pytest.raises(UserError, match=message):
        plan_runs(["tiny"], ["optimizer.form=adam"], [], [0], ["optimizer.normuon=true"])
