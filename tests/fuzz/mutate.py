"""Hostile changes of bytes, of JSON and TOML, and of safetensors files, by a random generator."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

Rng = random.Random

# Stand for text that no writer of JSON or TOML makes; `to_text` puts it in.
RAW = {
    "@huge@": "9" * 5000,
    "@deep@": "[" * 3000 + "]" * 3000,
    "@deepest@": "[" * 200_000,
    "@open@": '{"a":' * 3000,
    "@1e999@": "1e999",
    "@-0@": "-0",
    "@nothing@": "",
}
NUMBERS = [0, -1, 1, 2, 3, 7, 127, 128, 255, 256, 2**16, 2**31, 2**32 + 3, 2**34, 2**53 + 1, 2**63, 2**64]
NUMBERS += [10**9, 10**18, -(10**18), 10**30]
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    *(" ", "", "x", "a\nb", "\x1b[31mred\x07", "\x00", "\u202e\u2028", "\ud800", "\ufeff", "\U0001f600" * 40),
    *("[bold]x[/]", "[/nope]", "%s{}%n", "../../etc/passwd", "/dev/null", ".", "..", "inf", "nan", "null"),
    *("a" * 300, "b" * 70_000, "0" * 64, "g" * 64),
)


def damage(rng: Rng, data: bytes) -> bytes:
    """Bytes after one to three accidents."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, other = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
        low, high = sorted((at, other))
        match rng.randrange(12):
            case 0 | 1 | 2 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 3 if at < len(content):
                content[at] = rng.choice((0, 10, 34, 45, 48, 57, 91, 93, 123, 125, 127, 128, 255))
            case 4:
                del content[at:]
            case 5:
                del content[low : min(high, low + rng.choice((1, 8, 512)))]
            case 6:
                content[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case 7:
                content[at:at] = content[low : min(high, low + 512)]
            case 8:
                content[low : low + 8] = struct.pack("<q", rng.choice((-1, 0, 1, 2**31, 2**40, 2**63 - 1)))
            case 9:
                content[low : min(high, low + 64)] = bytes(min(high, low + 64) - low)
            case 10:
                content[at:at] = rng.choice(
                    (b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\n", b"NaN", b"-Infinity", b"1e999")
                )
            case 11 if rng.random() < 0.2:
                content = bytearray(rng.choice((b"", b"\x00", b"null", b"[]", b"{}", b"\xff" * 64, b"\n" * 9)))
    return bytes(content)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value within nested dicts and lists, itself left out."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in children for found in ((*path, key), *places(child, (*path, key)))]


def value_at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def hostile(rng: Rng, old: Any = None) -> Any:
    """A value that may be anything; numbers stay numbers rather often."""
    if isinstance(old, bool) and rng.random() < 0.4:
        return not old
    if isinstance(old, int | float) and rng.random() < 0.4:
        return rng.choice((old + 1, old - 1, -old, old * 2, float(old), int(old) if abs(old) < 1e18 else 0, str(old)))
    return rng.choice(
        (
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(FLOATS),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(tuple(RAW)),
            lambda: rng.choice(([], {}, [[]], [0] * 2000, {"a": {"b": {}}}, [{}], True, False, None, [None], {"": 1})),
            lambda: copy.deepcopy([old, old]),
            lambda: {"value": copy.deepcopy(old)},
        )
    )()


def change(rng: Rng, values: Any, times: int | None = None) -> Any:
    """A copy of nested values in which one to three are replaced, removed, renamed, doubled or exchanged."""
    values = copy.deepcopy(values)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        paths = places(values)
        if not paths:
            return hostile(rng, values)
        path = rng.choice(paths)
        parent, key = value_at(values, path[:-1]), path[-1]
        match rng.randrange(10):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice((str(key) + "x", str(key).upper(), rng.choice(TEXTS)))] = parent.pop(key)
            case 1:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 2 if isinstance(parent, dict):
                parent[rng.choice(("extra", "__class__", "self", rng.choice(TEXTS)))] = hostile(rng)
            case 3:
                parent[key] = copy.deepcopy(value_at(values, rng.choice(paths)))
            case _:
                parent[key] = hostile(rng, parent[key])
    return values


def to_text(text: str) -> bytes:
    """The bytes of a JSON or TOML text, with what RAW stands for in its place."""
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


def to_json(values: Any, **options: Any) -> bytes:
    return to_text(json.dumps(values, **options))


def to_toml(values: dict[str, Any]) -> bytes:
    return to_text(tomli_w.dumps(_for_toml(values)))


def _for_toml(value: Any) -> Any:
    """TOML knows no null and no lone surrogate."""
    if isinstance(value, dict):
        return {str(key).encode("utf-8", "replace").decode(): _for_toml(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_for_toml(child) for child in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return "@nothing@" if value is None else value


def change_tensors(rng: Rng, content: bytes) -> bytes:
    """A safetensors file with another header, other values, or both."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    how = rng.random()
    if how < 0.5:
        name = rng.choice(list(header))
        if rng.random() < 0.5 and "dtype" in header[name]:
            header[name]["dtype"] = rng.choice(
                ("F64", "F16", "BF16", "I32", "I8", "BOOL", "U64", "F8_E4M3", "C64", "X", 3)
            )
            if rng.random() < 0.5 and header[name]["shape"]:
                header[name]["shape"][0] = rng.choice(
                    (0, 1, header[name]["shape"][0] // 2, header[name]["shape"][0] * 4)
                )
        else:
            header = change(rng, header, 1)
    if how > 0.4:
        at = 4 * rng.randrange(max(1, len(data) // 4))
        data[at : at + 4] = rng.choice(
            (b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xff\xff\x7f\x7f", rng.randbytes(4), b"")
        )
    text = to_json(header, separators=(",", ":"))
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def misplace(rng: Rng, path: Path) -> None:
    """Something else where a file was: nothing, a folder, a link to itself or elsewhere, a pipe."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    rng.choice(
        (
            lambda: None,
            path.mkdir,
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/dev/null"),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to("nowhere"),
            lambda: os.mkfifo(path),
            path.touch,
        )
    )()


def change_file(rng: Rng, path: Path, changed: Callable[[bytes], bytes]) -> None:
    path.write_bytes(changed(path.read_bytes()))
