"""Arrows run one way: every room imports rooms further up in ARROWS only, and no module imports itself through others.

No room needs a framework to be imported.
"""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

from shared.engine import registry
from tests import ROOT
from tests.processes import run_python

# What each engine alone may import.
FRAMEWORKS = {engine.package: engine.framework.split(".")[0] for engine in registry.ENGINES.values()}
ENGINES = {engine.package for engine in registry.ENGINES.values()}

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
assert not {"mlx.core", "torch", "mlx_train.engine", "cuda_train.engine"} & sys.modules.keys()
print(count)
"""


# Which room imports which, lowest first: a room is a folder or module of shared/, or a top-level package. An arrow
# that is not here is refused, and one that nothing uses any more is too, so that the table stays the plan of the house.
ARROWS = {
    "errors": "",
    "files": "",
    "parsing": "",
    "imports": "",
    "signals": "",
    "tolerances": "",
    "units": "",
    "user_folders": "",
    "spec": "errors files parsing",
    "data": "errors files tolerances user_folders spec",
    "ops": "",
    "quantisers": "errors spec ops",
    "model": "errors spec ops quantisers",
    "optim": "spec ops model",
    "engine": "errors files imports spec data ops model optim",
    "script": "files user_folders spec data engine",
    "artifact": "errors files spec ops quantisers model optim engine script",
    "scoring": "errors files parsing tolerances units spec data model optim engine artifact",
    "coding": "errors parsing tolerances spec data model engine scoring",
    "runs": "errors files parsing spec data ops model optim engine artifact scoring",
    "views": "errors files units spec model engine artifact scoring runs",
    "training": "errors signals tolerances units spec data model optim engine artifact scoring runs views",
    "parity": "errors tolerances units spec data ops model optim engine artifact scoring",
    "preflight": "errors units spec data model optim engine artifact scoring runs training parity",
    "plan": "errors spec model engine artifact runs preflight",
    "sinks": "errors runs spec",
    "study": "errors files parsing units spec data model optim engine script scoring runs training sinks",
    "export": "errors files units spec data model scoring runs script",
    "standalone": "errors parsing spec data engine script artifact scoring views training",
    "bytetwin": "errors spec data engine scoring coding runs views training study sinks",
    "cli": "bytetwin errors files imports signals units spec data model optim engine artifact scoring coding runs "
    "views training parity preflight plan study sinks export",
    "mlx_train": "errors spec data ops model optim engine cli",
    "cuda_train": "errors files tolerances units spec data ops model optim engine cli",
}


def room_of(module: str) -> str:
    """shared.engine.state is in the room `engine`, data.loader in `data`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "shared" and len(parts) > 1 and parts[1] != "__version__" else parts[0]


def modules() -> dict[str, set[str]]:
    """What every module of the house imports by statement, wherever in it: dotted names by dotted name."""
    found = {}
    for package in ("shared", "data", *sorted(ENGINES)):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).with_suffix("").as_posix()
            if "datasets/" not in name:
                found[name.replace("/", ".").removesuffix(".__init__")] = imported(path)
    return {**found, "bytetwin": imported(ROOT / "bytetwin.py")}


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports by statement."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_shared_and_data_import_without_any_framework():
    assert int(run_python(IMPORT_EVERYTHING, PYTHONWARNINGS="error")) >= 30


def test_every_arrow_is_in_the_table_and_every_arrow_of_the_table_is_used():
    arrows: dict[str, set[str]] = {room: set() for room in ARROWS}
    for module, names in modules().items():
        rooms = {room_of(name) for name in names if name.split(".")[0] in {"shared", "data", "bytetwin"} | ENGINES}
        arrows.setdefault(room_of(module), set()).update(rooms - {room_of(module), "shared"})
    arrows.pop("shared", None)  # The package itself, which is empty.
    assert arrows == {room: set(below.split()) for room, below in ARROWS.items()}


def test_arrows_point_down():
    order = list(ARROWS)
    up = [(room, to) for room, below in ARROWS.items() for to in below.split() if order.index(to) >= order.index(room)]
    assert up == []


def test_no_imports_run_in_a_circle():
    """Not those for types either, nor those inside functions. CycleError names the modules of a circle."""
    found = modules()

    def module_of(name: str) -> str:
        """The longest beginning of a dotted name that is a module of ours, or nothing."""
        while name and name not in found:
            name = name.rpartition(".")[0]
        return name

    graph = {module: {module_of(name) for name in names} - {module, ""} for module, names in found.items()}
    assert sum(map(len, graph.values())) > 1000
    TopologicalSorter(graph).prepare()


def test_a_framework_is_imported_by_its_engine_alone():
    for module, names in modules().items():
        foreign = {name.split(".")[0] for name in names} & set(FRAMEWORKS.values())
        assert foreign <= {FRAMEWORKS.get(room_of(module))}, module


def test_imports_by_name_are_those_of_an_engine_and_of_a_command():
    """An import by name hides an arrow and its types."""
    importing, asking = set(), set()
    for path in sorted((ROOT / "shared").rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if re.search(r"import_module|__import__|resolve_name|runpy", text):
            importing.add(name)
        if "import_by_name(" in text:
            asking.add(name)
    # The last one writes such a line into exported files.
    assert importing == {"shared/imports.py", "shared/script/boot.py", "shared/script/module.py"}
    assert asking == {"shared/imports.py", "shared/engine/package.py", "shared/cli/main.py"}
    for path in (ROOT / "data").rglob("*.py"):
        by_name = re.findall(r"import_module\((.*)\)", path.read_text(encoding="utf-8"))
        assert set(by_name) <= {'"sentencepiece"', '"pyarrow.parquet"'}, path


def test_both_engines_have_the_same_files_for_the_same_things():
    names = "__init__ __main__ package ops plain_ops float64_ops engine device distributed failures profiler"
    common = {f"{name}.py" for name in names.split()}
    for package in ENGINES:
        assert common <= {path.name for path in (ROOT / package).glob("*.py")}
