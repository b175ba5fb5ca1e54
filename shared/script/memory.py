"""What was built of these sources before: building takes two seconds, which every score would wait for.

It lies in `__pycache__` beside what Python keeps of these modules, or in the user's cache folder where bytetwin is
installed, under a hash of every source file. It may be deleted or be missing: where the folder cannot be written, a
script is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path

from shared.files import write_atomically
from shared.script.house import PACKAGES, ROOT
from shared.user_folders import user_cache_folder

FOLDER = user_cache_folder() or Path(__file__).parent / "__pycache__"
DIGEST_BYTES = 32
# Six programs for each engine, and of these sources as of those before.
MOST_KEPT = 16


def source_hash(settings: str) -> str:
    """SHA-256, in hex, over the sources of the house, Python's version, which prints syntax trees, and settings."""
    digest = hashlib.sha256(f"{sys.version_info[:3]} {settings}".encode())
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def recall(key: str) -> tuple[bytes, list[str]] | None:
    """(code, what to install) that was kept under a key; None if there is none, or it is damaged."""
    try:
        content = _path(key).read_bytes()
    except OSError:
        return None
    digest, rest = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    requirements, _, code = rest.partition(b"\n")
    return code, json.loads(requirements)


def remember(key: str, code: bytes, requirements: list[str]) -> None:
    """Keep what was built, if that is possible, and the last few that were built of other sources."""
    rest = json.dumps(requirements).encode() + b"\n" + code
    with contextlib.suppress(OSError):
        FOLDER.mkdir(parents=True, exist_ok=True)
        for old in sorted(FOLDER.glob("code.*.bin"), key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
            old.unlink()
        write_atomically(_path(key), hashlib.sha256(rest).digest() + rest)


def _path(key: str) -> Path:
    return FOLDER / f"code.{key[:32]}.bin"
