"""Measured speeds and scores, and scaling fits of shapes that were measured: `measured.toml`, which code reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

from shared.engine.flops import training_flops
from shared.model import parameter_counts
from shared.parsing import parse_toml
from shared.spec import Spec, load_spec

FILE = "measured.toml"


@dataclass(frozen=True)
class MeasuredRow:
    """One run or benchmark. `settings` are those changed in `preset`; `per_s` symbols trained on per second and GPU;
    `seconds` of training, `bpb` bits per byte on `text` afterwards: None where it is a speed alone. `mfu`: share of the
    device's peak, None on a CPU. `record` is the page with the figures."""

    label: str
    device: str
    engine: str
    preset: str
    settings: tuple[str, ...]
    date: str
    record: str
    per_s: float
    mfu: float | None = None
    gpus: int = 1
    seconds: float = 0.0
    bpb: float | None = None
    text: str = ""
    seeds: int = 1
    bytes_per_symbol: float = 1.0

    @cached_property
    def spec(self) -> Spec:
        """The spec that was trained."""
        return load_spec(self.preset, self.settings)

    @cached_property
    def flops_per_symbol(self) -> float:
        """Operations for a symbol, forward and backward."""
        return training_flops(self.spec).per_symbol

    @cached_property
    def parameters(self) -> int:
        """All of the model."""
        return parameter_counts(self.spec)["total"]

    @property
    def text_bytes(self) -> float:
        """Bytes of text that were trained on."""
        return self.per_s * self.gpus * self.seconds * self.bytes_per_symbol

    @property
    def shape(self) -> tuple[str, ...]:
        """What rows of one curve share, batch included."""
        return (self.preset, *self.settings)


@lru_cache(maxsize=1)
def measured_rows() -> tuple[MeasuredRow, ...]:
    """The rows of the file, in its order."""
    values = parse_toml((resources.files("shared.runs") / FILE).read_text(encoding="utf-8"))
    return tuple(row for series in values["series"] for row in _rows(series))


def _rows(series: dict[str, Any]) -> list[MeasuredRow]:
    common = {key: value for key, value in series.items() if key not in ("rows", "set")}
    return [
        MeasuredRow(
            **common,
            **{key: value for key, value in row.items() if key != "set"},
            settings=(*series.get("set", ()), *row.get("set", ())),
        )
        for row in series["rows"]
    ]
