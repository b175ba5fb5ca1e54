"""Two programs that train in processes of their own and take turns, so that what else the machine does meets both.

One of them is a public training script. It is not part of this project and nothing of it is copied: it is imported from
where the user has it, and its functions are called as its own loop calls them. Imports no framework.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests import ROOT

SHARD_HEADER = (20240520, 1)
SHARD_TOKENS = 4_000_000


class Worker:
    """A process that answers requests: see `serve`. It runs a module, or a file with the code of another tree."""

    def __init__(self, program: str, *words: str, tree: Path = ROOT) -> None:
        command = [sys.executable, *([] if program.endswith(".py") else ["-m"]), program, *words]
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=tree, env=environment)

    def ask(self, request: str) -> list[str]:
        """The words of its reply; other lines it prints are passed over."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # It has stopped, which is told below.
            self.process.stdin.write(f"{request}\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("reply "):
                return line.split()[1:]
        raise RuntimeError(f"a worker stopped with status {self.process.wait()}")

    def stop(self) -> None:
        self.process.communicate("")


def serve(answers: Mapping[str, Callable[[], object]]) -> None:
    """Answer each line of stdin by the function of that name."""
    for line in sys.stdin:
        print("reply", answers[line.strip()](), flush=True)


def ratios_text(slower: list[float], faster: list[float]) -> str:
    """The ratios of the seconds of both in each round: median, range and number."""
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    return f"median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)} rounds"


def load_script(path: Path, settings: Mapping[str, object]) -> Any:
    """The script as a module; it reads its settings from environment variables when it is imported."""
    os.environ.update({key: str(value) for key, value in settings.items()})
    spec = importlib.util.spec_from_file_location("public_script", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["public_script"] = module
    spec.loader.exec_module(module)
    return module


def write_random_shard(folder: str, vocab_size: int) -> None:
    """Random tokens in the community's shard format."""
    header = np.zeros(256, "<i4")
    header[:3] = *SHARD_HEADER, SHARD_TOKENS
    content = header.tobytes() + random_tokens(vocab_size).astype("<u2").tobytes()
    (Path(folder) / "fineweb_train_000000.bin").write_bytes(content)


def random_tokens(vocab_size: int) -> np.ndarray:
    """SHARD_TOKENS symbols with a Zipf distribution, int32."""
    return (np.random.default_rng(0).zipf(1.3, SHARD_TOKENS).clip(1, vocab_size) - 1).astype(np.int32)
