"""The MLX engine on the devices of others: a Mac, an NVIDIA GPU, one that fails. All are stand-ins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cuda_train.device
from mlx_train import device, plain_ops
from mlx_train.failures import in_words
from shared.engine.activations import activation_bytes
from shared.engine.microbatch import (
    MEMORY_FRAC,
    check_fits,
    cut_by_memory,
    micro_batches,
    usable_bytes,
    with_micro_batches,
)
from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.engine.synthetic import synthetic_engine
from shared.errors import DeviceError, SpecError, UserError
from shared.model import random_weights
from shared.model.stages import warm_up_numbers
from shared.optim import HYPERPARAMETERS, state_bytes
from shared.parsing import read_json_object
from shared.spec import load_spec
from tests.command_line import CommandLine
from tests.techniques import symbols, tiny

import mlx.core as mx  # isort: skip

GB = 10**9
AIR = {
    "device_name": "Apple M1",
    "architecture": "applegpu_g13g",
    "memory_size": 8 * GB,
    "max_recommended_working_set_size": 5_726_623_061,
}
H200 = {"device_name": "NVIDIA H200", "architecture": "sm_90", "free_memory": 130 * GB, "total_memory": 140 * GB}


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What MLX is limited to, by name of the function of mlx.core."""
    found: dict[str, int] = {}
    for name in ("set_memory_limit", "set_cache_limit", "set_wired_limit"):
        monkeypatch.setattr(mx, name, lambda limit, name=name: found.update({name: limit}))
    return found


def become(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any]) -> None:
    """Let MLX report this GPU; what it computes stays on the CPU."""
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    monkeypatch.setattr(mx.metal, "is_available", lambda: "memory_size" in info)
    monkeypatch.setattr(mx, "device_info", lambda *_: info)


@pytest.mark.parametrize(("info", "name"), [(AIR, "Apple M1 (Metal)"), (H200, "NVIDIA H200 (CUDA)")])
def test_a_device_has_its_own_name(info: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch):
    become(monkeypatch, info)
    assert device.device_name() == name
    facts = device.device_facts()
    assert facts.names == (name,) and facts.kind == "gpu" and facts.shares_memory == (info is AIR)
    assert facts.total_bytes == info.get("total_memory", AIR["max_recommended_working_set_size"])


def test_nothing_is_compiled_through_cuda(monkeypatch: pytest.MonkeyPatch):
    spec = load_spec("tiny", ["training.compile=true"])
    become(monkeypatch, H200)
    assert not create_engine("mlx", spec).compiles
    compiled: list[Any] = []
    monkeypatch.setattr(mx, "compile", lambda function: compiled.append(function) or function)
    assert not create_engine("mlx", spec).compiles and not compiled
    factor = device.device_facts().activations_factor
    become(monkeypatch, AIR)
    assert create_engine("mlx", spec).compiles and compiled
    assert device.device_facts().activations_factor < factor


