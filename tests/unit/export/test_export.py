"""Exported folders compute what bytetwin computes, say what was measured and what was not, and are whole or absent."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from cuda_train.device import default_device
from cuda_train.plain_ops import TorchOps
from mlx_train.plain_ops import MLXOps
from shared.engine.synthetic import comparison_weights
from shared.export.folder import WEIGHTS_FILE, config, write_export
from shared.files import replacing_folder
from shared.model import log_probs
from shared.model.logits import BIAS, TEMPERATURE
from shared.runs.target import Target, load_trained
from shared.scoring.generate import decode_text, encode_prompt
from shared.spec import Spec, with_overrides
from tests import ROOT, transformers_standin
from tests.command_line import CommandLine
from tests.parity.test_random_specs import specs
from tests.processes import run_python

GOLDEN = ROOT / "tests" / "golden" / "2026-11-26"
KINDS = ("bytes", "patches", "tokens")
PYTHON = ("hf", "mlx")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The golden datasets, and no trace of exported modules afterwards."""
    monkeypatch.setenv("BYTETWIN_DATASETS", str(GOLDEN / "datasets"))
    transformers_standin.install(monkeypatch)
    finders = list(sys.meta_path)
    yield
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.startswith("bytetwin_")]:
        del sys.modules[name]


def imported(folder: Path, name: str) -> ModuleType:
    """A Python file of an export as a module."""
    found = importlib.util.spec_from_file_location(f"exported_{name}", folder / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def exported(folder: Path, form: Any, kind: str = "patches") -> tuple[Target, Path]:
    """A golden run, that of tokens with a temperature and bias of its logits, and its export."""
    target = load_trained(str(GOLDEN / kind))
    if kind == "tokens":
        spec = with_overrides(target.spec, ["artifact.logits=temperature_bias"])
        bias = np.linspace(-1.0, 1.0, spec.vocabulary.size, dtype=np.float32)
        logits = {TEMPERATURE: np.array([1.25], np.float32), BIAS: bias}
        target = replace(target, spec=spec, weights={**target.weights, **logits})
    write_export(target, form, folder / form)
    return target, folder / form


def symbols_of(spec: Spec, rows: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, spec.vocabulary.size, (rows, count)).astype(np.int32)


def house_log_probs(target: Target, x: np.ndarray) -> np.ndarray:
    ops = TorchOps(default_device())
    weights = {name: ops.asarray(value) for name, value in target.weights.items()}
    with torch.no_grad():
        return ops.to_numpy(log_probs(ops, target.spec, weights, ops.asarray(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gets_the_logits_of_the_score(tmp_path: Path, kind: str) -> None:
    """With the start in front of a window, all of them; without it, all but the first."""
    target, folder = exported(tmp_path, "hf", kind)
    model = imported(folder, "modeling_bytetwin").BytetwinForCausalLM.from_pretrained(folder)
    size, x = target.spec.vocabulary.size, symbols_of(target.spec, 3, target.spec.model.seq_len)
    expected = house_log_probs(target, x)
    ids = torch.tensor(x).long()
    started = torch.cat([torch.full((3, 1), size), ids[:, :-1]], dim=1)
    with torch.no_grad():
        whole, later = model(started).logits, model(ids[:, :-1]).logits
        loss = model(started, labels=started).loss
    assert whole.shape == (*x.shape, size + 1)
    assert np.abs(whole[..., :size].numpy() - expected).max() <= 1e-6
    assert np.abs(later[..., :size].numpy() - expected[:, 1:]).max() <= 1e-6
    picked = np.take_along_axis(expected[:, :-1], x[:, :-1, None].astype(np.int64), -1)
    assert float(loss) == pytest.approx(-picked.mean(), abs=1e-5)
    assert torch.softmax(whole, -1)[..., size].max() == 0.0


def test_an_exported_model_takes_any_length_and_padding_on_the_right(tmp_path: Path) -> None:
    target, folder = exported(tmp_path, "hf")
    model = imported(folder, "modeling_bytetwin").BytetwinForCausalLM.from_pretrained(folder)
    size = target.spec.vocabulary.size
    ids = torch.tensor(symbols_of(target.spec, 1, 9)).long()
    with torch.no_grad():
        whole = model(ids).logits
        for count in range(1, 9):
            assert (model(ids[:, :count]).logits - whole[:, :count]).abs().max() <= 1e-5
        padded = torch.cat([ids, torch.full((1, 4), size)], dim=1)
        mask = torch.tensor([[1] * 9 + [0] * 4])
        assert (model(padded, attention_mask=mask).logits[:, :9] - whole).abs().max() <= 1e-5
        assert model(torch.full((2, 1), size)).logits.shape == (2, 1, size + 1)
        started = torch.cat([torch.full((1, 1), size), ids[:, :-1]], dim=1)
        both = model(torch.cat([ids, started])).logits
        assert (both[:1] - whole).abs().max() <= 1e-5
        assert (both[1:, 1:] - whole[:, :-1]).abs().max() <= 1e-5
        for wrong, seen, told in (
            (padded.flip(1), mask.flip(1), "padded on the right only"),
            (padded, None, "symbols are 0 to"),
            (torch.tensor([[1, size], [1, 1]]), None, "in front of a row"),
        ):
            with pytest.raises(ValueError, match=told):
                model(wrong, attention_mask=seen)


@pytest.mark.slow
@settings(max_examples=12, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(specs(), st.integers(0, 3))
def test_random_specs_survive_an_export(tmp_path_factory: pytest.TempPathFactory, spec: Spec, seed: int) -> None:
    """Whatever technique the forward pass has, both programs have it too."""
    folder = tmp_path_factory.getbasetemp() / "programs"
    if not folder.exists():
        for form in PYTHON:
            exported(folder, form)
    modelling, plain = imported(folder / "hf", "modeling_bytetwin"), imported(folder / "mlx", "model")
    target = Target("random", spec, comparison_weights(spec, seed), "random", None)
    x = symbols_of(spec, 2, spec.model.seq_len, seed)
    stored = json.loads(json.dumps(config(target, "hf")))
    model = modelling.BytetwinForCausalLM(modelling.BytetwinConfig(**stored))
    weights = {name: target.weights[name] for name in model.names}
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    started = torch.cat([torch.full((2, 1), spec.vocabulary.size), torch.tensor(x[:, :-1]).long()], dim=1)
    with torch.no_grad():
        found = model(started).logits[..., :-1].numpy()
    np.testing.assert_allclose(found, house_log_probs(target, x), rtol=1e-5, atol=1e-4)
    mine, ops = plain.Model(plain.stored_spec(stored["spec"], "test")), MLXOps()
    arrays = {name: ops.asarray(value) for name, value in weights.items()}
    mine.load_weights(list(arrays.items()))
    expected = ops.to_numpy(log_probs(ops, spec, arrays, ops.asarray(x)))
    np.testing.assert_allclose(ops.to_numpy(mine(ops.asarray(x))), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_become_the_symbols_of_a_document(tmp_path: Path, kind: str) -> None:
    target, folder = exported(tmp_path, "hf", kind)
    tokenizer = imported(folder, "tokenization_bytetwin").BytetwinTokenizer.from_pretrained(folder)
    vocabulary = target.spec.vocabulary
    for text in ("", "caf\u00e9, the cat \U0001f600", tokenizer.bos_token, "<0x41> \x00"):
        symbols = tokenizer.encode(text)
        assert symbols == encode_prompt(vocabulary, text.encode())
        own = [symbol for symbol in symbols if symbol != vocabulary.document_start]
        assert tokenizer.decode(symbols) == "".join(decode_text(own, vocabulary))
    words = tokenizer.get_vocab()
    assert sorted(words.values()) == list(range(vocabulary.size + 1))
    assert words[tokenizer.bos_token] == vocabulary.size == config(target, "hf")["bos_token_id"]
    assert all(tokenizer._convert_token_to_id(word) == symbol for word, symbol in words.items())


PLAIN = """
import sys
sys.path = [sys.argv[1], *(path for path in sys.path if path not in ("", sys.argv[2]))]
import mlx.core as mx
from model import load, sample
model = load()
x = mx.array([list(range(32))], dtype=mx.int32)
mx.save(sys.argv[3], model(x))
print(len(list(sample(model, [1, 2], 40))))
assert not {name.partition(".")[0] for name in sys.modules} & {"shared", "data", "mlx_train", "torch"}
"""


def test_plain_mlx_loads_the_folder_where_no_bytetwin_is(tmp_path: Path) -> None:
    target, folder = exported(tmp_path, "mlx")
    assert run_python(PLAIN, folder, ROOT, tmp_path / "found.npy", PYTHONPATH="").strip() == "40"
    expected = house_log_probs(target, np.arange(32, dtype=np.int32)[None])
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() <= 1e-5


@pytest.mark.parametrize("form", ["safetensors", "hf", "mlx"])
def test_the_command_writes_weights_and_what_they_are_of(cli: CommandLine, tmp_path: Path, form: str) -> None:
    words = ("export", GOLDEN / "bytes", "--to", form, "--output", tmp_path / "out")
    document = cli.document(*words)
    target = load_trained(str(GOLDEN / "bytes"))
    with safe_open(tmp_path / "out" / WEIGHTS_FILE, "np") as file:
        assert file.metadata() == {"format": {"safetensors": "np", "hf": "pt", "mlx": "mlx"}[form]}
        assert {name: file.get_tensor(name).tobytes() for name in file.keys()} == {  # noqa: SIM118
            name: np.asarray(value, np.float32).tobytes() for name, value in target.weights.items()
        }
    assert document["files"] == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["spec_id"] == document["spec_id"] and told["weights"] == document["weights"] == "packed"
    assert "exists; --replace overwrites it" in cli.refusal(*words)
    assert cli.document(*words, "--replace")["files"] == document["files"]


def test_an_export_replaces_nothing_but_an_export(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years")
    words = ("export", GOLDEN / "bytes", "--to", "mlx", "--replace", "--output")
    assert "is not an export" in cli.refusal(*words, tmp_path / "mine")
    assert "is not an export" in cli.refusal(*words, tmp_path / "mine" / "thesis.txt")
    assert "no run named 'nothing'" in cli.refusal("export", "nothing", *words[2:], tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    for kept in (False, True):
        with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "out") as temporary:
            (temporary / "half").write_text("")
            raise KeyboardInterrupt
        assert [path.name for path in tmp_path.iterdir()] == (["out"] if kept else [])
        with replacing_folder(tmp_path / "out") as temporary:
            (temporary / "whole").write_text(str(kept))
        assert (tmp_path / "out" / "whole").read_text() == str(kept)


def test_the_card_has_the_score_with_its_protocol(tmp_path: Path) -> None:
    target, folder = exported(tmp_path, "hf")
    card, score = (folder / "README.md").read_text(), json.loads((GOLDEN / "patches" / "score.json").read_text())
    dataset = score["dataset"]
    for said in (
        f"**{score['bpb']:.4f} bits per byte**",
        f"sha256 `{dataset['text_sha256']}`",
        f"windows of {score['window_symbols']} by {score['stride_symbols']} symbols, adaptation none",
        f"{score['artifact_bytes']:,} bytes of artifact and {score['code_bytes']:,} of code",
        f"artifact with sha256 `{target.artifact_sha256}`",
        "how runs with other seeds differ",
    ):
        assert said in card, said
    for check in score["audit"]["checks"]:
        assert f"| {check['name']} | {'passed' if check['passed'] else 'FAILED'}" in card
    assert ("does not count" in card) == (not score["audit"]["passed"])


def test_the_card_does_not_lend_a_score_to_other_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "bytes", run)
    bpb = json.loads((run / "score.json").read_text())["bpb"]
    for index, (target, reason) in enumerate(
        (
            (load_trained(str(run), "averaged"), "they are the averaged weights"),
            (load_trained(str(run / "artifact.btw")), "an artifact file does not carry one"),
            (load_trained(str(GOLDEN / "best.btw")), "an artifact file does not carry one"),
        )
    ):
        write_export(target, "safetensors", tmp_path / str(index))
        card = (tmp_path / str(index) / "README.md").read_text()
        assert f"No score belongs to these weights: {reason}" in card and f"{bpb:.4f}" not in card
    score = json.loads((run / "score.json").read_text())
    (run / "score.json").write_text(json.dumps({**score, "limit_bytes": 10}))
    write_export(load_trained(str(run)), "safetensors", tmp_path / "over")
    assert "**This score does not count:**\n\n- budget: " in (tmp_path / "over" / "README.md").read_text()
    (run / "score.json").unlink()
    write_export(load_trained(str(run)), "safetensors", tmp_path / "none")
    assert "the run was not scored" in (tmp_path / "none" / "README.md").read_text()
