"""The check of gradients catches what never learns, and passes what does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shared.cli.main import main
from shared.engine.package import available_engines, create_engine
from shared.model import initial_weights, parameter_manifest
from shared.preflight import ask_rows
from shared.preflight.measure import measure_here
from shared.preflight.row import ROWS, go
from shared.scoring.checks import Check
from shared.scoring.gradient_check import GRADIENT_STEPS, check_gradients, check_spec_gradients
from tests.fake_training import tiny_spec
from tests.museum.adapters import gated_adapters, zero_factors
from tests.museum.exhibits import PLAIN
from tests.museum.ngrams import dead_factors

every_engine = pytest.mark.parametrize("name", available_engines())
LORA = ["model.lora.rank=3", 'model.lora.targets=["q", "o"]']


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (4, 64)).astype(np.int32) for _ in range(GRADIENT_STEPS)]


@pytest.mark.slow
@every_engine
def test_adapters_learn_and_planted_ones_do_not(name: str) -> None:
    spec = tiny_spec(*LORA)
    adapters = [each.name for each in parameter_manifest(spec) if each.group == "adapter"]
    honest = check_gradients(create_engine(name, spec), initial_weights(spec), batches())
    assert honest == Check("gradients", True, 0.0, 0.0, "everything that is trained has a gradient")
    gated = check_gradients(create_engine(name, spec, gated_adapters), initial_weights(spec), batches())
    detail = f"no gradient within {GRADIENT_STEPS} steps: {', '.join(adapters[:4])} and {len(adapters) - 4} more"
    assert gated == Check("gradients", False, float(len(adapters)), 0.0, detail)
    assert check_gradients(create_engine(name, spec), zero_factors(spec), batches()) == gated


@every_engine
def test_dead_ngrams_are_caught_too(name: str) -> None:
    spec = tiny_spec("model.ngram.rows=97", "model.ngram.dim=8", "model.ngram.longest=2")
    check = check_gradients(create_engine(name, spec), dead_factors(spec), batches())
    assert not check.passed
    assert check.detail.endswith("ngram_embed.tables.2.weight, ngram_embed.proj.weight, ngram_embed.scale")


def test_a_base_that_is_frozen_at_zero_lets_no_gradient_through() -> None:
    """Adapters of q alone behind output projections that stay zero; with those of o they learn."""
    engine = available_engines()[-1]
    frozen = check_spec_gradients(
        tiny_spec("model.lora.rank=3", 'model.lora.targets=["q"]', "training.freeze=base"), engine
    )
    assert not frozen.passed and frozen.measured == 6
    open_again = check_spec_gradients(tiny_spec(*LORA, "training.freeze=base"), engine)
    assert open_again.passed, open_again


@pytest.mark.slow
def test_audit_and_preflight_say_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ROWS.keys() - {"gradients"}:
        monkeypatch.setitem(ask_rows.ASKED, name, lambda context, name=name: go(name, "", "left out"))
    monkeypatch.setattr(ask_rows, "measure_step", measure_here)
    words = ["model.lora.rank=3", 'model.lora.targets=["q"]', "training.freeze=base", "model.num_layers=1"]
    sets = [f"--set={word}" for word in [*words, "training.compile=false"]]
    for command, key, passed in (("audit", "checks", "passed"), ("preflight", "rows", "verdict")):
        assert main([command, "tiny", "--json", "--engine", available_engines()[-1], *sets]) == 1
        rows = json.loads(capsys.readouterr().out)[key]
        failed = [row for row in rows if row[passed] in (False, "no-go")]
        assert [row["name"] for row in failed] == ["gradients"]
        assert "no gradient within 5 steps: layers.0.attn.q_proj.lora_a.weight" in json.dumps(failed)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.smear_gate=v2", "model.skip_gates=true", "model.attention.value_residual=true"],
        [*PLAIN, "model.embed_rank=12", "model.attention.output_gate=sparse"],
        [
            'model.mixers=["mamba2", "gated_delta", "attention"]',
            "model.decoder.kind=experts",
            "schedule.warmup_frac=0.5",
        ],
    ],
)
def test_specs_of_many_kinds_pass(overrides: list[str]) -> None:
    check = check_spec_gradients(tiny_spec(*overrides), available_engines()[0])
    assert check.passed, check
