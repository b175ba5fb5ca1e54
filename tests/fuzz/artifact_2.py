"""Artifacts that were written in version 2, every one of them; a damaged one may say that it is of another version."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.fuzz.artifact import contents, make_from, version_of
from tests.fuzz.mutate import Rng
from tests.fuzz.worker import Reader


@cache
def contents_2() -> list[bytes]:
    return [content for content in contents() if version_of(content) == 2]


def make(rng: Rng, folder: Path) -> Reader:
    return make_from(contents_2(), rng, folder)
