"""Arrows run one way: engines -> shared, data -> shared. Without a framework shared and data still import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = {"mlx", "torch"}
ENGINES = {"mlx_train", "cuda_train"}

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mlx", "torch"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
count = 0
for package in ("shared", "data"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
from shared.engine.package import available_engines
assert available_engines() == [], available_engines()
assert not {"mlx", "torch", "mlx_train.engine", "cuda_train.engine"} & sys.modules.keys()
print(count)
"""


def modules(package: str) -> list[Path]:
    """Source files of a package, datasets excluded."""
    found = [path for path in (ROOT / package).rglob("*.py") if "datasets/" not in path.relative_to(ROOT).as_posix()]
    assert found
    return found


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports by statement, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_shared_and_data_import_without_any_framework():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EVERYTHING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 30


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("shared", FRAMEWORKS | ENGINES | {"data"}),
        ("data", FRAMEWORKS | ENGINES),
        ("mlx_train", {"torch", "cuda_train", "data"}),
        ("cuda_train", {"mlx", "mlx_train", "data"}),
    ],
)
def test_static_imports_run_one_way(package: str, forbidden: set[str]):
    wrong = {str(path.relative_to(ROOT)): sorted(imported(path) & forbidden) for path in modules(package)}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_both_engines_have_the_same_files_for_the_same_things():
    common = {"__init__.py", "ops.py", "engine.py", "device.py"}
    for package in ENGINES:
        assert common <= {path.name for path in (ROOT / package).glob("*.py")}
