"""A module of the house as one file that needs no house: for who loads exported weights with a framework alone.

A script is counted, so it is compressed. This file is read by people before they trust it, so the sources in it are
plain text without comments. They are imported under a package name that is a hash of them: two exports of different
versions, bytetwin itself and anything else called `data` or `shared` can live in one process.
"""

from __future__ import annotations

import ast
import hashlib
import re
from functools import cache

from shared.engine.registry import ENGINES
from shared.script.build import boot
from shared.script.house import in_house, load, module_path
from shared.script.reach import Reach

# What an engine does to a process before it trains is not done to the process of whoever loads weights.
PREPARED = {engine.package: "" for engine in ENGINES.values()}

HEADER = '''"""{docstring}
"""

from __future__ import annotations

{imports}

# The parts of bytetwin that this file needs, by module and without comments. {count} lines.
SOURCES = """
{sources}
"""

{boot}

def _texts() -> dict[str, str]:
    parts = re.split(r"(?m)^#### (\\S+)\\n", SOURCES)
    return dict(zip(parts[1::2], parts[2::2]))


if "{package}" not in sys.modules:
    sys.meta_path.insert(0, Modules(__file__, _texts()))
{names}

{body}'''


@cache
def bundled_module(name: str) -> str:
    """The source of a module, with all that it reaches of the house in the same file. Its docstring and comments
    stay. It must import from the house by `from module import name` at its top."""
    path = module_path(name)
    assert path is not None, name
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    top = [item for item in tree.body if isinstance(item, ast.Import | ast.ImportFrom)]
    own = [item for item in top if isinstance(item, ast.ImportFrom) and in_house(str(item.module))]
    outside = [item for item in top if item not in own and getattr(item, "module", "") != "__future__"]
    wanted = [(str(item.module), alias.name) for item in own for alias in item.names]
    package, sources = _sources(name, wanted)
    end = max(int(item.end_lineno or 0) for item in top)
    # `from package import name` would be taken for a package to install.
    names = [f'{word} = importlib.import_module("{package}.{module}").{word}' for module, word in wanted]
    return HEADER.format(
        docstring=ast.get_docstring(tree),
        imports="\n".join(sorted({ast.unparse(item) for item in [*outside, *ast.parse("import re\nimport sys").body]})),
        count=f"{sources.count(chr(10)):,}",
        sources=sources.replace("\\", "\\\\").replace('"""', '\\"\\"\\"'),
        boot=_readable(boot("Modules")),
        package=package,
        names="\n".join(names),
        body="\n".join(text.split("\n")[end:]).strip("\n") + "\n",
    )


def _sources(module: str, wanted: list[tuple[str, str]]) -> tuple[str, str]:
    """(name of the package, the modules in it as one text) of all that a module reaches, without itself. `wanted` is
    what it imports, were it for an annotation only."""
    reach = Reach([*((module, word) for word in load(module).definitions), *wanted], PREPARED)
    reached = sorted(reach.modules.keys() - {module})
    bodies = {name: ast.Module(reach.body(reach.modules[name]), []) for name in reached}
    digest = hashlib.sha256("".join(name + _readable(body) for name, body in bodies.items()).encode())
    package = f"bytetwin_{digest.hexdigest()[:12]}"
    texts = [f"#### {package}\n"]
    for name, body in bodies.items():
        for node in ast.walk(body):
            if isinstance(node, ast.ImportFrom) and in_house(str(node.module)):
                node.module = f"{package}.{node.module}"
        texts.append(f"#### {package}.{name}\n{_readable(body)}\n")
    text = "".join(texts)
    assert len(re.findall(r"(?m)^#### ", text)) == len(texts)
    return package, text


def _readable(body: ast.Module) -> str:
    return ast.unparse(ast.fix_missing_locations(body))
