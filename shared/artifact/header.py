"""The JSON header of a `.btw` file: built from a plan, and checked against the plan that its spec implies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from shared.artifact import version_1
from shared.artifact.layout import Layout, SectionPlan, plan_layout
from shared.artifact.quantise import storages_of
from shared.artifact.section_codec import allowed_codecs, stored_blocks
from shared.errors import ArtifactError, SpecError, problem_text
from shared.model.logits import packed_parameters
from shared.model.manifest import Parameter
from shared.quantisers import Float32, Storage, quantiser_of
from shared.spec import QuantiserSpec, Spec, spec_id, spec_to_dict, stored_spec
from shared.spec.artifact import Codec
from shared.spec.migrate import migrated

MAX_RAW_RATIO = 64
"""A payload may unpack to this many times its size: 1/8 bit per weight, far below any trained model."""

MIN_RAW_LIMIT_BYTES = 64 << 20
"""Payloads may unpack to this much whatever their size, for models that are mostly zeros as at the start."""

MAX_INTEGER_DIGITS = 18
"""Longest integer in a header, so that sizes made of them stay small numbers."""

SPEC_ID_PATTERN = re.compile(r"[0-9a-f]{16}")

_KEYS = ("extra", "sections", "spec", "spec_id", "tensors")


@dataclass(frozen=True)
class StoredSection:
    """A section as it lies in the file: the plan, the codec, the compressed size of each block, and the SHA-256 (hex)
    of the compressed bytes."""

    plan: SectionPlan
    codec: Codec
    stored_bytes: tuple[int, ...]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """The row of the header's table of sections."""
        sizes = {"raw_bytes": self.plan.raw_bytes, "stored_bytes": list(self.stored_bytes)}
        return {"name": self.plan.name, "codec": self.codec, **sizes, "sha256": self.sha256}


@dataclass(frozen=True)
class Header:
    """A checked header: the spec, the plan it implies, the sections in file order, the free `extra` part."""

    spec: Spec
    layout: Layout
    sections: tuple[StoredSection, ...]
    values: dict[str, Any]

    @property
    def payload_bytes(self) -> int:
        """Size of the compressed payload."""
        return sum(sum(section.stored_bytes) for section in self.sections)


def canonical_json(value: Any) -> str:
    """The one text of a value: sorted keys, no spaces, ASCII. ValueError or TypeError if it is not plain JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def build_header(
    spec: Spec, layout: Layout, stored: Mapping[str, tuple[Codec, Sequence[bytes]]], extra: Mapping[str, Any] | None
) -> Header:
    """The header of the codecs and blocks of all sections. Raises ArtifactError if `extra` is not plain JSON."""
    sections = []
    for plan in layout.sections:
        codec, blocks = stored[plan.name]
        sizes = tuple(len(block) for block in blocks)
        sections.append(StoredSection(plan, codec, sizes, hashlib.sha256(b"".join(blocks)).hexdigest()))
    return header_of(spec, layout, sections, extra)


def header_of(
    spec: Spec, layout: Layout, sections: Sequence[StoredSection], extra: Mapping[str, Any] | None = None
) -> Header:
    """The header of sections that are stored, or might be. Raises ArtifactError if `extra` is not plain JSON."""
    try:
        plain_extra = json.loads(canonical_json(dict(extra or {})))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"extra header values must be plain JSON: {error}") from None
    values = {
        "spec": spec_to_dict(spec),
        "spec_id": spec_id(spec),
        "tensors": [entry.to_json() for entry in layout.tensors],
        "sections": [section.to_json() for section in sections],
        "extra": plain_extra,
    }
    return Header(spec, layout, tuple(sections), values)


def parse_header(raw: bytes, version: int) -> Header:
    """The checked header of the JSON bytes of a container version. Raises ArtifactError for anything the writer would
    not write."""
    values = _parse_json(raw)
    _require_keys(values, _KEYS, "header")
    for key, kind in (("extra", dict), ("sections", list), ("spec", dict), ("spec_id", str), ("tensors", list)):
        if not isinstance(values[key], kind):
            raise ArtifactError(f"header key {key}: {_short(values[key])} must be of type {kind.__name__}")
    if not SPEC_ID_PATTERN.fullmatch(values["spec_id"]):
        raise ArtifactError(f"spec_id is {_short(values['spec_id'])}, must be 16 hex digits")
    spec = _parse_spec(values["spec"], len(values["tensors"]))
    layout = _parse_tensors(values["tensors"], spec, version)
    header = Header(spec, layout, _parse_sections(values["sections"], layout, version), values)
    limit = max(MIN_RAW_LIMIT_BYTES, MAX_RAW_RATIO * header.payload_bytes)
    if layout.raw_bytes > limit:
        sizes = f"{header.payload_bytes} bytes stands for {layout.raw_bytes} bytes of weights"
        raise ArtifactError(f"payload of {sizes}, the limit is {limit}")
    return header


def _parse_json(raw: bytes) -> dict[str, Any]:
    try:
        values = json.loads(raw.decode("ascii"), parse_int=_bounded_int)
        canonical = canonical_json(values).encode("ascii")
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArtifactError(f"header is not JSON: {reason}") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"header is a JSON {type(values).__name__}, must be an object")
    if canonical != raw:
        raise ArtifactError("header is not canonical JSON (sorted keys, each once, no spaces)")
    return values


def _bounded_int(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} characters, at most {MAX_INTEGER_DIGITS} digits are allowed")
    return int(digits)


def _parse_spec(values: dict[str, Any], num_tensors: int) -> Spec:
    """The validated spec. Refuses more layers than tensors before anything walks over the layers."""
    try:
        spec = stored_spec(values, origin="spec in the header")
    except SpecError as error:
        raise ArtifactError(str(error)) from None
    _check_written(migrated(values, complete=True), spec_to_dict(spec))
    for key, layers in (("model", spec.model.num_layers), ("model.decoder", spec.model.decoder.num_layers)):
        if layers > num_tensors:
            raise ArtifactError(f"spec {key}.num_layers = {layers}: the header lists {num_tensors} tensors")
    return spec


def _check_written(values: Mapping[str, Any], resolved: Mapping[str, Any], prefix: str = "") -> None:
    """Every value must be written as the writer would. A field that is missing is newer than the file."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_written(value, resolved[key], f"{prefix}{key}.")
        # As text, so that true and 1 do not pass for 1.0.
        elif canonical_json(value) != canonical_json(resolved[key]):
            raise ArtifactError(f"spec in the header: {prefix}{key} is {_short(value)}, must be {resolved[key]!r}")


