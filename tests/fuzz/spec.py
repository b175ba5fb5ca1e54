"""Specs: TOML files and `--set`."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from shared.spec import load_spec, preset_names, spec_to_dict, spec_to_toml
from tests.fuzz.mutate import NUMBERS, RAW, TEXTS, Rng, change, damage, hostile, misplace, places, to_text, to_toml
from tests.fuzz.worker import GOLDEN, Broken, Reader, command


@cache
def seeds() -> list[dict[str, Any]]:
    presets = [spec_to_dict(load_spec(name)) for name in preset_names()]
    return [tomllib.loads(path.read_text()) for path in sorted(GOLDEN.glob("*/spec.toml"))] + presets


def override(rng: Rng, values: dict[str, Any]) -> str:
    """A word for --set."""
    key = ".".join(str(part) for part in rng.choice(places(values)))
    if rng.random() < 0.1:
        key = rng.choice(("", ".", "a..b", "model.", key + ".x", key.upper(), *TEXTS))
    value = hostile(rng)
    text = RAW.get(value, value) if isinstance(value, str) else str(value)
    if rng.random() < 0.3:
        text = rng.choice(
            (
                str(rng.choice(NUMBERS)),
                "inf",
                "-inf",
                "nan",
                "true",
                "[]",
                "{}",
                "'x'",
                "1e400",
                "1 # x",
                "1\n[model]\nx=1",
            )
        )
    word = f"{key}{rng.choice(('=', '=', '=', ' = ', '', '=='))}{text}"
    # What no command line can carry: a NUL, and more than the system passes on.
    return word.replace("\x00", "")[:100_000]


def make(rng: Rng, folder: Path) -> Reader:
    values, path = rng.choice(seeds()), folder / "input.toml"
    how = rng.random()
    changed = change(rng, values) if how < 0.6 else values
    content = to_toml(changed)
    if 0.6 <= how < 0.7:
        content = damage(rng, content)
    elif 0.7 <= how < 0.72:
        content = to_text(
            rng.choice(
                (
                    'x = "@deep@"',
                    'x = "@deepest@"',
                    'x = "@huge@"',
                    "\ufeffname = 'x'",
                    "[a" + ".a" * 5000 + "]",
                    "a" + ".a" * 5000 + " = 1",
                )
            )
        )
    path.write_bytes(content)
    words = [str(path)]
    if how >= 0.98:
        misplace(rng, path)
    if how >= 0.72:
        words = [rng.choice((str(path), "tiny", "smoke", *preset_names()))]
        for _ in range(rng.choice((1, 1, 2))):
            words += ["--set", override(rng, values)]
        if rng.random() < 0.05:
            words[0] = rng.choice(TEXTS).replace("\x00", "") or "x"
    as_json = rng.random() < 0.2

    def read() -> None:
        shown = command(["spec", *words, *(["--json"] if as_json else [])])
        if as_json:
            json.loads(shown, parse_constant=_no_constant)
        spec = load_spec(words[0], words[2::2])
        again = folder / "again.toml"
        again.write_text(spec_to_toml(spec), encoding="utf-8")
        if load_spec(again) != spec:
            raise Broken("the spec that was written is another one when it is read")

    return read


def _no_constant(name: str) -> None:
    raise Broken(f"{name} in a JSON document")
