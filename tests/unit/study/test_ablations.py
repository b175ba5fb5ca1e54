"""The ablation tables are plans that hold: every experiment in them is a valid spec of equal time and window."""

from __future__ import annotations

import shlex

import pytest

from shared.model import parameter_counts
from shared.spec import Spec
from shared.study.plan import plan_runs
from tests.bench.ablations import COMMON, SPEC, TABLES, main


def specs(table: str) -> dict[str, Spec]:
    ablation = TABLES[table]
    settings = (*COMMON, "training.time_limit_s=300", *ablation.settings)
    return {run.label: run.spec for run in plan_runs([SPEC], settings, ablation.vary, [0], ablation.tried)}


@pytest.mark.parametrize("table", sorted(TABLES.keys() - {"vocabulary"}))
def test_every_experiment_has_the_same_time_text_and_window(table: str) -> None:
    found = specs(table)
    assert len(found) >= 5
    shared = {
        (spec.model.seq_len, spec.evaluation.stride_symbols, spec.training.batch_symbols, spec.training.time_limit_s)
        for spec in found.values()
    }
    assert shared == {(768, 768, 4608, 300.0)}
    assert all(spec.schedule.driver == "time" for spec in found.values())
    # Steps never end a run of five minutes: that would take 3,000 of them a second.
    assert all(spec.training.steps >= 1_000_000 for spec in found.values())


def test_the_patch_table() -> None:
    assert [spec.model.patch_size for spec in specs("patch").values()] == [1, 2, 4, 8, 12, 16]
    assert [spec.model.decoder.kind for spec in specs("patch").values()] == ["linear", *["autoregressive"] * 5]


def test_the_vocabulary_table_compares_models_of_one_size_or_one_trunk() -> None:
    found = specs("vocabulary")
    assert list(found) == ["smoke", "smoke-bytes", "smoke-tokens", "smoke-tokens-same-trunk"]
    patches, plain, tokens, small = found.values()
    assert patches.model.patch_size == 8 and {plain.model.patch_size, tokens.model.patch_size} == {1}
    assert [spec.vocabulary.size for spec in (patches, plain, tokens, small)] == [256, 256, 1024, 1024]
    assert patches.model.num_layers == plain.model.num_layers == small.model.num_layers
    sizes = [parameter_counts(spec)["total"] for spec in (patches, tokens)]
    assert abs(sizes[0] - sizes[1]) < 0.005 * sizes[0]
    assert {spec.training.time_limit_s for spec in (patches, plain, tokens, small)} == {300.0}


def test_the_trick_table_starts_from_the_published_baseline() -> None:
    baseline, *tricks = specs("tricks").values()
    assert baseline.model.mlp_negative_slope == 0.0 and baseline.model.mlp_dim == 2 * baseline.model.model_dim
    assert tricks[0].model.mlp_negative_slope == 0.5 and tricks[1].model.mlp_dim == 3 * baseline.model.model_dim
    assert tricks[2].model.attention.rope_dims == baseline.model.head_dim // 4 and tricks[3].model.ln_scale


def test_the_command_of_a_table_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["patch", "--seconds", "10", "--seeds", "0,1", "--print"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:7] == ["bytetwin", "sweep", "smoke", "--name", "patch-10s", "--seeds", "0,1"]
    assert "training.time_limit_s=10" in words and "model.patch_size=1,2,4,8,12,16" in words
