"""What a program reaches of the house: the modules, and in each the definitions, methods and imports that it can use.

A definition is reached where a reached one names it. A method is reached where its class is and any reached code has
its name, after a dot or as a string, whatever the object; so a protocol need not be followed to who implements it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping

from shared.script.house import Module, in_house, load, module_path
from shared.script.strip import PLAIN_DECORATORS, decorator_name, strip_fields

# Bases whose methods nobody but us calls. Any other base from outside may call what a class defines.
QUIET_BASES = {"object", "Protocol", "Generic", "BaseModel", "Exception", "ValueError", "RuntimeError"}


class Reach:
    """Everything that the roots reach. `replaced` has other texts for some modules, by name; functions and methods in
    `idle`, as `module:Class.method`, are never called, so nothing is left of them but their names.

    `keywords` are the names of keyword arguments and `words` the strings that could be names in what was reached;
    `asked` are the names of each module that others know it by.
    """

    def __init__(
        self,
        roots: Iterable[tuple[str, str]],
        replaced: Mapping[str, str] | None = None,
        idle: Collection[str] = frozenset(),
    ) -> None:
        self.replaced, self._idle = replaced or {}, idle
        self.modules: dict[str, Module] = {}
        self.keywords: set[str] = set()
        self.words: set[str] = set()
        self.asked: dict[str, set[str]] = {}
        self.kept: set[int] = set()
        self._imports: dict[str, set[str]] = {}
        self._validated: set[int] = set()
        self._attributes: set[str] = set()
        # Methods of reached classes by name, until something has that name.
        self._waiting: dict[str, list[tuple[Module, ast.stmt]]] = {}
        self._todo: list[tuple[Module, ast.AST]] = []
        for module, name in roots:
            self._ask(module, name)
        while self._todo:
            self._scan(*self._todo.pop())

    def body(self, module: Module) -> list[ast.stmt]:
        """The reached statements of a module, in their order."""
        body: list[ast.stmt] = []
        imports = self._imports[module.name]
        for statement in module.body:
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                body.append(statement)
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                names = [alias for alias in statement.names if _bound_by(statement, alias) in imports]
                if names and isinstance(statement, ast.ImportFrom):
                    body.append(ast.ImportFrom(statement.module, names, 0))
                elif names:
                    body.append(ast.Import(names))
            elif id(statement) in self.kept:
                body.append(self._without_idle_methods(statement))
        return body

    def packages(self) -> set[str]:
        """Top-level packages from outside, without Python's own, that a reached module imports at its top."""
        found = {
            origin.partition(".")[0]
            for name, module in self.modules.items()
            for word, (origin, _) in module.imports.items()
            if word in self._imports[name] and not in_house(origin)
        }
        return found - sys.stdlib_module_names

    def _without_idle_methods(self, statement: ast.stmt) -> ast.stmt:
        if not isinstance(statement, ast.ClassDef):
            return statement
        body = [item for item in statement.body if not isinstance(item, ast.FunctionDef) or id(item) in self.kept]
        left = ast.ClassDef(statement.name, statement.bases, statement.keywords, body, statement.decorator_list)
        return left if id(statement) in self._validated else strip_fields(left)

    def _module(self, name: str) -> Module | None:
        """The module of a name, reached from now on with its packages and with all that it does when imported."""
        if name not in self.modules and module_path(name) is not None:
            if "." in name:
                self._module(name.rpartition(".")[0])
            module = self.modules[name] = load(name, self.replaced.get(name))
            idle = [each for each in self._idle if each.startswith(f"{name}:")]
            for qualified in idle:
                _empty(module, qualified)
            _drop_parts(module, {qualified.partition(":")[2] for qualified in idle})
            self._imports[name] = set()
            for statement in module.effects:
                self._keep(module, statement)
            for statement in module.body:
                if isinstance(statement, ast.FunctionDef) and _acts(statement):
                    self._keep(module, statement)
        return self.modules.get(name)

    def _ask(self, name: str, word: str) -> None:
        """Reach what another module, or who runs the program, knows a module to bind to a word."""
        self.asked.setdefault(name, set()).add(word)
        self._need(name, word)

    def _need(self, name: str, word: str) -> None:
        """Reach what a module binds to a word, which may be a module in it."""
        module = self._module(name)
        if module is None:
            return
        for statement in module.definitions.get(word, ()):
            self._keep(module, statement)
        if word in module.imports:
            if word not in self._imports[name]:
                self._imports[name].add(word)
                self._import(*module.imports[word])
        elif word not in module.definitions:
            self._module(f"{name}.{word}")

    def _import(self, module: str, word: str) -> None:
        if in_house(module):
            if not word:
                raise ValueError(f"import {module}: write `from package import module`, which can be followed")
            self._ask(module, word)

    def _keep(self, module: Module, statement: ast.AST) -> None:
        if id(statement) not in self.kept:
            self.kept.add(id(statement))
            self._todo.append((module, statement))

    def _scan(self, module: Module, statement: ast.AST) -> None:
        """Reach all that a statement names."""
        if isinstance(statement, ast.ClassDef):
            self._scan_class(module, statement)
        else:
            self._names(module, statement)

    def _names(self, module: Module, node: ast.AST) -> None:
        imports = module.imports | {
            alias.asname or alias.name: (str(inner.module), alias.name)
            for inner in ast.walk(node)
            if isinstance(inner, ast.ImportFrom)
            for alias in inner.names
        }
        for inner in ast.walk(node):
            match inner:
                case ast.Name(word) | ast.MatchAs(_, str(word)):
                    if word in module.definitions or word in module.imports:
                        self._need(module.name, word)
                case ast.Attribute(value, word):
                    self._attribute(word)
                    if isinstance(value, ast.Name) and value.id in imports:
                        self._member(imports[value.id], word)
                case ast.Constant(str(word)) if word.isidentifier():
                    self.words.add(word)
                    self._attribute(word)
                case ast.Call(function, arguments, keywords):
                    self.keywords.update(keyword.arg for keyword in keywords if keyword.arg)
                    if isinstance(function, ast.Name) and function.id == "TypeAdapter":
                        self._validate(module, arguments[0])
                case ast.MatchClass(_, _, names):
                    for word in names:
                        self._attribute(word)
                case ast.ImportFrom(str(origin), names):
                    for alias in names:
                        self._import(origin, alias.name)

    def _member(self, imported: tuple[str, str], word: str) -> None:
        """Reach a word of an imported module of the house, if that is what was imported."""
        origin, name = imported
        if in_house(origin) and name and module_path(f"{origin}.{name}") is not None:
            self._ask(f"{origin}.{name}", word)

    def _attribute(self, word: str) -> None:
        self._attributes.add(word)
        for module, method in self._waiting.pop(word, ()):
            self._keep(module, method)

    def _scan_class(self, module: Module, node: ast.ClassDef) -> None:
        for part in [*node.bases, *node.keywords, *node.decorator_list]:
            self._names(module, part)
        loud = self._is_loud(module, node)
        if self._is_model(module, node):
            self._validate_class(module, node)
        for item in node.body:
            if not isinstance(item, ast.FunctionDef):
                # Annotations count where they are read, which `_validate_class` sees to.
                value = item.value if isinstance(item, ast.AnnAssign) else item
                if value is not None:
                    self._names(module, value)
                    # A method may be given another name in the class itself.
                    for name in ast.walk(value):
                        if isinstance(name, ast.Name):
                            self._attribute(name.id)
            elif loud or _always_called(item) or item.name in self._attributes:
                self._keep(module, item)
            else:
                self._waiting.setdefault(item.name, []).append((module, item))

    def _validate(self, module: Module, annotation: ast.expr) -> None:
        """Keep the annotations of every class that an annotation names, because pydantic reads them."""
        self._names(module, annotation)
        for inner in ast.walk(annotation):
            if isinstance(inner, ast.Name) and (found := self._class_of(module, inner.id)):
                self._validate_class(*found)

    def _validate_class(self, module: Module, node: ast.ClassDef) -> None:
        if id(node) not in self._validated:
            self._validated.add(id(node))
            for item in node.body:
                if isinstance(item, ast.AnnAssign):
                    self._validate(module, item.annotation)

    def _class_of(self, module: Module, word: str) -> tuple[Module, ast.ClassDef] | None:
        """The class of the house that a word names in a module, with its module."""
        for statement in module.definitions.get(word, ()):
            if isinstance(statement, ast.ClassDef):
                return module, statement
        origin, name = module.imports.get(word, ("", ""))
        there = self._module(origin) if in_house(origin) else None
        return self._class_of(there, name) if there is not None else None

    def _bases(self, module: Module, node: ast.ClassDef) -> Iterator[tuple[str, tuple[Module, ast.ClassDef] | None]]:
        for base in node.bases:
            core = base.value if isinstance(base, ast.Subscript) else base
            name = core.id if isinstance(core, ast.Name) else ast.unparse(core)
            yield name, self._class_of(module, name)

    def _is_loud(self, module: Module, node: ast.ClassDef) -> bool:
        """Whether a base from outside may call any method of a class."""
        return any(
            self._is_loud(*found) if found else name not in QUIET_BASES for name, found in self._bases(module, node)
        )

    def _is_model(self, module: Module, node: ast.ClassDef) -> bool:
        return any(
            self._is_model(*found) if found else name == "BaseModel" for name, found in self._bases(module, node)
        )


