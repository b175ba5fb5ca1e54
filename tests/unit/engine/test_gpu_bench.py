"""The GPU benchmark as a whole, on a CPU with tiny shapes, against a stand-in for the public script."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.bench import gpu
from tests.bench.gpu_record import Section, Settings
from tests.bench.turns import Worker
from tests.processes import WAIT_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has no wheels for other systems")

# The names of the public script that the benchmark uses, around a model without a trunk.
STAND_IN = """
import glob, os
import numpy as np
import torch
from torch import nn

CONTROL_TENSOR_NAME_PATTERNS = ("scale",)

class Hyperparameters:
    train_files = os.path.join(os.environ["DATA_PATH"], "fineweb_train_*.bin")
    vocab_size, model_dim = int(os.environ["VOCAB_SIZE"]), int(os.environ["MODEL_DIM"])
    num_layers, num_heads = int(os.environ["NUM_LAYERS"]), int(os.environ["NUM_HEADS"])
    num_kv_heads, mlp_mult = int(os.environ["NUM_KV_HEADS"]), int(os.environ["MLP_MULT"])
    tie_embeddings, tied_embed_init_std, logit_softcap, rope_base, qk_gain_init = True, 0.005, 30.0, 1e4, 1.5
    beta1, beta2, adam_eps = 0.9, 0.95, 1e-8
    matrix_lr, muon_momentum, muon_backend_steps, tied_embed_lr, scalar_lr = 0.04, 0.95, 5, 0.05, 0.04

class CastedLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype))

class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc, self.scale = CastedLinear(dim, dim, bias=False), nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x + self.scale.to(x.dtype) * self.fc(x)

class GPT(nn.Module):
    def __init__(self, vocab_size, num_layers, model_dim, **others):
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, model_dim)
        self.blocks = nn.ModuleList(Block(model_dim) for _ in range(num_layers))
        self.skip_weights = nn.Parameter(torch.ones(1, model_dim))

    def forward(self, x, y):
        h = self.tok_emb(x)
        for block in self.blocks:
            h = block(h) * self.skip_weights.to(h.dtype)
        logits = nn.functional.linear(h, self.tok_emb.weight).float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, y.flatten())

def restore_low_dim_params_to_fp32(module):
    for name, value in module.named_parameters():
        value.data = value.data.float() if value.ndim < 2 else value.data

def zeropower_via_newtonschulz5(g, steps):
    return g / g.norm()

class Muon(torch.optim.SGD):
    def __init__(self, params, lr, momentum, backend_steps):
        super().__init__(params, lr=lr, momentum=momentum)

class DistributedTokenLoader:
    def __init__(self, pattern, rank, world_size, device):
        (path,) = glob.glob(pattern)
        header = np.fromfile(path, "<i4", 256)
        assert header[0] == 20240520 and header[1] == 1
        self.tokens = torch.from_numpy(np.fromfile(path, "<u2", offset=1024).astype(np.int64))
        assert len(self.tokens) == header[2]

    def next_batch(self, global_tokens, seq_len, grad_accum_steps):
        count = global_tokens // grad_accum_steps
        return self.tokens[:count].reshape(-1, seq_len), self.tokens[1 : count + 1].reshape(-1, seq_len)
"""


QUICK = ("--device", "cpu", "--quick")


@pytest.mark.slow
def test_the_whole_benchmark_writes_a_record(tmp_path: Path):
    script, out, trace = tmp_path / "train_gpt.py", tmp_path / "record.md", tmp_path / "trace.json"
    script.write_text(STAND_IN)
    words = ["--script", str(script), "--out", str(out), "--trace", str(trace), "--rounds", "3"]
    command, environment = (
        [sys.executable, "-m", "tests.bench.gpu", *QUICK, *words],
        {**os.environ, "OMP_NUM_THREADS": "1"},
    )
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * WAIT_S)
    assert done.returncode == 0, done.stderr
    record = out.read_text()
    assert set(record.split("\n## ", 1)[1].splitlines()[1:]) <= set(done.stdout.splitlines()) and trace.is_file()
    assert "Checks that failed: none." in record and "FAILED" not in record
    titles = re.findall("^## (.*)$", record, re.MULTILINE)
    assert len(titles) == len(set(titles)) == len(gpu.BUDGETS)
    assert "| numpy - torch |" in record and "Graphs compiled in 12 steps after it: 0 (ok)" in record
    assert re.search(r"^\| 260, torch.bfloat16 \| fused \| \d\.\de-\d+ \| \d\.\de-\d+ \| ok \|$", record, re.MULTILINE)
    rates = {name: int(rate.replace(",", "")) for name, rate in re.findall(SPEED_ROW, record, re.MULTILINE)}
    assert rates.keys() == {"bytetwin", "public"} and min(rates.values()) > 0
    ratio = re.search(r"median (\d+\.\d\d), from (\d+\.\d\d) to (\d+\.\d\d), n = 3 rounds", record)
    assert ratio and float(ratio[2]) <= float(ratio[1]) <= float(ratio[3])


SPEED_ROW = r"^\| (\w+) \| [\d,]+ \| [\d.]+ \| ([\d,]+) \|"


def test_a_section_that_breaks_is_recorded_and_fails_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def broken(settings: Settings, section: Section) -> None:
        """Speed and memory of a step."""
        worker = Worker("tests.bench.no_such_program")
        with worker.process:
            worker.ask("ready")

    out = tmp_path / "record.md"
    monkeypatch.setattr("tests.bench.gpu_speed.speed", broken)
    monkeypatch.setattr(gpu, "prepare", lambda settings, worker: None)
    monkeypatch.setattr(sys, "argv", ["gpu", *QUICK, "--only", "speed", "--out", str(out)])
    assert gpu.main() == 1
    assert "Broke off: `RuntimeError: a worker stopped with status 1`" in out.read_text()
    assert "Checks that failed: Speed and memory of a step: RuntimeError" in out.read_text()
    errors = capfd.readouterr().err
    assert "no_such_program" in errors and "FAILED: Speed and memory" in errors


class Interrupted(Worker):
    """A worker that answers at once, and is told to end before its third turn."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(["sleep", "60"])
        self.turns = 0

    def ask(self, request: str) -> list[str]:
        self.turns += request == "turn"
        if self.turns == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return ["7"]


def test_a_section_that_is_cut_off_tells_what_it_has(monkeypatch: pytest.MonkeyPatch):
    from tests.bench import gpu_speed

    monkeypatch.setattr(gpu_speed, "Worker", Interrupted)
    settings = Settings("cpu", quick=True, script=Path("train_gpt.py"), rounds=6)
    before = signal.getsignal(signal.SIGTERM)
    try:
        text = "\n".join(gpu.run_section(gpu_speed.speed, settings, 60.0).text())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "Broke off: `TimeoutError: it was told to end`" in text and "n = 2 rounds" in text
    assert {name for name, _ in re.findall(SPEED_ROW, text, re.MULTILINE)} == {"bytetwin", "public"}
