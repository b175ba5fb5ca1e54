"""Runs: what lies in a run directory beside its checkpoints."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from shared.runs.finished_run import read_finished
from shared.runs.run_directory import RunDirectory
from shared.views.report import write_report
from tests.fuzz.mutate import Rng, change, change_file, change_tensors, damage, hostile, misplace, to_json, to_toml
from tests.fuzz.worker import GOLDEN, Reader, command

RUNS = sorted(path.parent for path in GOLDEN.glob("*/spec.toml"))
FILES = (
    "metrics.jsonl",
    "metrics.jsonl",
    "score.json",
    "score.json",
    "environment.json",
    "spec.toml",
    "documents.safetensors",
    "artifact.btw",
)
SHOWN = ("read", "read", "report", "page", "watch", "compare", "compare")
WAYS = (*SHOWN, "record", "fit", "train", "score", "audit", "pack", "soup")


def change_events(rng: Rng, content: bytes) -> bytes:
    """A metrics file with other events, other values in them, or lines that are none."""
    events: list[Any] = [json.loads(line) for line in content.splitlines()]
    for _ in range(rng.choice((1, 1, 2))):
        how, at = rng.random(), rng.randrange(len(events))
        if how < 0.6:
            events[at] = change(rng, events[at])
        elif how < 0.7:
            del events[at:]
            events = events or [{}]
        elif how < 0.8:
            events.insert(at, hostile(rng))
        elif how < 0.9:
            rng.shuffle(events)
        else:
            events.append(
                {"event": rng.choice(("step", "validation", "finished", "x", 3, None)), "step": hostile(rng, 3)}
            )
    lines = [to_json(event) for event in events]
    return b"\n".join(lines) + (b"\n" if rng.random() < 0.9 else b"")


def make(rng: Rng, folder: Path) -> Reader:
    golden, run, name = rng.choice(RUNS), folder / "run", rng.choice(FILES)
    shutil.copytree(golden, run)
    way, path, how = rng.choice(WAYS), run / name, rng.random()
    if how < 0.2:
        change_file(rng, path, lambda content: damage(rng, content))
    elif how < 0.25:
        misplace(rng, path)
    elif name == "metrics.jsonl":
        change_file(rng, path, lambda content: change_events(rng, content))
    elif name == "spec.toml":
        import tomllib

        change_file(rng, path, lambda content: to_toml(change(rng, tomllib.loads(content.decode()))))
    elif name == "documents.safetensors":
        change_file(rng, path, lambda content: change_tensors(rng, content))
    elif name == "artifact.btw":
        # Another artifact that the score claims to be its own.
        shutil.copyfile(rng.choice(RUNS) / "artifact.btw", path)
        score, content = json.loads((run / "score.json").read_bytes()), path.read_bytes()
        score["artifact_bytes"], score["artifact_sha256"] = len(content), hashlib.sha256(content).hexdigest()
        (run / "score.json").write_bytes(to_json(change(rng, score) if rng.random() < 0.5 else score))
    else:
        change_file(rng, path, lambda content: to_json(change(rng, json.loads(content)), indent=1))

    def read() -> None:
        match way:
            case "read":
                found = read_finished(RunDirectory(run))
                _ = found.problems, found.device, found.ranks, found.bytes_per_symbol, found.steps_per_s, found.ending
                _ = found.by_step("validation"), found.train_text, found.artifact_bytes
            case "report":
                write_report(RunDirectory(run))
            case "page":
                command(["report", str(run), str(GOLDEN / "bytes"), "--symbols", "0", "--output", "out.html"])
            case "watch":
                command(["watch", str(run), "--once"])
            case "compare":
                command(["compare", str(run), str(GOLDEN / "bytes"), "--output", "out.html"])
            case "record":
                command(["record", str(run), "--output", "out"])
            case "fit":
                command(["fit", str(run), "--output", "fit.json"])
            case "train":
                words = [
                    "train",
                    str(golden / "spec.toml"),
                    "--engine",
                    "mlx",
                    "--runs-dir",
                    str(folder),
                    "--run",
                    "run",
                ]
                command([*words, "--resume"])
            case "score":
                command(["score", str(run), "--engine", "numpy", "--max-symbols", "48", "--output", "out.json"])
            case "audit":
                command(["audit", str(run), "--engine", "numpy", "--max-symbols", "48"])
            case "pack":
                command(["pack", str(run)])
            case "soup":
                command(["soup", str(run), str(run), "--engine", "numpy", "--output", "soup.btw"])

    return read
