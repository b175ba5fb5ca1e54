"""Damaged and lying `.btw` files: always one ArtifactError of one line, in bounded memory."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import brotli
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.artifact import header as header_module
from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.codec import decompress_bounded, num_blocks
from shared.artifact.container import MAGIC, MAX_HEADER_BYTES, PREFIX, VERSION
from shared.artifact.header import build_header, canonical_json
from shared.artifact.layout import plan_layout
from shared.artifact.quantise import storages_of
from shared.errors import ArtifactError, SpecError
from shared.model import parameter_manifest, random_weights
from shared.spec import load_spec, spec_from_dict, spec_id, spec_to_dict

SPEC = load_spec("tiny", ["artifact.brotli_quality=1"])
GOOD = pack_bytes(SPEC, random_weights(SPEC, 2), {"note": "honest"})
_, _, RAW_HEADER_BYTES, STORED_HEADER_BYTES, _ = PREFIX.unpack(GOOD[: PREFIX.size])
PAYLOAD_AT = PREFIX.size + STORED_HEADER_BYTES
HEADER: dict[str, Any] = json.loads(brotli.decompress(GOOD[PREFIX.size : PAYLOAD_AT]))
PAYLOAD = GOOD[PAYLOAD_AT:]
READ_LIMIT_BYTES = 16 << 20  # an honest read of this file needs about 1 MB


def forge(header: bytes | dict[str, Any], payload: bytes = PAYLOAD, raw_bytes: int | None = None) -> bytes:
    """A file with this header, its checksum and sizes right."""
    raw = canonical_json(header).encode() if isinstance(header, dict) else header
    stored = brotli.compress(raw, quality=1)
    size = len(raw) if raw_bytes is None else raw_bytes
    return PREFIX.pack(MAGIC, VERSION, size, len(stored), hashlib.sha256(stored).digest()) + stored + payload


def with_section(name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The good file with the raw bytes of one section changed and everything else made to agree."""
    header, payload, start = copy.deepcopy(HEADER), b"", 0
    for row in header["sections"]:
        assert len(row["stored_bytes"]) == 1
        stored = PAYLOAD[start : start + row["stored_bytes"][0]]
        start += row["stored_bytes"][0]
        if row["name"] == name:
            stored = brotli.compress(change(brotli.decompress(stored)), quality=1)
            row["stored_bytes"], row["sha256"] = [len(stored)], hashlib.sha256(stored).hexdigest()
        payload += stored
    return forge(header, payload)


