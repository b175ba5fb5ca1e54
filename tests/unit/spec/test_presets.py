"""Every preset: the published size, a small sibling with the same techniques that learns, and an honest function."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from shared.artifact.predict import predict_artifact_bytes
from shared.engine.flops import training_flops
from shared.engine.oracle import Oracle
from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.engine.synthetic import synthetic_loader, synthetic_start
from shared.model import parameter_counts, parameter_manifest, random_weights
from shared.optim import progress_frac, step_hyperparameters
from shared.preflight.function_rows import shrunken_spec
from shared.scoring.audit import audit_scorer, check_initial_loss
from shared.spec import Spec, load_spec, preset_names, with_overrides
from shared.spec.difference import fields
from shared.spec.load import PRESETS
from shared.spec.reduced import reduced_spec

# Siblings: the same techniques, small enough for a laptop.
MINIS = {
    "baseline": "baseline-mini",
    "h100": "smoke",
    "itchy": "itchy-mini",
    "pr705": "pr705-mini",
    "pr1431": "pr1431-mini",
    "pr1855": "pr1855-mini",
    "recurrent": "recurrent-mini",
}
BIG_PARAMETERS = 10_000_000

# Fields of the model in which a sibling may be smaller; what is 0 in one is 0 in the other.
SIZES = {
    *("num_layers", "model_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "seq_len", "patch_size"),
    *("loop.first_layer", "loop.last_layer", "loop.extra_loops", "parallel.first_layer"),
    *("attention.rope_dims", "attention.xsa_layers", "ngram.dim"),
    *(f"decoder.{field}" for field in ("dim", "num_layers", "num_heads", "mlp_dim")),
}
# What depends on the machine, or on how long a run is.
MACHINE = {
    *("optimizer.ns_dtype", "schedule.driver"),
    *(f"training.{field}" for field in ("dtype", "micro_batch_symbols", "time_limit_s")),
}
# What else differs, by design: the sibling of a token model that reads patches of bytes, trained by the clock.
EXCEPTIONS = {
    # What minutes of training gain by looking n-grams up is not known of a model that trains for longer.
    "h100": {f"model.ngram.{field}" for field in ("reader", "rows", "longest")},
    "recurrent": {
        *("vocabulary.kind", "vocabulary.vocab_size", "model.patch_size", "model.start"),
        "optimizer.muon_weight_decay",
        *(f"model.decoder.{field}" for field in ("kind", "context")),
        *(f"schedule.loop.{field}" for field in ("start_frac", "start_step", "ramp_frac", "ramp_steps")),
    },
}

LEARNING_STEPS = 6
SEQ_SYMBOLS = 48
FALL_NATS = 0.1


# Published numbers of weights (docs/techniques.md 13), with our parameters that they do not count, and the weights that
# they count and that are not here.
EXACT: dict[str, tuple[int, tuple[str, ...], int]] = {
    "baseline": (17_059_912, (), 0),
    "itchy": (17_480_152, ("embed.start",), 0),
    # With an MLP of twice the width; the three times of its text would be 34.4 M.
    "pr705": (27_571_816, ("embed.start", "ngram_embed.scale"), 0),
    # Weights of two lanes, four posts and two residuals, in the eight layers that have one lane.
    "pr1855": (35_945_671, (), 8 * (4 + 2)),
}
# Published in millions.
ROUNDED = {"pr1431": 28.3, "recurrent": 21.0}

every_preset = pytest.mark.parametrize("preset", preset_names())


@pytest.mark.parametrize("preset", EXACT)
def test_the_published_number_of_parameters(preset: str) -> None:
    weights, ours, theirs = EXACT[preset]
    counts = {parameter.name: parameter.count for parameter in parameter_manifest(load_spec(preset))}
    assert sum(counts.values()) == weights + sum(counts[name] for name in ours) - theirs


@pytest.mark.parametrize("preset", ROUNDED)
def test_the_number_published_in_millions(preset: str) -> None:
    assert round(parameter_counts(load_spec(preset))["total"] / 1e6, 1) == ROUNDED[preset]


def test_comments_of_presets_state_their_numbers() -> None:
    """Numbers in prose are those that the manifest counts."""
    for preset, (weights, _, _) in EXACT.items():
        comment = (PRESETS / f"{preset}.toml").read_text(encoding="utf-8").split("[", 1)[0]
        if stated := re.findall(r"(\d[\d,]*) parameters", comment):
            assert stated == [f"{weights:,}"]
    wide = parameter_counts(load_spec("pr705", ["model.mlp_dim=1536"]))["total"]
    ours = {parameter.name: parameter.count for parameter in parameter_manifest(load_spec("pr705"))}
    uncounted = sum(ours[name] for name in EXACT["pr705"][1])
    comment = (PRESETS / "pr705.toml").read_text(encoding="utf-8")
    assert f"({wide - uncounted:,})" in comment and f"{uncounted} fewer than here" in comment.replace("# ", "")


def techniques(spec: Spec) -> dict[str, Any]:
    """What a spec does, without how large it is: of the model every field but sizes as it stands; of all else, and of
    sizes, switches and names as they stand, numbers as on or off."""
    found: dict[str, Any] = {}
    for key, value in fields(spec).items():
        section, _, field = key.partition(".")
        if section in ("vocabulary", "model", "optimizer", "schedule", "training"):
            exact = section == "model" and field not in SIZES
            found[key] = value if exact or isinstance(value, (bool, str)) else bool(value)
    model = spec.model
    return found | {
        "model.patch_size": model.patch_size > 1,
        "partial RoPE": 0 < model.attention.rope_dims < model.head_dim,
        "XSA everywhere": model.attention.xsa_layers == model.num_layers,
        "grouped queries": model.num_kv_heads < model.num_heads,
    }


def test_laptop_is_the_model_of_smoke_for_longer() -> None:
    """The shape was chosen by sweeps at equal time, with another width at each."""
    laptop, smoke = load_spec("laptop"), load_spec("smoke", ["model.model_dim=96"])
    assert laptop.model == smoke.model and laptop.optimizer == smoke.optimizer
    assert laptop.training.time_limit_s > smoke.training.time_limit_s


def test_every_big_preset_has_a_sibling() -> None:
    big = {name for name in preset_names() if parameter_counts(load_spec(name))["total"] > BIG_PARAMETERS}
    assert set(MINIS) == big


@pytest.mark.parametrize("preset", MINIS)
def test_a_sibling_has_the_same_techniques(preset: str) -> None:
    big, small = techniques(load_spec(preset)), techniques(load_spec(MINIS[preset]))
    differs = {key for key in big if big[key] != small[key]}
    assert differs - MACHINE == EXCEPTIONS.get(preset, set())
    # Rows of tables are looked up, which takes no time.
    assert parameter_counts(load_spec(MINIS[preset]))["matrix"] < BIG_PARAMETERS / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("mini", MINIS.values())
def test_a_sibling_learns_and_uses_every_parameter(mini: str, name: str) -> None:
    """On one batch, again and again, narrower still; loops and quantisation begin as late as their schedule says."""
    spec, _ = reduced_spec(narrow(mini), LEARNING_STEPS, seq_len=SEQ_SYMBOLS)
    engine, start, x = create_engine(name, spec), synthetic_start(spec), synthetic_loader(spec, 0).batch(0)
    engine.initialise(start)
    losses = []
    for step in range(LEARNING_STEPS):
        losses.append(engine.train_step(x, step_hyperparameters(spec, step, progress_frac(spec, step, 0.0)))()[0])
    assert abs(losses[0] - math.log(spec.vocabulary.size)) < 0.1 * losses[0]
    assert losses[-1] < losses[0] - FALL_NATS
    trained = engine.export_weights("trained")
    assert [parameter for parameter in trained if np.array_equal(trained[parameter], start[parameter])] == []


@every_preset
def test_figures_before_training_exist(preset: str) -> None:
    spec = load_spec(preset)
    prediction = predict_artifact_bytes(spec)
    assert 0 < prediction.low_bytes <= prediction.expected_bytes <= prediction.high_bytes <= prediction.worst_case_bytes
    flops = training_flops(spec)
    # Six operations for each weight that a symbol meets, at least one patch's share of all matrices.
    assert flops.per_symbol > 6 * parameter_counts(spec)["matrix"] / spec.model.patch_size
    assert math.isfinite(flops.per_symbol) and flops.optimizer > 0


def narrow(preset: str) -> Spec:
    """A preset with few weights, tokens and symbols in a window."""
    spec = load_spec(preset)
    spec = with_overrides(spec, ["vocabulary.vocab_size=300"] if spec.vocabulary.reads_tokens else [])
    return shrunken_spec(spec, 100_000, SEQ_SYMBOLS)[0]


class Symbols:
    """A stream of random symbols, as far as the checks of causality read one."""

    def __init__(self, vocab_size: int) -> None:
        self.num_symbols = 1000
        self.symbols = np.random.default_rng(5).integers(0, vocab_size, self.num_symbols).astype(np.int32)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.symbols[start : start + count]


@pytest.mark.slow
@every_preset
def test_a_preset_is_honest(preset: str) -> None:
    """The audit's checks of the model with random weights, and the first loss with its own."""
    spec = narrow(preset)
    report = audit_scorer(Oracle(spec, random_weights(spec, 1)), Symbols(spec.vocabulary.size))  # type: ignore[arg-type]
    isolation = ["isolation"] * spec.model.attention.document_mask
    assert [check.name for check in report.checks] == ["future", "target", "normalisation", *isolation, "order"]
    assert report.passed, report.failures
    assert check_initial_loss(Oracle(spec, synthetic_start(spec))).passed
