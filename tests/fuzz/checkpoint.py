"""Checkpoints of a run: damaged, misplaced, and lies that are signed."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shared.engine.ranks import OneRank
from shared.engine.state import EngineState
from shared.model import forward
from shared.ops import NumpyOps
from shared.runs import checkpoints
from shared.runs.checkpoints import CheckpointStore
from shared.runs.run_directory import RunDirectory
from shared.runs.target import load_trained
from shared.training.run import start_or_resume
from shared.training.sources import open_sources
from tests.fuzz.mutate import Rng, change, change_file, change_tensors, damage, misplace, to_json
from tests.fuzz.worker import GOLDEN, Broken, Reader, command

RUNS = sorted(path.parent for path in GOLDEN.glob("*/spec.toml"))
NAMES = ("averaged", "trained", "best", "resume", "train", "pack")


def sign(rng: Rng, values: Any) -> Any:
    """A checkpoint's JSON of today's format under a checksum that is right, or as a format without one says it."""
    if not isinstance(values, dict) or rng.random() < 0.3:
        return values
    try:
        return checkpoints.signed(
            {**values, "format_version": values.get("format_version", 1) and checkpoints.FORMAT_VERSION}
        )
    except ValueError:  # No JSON.
        return values


@cache
def good_weights(run: Path, name: str) -> list[dict[str, np.ndarray]]:
    """The weights of every checkpoint of a golden run."""
    store, found = CheckpointStore(run / "checkpoints", 9), []
    for step in store.steps():
        found.append(store.load_step(step).state)
    return found


def make(rng: Rng, folder: Path) -> Reader:
    golden, run = rng.choice(RUNS), folder / "run"
    run.mkdir()
    (run / "checkpoints").mkdir()
    for name in ("spec.toml", "environment.json", "metrics.jsonl"):
        shutil.copyfile(golden / name, run / name)
    for path in (golden / "checkpoints").iterdir():
        shutil.copyfile(path, run / "checkpoints" / path.name)
    tensors = sorted((run / "checkpoints").glob("*.safetensors"))[-1]
    beside, how, signed = tensors.with_suffix(".json"), rng.random(), True
    if how < 0.25:
        signed = False
        change_file(rng, rng.choice((beside, beside, tensors)), lambda content: damage(rng, content))
    elif how < 0.3:
        signed = False
        misplace(
            rng,
            rng.choice((beside, tensors, tensors.parent))
            if rng.random() < 0.7
            else tensors.parent / "step-99999999.json",
        )
    else:
        if how > 0.7:
            change_file(rng, tensors, lambda content: change_tensors(rng, content))
        content = tensors.read_bytes()
        values = json.loads(beside.read_bytes())
        values["state_bytes"], values["state_sha256"] = len(content), hashlib.sha256(content).hexdigest()
        if how < 0.75:
            values = change(rng, values)
        beside.write_bytes(to_json(sign(rng, values), indent=1))
    name = rng.choice(NAMES)

    def read() -> None:
        directory = RunDirectory(run)
        if name == "train":
            command(
                [
                    "train",
                    str(run / "spec.toml"),
                    "--engine",
                    "mlx",
                    "--runs-dir",
                    str(folder),
                    "--run",
                    "run",
                    "--resume",
                    "--no-finish",
                ]
            )
            return
        if name == "pack":
            command(["pack", str(run)])
            command(["score", str(run), "--engine", "numpy", "--max-symbols", "32", "--output", "score.json"])
            return
        if name == "resume":
            spec = directory.read_spec()
            store = CheckpointStore(directory.checkpoints_path, 2)
            store.tidy()
            checkpoint = store.load_latest()
            engine = EngineState(spec, forward, NumpyOps(), OneRank())
            start_or_resume(spec, engine, open_sources(spec), store, checkpoint)  # type: ignore[arg-type]
            state = checkpoint.state if checkpoint else None
        else:
            target = load_trained(str(run), name)  # type: ignore[arg-type]
            state = {f"weight/{key}": value for key, value in target.weights.items()} if name == "trained" else None
            if not all(np.isfinite(value).all() and value.dtype == np.float32 for value in target.weights.values()):
                raise Broken("weights that are not finite float32")
        if state is not None and not signed:
            for good in good_weights(golden, name):
                if all(np.array_equal(value, good[key]) for key, value in state.items()):
                    return
            raise Broken("weights that no checkpoint has")

    return read