def assert_refused(content: bytes, match: str = "") -> None:
    """One ArtifactError, one printable line, without much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=match) as caught:
            unpack_bytes(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.isascii() and message.isprintable() and len(message) <= 400
    assert peak < READ_LIMIT_BYTES, f"{peak} bytes"


def test_the_forger_itself_is_honest():
    unchanged = unpack_bytes(forge(HEADER)), unpack_bytes(with_section("matrix.codes", lambda raw: raw))
    for artifact in unchanged:
        for name, weight in unpack_bytes(GOOD).weights.items():
            assert artifact.weights[name].tobytes() == weight.tobytes()


def flipped(position: int, flip: int) -> bytes:
    damaged = bytearray(GOOD)
    damaged[position] ^= flip
    return bytes(damaged)


def inserted(position: int, more: bytes) -> bytes:
    return GOOD[:position] + more + GOOD[position:]


@given(
    st.builds(flipped, st.integers(0, len(GOOD) - 1), st.integers(1, 255))
    | st.builds(inserted, st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=40))
    | st.binary(max_size=200).flatmap(lambda tail: st.sampled_from([tail, MAGIC + tail]))
)
@settings(max_examples=600)
def test_any_change_and_any_other_bytes_are_refused(content: bytes):
    with pytest.raises(ArtifactError):
        unpack_bytes(content)


def test_every_changed_byte_of_the_fixed_part_is_found():
    for position in range(PREFIX.size):
        for flip in (1, 128, 255):
            with pytest.raises(ArtifactError):
                unpack_bytes(flipped(position, flip))


@given(size=st.integers(0, len(GOOD) - 1))
@settings(max_examples=100)
def test_any_truncation_is_found(size: int):
    with pytest.raises(ArtifactError, match="truncated"):
        unpack_bytes(GOOD[:size])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated: 0 bytes"),
        (b"PK\x03\x04" + GOOD[4:], "wrong magic"),
        (GOOD.replace(b"\r\n", b"\n", 1), "wrong magic"),
        (GOOD[:8] + struct.pack("<I", 3) + GOOD[12:], "format version 3, this program reads 1 and 2"),
        (GOOD[:12] + struct.pack("<I", 2**32 - 1) + GOOD[16:], "header of 4294967295 bytes, at most 1048576"),
        (GOOD[:16] + struct.pack("<I", 2**32 - 1) + GOOD[20:], "stored header of 4294967295 bytes, at most"),
        (GOOD[:16] + struct.pack("<I", 1 << 20) + GOOD[20:], "truncated: the header needs 1048576 bytes"),
        (GOOD[: PREFIX.size], "truncated: the header needs"),
        (GOOD + b"\0", "trailing bytes: the file has"),
        (GOOD[:-1], "truncated: the file has"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), r"checksum of section raw\.values does not match"),
        (GOOD[:60] + b"?" + GOOD[61:], "checksum of the header does not match"),
        (forge(HEADER, raw_bytes=RAW_HEADER_BYTES - 1), "header: brotli stream unpacks to more than"),
        (forge(HEADER, raw_bytes=RAW_HEADER_BYTES + 1), r"header: brotli stream unpacks to \d+ bytes, not"),
        (forge(b""), "header is not JSON"),
        (forge(b"{"), "header is not JSON"),
        (forge(b"\xff\xfe"), "header is not JSON"),
        (forge(b"[" * 500_000), "header is not JSON: nested too deeply"),
        (forge(b'{"x":' + b"9" * 5000 + b"}"), "header is not JSON: an integer of 5000 characters"),
        (forge(b'{"x":1e999}'), "header is not JSON"),
        (forge(b'{"x":NaN}'), "header is not JSON"),
        (forge(b"[]"), "header is a JSON list, must be an object"),
        (forge(b"null"), "header is a JSON NoneType, must be an object"),
        (forge(b"{}"), "header: keys are "),
        (forge(json.dumps(HEADER).encode()), "not canonical"),
        (forge(canonical_json(HEADER).replace('"spec_id"', '"extra":{},"spec_id"').encode()), "not canonical"),
        (forge(HEADER, PAYLOAD[:-10]), "truncated: the file has"),
        (forge(HEADER, PAYLOAD + PAYLOAD), "trailing bytes"),
    ],
)
def test_a_damaged_frame_is_one_clear_line(content: bytes, match: str):
    assert_refused(content, match)


def _lie(path: list[Any], value: Any) -> dict[str, Any]:
    """The header with one value replaced; `path` leads to it."""
    header = copy.deepcopy(HEADER)
    target = header
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return header


def _other_spec(**model: Any) -> dict[str, Any]:
    values = spec_to_dict(SPEC)
    # The rest of a section follows from its shapes.
    shapes = {name: value for name, value in values["model"].items() if name != "attention"}
    spec = spec_from_dict({**values, "model": {**shapes, **model}})
    return {**HEADER, "spec": spec_to_dict(spec), "spec_id": spec_id(spec)}


LIES: list[tuple[dict[str, Any], str]] = [
    (_lie(["extra"], [1]), r"header key extra: \[1\] must be of type dict"),
    (_lie(["tensors"], {}), "header key tensors: {} must be of type list"),
    (_lie(["spec"], "tiny"), "header key spec: 'tiny' must be of type dict"),
    (_lie(["spec_id"], 7), "header key spec_id: 7 must be of type str"),
    (_lie(["surprise"], 7), "header: keys are "),
    (_lie(["spec_id"], "0" * 15), "spec_id is '000000000000000', must be 16 hex digits"),
    (_lie(["spec", "model", "head_dim"], 7), r"spec in the header: .*head_dim = 7"),
    (_lie(["spec", "model", "wings"], 2), "spec in the header: unknown key model.wings"),
    (_lie(["spec", "model"], None), "spec in the header"),
    (_lie(["spec", "budget", "wings"], 2), "spec in the header: unknown key budget.wings"),
    (_lie(["spec", "model", "rope_base"], 10000), "spec in the header: model.rope_base is 10000, must be 10000.0"),
    (_lie(["spec", "model", "lora", "alpha"], 16), "spec in the header: model.lora.alpha is 16, must be 16.0"),
    (_other_spec(mlp_dim=64), "mlp.up_proj.weight.: shape"),
    (_other_spec(num_layers=4), "header lists 47 tensors, the spec implies 58"),
    (_other_spec(num_layers=1000), "num_layers = 1000: the header lists 47 tensors"),
    (
        _lie(["spec", "model", "num_layers"], 10**9),
        "num_layers = 1000000000: must be less than or equal to 4096",
    ),
    (_lie(["spec", "model", "seq_len"], 2**34), "seq_len = 17179869184: must be less than or equal to 1048576"),
    (_lie(["tensors", 0], 3), "must be an object"),
    (_lie(["tensors", 0], {"name": "x"}), "must be an object with a quantiser"),
    (_lie(["tensors", 0], {"name": "x", "quantiser": {}}), "keys are"),
    (_lie(["tensors", 2, "name"], "embed.weight"), "row 2 .*: name is 'embed.weight'"),
    (_lie(["tensors", 2, "name"], "bad\n\x1b[31m\ud800"), "row 2 .*: name is "),
    (_lie(["tensors", 2, "shape"], [-32, 128]), r"shape is \[-32, 128\], must be \[32, 128\]"),
    (_lie(["tensors", 2, "shape"], [10**11, 128]), "shape is"),
    (_lie(["tensors", 2, "shape"], [32.0, 128]), "shape is"),
    (_lie(["tensors", 2, "shape"], [128, 32]), "shape is"),
    (_lie(["tensors", 2, "shape"], None), "shape is None"),
    (_lie(["tensors", 2, "class"], "control"), "class is 'control', must be 'matrix'"),
    (_lie(["tensors", 2, "quantiser"], {}), "offset"),
    (_lie(["tensors", 2, "quantiser", "bits"], 9), r"row 2 .*: quantiser 'bits': must be 4, 5, 6, 7 or 8"),
    (_lie(["tensors", 2, "quantiser", "bits"], True), "quantiser 'bits'"),
    (_lie(["tensors", 2, "quantiser", "bits"], None), "quantiser 'bits'"),
    (_lie(["tensors", 2, "quantiser", "method"], "float32"), "quantiser 'method'"),
    (_lie(["tensors", 2, "quantiser", "wings"], 2), "quantiser 'wings': extra inputs are not permitted"),
    (_lie(["tensors", 2, "quantiser", "step"], 0.5), "quantiser is .*, must be "),
    (_lie(["tensors", 2, "quantiser", "trellis"], 8), "quantiser is .*, must be "),
    (_lie(["tensors", 2, "quantiser", "trellis"], 5), "quantiser 'trellis': must be 0, 4 or 8"),
    (_lie(["tensors", 2, "quantiser"], {"method": "row_max"}), "quantiser is .*, must be "),
    (_lie(["tensors", -1, "quantiser"], {"method": "row_max", "bits": 8}), "a tensor of this kind has none"),
    (_lie(["spec", "artifact", "matrix", "method"], "magic"), r"artifact\.matrix\.method = 'magic'"),
    (_lie(["tensors", 3, "offsets"], [0, 64]), r"offsets is \[0, 64\], must be \[4096, 64\]"),
    (_lie(["tensors", 3, "offsets"], [-1, 64]), r"offsets is \[-1, 64\]"),
    (_lie(["tensors", 3, "offsets"], [10**11, 64]), r"offsets is \[100000000000, 64\]"),
    (_lie(["tensors", 3, "offsets"], [4096]), r"offsets is \[4096\]"),
    (_lie(["tensors"], HEADER["tensors"][:-1]), "header lists 46 tensors, the spec implies 47"),
    (_lie(["tensors"], [*HEADER["tensors"], HEADER["tensors"][-1]]), "header lists 48 tensors, the spec implies 47"),
    (_lie(["sections"], HEADER["sections"][1:]), "header lists 4 sections, the spec implies 5"),
    (_lie(["sections", 0], []), "must be an object"),
    (_lie(["sections", 0, "name"], "head.codes"), "section matrix.codes: the header names it 'head.codes'"),
    (_lie(["sections", 0, "raw_bytes"], 10**11), "raw_bytes is 100000000000, its tensors take 35840"),
    (_lie(["sections", 0, "raw_bytes"], -1), "raw_bytes is -1"),
    (_lie(["sections", 0, "stored_bytes"], [10**11]), "truncated: the file has"),
    (_lie(["sections", 0, "stored_bytes"], [-5]), "must be a list of positive integers"),
    (_lie(["sections", 0, "stored_bytes"], [True]), "must be a list of positive integers"),
    (_lie(["sections", 0, "stored_bytes"], 5), "must be a list of positive integers"),
    (_lie(["sections", 0, "stored_bytes"], [5, 5]), "has 2 blocks, its size implies 1"),
    (_lie(["sections", 0, "stored_bytes"], []), "has 0 blocks"),
    (_lie(["sections", 0, "sha256"], "f" * 64), "checksum of section matrix.codes does not match"),
    (_lie(["sections", 0, "sha256"], 5), "sha256 is 5, must be 64 hex digits"),
]


@pytest.mark.parametrize(("header", "match"), LIES, ids=[match[:40] for _, match in LIES])
def test_a_lying_header_is_one_clear_line(header: dict[str, Any], match: str):
    assert_refused(forge(header), match)


def test_a_consistent_file_that_claims_terabytes_is_refused_before_anything_is_allocated():
    spec = load_spec("tiny", ["model.model_dim=131072", "model.num_layers=2"])
    layout = plan_layout(parameter_manifest(spec), storages_of(parameter_manifest(spec), spec.artifact))
    assert layout.raw_bytes > 10**11
    stored = {plan.name: ("brotli", [b"x"] * num_blocks(plan.raw_bytes)) for plan in layout.sections}
    header = build_header(spec, layout, stored, None)
    content = forge(header.values, b"x" * header.payload_bytes)
    assert len(canonical_json(header.values)) < MAX_HEADER_BYTES
    assert_refused(content, rf"stands for {layout.raw_bytes} bytes of weights, the limit is")


def test_large_models_are_held_to_the_size_of_their_payload(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(header_module, "MIN_RAW_LIMIT_BYTES", 0)
    assert unpack_bytes(GOOD).weights
    monkeypatch.setattr(header_module, "MAX_RAW_RATIO", 1)
    assert_refused(GOOD, r"bytes of weights, the limit is")


@pytest.mark.parametrize("dim", [10**9, 10**15])
def test_widths_beyond_reason_are_refused(dim: int):
    at_most = "must be less than or equal to 1048576"
    assert_refused(forge(_other_spec(model_dim=2**18, head_dim=2)), r"shape is \[256, 32\], must be")
    assert_refused(forge(_lie(["spec", "model", "model_dim"], dim)), f"model_dim = {dim}: {at_most}")


BOMB = brotli.compress(bytes(256 << 20), quality=1)


def test_a_bomb_in_a_section_stops_at_once():
    header = copy.deepcopy(HEADER)
    row = header["sections"][0]
    payload = BOMB + PAYLOAD[row["stored_bytes"][0] :]
    row["stored_bytes"], row["sha256"] = [len(BOMB)], hashlib.sha256(BOMB).hexdigest()
    assert_refused(forge(header, payload), "section matrix.codes: brotli stream unpacks to more than the 35840 bytes")


def test_a_bomb_in_the_header_stops_at_once():
    prefix = PREFIX.pack(MAGIC, VERSION, 1000, len(BOMB), hashlib.sha256(BOMB).digest())
    assert_refused(prefix + BOMB, "header: brotli stream unpacks to more than the 1000 bytes")


@pytest.mark.parametrize(
    ("section", "change", "match"),
    [
        ("matrix.codes", lambda raw: b"\x20" + raw[1:], r"tensor embed\.patch_proj\.weight: .* int6"),
        ("matrix.codes", lambda raw: b"\x80" + raw[1:], r"tensor embed\.patch_proj\.weight: .* int6"),
        ("embedding.codes", lambda raw: b"\x80" + raw[1:], r"tensor embed\.weight: .* int8"),
        ("matrix.scales", lambda raw: raw[:-1] + b"\x7e", "tensor decoder"),
        ("matrix.scales", lambda raw: raw[:-1] + b"\xbc", "tensor decoder"),
        ("raw.values", lambda raw: raw[: len(raw) // 2] + b"\xff" * (len(raw) - len(raw) // 2), "int32|tensor"),
        ("matrix.codes", lambda raw: raw[:-1], "section matrix.codes: brotli stream unpacks to 35839 bytes, not 35840"),
        ("matrix.codes", lambda raw: raw + b"\0", "section matrix.codes: brotli stream unpacks to more than"),
    ],
)
def test_values_that_no_writer_makes_are_refused(section: str, change: Callable[[bytes], bytes], match: str):
    assert_refused(with_section(section, change), match)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, child in children for deeper in _paths(child, (*path, key)))]


PATHS = [path for path in _paths(HEADER) if path]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@given(path=st.sampled_from(PATHS), value=JSON_VALUES)
@settings(max_examples=300)
def test_any_changed_header_value_is_refused_or_changes_no_weight(path: tuple[Any, ...], value: Any):
    lie = _lie(list(path), value)
    assume(json.dumps(lie) != json.dumps(HEADER))
    try:
        artifact = unpack_bytes(forge(lie))
    except ArtifactError:
        return
    # Notes, an id that no reader looks at, and another spec that has the same tensors.
    assert path[0] in ("extra", "spec_id", "spec"), path
    assert artifact.info.spec_id == spec_id(artifact.spec)
    if path[0] == "spec" and not isinstance(value, dict):
        assert canonical_json(_at(spec_to_dict(artifact.spec), path[1:])) == canonical_json(value)
    for name, weight in unpack_bytes(GOOD).weights.items():
        assert np.array_equal(artifact.weights[name], weight)


@given(data=st.binary(max_size=300), raw_bytes=st.integers(0, 400))
@settings(max_examples=100)
def test_bounded_decompression_gives_the_data_or_an_error(data: bytes, raw_bytes: int):
    stored = brotli.compress(data, quality=1)
    if raw_bytes == len(data):
        assert decompress_bounded(stored, raw_bytes) == data
    else:
        with pytest.raises(ArtifactError):
            decompress_bounded(stored, raw_bytes)
    with pytest.raises(ArtifactError):
        decompress_bounded(stored + b"\0", len(data))
    with pytest.raises(ArtifactError):
        decompress_bounded(stored[:-1], len(data))


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        values = values[part]
    return values


def _without(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """A spec without one of its sections or fields."""
    shorter = copy.deepcopy(values)
    del _at(shorter, path[:-1])[path[-1]]
    return shorter


SPEC_PATHS = [path[1:] for path in PATHS if path[0] == "spec" and path[1:] and isinstance(path[-1], str)]


@pytest.mark.slow
@pytest.mark.parametrize("path", SPEC_PATHS, ids=".".join)
def test_a_file_from_before_a_field_existed_is_the_same_function(path: tuple[str, ...]):
    """A field that a file lacks is at its default. One without a default is missed."""
    values = _without(HEADER["spec"], path)
    try:
        spec = spec_from_dict(values)
    except SpecError:
        assert_refused(forge({**HEADER, "spec": values}), rf"spec in the header: {'.'.join(path)}\b.* missing")
        return
    content = pack_bytes(spec, random_weights(spec, 2))
    payload_at = PREFIX.size + PREFIX.unpack(content[: PREFIX.size])[3]
    header = json.loads(brotli.decompress(content[PREFIX.size : payload_at]))
    older = {**header, "spec": _without(header["spec"], path), "spec_id": "0" * 16}
    found = unpack_bytes(forge(older, content[payload_at:]))
    assert found.spec == spec and found.info.spec_id == spec_id(spec)
    assert all(np.array_equal(found.weights[name], value) for name, value in unpack_bytes(content).weights.items())
