"""The `.btz` file: a text that was coded with a model. docs/coding.md is its format.

A reader trusts nothing: every size is checked against the file before it is used, and a file of other bytes than an
encoder writes is refused, either at once by its short checksum or by the check of its text.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from itertools import pairwise

from pydantic import ValidationError

from shared.coding.intervals import interval_bits
from shared.coding.streams import MAX_STREAMS
from shared.errors import DataError, one_line
from shared.parsing import parse_json
from shared.spec.adaptation import AdaptationSpec

MAGIC = b"BTZ"
VERSION = 1
SUM_BYTES, NAME_BYTES, CHECK_BYTES, FINGERPRINT_BYTES = 2, 6, 8, 4
FIXED_BYTES = len(MAGIC) + 1 + SUM_BYTES + NAME_BYTES + CHECK_BYTES
MAX_VARINT_BYTES = 9
# The range coder leaves out at most this.
UNWRITTEN_BYTES = 5
MAX_SETTINGS_BYTES = 1 << 12
# The plan of what is learnt is made for all of them at once.
MAX_LEARNT_SYMBOLS = 1 << 26
# What learnt, by its number in a file.
LEARNERS = ("mlx", "torch")

# Protocols: the plain score; adaptation as the artifact's own spec says, in the most common form, or as the file says.
PLAIN, OWN, COMMON, TOLD = range(4)
COMMON_SETTINGS = AdaptationSpec.model_validate(
    {
        "kind": "score_first",
        "chunk_symbols": 1024,
        "epochs": 1,
        "batch_symbols": 65536,
        "optimizer": "adam",
        "rate": 0.001,
        "rate_shape": "constant",
        "momentum": 0.9,
        "beta1": 0.0,
        "beta2": 0.95,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "parameters": ["*"],
        "lora": {"rank": 0, "alpha": 16.0, "targets": ["q", "v"]},
        "reset": "never",
        "documents": 16,
        "warm_start": False,
        "phases": {
            "count": 0,
            "documents": 2000,
            "epochs": 1,
            "rate": 0.001,
            "momentum": 0.9,
            "clip_norm": 1.0,
            "batch_symbols": 65536,
            "parameters": ["*"],
        },
    }
)


@dataclass(frozen=True)
class Learning:
    """What a file with adaptation says of it: the protocol, the settings if the file has them, the engine that learnt,
    the hash of what it learnt from fixed symbols, and where documents begin, if that matters."""

    protocol: int
    settings: AdaptationSpec | None
    engine: str
    fingerprint: bytes
    starts: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class CodedFile:
    """What a file says: the first bytes of the artifact's SHA-256, the check of the text, how many symbols there are in
    how many streams, and the payload."""

    artifact: bytes
    num_symbols: int
    streams: int
    payload: bytes
    learning: Learning | None = None
    check: bytes = bytes(CHECK_BYTES)

    @property
    def protocol(self) -> int:
        """The low half of the fourth byte."""
        return PLAIN if self.learning is None else self.learning.protocol

    @property
    def head(self) -> bytes:
        """What stands between the check and the payload."""
        head, learning = varint(self.num_symbols), self.learning
        if learning is None:
            return head + varint(self.streams)
        if learning.protocol == TOLD:
            assert learning.settings is not None
            common, values = (each.model_dump(mode="json") for each in (COMMON_SETTINGS, learning.settings))
            other = {name: value for name, value in values.items() if value != common[name]}
            settings = json.dumps(other, separators=(",", ":")).encode()
            head += varint(len(settings)) + settings
        gaps = [after - before for before, after in pairwise(learning.starts)]
        head += varint(len(gaps)) + b"".join(map(varint, gaps))
        return head + bytes([LEARNERS.index(learning.engine)]) + learning.fingerprint

    def text_check(self, artifact_sha256: str, content: bytes) -> bytes:
        """The check of a text and of everything that leads to it."""
        digest = hashlib.sha256(bytes.fromhex(artifact_sha256))
        head = self.head
        for part in (self._version, len(head).to_bytes(8, "little"), head, self.payload, content):
            digest.update(part)
        return digest.digest()[:CHECK_BYTES]

    def pack(self) -> bytes:
        """The bytes of the file."""
        start, rest = MAGIC + self._version, self.artifact + self.check + self.head + self.payload
        return start + checksum(start + rest) + rest

    @property
    def _version(self) -> bytes:
        return bytes([VERSION << 4 | self.protocol])


def parse(content: bytes, vocab_size: int) -> CodedFile:
    """What a file says that was coded with a model of `vocab_size` symbols. Raises DataError."""
    if content[: len(MAGIC)] != MAGIC[: len(content)] or not content:
        raise DataError("not a file of `bytetwin compress`")
    if len(content) < FIXED_BYTES:
        raise DataError(f"truncated: {len(content)} bytes, the fixed part alone has {FIXED_BYTES}")
    reader = _Reader(content)
    start, stored_sum = reader.take(len(MAGIC) + 1), reader.take(SUM_BYTES)
    version, protocol = divmod(start[-1], 16)
    if version != VERSION:
        raise DataError(f"format version {version}, this program reads {VERSION}")
    if checksum(start + content[FIXED_BYTES - NAME_BYTES - CHECK_BYTES :]) != stored_sum:
        raise DataError("damaged: its checksum does not match")
    if protocol > TOLD:
        raise DataError(f"protocol {protocol}, this program knows 0 to {TOLD}")
    artifact, check, num_symbols = reader.take(NAME_BYTES), reader.take(CHECK_BYTES), reader.varint()
    streams = reader.varint() if protocol == PLAIN else 1
    if protocol != PLAIN and num_symbols > MAX_LEARNT_SYMBOLS:
        raise DataError(f"{num_symbols} symbols with adaptation, at most {MAX_LEARNT_SYMBOLS} are allowed")
    learning = None if protocol == PLAIN else _read_learning(reader, protocol, num_symbols)
    payload = reader.rest()
    if not 1 <= streams <= MAX_STREAMS or streams > max(num_symbols, 1):
        raise DataError(f"{streams} streams of {num_symbols} symbols; allowed: {MAX_STREAMS}, and one a symbol")
    # The likeliest symbol leaves a slot to each other one and the escapes.
    most = 8 * (len(payload) + UNWRITTEN_BYTES) << interval_bits(vocab_size)
    if num_symbols * vocab_size > most:
        raise DataError(f"{num_symbols} symbols in a payload of {len(payload)} bytes, which cannot hold as many")
    return CodedFile(artifact, num_symbols, streams, payload, learning, check)


def _read_learning(reader: _Reader, protocol: int, num_symbols: int) -> Learning:
    settings = COMMON_SETTINGS if protocol == COMMON else None
    if protocol == TOLD:
        size = reader.varint()
        if size > MAX_SETTINGS_BYTES:
            raise DataError(f"settings of {size} bytes, at most {MAX_SETTINGS_BYTES} are allowed")
        try:
            values = parse_json(reader.take(size))
            if not isinstance(values, dict):
                raise ValueError("they are not a JSON object")
            settings = AdaptationSpec.model_validate(COMMON_SETTINGS.model_dump(mode="json") | values)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise DataError(one_line(f"its settings of adaptation cannot be used: {where}")) from None
        except ValueError as error:
            raise DataError(one_line(f"its settings of adaptation cannot be read: {error}")) from None
        if not settings.is_on:
            raise DataError("its settings of adaptation learn nothing")
    starts = [0]
    for _ in range(reader.varint()):
        starts.append(starts[-1] + reader.varint())
        if not starts[-2] < starts[-1] < num_symbols:
            raise DataError(f"a document that begins at symbol {starts[-1]} of {num_symbols}")
    number = reader.take(1)[0]
    if number >= len(LEARNERS):
        raise DataError(f"engine {number}, this program knows 0 to {len(LEARNERS) - 1}")
    return Learning(protocol, settings, LEARNERS[number], reader.take(FINGERPRINT_BYTES), tuple(starts))


class _Reader:
    """Takes bytes from the front."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def take(self, count: int) -> bytes:
        """The next bytes. Raises DataError where there are fewer."""
        if self._at + count > len(self._content):
            raise DataError(f"truncated: {len(self._content)} bytes, its head needs {self._at + count}")
        self._at += count
        return self._content[self._at - count : self._at]

    def varint(self) -> int:
        """The next number."""
        value = 0
        for index in range(MAX_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * index
            if not byte & 0x80:
                if byte == 0 and index:
                    break
                return value
        raise DataError("a number in its head has more bytes than it needs or may have")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._content) - self._at)


def checksum(content: bytes) -> bytes:
    """The short checksum of a file without it."""
    return (zlib.crc32(content) & 0xFFFF).to_bytes(SUM_BYTES, "little")


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the eighth bit."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
