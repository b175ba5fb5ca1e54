"""Imports modules whose sources are text in a file: at the end of a self-contained script, or of an exported module.

This text stands in the file itself, without its comments, so it imports what the sources need to be read and nothing of
the house.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class Modules(MetaPathFinder, InspectLoader):
    """Imports modules from texts in memory. Their files are named as if the script were a folder, like those in a zip
    archive, so that tracebacks and compilers of kernels find the lines."""

    def __init__(self, script: str, texts: Mapping[str, str]) -> None:
        """`texts` are the sources by name of module."""
        self.script, self.texts = Path(script).resolve(), texts

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of our modules, a package if others are in it."""
        if fullname not in self.texts:
            return None
        within: list[str] | None = [] if any(other.startswith(f"{fullname}.") for other in self.texts) else None
        file = f"{self.script}/{fullname}.py"
        return importlib.util.spec_from_file_location(fullname, file, loader=self, submodule_search_locations=within)

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's text in it."""
        exec(compile(self.texts[module.__name__], str(module.__file__), "exec"), module.__dict__)

    def get_source(self, fullname: str) -> str:
        """The text of a module, for tracebacks and compilers."""
        return self.texts[fullname]


def start(script: str, head: str, code: str, entry: str, engine: str, spec: str) -> None:
    """Run `main` of the entry module and end the process with its status, which is 2 where a package is missing that
    `head` names. `code` has one character for each byte of brotli of name, text, name, text, ... with zero bytes
    between."""
    try:
        import brotli

        parts = brotli.decompress(code.encode("latin-1")).decode().split("\0")
        sys.meta_path.insert(0, Modules(script, dict(zip(parts[::2], parts[1::2], strict=True))))
        status = importlib.import_module(entry).main(sys.argv[1:], engine, spec)
    except ModuleNotFoundError as error:
        needed = " ".join(f'"{line.strip()}"' for line in head.split("\n") if "==" in line)
        print(f"{error}; this file needs: python -m pip install {needed}", file=sys.stderr)
        status = 2
    sys.exit(status)