def test_a_mac_is_limited_to_what_metal_recommends(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    become(monkeypatch, AIR)
    recommended = AIR["max_recommended_working_set_size"]
    assert device.limit_memory() == {"memory": recommended, "cache": GB, "wired": recommended}
    assert limits == {"set_memory_limit": recommended, "set_cache_limit": GB, "set_wired_limit": recommended}


def test_others_are_not_limited(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    become(monkeypatch, H200)
    assert device.limit_memory() == {} and limits == {}


def test_a_run_notes_its_limits_and_keeps_them(
    cli: CommandLine, tmp_path: Path, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    """On a Mac with little memory a spec that names large micro-batches gets smaller ones; when it is resumed on one
    with more, they stay."""
    spec = tiny()
    held = 2 * state_bytes(spec) + device.IN_FLIGHT_BYTES

    def mac(rows: int) -> dict[str, Any]:
        usable = max(activation_bytes(spec, engine, rows).most for engine in ENGINES) if rows else 0
        return AIR | {
            "max_recommended_working_set_size": int((held + device.ACTIVATIONS_FACTOR * usable) / MEMORY_FRAC) + 100
        }

    words = ("train", "tiny", "--engine", "mlx", "--no-finish", "--runs-dir", tmp_path, "--run")
    sets = ("training.compile=false", "training.steps=2", "evaluation.val_symbols=1024")
    options = [word for each in sets for word in ("--set", each)]
    become(monkeypatch, mac(3))
    found = cli(*words, "a", *options)
    assert found.status == 0 and "warning: micro-batches of 192 symbols instead of 512" in found.err
    assert (
        limits["set_memory_limit"] == read_json_object(tmp_path / "a" / "environment.json")["memory_limits"]["memory"]
    )
    limit = load_spec(tmp_path / "a" / "spec.toml").training.memory_limit_bytes
    assert limit > 0
    become(monkeypatch, AIR)
    assert cli(*words, "a", *options, "--resume").status == 0
    assert load_spec(tmp_path / "a" / "spec.toml").training.memory_limit_bytes == limit
    become(monkeypatch, mac(0))
    assert "a window of model.seq_len = 64 needs " in cli.refusal(*words, "b", *options)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("preset", ["smoke", "bytes", "laptop", "pr705-mini", "itchy-mini", "recurrent-mini"])
def test_what_is_meant_for_a_laptop_fits_8_gb(preset: str, monkeypatch: pytest.MonkeyPatch):
    become(monkeypatch, AIR)
    facts = device.device_facts()
    check_fits(load_spec(preset), "mlx", facts)
    spec = with_micro_batches(load_spec(preset), "mlx", facts)
    rows = spec.training.batch_symbols // spec.model.seq_len
    parts = list(micro_batches(spec, np.zeros((rows, spec.model.seq_len), np.int32)))
    whole = len(parts[0][1]) * spec.model.seq_len >= spec.training.micro_batch_symbols
    assert whole == (cut_by_memory(spec) == "")
    used = device.ACTIVATIONS_FACTOR * usable_bytes(spec, facts) + 2 * state_bytes(spec) + facts.in_flight_bytes
    assert spec.training.memory_limit_bytes == usable_bytes(spec, facts) and used < facts.total_bytes


def test_what_does_not_fit_is_refused_unless_its_limit_is_named(monkeypatch: pytest.MonkeyPatch):
    become(monkeypatch, AIR)
    facts = device.device_facts()
    with pytest.raises(SpecError, match=r"pr705: a window of model.seq_len = \d+ needs [\d,]+ MB by estimate"):
        check_fits(load_spec("pr705", ["model.seq_len=65536"]), "mlx", facts)
    check_fits(load_spec("pr705", ["model.seq_len=65536", "training.memory_limit_bytes=90_000_000_000"]), "mlx", facts)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "[METAL] Command buffer execution failed: Impacting Interactivity "
            "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity).",
            "let the display sleep (pmset displaysleepnow)",
        ),
        ("[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002).", "longer than macOS allows"),
        ("[METAL] Command buffer execution failed: Insufficient Memory (00000008).", "not enough memory"),
        ("[metal::malloc] Attempting to allocate 9 bytes which is greater than 8.", "not enough memory"),
        ("[malloc] Unable to allocate 812 bytes.", "not enough memory"),
        ("cudaMallocAsync(&data, size, stream) failed: out of memory", "not enough memory"),
    ],
)
def test_a_failed_gpu_is_told_in_one_line(message: str, words: str):
    found = in_words(f"{message}\n")
    assert found is not None and found.startswith(f"the GPU failed: {message}") and words in found and "\n" not in found


def test_a_failed_gpu_is_told_by_every_method(monkeypatch: pytest.MonkeyPatch):
    engine: Any = synthetic_engine("mlx", tiny("training.compile=false"))
    engine.initialise(random_weights(engine.spec, 0))
    x, numbers = symbols(engine.spec), warm_up_numbers(engine.spec, HYPERPARAMETERS)[-1]
    result = engine.train_step(x, numbers)

    def fails(*_: Any) -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002).")

    for name in ("eval", "async_eval", "synchronize"):
        monkeypatch.setattr(mx, name, fails)
    numpy = SimpleNamespace(array=fails, asarray=np.asarray, float32=np.float32, int32=np.int32)
    monkeypatch.setattr(plain_ops, "np", numpy)
    calls = [result, engine.synchronise, engine.save_state, lambda: engine.export_weights("trained")]
    calls += [lambda name=name: getattr(engine, name)(x) for name in ("score", "log_probs", "gradients", "warm_up")]
    calls += [lambda: engine.train_step(x, numbers), lambda: engine.initialise(random_weights(engine.spec, 0))]
    for call in calls:
        with pytest.raises(DeviceError, match="GPU Timeout"):
            call()


