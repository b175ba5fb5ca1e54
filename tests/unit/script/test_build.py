"""The files as bytes: the same for the same sources, readable at their head, and what they name is what is pinned."""

from __future__ import annotations

import hashlib
import inspect
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from shared.script import build
from shared.script.running import running_script
from shared.spec import load_spec, preset_names, spec_to_short_toml, stored_spec
from shared.tolerances import BF16_OPERATION_REL
from tests import ROOT
from tests.isolated import IsolatedPython, requirements_of
from tests.processes import run_python
from tests.triton_interpreter import needs_triton

DIGEST = """
import hashlib
from shared.script import build
from shared.spec import load_spec
build.recall = lambda key: None
build.remember = lambda key, code, requirements: None
print(hashlib.sha256(build.scoring_script("numpy", load_spec("tiny"))).hexdigest())
"""


# Imports the modules of a script as it does itself, and computes with what it would on a GPU.
ON_A_GPU = """
import runpy, sys
import brotli, torch
script, trains = sys.argv[1], sys.argv[2] == "True"
found = runpy.run_path(script, run_name="imported")
parts = brotli.decompress(found["CODE"].encode("latin-1")).decode().split("\\0")
sys.meta_path.insert(0, found["Modules"](script, dict(zip(parts[::2], parts[1::2], strict=True))))
from cuda_train import fused_ops, plain_ops
from cuda_train.kernels.normed_mlp import normed_mlp
assert fused_ops.__file__.startswith(script)

cpu, eps = torch.device("cpu"), 1e-6
x, wide, gain, mix = (torch.rand(shape) for shape in ((2, 4, 16), (32, 16), (2,), (2, 16)))
index = torch.randint(0, 9, (64, 64))
weights = [wide[:16]] * 3

def results(ops):
    yield from ops.residual_norm(x, x, None, None, eps)
    yield from ops.residual_norm(x, None, x, mix, eps)
    yield from ops.attention_inputs(x, weights, gain, 8, 1e4, eps)
    yield ops.self_attention(x, weights, gain, 0, 1e4, eps)
    yield ops.softcapped_cross_entropy(x, index[:2, :4].int(), 30.0)
    yield ops.embedding_sum([wide, wide], [index, index], "bfloat16")
    if type(ops) is plain_ops.TorchOps:
        yield from ops.normed_mlp(x, x, wide, wide.T, 0.0, torch.ones(16), 1.0, eps)
    else:
        yield from normed_mlp(x, x, wide, wide.T, 0.0, eps)

leaves = [each.requires_grad_(trains) for each in (x, wide, gain, mix)]
with torch.set_grad_enabled(trains):
    both = [list(results(ops)) for ops in (fused_ops.FusedTorchOps(cpu), plain_ops.TorchOps(cpu))]
if trains:
    both = [[*values, *torch.autograd.grad(sum(value.sum() for value in values), leaves)] for values in both]
print(max(float(((one - other).norm() / other.norm()).detach()) for one, other in zip(*both, strict=True)))
"""


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("trains", [False, True])
def test_scripts_compute_on_a_gpu_with_the_kernels(trains: bool, tmp_path: Path) -> None:
    """What only trains is missing in a script that scores, and nothing else."""
    script, spec = tmp_path / "script.py", load_spec("tiny")
    script.write_bytes(build.training_script("torch", spec) if trains else build.scoring_script("torch", spec))
    assert float(run_python(ON_A_GPU, script, trains, TRITON_INTERPRET="1")) <= BF16_OPERATION_REL


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes() -> None:
    """Whatever the order of sets is in a process: what is kept was made in one of another order."""
    kept = hashlib.sha256(build.scoring_script("numpy", load_spec("tiny"))).hexdigest()
    assert run_python(DIGEST, PYTHONHASHSEED="1").strip() == kept


def test_the_pins_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = [line for lines in build.REQUIREMENTS.values() for line in lines]
    assert set(ours) <= {*project["dependencies"], *extras["mlx"], *extras["cuda"]}
    assert build.READS_TOKENS in extras["data"]
    assert set(ours) >= {*extras["mlx"], *extras["cuda"]}


def test_a_script_of_tokens_names_what_reads_them() -> None:
    for name, reads in (("tiny", False), ("baseline", True)):
        assert (build.READS_TOKENS in build.training_requirements("torch", load_spec(name))) == reads


def test_the_head_is_for_people() -> None:
    script = build.scoring_script("numpy", load_spec("tiny"))
    lines = script.decode("latin-1").split("\n")
    assert lines[:2] == ["#!/usr/bin/env python3", "# coding: latin-1"]
    assert lines[2] == '"""Scores a packed language model on numpy, in bits per byte.'
    assert "    python score.py ARTIFACT [--data DATASET|FILE]" in lines
    # One line is the code: no byte of it ends a line or the file.
    assert [len(line) > 1000 for line in lines].count(True) == 1 and lines[-3].startswith('CODE="')
    assert b"\0" not in script and b"\r" not in script


def test_a_script_says_what_to_install(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_bytes(build.scoring_script("numpy", load_spec("baseline")))
    done = IsolatedPython(tmp_path, tmp_path).run(script, "model.btw")
    needed = " ".join(f'"{line}"' for line in requirements_of(script))
    assert build.READS_TOKENS in needed and "numpy==" in needed
    assert done.stderr == f"No module named 'brotli'; this file needs: python -m pip install {needed}\n"
    assert done.returncode == 2 and not done.stdout


def test_the_spec_in_a_script_is_the_spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in preset_names():
        spec = load_spec(name)
        assert stored_spec(tomllib.loads(spec_to_short_toml(spec)), name) == spec
    monkeypatch.setattr(build, "_code", lambda entry, engine, adapts, makes_text: (b"code", ["numpy"]))
    odd = load_spec("tiny", [r"""data.train="it's \\n\n \"\"\" '''\u00e9" """])
    path = tmp_path / "train.py"
    path.write_bytes(build.training_script("torch", odd))
    found = runpy.run_path(str(path), run_name="imported")
    assert found["CODE"] == "code"
    assert stored_spec(tomllib.loads(found["SPEC"]), "script") == odd


def test_modules_in_a_script_show_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers of kernels read the source of a function. All bytes survive the text between the quotes."""
    script = tmp_path / "script.py"
    code = build.brotli.compress(b"odd_house\0\0odd_house.room\0def f():\n return 1\n", quality=0)
    code += bytes(range(256)) + b"\0\0001\\x00"
    monkeypatch.setattr(build, "_code", lambda entry, engine, adapts, makes_text: (code, []))
    script.write_bytes(build.scoring_script("numpy", load_spec("tiny")))
    found = runpy.run_path(str(script), run_name="imported")
    assert found["CODE"].encode("latin-1") == code
    modules = found["Modules"](str(script), {"odd_house": "", "odd_house.room": "def f():\n return 1\n"})
    monkeypatch.setattr(sys, "meta_path", [modules, *sys.meta_path])
    room = __import__("odd_house.room").room
    assert room.f() == 1 and inspect.getsource(room.f) == "def f():\n return 1\n"
    assert room.__file__ == f"{script}/odd_house.room.py" and room.__loader__.script == script
    assert running_script() is None
    for name in ("odd_house", "odd_house.room"):
        del sys.modules[name]
