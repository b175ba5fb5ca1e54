"""Brings specs in files up to today's schema.

Every spec that bytetwin writes (in artifacts, checkpoints, spec.toml of a run or record) has every field that exists at
that time, with its value. Such files stay readable if two kinds of changes are written down here:

- A field or section is renamed or moved: `Renamed`. A file written by hand may keep the old name too.
- The default of a field changes: `NewDefault`, with the old one. A file of bytetwin that lacks the field is older than
  it and means its first default, with which the technique was off. A file written by hand means today's default.

A new field needs no entry if its default leaves everything as it was. MIGRATIONS is in the order of the changes and
only grows. `tests/unit/spec/test_migrate.py` tests every entry; `tests/golden` holds files of earlier versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import SpecError


@dataclass(frozen=True)
class Renamed:
    """The field or section `old` (`section.key`) is now `new`; its values mean the same. No later field takes `old`."""

    old: str
    new: str


@dataclass(frozen=True)
class NewDefault:
    """The default of the field `key` (`section.key`) was `before`."""

    key: str
    before: Any


Migration = Renamed | NewDefault

MIGRATIONS: tuple[Migration, ...] = (
    Renamed("artifact.matrix_bits", "artifact.matrix.bits"),
    Renamed("artifact.embed_bits", "artifact.embed.bits"),
    Renamed("artifact.head_bits", "artifact.head.bits"),
)

# Sections lie in sections at most this deep. A hostile file may nest values as deep as it likes.
MAX_DEPTH = 8


def migrated(
    values: Mapping[str, Any], *, complete: bool, migrations: Sequence[Migration] = MIGRATIONS
) -> dict[str, Any]:
    """The values of a spec under today's names. `complete`: bytetwin wrote them, with every field of its time.

    Nothing else is checked here: a value where a section belongs is left to the schema. Raises SpecError for a field
    that is given under its old name and its new one.
    """
    current = _copied(values)
    for migration in migrations:
        if isinstance(migration, Renamed):
            _move(current, migration)
    for index, migration in enumerate(migrations):
        if complete and isinstance(migration, NewDefault):
            *path, name = (new_name(migration.key, migrations[index:]) or migration.key).split(".")
            section = _section(current, path, create=True)
            if section is not None:
                section.setdefault(name, migration.before)
    return current


def new_name(key: str, migrations: Sequence[Migration] = MIGRATIONS) -> str | None:
    """The current name of a field with an old name, None for any other."""
    current = key
    for migration in migrations:
        if isinstance(migration, Renamed) and f"{current}.".startswith(f"{migration.old}."):
            current = migration.new + current.removeprefix(migration.old)
    return current if current != key else None


def _copied(values: Mapping[str, Any], depth: int = MAX_DEPTH) -> dict[str, Any]:
    """A copy whose sections can be changed."""
    return {
        key: _copied(value, depth - 1) if depth and isinstance(value, Mapping) else value
        for key, value in values.items()
    }


def _move(values: dict[str, Any], renamed: Renamed) -> None:
    """Move the value of a field or section in place, if there is one."""
    *old_path, old_name = renamed.old.split(".")
    *new_path, name = renamed.new.split(".")
    source = _section(values, old_path, create=False)
    if source is None or old_name not in source:
        return
    target = _section(values, new_path, create=True)
    if target is None:
        return
    if name in target:
        raise SpecError(f"{renamed.old} is called {renamed.new} now, and both are given: leave out {renamed.old}")
    target[name] = source.pop(old_name)
    _drop_if_empty(values, old_path)


def _section(values: dict[str, Any], path: Sequence[str], *, create: bool) -> dict[str, Any] | None:
    """The section at a path, None if there is none, or something else is there."""
    section = values
    for part in path:
        inner = section.setdefault(part, {}) if create else section.get(part)
        if not isinstance(inner, dict):
            return None
        section = inner
    return section


def _drop_if_empty(values: dict[str, Any], path: Sequence[str]) -> None:
    """Remove the section at a path, and those around it, if nothing is left in it: it may be a section no more."""
    for length in range(len(path), 0, -1):
        outer = _section(values, path[: length - 1], create=False)
        if outer is None or outer.get(path[length - 1]):
            return
        outer.pop(path[length - 1], None)
