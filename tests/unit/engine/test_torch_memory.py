"""The torch engine and memory: one line where it is not enough that says what to make smaller; what a rank asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import cuda_train.engine
from cuda_train import device
from cuda_train.failures import in_words, told
from shared.errors import DeviceError
from tests.command_line import CommandLine, set_words
from tests.techniques import tiny

TRAINS = "training.micro_batch_symbols"
OF_CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB of which 1.20 GiB is free."
    " Including non-PyTorch memory, this process has 77.90 GiB memory in use. Of the allocated memory 70.00 GiB is "
    "allocated by PyTorch, and 5.00 GiB is reserved by PyTorch but unallocated."
)


def test_what_a_gpu_says_is_one_line_with_half_the_symbols() -> None:
    spec, error = tiny("model.seq_len=64", "training.batch_symbols=512", f"{TRAINS}=320"), RuntimeError(OF_CUDA)
    line = in_words(error, spec, TRAINS)
    assert line.startswith("not enough memory: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    assert line.endswith(f"is free.; close other programs or take smaller passes (--set {TRAINS}=128)")
    assert in_words(error, tiny(f"{TRAINS}=64"), TRAINS).endswith("or take a smaller model")


def test_other_errors_of_torch_stay_what_they_are() -> None:
    class Engine:
        spec = tiny()

        @told(TRAINS)
        def train_step(self, error: Exception) -> None:
            raise error

    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")):
        with pytest.raises(type(error), match=str(error)):
            Engine().train_step(error)
    for error in (torch.OutOfMemoryError(OF_CUDA), MemoryError("Unable to allocate 8 GiB")):
        with pytest.raises(DeviceError, match="not enough memory: "):
            Engine().train_step(error)


def test_a_run_that_gets_no_memory_says_how_to_resume(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch's allocator says of 2^58 bytes, in the third step."""
    loss, calls = cuda_train.engine.training_loss, 0

    def too_large(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return loss(*given) if calls < 3 else (torch.empty(2**56), None)

    monkeypatch.setattr(cuda_train.engine, "training_loss", too_large)
    words = ["train", "tiny", "--engine", "torch", "--runs-dir", tmp_path, "--run", "a", "--no-finish"]
    words += set_words("training.compile=false", "training.steps=4", "evaluation.val_symbols=1024", f"{TRAINS}=512")
    words += set_words("training.checkpoint_every_steps=2")
    found = cli(*words)
    first, second = (line for line in found.err.splitlines() if line.startswith(("bytetwin: ", "resume with: ")))
    assert found.status == 1 and "step 3: not enough memory: " in first and "step-00000002.safetensors" in first
    assert f"take smaller passes (--set {TRAINS}=256)" in first and "Traceback" not in found.err
    assert second.startswith("resume with: bytetwin train tiny ") and second.endswith("--run a --resume")
    monkeypatch.undo()
    assert cli(*words, "--resume", *set_words(f"{TRAINS}=256")).status == 0


def test_a_rank_asks_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for name, found in {
        "on_gpu": True,
        "default_device": torch.device("cuda", 1),
        "float32_products": "float32",
    }.items():
        monkeypatch.setattr(device, name, lambda found=found: found)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: asked.append(index) or (10 + index, 20))
    for launched, expected, free in ((False, [0, 1, 2], 10), (True, [1], 11)):
        monkeypatch.setattr(device, "is_launched", lambda launched=launched: launched)
        facts = device.device_facts()
        assert (asked, facts.free_bytes, len(facts.names)) == (expected, free, 3)
        asked.clear()
