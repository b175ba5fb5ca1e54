"""The modules of the house as syntax trees: what each binds, what each imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.engine.registry import ENGINES
from shared.script.strip import strip

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shared", "data", *(engine.package for engine in ENGINES.values()))


@dataclass
class Module:
    """A stripped module. `definitions` are its statements by each name that they bind; `imports` are (module, name) by
    the name that an import binds, the name empty where it binds the module itself; `effects` are the other
    statements, which act when the module is imported."""

    name: str
    body: list[ast.stmt]
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)

    def __post_init__(self) -> None:
        for statement in self.body:
            self._note(statement)

    @property
    def names(self) -> set[str]:
        """Every name at the top of the module, those too that its other statements bind."""
        bound = {
            node.id
            for statement in self.effects
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        return {*self.definitions, *self.imports, *bound}

    def _note(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                self.imports[alias.asname or alias.name] = (str(statement.module), alias.name)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                self.imports[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
        elif names := list(bound_names(statement)):
            for name in names:
                self.definitions.setdefault(name, []).append(statement)
        else:
            self.effects.append(statement)


def bound_names(statement: ast.stmt) -> Iterator[str]:
    """The names that a definition or an assignment at the top of a module binds; none for any other statement, and for
    assignments that also change something else."""
    match statement:
        case ast.FunctionDef(name) | ast.ClassDef(name):
            yield name
        case ast.Assign(targets):
            leaves = [leaf for target in targets for leaf in _leaves(target)]
            if all(isinstance(leaf, ast.Name) for leaf in leaves):
                yield from (leaf.id for leaf in leaves if isinstance(leaf, ast.Name))


def _leaves(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for item in target.elts:
            yield from _leaves(item)
    else:
        yield target


def in_house(name: str) -> bool:
    """Whether a dotted name is that of a module here, or of something in one."""
    return name.partition(".")[0] in PACKAGES


def module_path(name: str) -> Path | None:
    """The file of a module of the house; None if there is no such module."""
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def load(name: str, text: str | None = None) -> Module:
    """The stripped module of a name, from its file or from a text in place of that. Raises ValueError if there is
    none."""
    path = module_path(name)
    if path is None:
        raise ValueError(f"no module {name}")
    return Module(name, strip(ast.parse(path.read_bytes() if text is None else text)).body)
