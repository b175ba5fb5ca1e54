"""environment.json: versions, hardware and command line of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.engine.package import engine_package
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINES

PACKAGES = (
    "bytetwin",
    "numpy",
    *(name for engine in ENGINES.values() for name in engine.distributions),
    "pydantic",
    "safetensors",
    "brotli",
    "zstandard",
    "sentencepiece",
    "flash-attn-4",
    "fla-core",
)
GIT_TIMEOUT_S = 10


def describe_environment(engine: Engine) -> dict[str, Any]:
    """Versions, commit, device and command line, as plain JSON values."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "engine": engine.name,
        "device": engine.device_name(),
        "float32_products": engine_package(engine.name).float32_products(),
        "ranks": engine.ranks.world_size,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": _git_state(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of the source tree and whether files differ from it; None outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
