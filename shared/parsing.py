"""Text and tensors of files that anyone may have written: a value, or one ValueError that says why there is none.

The libraries underneath raise other errors too: for deep nesting, integers of thousands of digits, unknown dtypes.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # `bytetwin spec` parses text alone and need not wait for arrays.
    import numpy as np

# Far more than the 64 bits of TOML and of every number that bytetwin writes.
MAX_DIGITS = 40
# Objects and lists in each other. Whatever walks over values calls itself as often.
MAX_DEPTH = 64
TOO_DEEP = f"it is nested too deeply, at most {MAX_DEPTH} levels are allowed"


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8, with finite numbers and integers of at most MAX_DIGITS digits."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError or ValueError."""
    values = parse_json(path.read_bytes())
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text."""
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        # Python's words about the digits of an integer name a setting of Python.
        raise ValueError("it has an integer that is too long") from None
    _check_depth(table)
    return table


def parse_tensors(content: bytes) -> dict[str, np.ndarray]:
    """The tensors in the bytes of a safetensors file. NumPy lacks some of the format's dtypes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except SafetensorError as error:
        # The library quotes what it does not know, whatever that is.
        raise ValueError(ascii(str(error))[1:-1][:160]) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has tensors of a dtype that NumPy lacks ({ascii(str(error))[:80]})") from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"it has the number {text[:MAX_DIGITS]}, which is not finite")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
    if level:
        raise ValueError(TOO_DEEP)