def _parse_tensors(rows: list[Any], spec: Spec, version: int) -> Layout:
    """The layout that the table implies, in which every tensor of the spec has its row, in order."""
    manifest = packed_parameters(spec)
    if len(rows) != len(manifest):
        raise ArtifactError(f"header lists {len(rows)} tensors, the spec implies {len(manifest)}")
    of_spec = storages_of(manifest, spec.artifact)
    if version == 1:
        layout = plan_layout(manifest, of_spec)
        for index, (row, entry) in enumerate(zip(rows, layout.tensors, strict=True)):
            expected = version_1.table_row(entry)
            _check_row(version_1.with_method(row, expected), expected, index)
        return layout
    storages = {
        parameter.name: _parse_storage(row, parameter, index)
        for index, (row, parameter) in enumerate(zip(rows, manifest, strict=True))
    }
    layout = plan_layout(manifest, storages)
    for index, (row, entry) in enumerate(zip(rows, layout.tensors, strict=True)):
        _check_row(row, entry.to_json(), index)
    return layout


def _parse_storage(row: Any, parameter: Parameter, index: int) -> Storage:
    """The storage that a row names. Of the settings only those that reading needs may be given."""
    where = f"tensor table row {index} ({parameter.name})"
    settings = row.get("quantiser") if isinstance(row, dict) else None
    if not isinstance(settings, dict):
        raise ArtifactError(f"{where}: {_short(row)} must be an object with a quantiser")
    if not settings:
        return Float32()
    if parameter.quantisation == "control" or len(parameter.shape) < 2:
        raise ArtifactError(f"{where}: quantiser is {_short(settings)}, a tensor of this kind has none")
    try:
        return quantiser_of(QuantiserSpec.model_validate(settings), parameter.shape)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ArtifactError(f"{where}: quantiser {_short(key)}: {problem_text(problem['msg'])}") from None


def _check_row(row: Any, expected: dict[str, Any], index: int) -> None:
    """A row of the tensor table must say what the writer would."""
    where = f"tensor table row {index} ({expected['name']})"
    _require_keys(row, expected, where)
    for key, value in expected.items():
        # As text, so that true and 1.0 do not pass for 1.
        if canonical_json(row[key]) != canonical_json(value):
            raise ArtifactError(f"{where}: {key} is {_short(row[key])}, must be {_short(value)}")


def _parse_sections(rows: list[Any], layout: Layout, version: int) -> tuple[StoredSection, ...]:
    if len(rows) != len(layout.sections):
        raise ArtifactError(f"header lists {len(rows)} sections, the spec implies {len(layout.sections)}")
    sections = []
    for row, plan in zip(rows, layout.sections, strict=True):
        where = f"section {plan.name}"
        _require_keys(row, version_1.SECTION_KEYS if version == 1 else (*version_1.SECTION_KEYS, "codec"), where)
        if row["name"] != plan.name:
            raise ArtifactError(f"{where}: the header names it {_short(row['name'])}")
        if type(row["raw_bytes"]) is not int or row["raw_bytes"] != plan.raw_bytes:
            raise ArtifactError(f"{where}: raw_bytes is {_short(row['raw_bytes'])}, its tensors take {plan.raw_bytes}")
        named = row.get("codec", "brotli")
        codec = next((known for known in allowed_codecs(plan) if known == named), None)
        if codec is None:
            allowed = " or ".join(allowed_codecs(plan))
            raise ArtifactError(f"{where}: codec is {_short(named)}, must be {allowed}")
        stored = row["stored_bytes"]
        if not isinstance(stored, list) or not all(type(size) is int and size > 0 for size in stored):
            raise ArtifactError(f"{where}: stored_bytes is {_short(stored)}, must be a list of positive integers")
        # A plan may claim any size, so the number of blocks is compared before a list of them is made.
        if len(stored) != stored_blocks(plan, codec):
            raise ArtifactError(f"{where}: has {len(stored)} blocks, its size implies {stored_blocks(plan, codec)}")
        if not isinstance(row["sha256"], str) or len(row["sha256"]) != 64:
            raise ArtifactError(f"{where}: sha256 is {_short(row['sha256'])}, must be 64 hex digits")
        sections.append(StoredSection(plan, codec, tuple(stored), row["sha256"]))
    return tuple(sections)


def _require_keys(row: Any, keys: Sequence[str] | Mapping[str, Any], where: str) -> None:
    if not isinstance(row, dict):
        raise ArtifactError(f"{where}: {_short(row)} must be an object")
    if row.keys() != set(keys):
        raise ArtifactError(f"{where}: keys are {_short(sorted(row))}, must be {', '.join(sorted(keys))}")


def _short(value: Any) -> str:
    """A value for a one-line message: its Python form, cut to 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