def _bound_by(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    return alias.asname or (alias.name.partition(".")[0] if isinstance(statement, ast.Import) else alias.name)


def _drop_parts(module: Module, names: Collection[str]) -> None:
    """Leave out what decorators of these functions take, as an operator takes its fake implementation."""

    def is_part(statement: ast.stmt) -> bool:
        decorators = statement.decorator_list if isinstance(statement, ast.FunctionDef) else []
        words = (word for decorator in decorators for word in ast.walk(decorator))
        return any(isinstance(word, ast.Name) and word.id in names for word in words)

    for statements in (module.body, *module.definitions.values()):
        statements[:] = [statement for statement in statements if not is_part(statement)]


def _acts(function: ast.FunctionDef) -> bool:
    """Whether a decorator may put a function where it is found without its name."""
    return any(decorator_name(decorator) not in PLAIN_DECORATORS | {"jit"} for decorator in function.decorator_list)


def _always_called(method: ast.FunctionDef) -> bool:
    """Whether Python or a decorator calls a method without naming it."""
    return (method.name.startswith("__") and method.name.endswith("__")) or _acts(method)


def _empty(module: Module, qualified: str) -> None:
    """Leave nothing in a function or method but its name. Raises ValueError if there is none of that name."""
    *outer, name = qualified.partition(":")[2].split(".")
    found: list[ast.stmt] = module.body
    for word in outer:
        found = next((each.body for each in found if isinstance(each, ast.ClassDef) and each.name == word), [])
    functions = [each for each in found if isinstance(each, ast.FunctionDef) and each.name == name]
    if not functions:
        raise ValueError(f"no function {qualified}")
    for function in functions:
        function.decorator_list, function.body = [], [ast.Pass()]
        function.args = ast.arguments([], [], ast.arg("_"), [], [], ast.arg("__"), [])