def test_other_errors_of_mlx_are_not_taken_for_a_failed_gpu():
    assert in_words("[broadcast_shapes] Shapes (3) and (4) cannot be broadcast.") is None
    assert in_words("[ring] Socket 3 failed") is None


def test_a_run_whose_gpu_fails_says_how_to_resume(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evaluate, calls = mx.async_eval, 0

    def fails_later(*arrays: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity (e).")
        evaluate(*arrays)

    monkeypatch.setattr(mx, "async_eval", fails_later)
    words = ["train", "tiny", "--engine", "mlx", "--runs-dir", tmp_path, "--run", "a", "--no-finish"]
    words += ["--set", "training.compile=false", "--set", "training.steps=9"]
    words += ["--set", "training.checkpoint_every_steps=4", "--set", "evaluation.val_symbols=1024"]
    found = cli(*words)
    first, second = (line for line in found.err.splitlines() if line.startswith(("bytetwin: ", "resume with: ")))
    assert found.status == 1 and "the GPU failed" in first and "step-00000004.safetensors" in first
    assert second.startswith("resume with: bytetwin train tiny ") and second.endswith("--run a --resume")
    monkeypatch.undo()
    assert cli(*words, "--resume").status == 0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices that MLX is told to take."""
    found: list[Any] = []
    monkeypatch.setattr(mx, "set_default_device", found.append)
    return found


@pytest.mark.parametrize("default_device", [device.on_gpu, cuda_train.device.default_device])
def test_the_device_is_chosen_by_a_variable(default_device: Any, taken: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BYTETWIN_DEVICE", "tpu")
    with pytest.raises(UserError, match="BYTETWIN_DEVICE = 'tpu': must be cpu or gpu"):
        default_device()
    monkeypatch.setattr(mx, "is_available", lambda _: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("BYTETWIN_DEVICE", "gpu")
    with pytest.raises(UserError, match="finds no GPU here"):
        default_device()
    monkeypatch.setattr(mx, "is_available", lambda _: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("BYTETWIN_DEVICE", "cpu")
    found = default_device()
    assert taken == [mx.cpu] if default_device is device.on_gpu else found.type == "cpu"


def test_a_build_for_gpus_without_one_takes_the_cpu(taken: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mx, "is_available", lambda _: False)
    device.on_gpu()
    assert taken == [mx.cpu]


def test_the_kernels_of_an_nvidia_gpu_are_kept_by_what_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(device.KERNELS_VARIABLE, raising=False)
    device.keep_compiled(tmp_path)
    become(monkeypatch, AIR)
    device.keep_compiled(tmp_path)
    assert device.KERNELS_VARIABLE not in device.os.environ
    become(monkeypatch, H200)
    monkeypatch.setenv(device.KERNELS_VARIABLE, "mine")
    device.keep_compiled(tmp_path)
    assert device.os.environ[device.KERNELS_VARIABLE] == "mine"
    monkeypatch.delenv(device.KERNELS_VARIABLE)
    folder = tmp_path / "mlx" / f"{mx.__version__}-sm_90"
    folder.mkdir(parents=True)
    for name in ("whole.ptx", "whole.cu", "half.ptx", "empty.ptx"):
        (folder / name).write_text("kernel")
    (folder / "empty.cu").touch()
    device.keep_compiled(tmp_path)
    assert device.os.environ[device.KERNELS_VARIABLE] == str(folder)
    assert {path.name for path in folder.iterdir()} == {"whole.ptx", "whole.cu", "empty.cu"}
    monkeypatch.delenv(device.KERNELS_VARIABLE)
