"""The `.btw` file: a model, its spec and nothing else, in as few bytes as possible.

Format, version 2. All integers are little-endian.

    offset  bytes
    0       8      magic 89 42 54 57 0D 0A 1A 0A ("\\x89BTW\\r\\n\\x1a\\n": text-mode copies break it)
    8       4      version, 2
    12      4      h, size of the header before compression, at most 1 MiB
    16      4      s, size of the header as stored, at most 1 MiB
    20      32     SHA-256 of the stored header
    52      s      header: one brotli stream
    52 + s  ...    payload: the sections, in the order of the header, nothing between or after them

The header is canonical JSON (sorted keys, no spaces, ASCII, every key once) of an object with

    spec      the resolved spec, every default written out
    spec_id   16 hex digits, shared.spec.spec_id of the program that wrote the file
    tensors   one object per parameter in manifest order: name, shape, class, quantiser, offsets. The quantiser has the
              settings that reading needs (`stored_settings` of shared.quantisers), none for a float32 tensor; they
              need not be those of the spec. Offsets, one for each part, are in bytes within the unpacked section
    sections  name, codec (brotli or range), raw_bytes, stored_bytes (a list, one size per block), sha256 of the
              stored bytes
    extra     any JSON object that the writer wants to add

A method stores some parts of each tensor, row_max `codes` and `scales` (shared.quantisers). Sections are `CLASS.PART`:
the first part of the classes matrix, embedding and head, then their second part, then `raw.values`; an empty one is
left out. Codes are int8, never packed tighter, because an entropy coder follows. Scales are float16, one per row.
`raw.values` holds float32 tensors. Items of 16 and 32 bits are stored as byte planes: first bytes of all items, then
second bytes. With the codec brotli a section is cut into blocks of 1 MiB, each one brotli stream; with range, which
only codes may have, it is one stream of shared.artifact.range_codec.

A reader trusts nothing. Shapes, offsets and section sizes must be what the spec implies through the parameter manifest
and the quantisers in the table, before a byte of payload is unpacked; the sizes must add up to the size of the file; a
payload may unpack to at most 64 times its size (or 64 MiB); a block that yields more than it stands for stops at once.
Everything is covered by a checksum, so any damaged byte is found. Every refusal is an ArtifactError of one line. There
is no time, path, machine or engine in the file: equal float32 weights and an equal spec give equal bytes.

A file may be older than the program that reads it. A field that its spec lacks is at its default, a field with
an old name is known to shared.spec.migrate, and an unknown field is refused. Its spec_id is for other programs,
because the definition may change: a reader computes its own. In version 1 the rows of the tensor table have other keys,
the spec says how a tensor is stored and the codec is brotli (shared.artifact.version_1).
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shared.artifact.codec import compress_blocks, decompress_bounded
from shared.artifact.header import Header, StoredSection, build_header, canonical_json, parse_header
from shared.artifact.layout import lay_out, pick_up, plan_layout
from shared.artifact.quantise import dequantise, quantise, storages_of
from shared.artifact.section_codec import compress_section, decompress_section
from shared.errors import ArtifactError
from shared.files import write_atomically
from shared.model.auxiliary import model_weights
from shared.model.initialise import with_neutral_logits
from shared.model.logits import check_logits, packed_parameters
from shared.quantisers import InputStatistics, QuantisedTensor
from shared.spec import ArtifactSpec, Spec, spec_id

MAGIC = b"\x89BTW\r\n\x1a\n"
VERSION = 2
READABLE_VERSIONS = (1, 2)
MAX_HEADER_BYTES = 1 << 20
PREFIX = struct.Struct("<8sIII32s")

# Small and part of every file, so always at the densest setting; 2^18 bytes cover most headers.
HEADER_QUALITY, HEADER_WINDOW = 11, 18


@dataclass(frozen=True)
class ArtifactInfo:
    """Facts of one artifact. `artifact_bytes` is the file size, what counts against the budget; `sha256` is
    of the whole file; `section_bytes` maps a section to its sizes before and after compression."""

    artifact_bytes: int
    header_bytes: int
    parameters: int
    section_bytes: dict[str, tuple[int, int]]
    spec_id: str
    sha256: str

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file, all included, per parameter."""
        return 8 * self.artifact_bytes / self.parameters


