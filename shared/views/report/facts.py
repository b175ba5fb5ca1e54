"""The sections of a report about where a run was made, and how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.runs.run_files import RunFiles
from shared.scoring.document import ScoreDocument
from shared.views.report.markup import Child, Element, element, facts, section


def environment_section(environment: Mapping[str, Any]) -> Element:
    """Versions, hardware and texts."""
    labels = {name: name for name in ("engine", "device", "platform", "python")}
    labels |= {"float32_products": "float32 products", "cpu_count": "CPU cores"}
    rows: list[tuple[str, Child]] = [
        (label, str(environment[name])) for name, label in labels.items() if name in environment
    ]
    packages = environment.get("packages")
    if isinstance(packages, dict):
        rows.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
    rows.append(("commit", _commit(environment)))
    data = environment.get("data")
    for role, text in data.items() if isinstance(data, dict) else ():
        if isinstance(text, dict):
            sizes = ", ".join(
                f"{text[unit]:,} {unit}" for unit in ("bytes", "documents") if isinstance(text.get(unit), int)
            )
            rows.append(
                (f"{role} text", f"{text.get('name', 'unnamed')}: {sizes}; sha256 {text.get('sha256', 'unknown')}")
            )
    for start in environment.get("earlier_starts") or ():
        if isinstance(start, dict):
            where = f"engine {start.get('engine', 'unknown')} on {start.get('device', 'unknown device')}"
            rows.append(("earlier start", f"{start.get('started', 'at an unknown time')}: {where}, {_commit(start)}"))
    return section("Environment", facts(rows))


def _commit(environment: Mapping[str, Any]) -> str:
    git = environment.get("git")
    if not isinstance(git, dict):
        return "not run from a git checkout"
    return f"{git.get('commit', 'unknown')}{', with local changes' if git.get('modified') else ''}"


def commands_section(run: RunFiles, score: ScoreDocument | None) -> Element:
    """The command lines that train, continue and score again."""
    path, engine = run.path, score.engine if score else str(run.environment.get("engine", "mlx"))
    folder = [] if path.parent == Path("runs") else ["--runs-dir", str(path.parent)]
    train = ["bytetwin", "train", str(path / "spec.toml"), "--engine", engine, *folder, "--run"]
    commands = [
        ("Train the same spec with the same seed again", [*train, f"{path.name}-again"]),
        (
            "Continue from the last checkpoint; of a finished run, show its result again",
            [*train, path.name, "--resume"],
        ),
        ("Score the artifact again", ["bytetwin", "score", str(path), "--engine", engine]),
    ]
    commands_section = section("Commands")
    if "command" in run.environment:
        commands_section.append(element("p", "This run, as it was last started", class_="quiet"))
        commands_section.append(_code(str(run.environment["command"])))
    for purpose, words in commands:
        commands_section.append(element("p", purpose, class_="quiet"))
        commands_section.append(_code(shlex.join(words)))
    return commands_section


def _code(text: str) -> Element:
    return element("pre", element("code", text))
