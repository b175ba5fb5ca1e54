"""Where an installed bytetwin keeps what it writes: in folders of the user, never among the installed packages.

A checkout keeps everything in itself, so both functions return None there. The folders are those of the system
(`~/.local/share/bytetwin` on Linux, `~/Library/Application Support/bytetwin` on a Mac), which XDG_DATA_HOME and
XDG_CACHE_HOME move where the system has them.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "bytetwin"


def user_data_folder() -> Path | None:
    """The folder for datasets and tokenizers, existing or not; None in a checkout."""
    if _is_checkout():
        return None
    import platformdirs

    return platformdirs.user_data_path(NAME, appauthor=False)


def user_cache_folder() -> Path | None:
    """The folder for what can be made again, existing or not; None in a checkout."""
    if _is_checkout():
        return None
    import platformdirs

    return platformdirs.user_cache_path(NAME, appauthor=False)


def _is_checkout() -> bool:
    """Whether these sources lie beside their pyproject.toml, as in a clone. A wheel has no such file."""
    return (ROOT / "pyproject.toml").is_file()
