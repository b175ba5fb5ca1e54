"""bytetwin installed from its wheel: all it needs is in it, and it writes to folders of the user only."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import ROOT
from tests.isolated import IsolatedPython, link_packages
from tests.processes import WAIT_S

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
# What the script `bytetwin` of an installed wheel does.
COMMAND = "import sys; from shared.cli.start import main; sys.exit(main())"
PACKAGES = ("shared", "data", "mlx_train", "cuda_train")
NOT_SOURCES = shutil.ignore_patterns("datasets", "__pycache__")
TINY = "tiny --engine mlx --run first --set training.steps=3 --set training.compile=false"
MINE = "--set data.train=mine --set data.heldout=mine --set evaluation.val_symbols=4096"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the sources, because setuptools leaves folders beside them."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCES)
    for name in ("pyproject.toml", "README.md", "LICENSE", "bytetwin.py"):
        shutil.copy(ROOT / name, copy)
    words = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return zipfile.ZipFile(path)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_everything_that_is_read_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Sources, presets, the parts of a report: every file of the packages, and nothing else but metadata."""
    ours = {f"{name}/{file}" for name in PACKAGES for file in files_of(ROOT / name)} | {"bytetwin.py"}
    ours = {file for file in ours if not {"datasets", "__pycache__"} & set(Path(file).parts)}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == ours
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "bytetwin = shared.cli.start:main" in wheel.read(entry_points).decode()


def test_an_installed_bytetwin_writes_to_the_folders_of_its_user(
    wheel: zipfile.ZipFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages, home, work = tmp_path / "site-packages", tmp_path / "home", tmp_path / "work"
    link_packages(packages, [*project["dependencies"], *project["optional-dependencies"]["mlx"]])
    wheel.extractall(packages)
    installed = files_of(packages)
    for variable in ("BYTETWIN_DATASETS", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    home.mkdir()
    work.mkdir()
    bytetwin = IsolatedPython(packages, work, absent=("pytest", "torch"))

    def run(line: str, **environment: str) -> dict:
        return json.loads(bytetwin("-c", COMMAND, *shlex.split(line), "--json", HOME=str(home), **environment))

    assert run("data list", BYTETWIN_DATASETS="elsewhere")["root"] == "elsewhere"
    root = Path(run("data list")["root"])
    assert root.is_relative_to(home) and root.parts[-2:] == ("bytetwin", "datasets")
    for number, text in enumerate((ROOT / "docs" / "techniques.md").read_text(encoding="utf-8").split("\n### ")):
        (home / f"{number}.txt").write_text(text, encoding="utf-8")
    run(f"data import mine {home} --heldout-frac 0.2")
    assert run(f"train {TINY} {MINE}")["score"]["bpb"] > 0
    assert (root / "mine" / "manifest.json").is_file()
    assert [path.name for path in work.iterdir()] == ["runs"]
    assert (work / "runs" / "first" / "report.html").is_file()
    # What the record's script is made of is kept too, so that it is built once.
    assert any(path.name.startswith("code.") for path in home.rglob("*.bin"))
    assert files_of(packages) == installed
