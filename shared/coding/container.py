"""The `.btz` file: a text that was coded with a model. docs/coding.md is its format.

A reader trusts nothing: every size is checked against the file before it is used, and a file of other bytes than an
encoder writes is refused, either at once by its short checksum or by the check of its text.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

from shared.coding.intervals import interval_bits
from shared.coding.streams import MAX_STREAMS
from shared.errors import DataError

MAGIC = b"BTZ"
VERSION = 1
SUM_BYTES, NAME_BYTES, CHECK_BYTES = 2, 6, 8
FIXED_BYTES = len(MAGIC) + 1 + SUM_BYTES + NAME_BYTES + CHECK_BYTES
MAX_VARINT_BYTES = 9
# The range coder leaves out at most this.
UNWRITTEN_BYTES = 5


@dataclass(frozen=True)
class CodedFile:
    """What a file says: the first bytes of the artifact's SHA-256, the check of the text, how many symbols there are in
    how many streams, and the payload. `protocol` is the low half of the fourth byte."""

    artifact: bytes
    check: bytes
    num_symbols: int
    streams: int
    payload: bytes
    protocol: int = 0

    @property
    def head(self) -> bytes:
        """What stands between the checksums and the payload."""
        return _varint(self.num_symbols) + _varint(self.streams)


def text_check(artifact_sha256: str, head: bytes, payload: bytes, content: bytes) -> bytes:
    """The check of a text and everything that leads to it."""
    digest = hashlib.sha256(bytes.fromhex(artifact_sha256))
    for part in (bytes([VERSION << 4]), len(head).to_bytes(8, "little"), head, payload, content):
        digest.update(part)
    return digest.digest()[:CHECK_BYTES]


def pack(file: CodedFile) -> bytes:
    """The bytes of a file."""
    rest = file.artifact + file.check + file.head + file.payload
    start = MAGIC + bytes([VERSION << 4 | file.protocol])
    return start + _checksum(start + rest) + rest


def parse(content: bytes, vocab_size: int) -> CodedFile:
    """What a file says that was coded with a model of `vocab_size` symbols. Raises DataError."""
    if content[: len(MAGIC)] != MAGIC[: len(content)] or not content:
        raise DataError("not a file of `bytetwin compress`")
    if len(content) < FIXED_BYTES:
        raise DataError(f"truncated: {len(content)} bytes, the fixed part alone has {FIXED_BYTES}")
    start, rest = content[: len(MAGIC) + 1], content[len(MAGIC) + 1 + SUM_BYTES :]
    version, protocol = divmod(start[-1], 16)
    if version != VERSION:
        raise DataError(f"format version {version}, this program reads {VERSION}")
    if _checksum(start + rest) != content[len(start) : len(start) + SUM_BYTES]:
        raise DataError("damaged: its checksum does not match")
    if protocol:
        raise DataError(f"protocol {protocol}, this program knows 0")
    artifact, check, rest = rest[:NAME_BYTES], rest[NAME_BYTES:][:CHECK_BYTES], rest[NAME_BYTES + CHECK_BYTES :]
    num_symbols, rest = _read_varint(rest)
    streams, payload = _read_varint(rest)
    if not 1 <= streams <= MAX_STREAMS or streams > max(num_symbols, 1):
        raise DataError(
            f"{streams} streams of {num_symbols} symbols, at most {MAX_STREAMS} and one a symbol are allowed"
        )
    # The likeliest symbol leaves a slot to each other one and the escapes.
    most = 8 * (len(payload) + UNWRITTEN_BYTES) << interval_bits(vocab_size)
    if num_symbols * vocab_size > most:
        raise DataError(f"{num_symbols} symbols in a payload of {len(payload)} bytes, which cannot hold as many")
    return CodedFile(artifact, check, num_symbols, streams, payload, protocol)


def _checksum(content: bytes) -> bytes:
    return (zlib.crc32(content) & 0xFFFF).to_bytes(SUM_BYTES, "little")


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the eighth bit."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _read_varint(content: bytes) -> tuple[int, bytes]:
    """(the number at the start, what follows)."""
    value = 0
    for index, byte in enumerate(content[:MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            if byte == 0 and index:
                raise DataError("a number has more bytes than it needs")
            return value, content[index + 1 :]
    raise DataError("a number does not end")
