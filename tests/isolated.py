"""A Python that sees the standard library, the packages named to it, and nothing else of this machine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from tests.processes import WAIT_S

OURS = ("shared", "data", "cuda_train", "mlx_train", "rich", "pytest")
IMPORTS_NONE_OF = """
import importlib.util, sys
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
assert not found, found
"""


def link_packages(folder: Path, requirements: Iterable[str]) -> None:
    """Fill a folder with links to the installed packages that meet the requirements, and to what those require."""
    folder.mkdir()
    todo, seen = [Requirement(line) for line in requirements], set()
    while todo:
        wanted = todo.pop()
        key = (wanted.name.lower(), *sorted(wanted.extras))
        if key in seen or (wanted.marker and not wanted.marker.evaluate()):
            continue
        seen.add(key)
        found = importlib.metadata.distribution(wanted.name)
        assert wanted.specifier.contains(found.version, prereleases=True), f"{wanted}, installed is {found.version}"
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}):
                needed.marker = None
                todo.append(needed)
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))


def requirements_of(script: Path) -> list[str]:
    """The lines in the head of a script that say what to install."""
    head = script.read_text(encoding="latin-1").partition("Run it:")[0]
    return re.findall(r"^    (\S.*==.*)$", head, re.MULTILINE)


class IsolatedPython:
    """Runs programs with the packages in a folder alone, among which none is `absent`."""

    def __init__(self, packages: Path, folder: Path, absent: Iterable[str] = OURS) -> None:
        self.packages, self.folder = packages, folder
        self("-c", IMPORTS_NONE_OF, *absent)

    def __call__(self, *words: object, **environment: str) -> str:
        """What a program prints that must end well."""
        done = self.run(*words, **environment)
        # The code of a script is a line of 80,000 characters, which a trace does not show.
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stdout

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Without `site` Python does not look into the environment that it belongs to."""
        return subprocess.run(
            [sys.executable, "-S", "-s", "-B", *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.packages), **environment},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
