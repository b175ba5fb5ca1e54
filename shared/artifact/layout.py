"""Where every byte of the payload lies: a pure function of the parameter manifest and the spec.

The writer follows this plan and the reader recomputes it, so a file cannot say anything about offsets,
sizes or overlaps that the spec does not already imply; the table in the header is checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.artifact.quantise import RAW_BITS, QuantisedTensor, code_limit, stored_bits
from shared.errors import ArtifactError
from shared.model.manifest import Parameter, QuantisationClass
from shared.spec import ArtifactSpec

RAW_SECTION = "raw.values"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: its data at `offset_bytes` of its section, its scales at `scale_offset_bytes` of theirs."""

    name: str
    shape: tuple[int, ...]
    quantisation: QuantisationClass
    bits: int
    offset_bytes: int
    scale_offset_bytes: int

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of scales; 0 for a tensor stored in float32."""
        return 0 if self.bits == RAW_BITS else math.prod(self.shape[:-1])

    @property
    def section(self) -> str:
        """Section of the codes or float32 values."""
        return RAW_SECTION if self.bits == RAW_BITS else f"{self.quantisation}.codes"

    @property
    def scale_section(self) -> str:
        """Section of the scales; meaningless when there are none."""
        return f"{self.quantisation}.scales"

    def to_json(self) -> dict[str, Any]:
        """The row of the header's tensor table."""
        row: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "class": self.quantisation,
            "bits": self.bits,
            "offset": self.offset_bytes,
        }
        return row if self.bits == RAW_BITS else {**row, "scale_offset": self.scale_offset_bytes}


@dataclass(frozen=True)
class SectionPlan:
    """A run of equal items: int8 codes, float16 scales or float32 values; its size before compression."""

    name: str
    item_bytes: int
    raw_bytes: int


@dataclass(frozen=True)
class Layout:
    """The payload plan: tensors in manifest order; sections that are not empty, in file order."""

    tensors: tuple[TensorEntry, ...]
    sections: tuple[SectionPlan, ...]

    @property
    def raw_bytes(self) -> int:
        """Payload size before compression."""
        return sum(section.raw_bytes for section in self.sections)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(entry.count for entry in self.tensors)


def plan_layout(manifest: Iterable[Parameter], spec: ArtifactSpec) -> Layout:
    """Place the tensors of a manifest one after the other within the sections of their classes."""
    item_bytes = {
        **{f"{kind}.codes": 1 for kind in ("matrix", "embedding", "head")},
        **{f"{kind}.scales": 2 for kind in ("matrix", "embedding", "head")},
        RAW_SECTION: 4,
    }
    used = dict.fromkeys(item_bytes, 0)
    entries = []
    for parameter in manifest:
        bits = stored_bits(parameter.quantisation, len(parameter.shape), spec)
        entry = TensorEntry(parameter.name, parameter.shape, parameter.quantisation, bits, 0, 0)
        scale_offset = used[entry.scale_section] if entry.rows else 0
        entry = TensorEntry(entry.name, entry.shape, entry.quantisation, entry.bits, used[entry.section], scale_offset)
        used[entry.section] += entry.count * item_bytes[entry.section]
        if entry.rows:
            used[entry.scale_section] += entry.rows * item_bytes[entry.scale_section]
        entries.append(entry)
    sections = tuple(SectionPlan(name, item_bytes[name], size) for name, size in used.items() if size)
    return Layout(tuple(entries), sections)


def lay_out(layout: Layout, tensors: Mapping[str, QuantisedTensor]) -> dict[str, bytes]:
    """The raw bytes of every section, little-endian, 16 and 32-bit items as byte planes."""
    parts: dict[str, list[bytes]] = {section.name: [] for section in layout.sections}
    for entry in layout.tensors:
        tensor = tensors[entry.name]
        if entry.bits == RAW_BITS:
            parts[entry.section].append(tensor.data.astype("<f4").tobytes())
        else:
            parts[entry.section].append(tensor.data.tobytes())
            parts[entry.scale_section].append(tensor.scales.astype("<f2").tobytes())
    return {
        section.name: to_byte_planes(b"".join(parts[section.name]), section.item_bytes) for section in layout.sections
    }


def pick_up(layout: Layout, sections: Mapping[str, bytes]) -> dict[str, QuantisedTensor]:
    """The tensors out of raw sections whose sizes are those of the plan, in manifest order.

    Raises ArtifactError for a code out of range, a bad scale or a value that is not finite: no honest
    writer makes these, and a model must never run on them.
    """
    plain = {plan.name: from_byte_planes(sections[plan.name], plan.item_bytes) for plan in layout.sections}
    tensors = {}
    for entry in layout.tensors:
        if entry.bits == RAW_BITS:
            data = np.frombuffer(plain[entry.section], "<f4", entry.count, entry.offset_bytes).reshape(entry.shape)
            scales = np.empty(0, np.float16)
            honest = bool(np.isfinite(data).all())
        else:
            data = np.frombuffer(plain[entry.section], np.int8, entry.count, entry.offset_bytes).reshape(entry.shape)
            scales = np.frombuffer(plain[entry.scale_section], "<f2", entry.rows, entry.scale_offset_bytes)
            qmax = code_limit(entry.bits)
            in_range = data.min(initial=0) >= -qmax and data.max(initial=0) <= qmax
            honest = bool(in_range and np.isfinite(scales).all() and (scales >= 0).all())
        if not honest:
            raise ArtifactError(f"tensor {entry.name}: holds values that int{entry.bits} weights cannot have")
        tensors[entry.name] = QuantisedTensor(entry.quantisation, entry.bits, data, scales)
    return tensors


def to_byte_planes(raw: bytes, item_bytes: int) -> bytes:
    """First bytes of all items, then second bytes and so on: the exponents end up together and compress."""
    if item_bytes == 1:
        return raw
    return np.frombuffer(raw, np.uint8).reshape(-1, item_bytes).T.tobytes()


def from_byte_planes(planes: bytes, item_bytes: int) -> bytes:
    """Inverse of `to_byte_planes`."""
    if item_bytes == 1:
        return planes
    return np.frombuffer(planes, np.uint8).reshape(item_bytes, -1).T.tobytes()