@dataclass(frozen=True)
class Artifact:
    """An artifact that was read: its spec, float32 weights and the parts behind them by name, facts, header."""

    spec: Spec
    weights: dict[str, NDArray[np.float32]]
    tensors: dict[str, QuantisedTensor]
    info: ArtifactInfo
    header: dict[str, Any]


def pack_bytes(
    spec: Spec,
    weights: Mapping[str, NDArray[np.float32]],
    extra: Mapping[str, Any] | None = None,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> bytes:
    """The artifact of float32 weights as bytes. Weights of training only are left out; `extra` is a JSON object kept in
    the header; `statistics` (shared.artifact.statistics) are read by the methods that need them.

    Raises ArtifactError if the weights are not those of the spec, not finite, or `extra` is not JSON.
    """
    return assemble(spec, quantise_model(spec, weights, statistics), extra)[0]


def write_artifact(
    path: str | Path,
    spec: Spec,
    weights: Mapping[str, NDArray[np.float32]],
    extra: Mapping[str, Any] | None = None,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> ArtifactInfo:
    """Pack weights into a file, atomically. Raises ArtifactError as `pack_bytes`, or if it cannot be written."""
    return write_tensors(path, spec, quantise_model(spec, weights, statistics), extra)


def write_tensors(
    path: str | Path, spec: Spec, tensors: Mapping[str, QuantisedTensor], extra: Mapping[str, Any] | None = None
) -> ArtifactInfo:
    """Write tensors that are quantised already, with whatever settings, as an artifact of the spec. Raises as
    `write_artifact`."""
    content, info = assemble(spec, tensors, extra)
    try:
        write_atomically(Path(path), content)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot write the artifact ({error.strerror or error})") from None
    return info


def read_artifact(path: str | Path) -> Artifact:
    """Read and check an artifact file. Raises ArtifactError, one line that starts with the path."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError("not a file")
        with path.open("rb") as stream:
            return _read(stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the artifact ({error.strerror or error})") from None
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {_one_line(error)}") from None


def unpack_bytes(content: bytes) -> Artifact:
    """Read and check an artifact in memory. Raises ArtifactError, one line."""
    try:
        return _read(io.BytesIO(content), len(content))
    except ArtifactError as error:
        raise ArtifactError(_one_line(error)) from None


def quantise_model(
    spec: Spec,
    weights: Mapping[str, NDArray[np.float32]],
    statistics: Mapping[str, InputStatistics] | None = None,
) -> dict[str, QuantisedTensor]:
    """The weights that an artifact holds, each as the spec says; logits that are not fitted yet change nothing. Raises
    ArtifactError if they are not those of the spec, or cannot be stored."""
    manifest, weights = packed_parameters(spec), with_neutral_logits(spec, model_weights(spec, weights))
    shapes = {parameter.name: parameter.shape for parameter in manifest}
    for name in [*shapes, *weights]:
        if name not in weights or name not in shapes:
            raise ArtifactError(f"tensor {name}: {'missing' if name in shapes else 'not a parameter of the spec'}")
        if weights[name].shape != shapes[name]:
            raise ArtifactError(f"tensor {name}: shape {weights[name].shape}, the spec implies {shapes[name]}")
    check_logits(weights)
    return quantise(weights, storages_of(manifest, spec.artifact), statistics, spec.artifact.lqer_tensors)


def assemble(
    spec: Spec,
    tensors: Mapping[str, QuantisedTensor],
    extra: Mapping[str, Any] | None = None,
    coding: ArtifactSpec | None = None,
) -> tuple[bytes, ArtifactInfo]:
    """The artifact of all tensors of a spec, and its facts; `coding` has another codec than the spec. Raises
    ArtifactError if it could not be read back."""
    layout = plan_layout(packed_parameters(spec), {name: tensor.storage for name, tensor in tensors.items()})
    raw = lay_out(layout, tensors)
    stored = {plan.name: compress_section(plan, raw[plan.name], coding or spec.artifact) for plan in layout.sections}
    header = build_header(spec, layout, stored, extra)
    raw_header = canonical_json(header.values).encode("ascii")
    if len(raw_header) > MAX_HEADER_BYTES:
        raise ArtifactError(f"header of {len(raw_header)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    parse_header(raw_header, VERSION)  # whatever a reader would refuse is refused here, before training time is lost
    stored_header = b"".join(compress_blocks(raw_header, HEADER_QUALITY, HEADER_WINDOW))
    prefix = PREFIX.pack(MAGIC, VERSION, len(raw_header), len(stored_header), hashlib.sha256(stored_header).digest())
    payload = [block for section in header.sections for block in stored[section.plan.name][1]]
    content = b"".join([prefix, stored_header, *payload])
    return content, _info(header, len(prefix) + len(stored_header), hashlib.sha256(content).hexdigest())


def _read(stream: BinaryIO, size: int) -> Artifact:
    prefix = stream.read(PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC[: len(prefix)]:
        raise ArtifactError("not a bytetwin artifact (wrong magic)")
    if len(prefix) < PREFIX.size:
        raise ArtifactError(f"truncated: {size} bytes, the fixed part alone has {PREFIX.size}")
    _, version, raw_bytes, stored_bytes, digest = PREFIX.unpack(prefix)
    if version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise ArtifactError(f"format version {version}, this program reads {readable}")
    for label, length in (("header", raw_bytes), ("stored header", stored_bytes)):
        if length > MAX_HEADER_BYTES:
            raise ArtifactError(f"{label} of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    stored_header = stream.read(stored_bytes)
    if len(stored_header) < stored_bytes:
        raise ArtifactError(f"truncated: the header needs {stored_bytes} bytes, {len(stored_header)} are left")
    if hashlib.sha256(stored_header).digest() != digest:
        raise ArtifactError("checksum of the header does not match: the file is damaged")
    with _naming("header"):
        raw_header = decompress_bounded(stored_header, raw_bytes)
    header = parse_header(raw_header, version)
    expected = PREFIX.size + stored_bytes + header.payload_bytes
    if size != expected:
        kind = "truncated" if size < expected else "trailing bytes"
        raise ArtifactError(f"{kind}: the file has {size} bytes, its header implies {expected}")
    file_hash = hashlib.sha256(prefix + stored_header)
    sections = {section.plan.name: _read_section(stream, section, file_hash) for section in header.sections}
    tensors = pick_up(header.layout, sections)
    weights = dequantise(tensors)
    check_logits(weights)
    info = _info(header, PREFIX.size + stored_bytes, file_hash.hexdigest())
    return Artifact(header.spec, weights, tensors, info, header.values)


def _read_section(stream: BinaryIO, section: StoredSection, file_hash: hashlib._Hash) -> bytes:
    """The unpacked bytes of a section; its checksum is compared before anything is unpacked."""
    name = section.plan.name
    stored = stream.read(sum(section.stored_bytes))
    if len(stored) < sum(section.stored_bytes):
        raise ArtifactError(f"truncated: section {name} ends after {len(stored)} bytes")
    if hashlib.sha256(stored).hexdigest() != section.sha256:
        raise ArtifactError(f"checksum of section {name} does not match: the file is damaged")
    file_hash.update(stored)
    borders = np.cumsum([0, *section.stored_bytes]).tolist()
    blocks = [stored[start:end] for start, end in pairwise(borders)]
    with _naming(f"section {name}"):
        return decompress_section(section.plan, section.codec, blocks)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Errors say of what they are."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{what}: {error}") from None


def _info(header: Header, header_bytes: int, sha256: str) -> ArtifactInfo:
    sections = {section.plan.name: (section.plan.raw_bytes, sum(section.stored_bytes)) for section in header.sections}
    return ArtifactInfo(
        header_bytes + header.payload_bytes,
        header_bytes,
        header.layout.parameters,
        sections,
        spec_id(header.spec),
        sha256,
    )


def _one_line(error: ArtifactError) -> str:
    """A message with parts of a hostile file, safe to print: one line, ASCII, at most 400 characters."""
    text = " ".join(str(error).encode("ascii", "backslashreplace").decode("ascii").split())
    return text if len(text) <= 400 else f"{text[:397]}..."
