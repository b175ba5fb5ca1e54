"""The ablation tables are plans that hold: every experiment in them is a valid spec of equal time and window."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from shared.model import parameter_counts
from shared.scoring.documents import DocumentScores
from shared.spec import Spec
from shared.study.plan import plan_runs
from tests.bench import by_steps
from tests.bench.ablations import COMMON, SPEC, TABLES, main
from tests.bench.by_steps import LOOK_LEVEL, Rows, decided, equal_steps, false_decisions, read, table
from tests.datasets import write_dataset


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


def by_seed(*values: float) -> dict[int, DocumentScores]:
    """Scores in bits per byte of four documents of 50,000 bytes, which differ by up to 0.15."""
    sizes = np.full(4, 50_000, np.int64)
    documents = np.array([-0.15, -0.05, 0.05, 0.15])
    return {seed: DocumentScores((value + documents) * np.log(2.0) * sizes, sizes) for seed, value in enumerate(values)}


def test_a_row_by_steps_is_decided_by_an_interval_that_excludes_zero_or_lies_within_the_bound() -> None:
    noise = 0.002 * np.array([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    seeds = 2.9 + 0.02 * np.arange(6)
    scores = {
        "baseline": by_seed(*seeds),
        "better": by_seed(*(seeds - 0.03 + noise)),
        "worse": by_seed(*(seeds + 0.03 + noise)),
        "equal": by_seed(*(seeds + 0.001 + noise)),
        "noisy": by_seed(*(seeds + 10 * noise)),
        "few": by_seed(*(seeds + 0.03)[:5]),
    }
    rows = Rows(dict.fromkeys(scores, 105), scores)
    found = {label: decided(rows, "baseline", label) for label in scores if label != "baseline"}
    assert found == {"better": "better", "worse": "worse", "equal": "within 0.01", "noisy": "", "few": ""}
    lines = table(rows, list(scores))
    assert len(lines) == 2 + len(scores) and "+0.0300" in lines[4] and lines[4].endswith("| worse |")


def test_looking_after_each_seed_decides_wrongly_once_in_a_hundred() -> None:
    assert false_decisions(LOOK_LEVEL) == pytest.approx(0.01, abs=0.002)
    assert false_decisions(0.99) == pytest.approx(1 / 21, rel=0.1)


def test_equal_time_is_fewer_steps_of_what_costs_more() -> None:
    assert equal_steps(105, 1.064, 0.015) == 99 and equal_steps(105, 0.9, 0.01) == 117
    assert equal_steps(105, 1.006, 0.015) == 105


@pytest.mark.slow
def test_the_driver_by_steps_trains_what_is_missing(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of a small model. A second start trains the second seed alone; the first trains as before."""
    monkeypatch.setattr(by_steps, "TURNS", 2)
    text = [b"some text to learn. " * 40] * 4
    write_dataset(train=text, heldout=[each.upper() for each in text])
    small = ("model_dim=48", "num_layers=1", "num_heads=1", "num_kv_heads=1", "decoder.dim=16", "decoder.num_layers=1")
    words = ["tricks", "--steps", "2", "--train", "toy", "--heldout", "toy", "--set", "training.compile=false"]
    words += [word for setting in small for word in ("--set", f"model.{setting}")]
    for field in ("training.batch", "training.micro_batch", "evaluation.batch", "evaluation.val"):
        words += ["--set", f"{field}_symbols=768"]
    path, again = tmp_path / "rows.jsonl", tmp_path / "again.jsonl"
    assert by_steps.main([*words, str(path), "--seeds", "1"]) == 0
    once = path.read_text()
    again.write_text(once.splitlines(keepends=True)[0])
    assert (
        by_steps.main([*words, str(path), "--seeds", "2"]) == by_steps.main([*words, str(again), "--seeds", "1"]) == 0
    )
    assert path.read_text().startswith(once) and len(path.read_text().splitlines()) == 11
    first, *rest = (read(each).scores for each in (again, path))
    assert all((first[label][0].nats == rest[0][label][0].nats).all() for label in first) and len(first) == 5
    assert "smoke-mlp_dim-576 |" in capsys.readouterr().out
